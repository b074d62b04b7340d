//! The proof of a bill: on a node, on the folder of a stopped one, and after the billing store is written again.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twice_tests::{Binaries, LoadShape, Node, NodeOptions, one_at_a_time, python, run};

use crate::support::{bill, hours_ago};

/// Changes a row as someone who holds the file would.
const EDIT: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.executescript('DROP TRIGGER billing_rows_are_not_updated')
changed = db.execute('UPDATE billing_rows SET amount_micros = amount_micros + 1 WHERE campaign_id = ?', [sys.argv[2]])
assert changed.rowcount > 0
db.commit()
";

fn certificate(node: &Node, arguments: &[&str], status: i32) -> Result<Value> {
    let printed = node.command(&[&["audit", "--json"], arguments].concat())?.expect(status)?;
    serde_json::from_str(&printed).with_context(|| format!("no certificate: {printed}"))
}

#[test]
fn a_bill_is_proved_with_and_without_a_node_and_after_a_rebuild() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::start(NodeOptions::brisk())?;
    let from = hours_ago(3);
    let shape = LoadShape::small("audited", 61, &from.to_string());
    let campaign = format!("load{}-0", shape.seed);
    let ledger = shape.start(&node)?.finish(&node)?;
    for hour in [from, from.plus(1)] {
        node.reconcile(&hour.to_string())?;
    }
    let hour = from.to_string();
    let online = certificate(&node, &["--hour", &hour], 0)?;
    ensure!(online["verdict"] == "proved", "{online}");
    let billed = bill(&node, from, 2)?;

    // The same, without the node.
    node.stop()?;
    let data_dir = node.data_dir();
    let folder = data_dir.display().to_string();
    let place = ["--hour", hour.as_str(), "--data-dir", folder.as_str()];
    let offline = certificate(&node, &place, 0)?;
    ensure!(offline["certificate_sha256"] == online["certificate_sha256"], "{offline}\n{online}");
    let again = node.command(&[&["reconcile"], &place[..]].concat())?.expect(0)?;
    ensure!(again.contains("identical"), "{again}");
    let explained = node.command(&[&["explain", "--campaign", &campaign], &place[..]].concat())?.expect(0)?;
    ensure!(explained.contains("= billed"), "{explained}");
    let before = certificate(&node, &place, 0)?;

    // Without the database too.
    for name in ["twice.sqlite", "twice.sqlite-wal", "twice.sqlite-shm"] {
        let _ = std::fs::remove_file(data_dir.join(name));
    }
    let mut rebuild = Binaries::get().twice();
    rebuild.args(["rebuild", "billing", "--data-dir", &folder]);
    let rebuilt = run(&mut rebuild, Duration::from_secs(300))?.expect(0)?;
    ensure!(rebuilt.contains("3 runs, 3 of them counted now"), "{rebuilt}");
    let after = certificate(&node, &place, 0)?;
    ensure!(after["certificate_sha256"] == before["certificate_sha256"], "{after}\n{before}");
    node.restart()?;
    ensure!(bill(&node, from, 2)? == billed, "the rebuilt bill is another");
    node.prove(std::slice::from_ref(&ledger))?;
    node.stop()?;

    let mut edit = Command::new(python()?);
    edit.args(["-c", EDIT]).arg(data_dir.join("twice.sqlite")).arg(&campaign);
    run(&mut edit, Duration::from_secs(60))?.expect(0)?;
    let edited = certificate(&node, &place, 1)?;
    let findings = edited["findings"].to_string();
    ensure!(findings.contains(&format!("row {campaign} {hour} lambda version 1")), "{findings}");
    Ok(())
}
