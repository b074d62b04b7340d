//! The README and the book, tried out: what they say must be what a reader sees.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use twice_tests::{Binaries, Node, NodeOptions, one_at_a_time, run, workspace_root};

use crate::support::{clicks, hourly, hours_ago, wait_for};

const LIMIT: Duration = Duration::from_secs(120);

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(workspace_root().join(path)).with_context(|| path.to_owned())
}

#[test]
fn the_tour_of_the_readme_shows_what_it_says() -> Result<()> {
    let _turn = one_at_a_time();
    let readme = read("README.md")?;
    let (_, tour) = readme.split_once("\n## A tour").context("the tour")?;
    let tour = tour.split("\n## ").next().unwrap_or(tour);
    let blocks: Vec<&str> = tour
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```").map(|(block, _)| block))
        .collect();
    let [_start, send, close, later] = blocks[..] else {
        anyhow::bail!("the tour has other blocks: {blocks:?}")
    };
    let node = Node::start(NodeOptions::default())?;

    let sent = shell(&node, send)?;
    ensure!(sent.contains(r#"{"accepted":6,"rejected":[{"index":4,"code":"click_id_not_uuid""#), "{sent}");
    wait_for("the three clicks of the tour", || {
        let rows = hourly(&node, "camp_123", hours_ago(1), 1, "stream")?;
        Ok((clicks(&rows) == 3).then_some(()))
    })?;
    // Each block of the tour is typed into one shell: the hour and the ids of the first are those of the second.
    let hour = send.lines().next().context("the hour")?;
    let closed = shell(&node, &format!("{hour}\n{close}"))?;
    for expected in [
        r#""clicks":3,"unique_users":2,"status":"preliminary""#,
        "committed: 1 rows written, run lambda/",
        r#""gross":6,"duplicates":2,"conflicts":1,"invalid_givt":0,"invalid_sivt":0,"billable":4,"unpriced":0,"amount_micros":2000000,"currency":"USD""#,
        "preliminary               3  (stream: complete)",
        "+ late                    1  too late for the stream, billed all the same",
        "= billed                  4",
        "late            0194f3a0-1111-7222-8333-000000000004",
    ] {
        ensure!(closed.contains(expected), "the tour does not show {expected}\n{closed}");
    }
    what_comes_after_the_bill(&node, hour, send, later)
}

/// The block in which the world changes. A sweep that changes a bill ends with 1, as the README says.
fn what_comes_after_the_bill(node: &Node, hour: &str, send: &str, later: &str) -> Result<()> {
    let ids = send.lines().find(|line| line.starts_with("ID=")).context("the ids")?;
    let folder = node.root().display();
    let shown = shell(node, &format!("set +e\ncd {folder}\n{hour}\n{ids}\n{later}"))?;
    for expected in [
        "the bill changed: 1 rows, -1 clicks, -0.500000 USD",
        "camp_123  version 2 (verdicts): -1 clicks, -0.500000 USD",
        ",verdicts,lambda/",
        "PROVED: the bill follows from the archive",
        "committed: 1 rows, 1 written, run kappa/",
        "equal to lambda",
        "Lambda and kappa agree: no row differs",
    ] {
        ensure!(shown.contains(expected), "the tour does not show {expected}\n{shown}");
    }
    ensure!(node.root().join("report.html").exists(), "the report is there");
    Ok(())
}

/// Runs lines of the README against the node under test instead of the default address.
fn shell(node: &Node, lines: &str) -> Result<String> {
    let folder = Binaries::get().twice.parent().map(PathBuf::from).context("folder of the binary")?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let address = node.url();
    let script = lines.replace("localhost:8080", address.trim_start_matches("http://"));
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", &script]).env("PATH", path).env("TWICE_SERVER", address);
    run(&mut command, LIMIT)?.expect(0)
}

#[test]
fn every_setting_is_in_the_book_with_its_default() -> Result<()> {
    let book = read("docs/operations.md")?;
    let help = run(Binaries::get().twice().args(["up", "--help"]), LIMIT)?.expect(0)?;
    let mut setting: Option<String> = None;
    let mut missing = Vec::new();
    let mut seen = 0;
    for line in help.lines().map(str::trim) {
        if let Some(flag) = line.strip_prefix("--") {
            let name = flag.split_whitespace().next().unwrap_or_default().replace('-', "_");
            seen += 1;
            if name != "config" && !book.contains(&format!("| `{name}` | ")) {
                missing.push(name.clone());
            }
            setting = Some(name);
        } else if let Some(default) = line.strip_prefix("[default: ").and_then(|rest| rest.strip_suffix(']'))
        {
            let name = setting.as_deref().unwrap_or_default();
            if !book.contains(&format!("| `{name}` | `{default}` | ")) {
                missing.push(format!("{name} = {default}"));
            }
        }
    }
    ensure!(seen > 20, "only {seen} settings in the help: does this test still read it rightly?");
    ensure!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
    Ok(())
}

#[test]
fn every_metric_the_book_names_is_exported() -> Result<()> {
    let book = read("docs/operations.md")?;
    let mut sources = String::new();
    for file in
        ["api/src/metrics.rs", "actors/src/metrics.rs", "reconciler/src/metrics.rs", "node/src/metrics.rs"]
    {
        sources.push_str(&read(file)?);
    }
    let named: Vec<&str> = book
        .split('`')
        .filter(|word| {
            word.starts_with("twice_")
                && word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')
        })
        .collect();
    ensure!(named.len() > 5, "the book names {named:?}");
    let unknown: Vec<_> = named.iter().filter(|name| !sources.contains(&format!("\"{name}\""))).collect();
    ensure!(unknown.is_empty(), "docs/operations.md names metrics that nothing exports: {unknown:?}");
    Ok(())
}
