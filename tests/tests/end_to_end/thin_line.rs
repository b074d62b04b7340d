//! The main job: clicks over HTTP, preliminary at once, reconciled when the hour is closed, exact to the click.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twice_log::{Clock, UtcMillis, WallClock};
use twice_tests::{Binaries, LoadShape, Node, NodeOptions, one_at_a_time, run};

use crate::support::{bill, clicks, divergence, hourly, hours_ago, oracle_agrees, text, wait_for};

#[test]
fn clicks_become_preliminary_then_reconciled_and_both_are_explained() -> Result<()> {
    let _turn = one_at_a_time();
    let node = Node::start(NodeOptions::default())?;
    let from = hours_ago(3);
    let mut shape = LoadShape::small("line", 11, &from.to_string());
    shape.flags.extend(["--unknown-campaigns", "3", "--price-changes", "8"].map(str::to_owned));
    let busiest = format!("load{}-0", shape.seed);

    let load = shape.start(&node)?;
    wait_for("a preliminary number while clicks come in", || {
        let rows = hourly(&node, &busiest, from, 2, "merged")?;
        let preliminary = rows.iter().all(|row| row["status"] == "preliminary");
        ensure!(preliminary, "nothing is billed yet: {rows:?}");
        Ok((clicks(&rows) > 0).then_some(()))
    })?;
    let ledger = load.finish(&node)?;
    what_is_called_fresh_is_in_the_numbers(&node, &busiest)?;

    for hour in [from, from.plus(1)] {
        let rows = node.reconcile(&hour.to_string())?;
        ensure!(!rows.is_empty(), "no billing rows for {hour}");
    }
    let proof = node.verify(std::slice::from_ref(&ledger), &["--exclusive", "--require-complete"])?;
    proof.expect(0)?;
    oracle_agrees(&node, &[ledger], from, 2)?;

    rows_are_balanced_and_labelled(&node, &busiest)?;
    a_second_reconcile_changes_nothing(&node)?;
    every_difference_is_explained(&node)?;
    the_log_prints_as_json_lines(&node)?;
    ensure!(node.client().get("/v1/reconciliations")?.status == 200);
    Ok(())
}

/// `fresh_to` promises that every click that arrived before it is in the answer: so nothing may be added after it.
fn what_is_called_fresh_is_in_the_numbers(node: &Node, campaign: &str) -> Result<()> {
    let from = hours_ago(3);
    let query = format!("from={}&to={}&granularity=hour", from.start(), from.plus(2).start());
    let path = format!("/v1/campaigns/{campaign}/clicks?{query}");
    let loaded = WallClock.now();
    let answer = wait_for("an answer as fresh as the end of the load", || {
        let answer = node.client().get_json(&path)?;
        let fresh_to: UtcMillis = text(&answer, "fresh_to").parse()?;
        Ok((fresh_to >= loaded).then_some(answer))
    })?;
    // Longer than the stream takes to show what it has counted.
    std::thread::sleep(Duration::from_secs(3));
    let later = node.client().get_json(&path)?;
    ensure!(answer["rows"] == later["rows"], "called fresh and was not: {answer} became {later}");
    Ok(())
}

fn rows_are_balanced_and_labelled(node: &Node, busiest: &str) -> Result<()> {
    let from = hours_ago(3);
    let rows = bill(node, from, 2)?;
    for row in rows.values() {
        let count = |field: &str| row[field].as_u64().with_context(|| format!("{field} of {row}"));
        let parts =
            count("duplicates")? + count("invalid_givt")? + count("invalid_sivt")? + count("billable")?;
        ensure!(count("gross")? == parts, "CR-5 does not hold: {row}");
        ensure!(row["status"] == "reconciled" && row["version"] == 1 && row["path"] == "lambda", "{row}");
        ensure!(text(row, "digest").len() == 64, "a digest is a SHA-256: {row}");
    }
    let merged = hourly(node, busiest, from, 2, "merged")?;
    for row in &merged {
        let hour = text(row, "window_start");
        let billed = rows.values().find(|billed| {
            text(billed, "campaign_id") == busiest
                && hour.starts_with(text(billed, "hour_bucket").get(..13).unwrap_or("-"))
        });
        let billed = billed.with_context(|| format!("the merged row {row} has no bill"))?;
        ensure!(
            row["status"] == "reconciled" && row["clicks"] == billed["billable"],
            "{row} is not {billed}"
        );
    }
    ensure!(merged.len() == 2, "one row an hour: {merged:?}");
    Ok(())
}

fn a_second_reconcile_changes_nothing(node: &Node) -> Result<()> {
    let from = hours_ago(3);
    let before = bill(node, from, 2)?;
    let printed = node.command(&["reconcile", "--hour", &from.to_string()])?.expect(0)?;
    ensure!(printed.contains("identical"), "same inputs, same rows (CR-8): {printed}");
    ensure!(bill(node, from, 2)? == before, "an identical run wrote a version");
    Ok(())
}

fn every_difference_is_explained(node: &Node) -> Result<()> {
    let from = hours_ago(3);
    let rows = divergence(node, from, 2)?;
    ensure!(!rows.is_empty(), "no divergence rows");
    let mut late = 0;
    for row in &rows {
        ensure!(row["stream"] == "complete" && row["unexplained"] == 0, "unexplained: {row}");
        let number = |field: &str| row[field].as_i64().with_context(|| format!("{field} of {row}"));
        let causes = number("late_duplicate")? + number("fraud")? - number("late")?;
        ensure!(number("preliminary")? - number("billed")? == causes, "G-5 does not hold: {row}");
        late += number("late")?;
    }
    ensure!(late > 0, "the load had late clicks, and the stream found none");
    let differing =
        rows.iter().find(|row| row["late"].as_i64() > Some(0)).context("a row with late clicks")?;
    let hour = text(differing, "hour_bucket").get(..13).unwrap_or_default().to_owned();
    let campaign = text(differing, "campaign_id");
    let printed = node.command(&["explain", "--hour", &hour, "--campaign", &campaign])?.expect(0)?;
    let listed = printed.lines().filter(|line| line.starts_with("late ")).count() as i64;
    ensure!(
        Some(listed) == differing["late"].as_i64(),
        "explain lists {listed} late clicks of {differing}\n{printed}"
    );
    Ok(())
}

fn the_log_prints_as_json_lines(node: &Node) -> Result<()> {
    let mut command: Command = Binaries::get().twice();
    command.args(["log", "cat", "ad-clicks", "--limit", "5", "--data-dir"]).arg(node.data_dir());
    let printed = run(&mut command, Duration::from_secs(60))?.expect(0)?;
    ensure!(!printed.is_empty(), "the log is empty");
    for line in printed.lines() {
        let record: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        ensure!(record["record"]["campaign_id"].is_string() && record["offset"].is_i64(), "{line}");
        let user = text(&record["record"], "user_id");
        // A pseudonym may begin like one; the load's own ids are digits after that.
        let is_clear =
            user.strip_prefix("u_").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
        ensure!(!is_clear, "a user id lies in the log in clear: {line}");
    }
    Ok(())
}

#[test]
fn a_stopped_node_starts_again_with_the_same_numbers() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::start(NodeOptions::default())?;
    let from = hours_ago(3);
    let shape =
        LoadShape { duration: Duration::from_secs(2), ..LoadShape::small("stop", 12, &from.to_string()) };
    let ledger = shape.run(&node)?;
    let status = node.stop()?;
    ensure!(status.success(), "SIGTERM is a graceful stop, not {status}\n{}", node.log_tail());
    node.restart()?;
    node.prove(&[ledger])?;
    Ok(())
}
