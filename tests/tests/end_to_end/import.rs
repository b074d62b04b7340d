//! Clicks from files: old hours, interrupted anywhere, resumed, and billed once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use twice_tests::{Binaries, LoadShape, Node, NodeOptions, one_at_a_time, run, spawn};

use crate::support::{bill, hours_ago, oracle_agrees};

const COPIES: u64 = 30_000;
const LIMIT: Duration = Duration::from_secs(300);

/// A file of clicks that are weeks old, with its ledger.
fn generate(node: &Node, shape: &LoadShape, format: &str) -> Result<(PathBuf, PathBuf)> {
    let file = node.root().join(format!("{}.{format}", shape.name));
    let ledger = shape.ledger(node);
    let mut command = Binaries::get().loadgen();
    command.args(["generate", "--clicks", &COPIES.to_string(), "--out"]).arg(&file);
    command.arg("--ledger").arg(&ledger).args(shape.stream_arguments());
    run(&mut command, LIMIT)?.expect(0)?;
    let mut command = Binaries::get().loadgen();
    command.args(["campaigns", "--target", &node.url(), "--ledger"]).arg(&ledger);
    run(&mut command, LIMIT)?.expect(0)?;
    Ok((file, ledger))
}

fn import(node: &Node, file: &Path) -> Command {
    let mut command = node.command_line(&["import", "--batch", "500"]);
    command.arg(file).arg("--state-dir").arg(node.root().join("import-state"));
    command
}

#[test]
fn old_clicks_from_files_interrupted_and_resumed_are_billed_once() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::start(NodeOptions::brisk())?;
    let from = hours_ago(30 * 24);
    let lines = LoadShape::small("lines", 51, &from.to_string());
    let columns = LoadShape::small("columns", 52, &from.to_string());
    let (lines_file, lines_ledger) = generate(&node, &lines, "ndjson")?;
    let (columns_file, columns_ledger) = generate(&node, &columns, "parquet")?;

    for (name, file) in [("lines", &lines_file), ("columns", &columns_file)] {
        interrupt_importer(&node, file, name)?;
        interrupt_node(&mut node, file, name)?;
        run(&mut import(&node, file), LIMIT)?.expect(0).with_context(|| node.log_tail())?;
    }
    let ledgers = [lines_ledger, columns_ledger];
    let flags = ["--reconcile", "--exclusive", "--extra-copies", "--require-complete"];
    node.verify(&ledgers, &flags)?.expect(0).with_context(|| node.log_tail())?;
    let before = bill(&node, from, 2)?;

    // The whole file once more, by an importer that remembers nothing: only duplicates.
    std::fs::remove_dir_all(node.root().join("import-state"))?;
    run(&mut import(&node, &lines_file), LIMIT)?.expect(0)?;
    node.verify(&ledgers, &["--reconcile", "--exclusive", "--extra-copies"])?.expect(0)?;
    for (key, row) in bill(&node, from, 2)? {
        let earlier = before.get(&key).with_context(|| format!("a new row {row}"))?;
        ensure!(
            row["billable"] == earlier["billable"],
            "a second import changed the bill: {earlier} became {row}"
        );
    }
    oracle_agrees_on_an_import_without_interruption(&mut node, from)
}

fn oracle_agrees_on_an_import_without_interruption(node: &mut Node, from: twice_log::Hour) -> Result<()> {
    let fresh = Node::start(NodeOptions::brisk())?;
    let shape = LoadShape::small("whole", 53, &from.to_string());
    let (file, ledger) = generate(&fresh, &shape, "ndjson")?;
    node.kill()?;
    run(&mut import(&fresh, &file), LIMIT)?.expect(0)?;
    fresh.prove(std::slice::from_ref(&ledger))?;
    oracle_agrees(&fresh, &[ledger], from, 2)
}

/// Kills the importer after a moment; whatever it had sent stays.
fn interrupt_importer(node: &Node, file: &Path, name: &str) -> Result<()> {
    let mut importer = spawn(&mut import(node, file), node.root(), &format!("import-{name}"))?;
    importer.wait_until_ended(Duration::from_millis(400))?;
    importer.kill()?;
    Ok(())
}

/// Kills the node under a running importer, which waits, goes on with the restarted node, and ends well.
fn interrupt_node(node: &mut Node, file: &Path, name: &str) -> Result<()> {
    let importer = spawn(&mut import(node, file), node.root(), &format!("import-again-{name}"))?;
    std::thread::sleep(Duration::from_millis(300));
    node.kill()?;
    std::thread::sleep(Duration::from_millis(200));
    node.restart()?;
    importer.wait(LIMIT)?.expect(0)?;
    Ok(())
}
