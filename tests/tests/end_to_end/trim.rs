//! A log that is trimmed while clicks come: the bill is the same, and lost state is rebuilt from the archive.

use anyhow::{Context, Result, ensure};
use twice_log::Hour;
use twice_tests::{LoadShape, Node, NodeOptions, one_at_a_time};

use crate::support::{divergence, hours_ago, wait_for};

/// Waits until the log no longer begins at offset 0 in any partition of the clicks.
fn trimmed(node: &Node) -> Result<()> {
    wait_for("a log that was trimmed", || {
        let text = node.client().get("/metrics")?.body;
        let of_clicks = |line: &&str| {
            line.starts_with("twice_log_earliest_offset")
                && line.contains("ad-clicks")
                && !line.ends_with(" 0")
        };
        Ok((text.lines().filter(of_clicks).count() >= 4).then_some(()))
    })
}

fn every_row_is_explained(node: &Node, from: Hour) -> Result<()> {
    let rows = divergence(node, from, 2)?;
    ensure!(!rows.is_empty(), "no divergence rows");
    for row in rows {
        ensure!(row["stream"] == "complete" && row["unexplained"] == 0, "{row}\n{}", node.log_tail());
    }
    Ok(())
}

#[test]
fn state_lost_under_a_trimmed_log_is_rebuilt_and_nothing_is_unexplained() -> Result<()> {
    let _turn = one_at_a_time();
    let from = hours_ago(3);
    let mut node = Node::start(NodeOptions::brisk().with_little_log())?;
    let first = LoadShape::small("first", 71, &from.to_string()).run(&node)?;
    node.reconcile(&from.to_string())?;
    trimmed(&node)?;
    ensure!(node.stop()?.success(), "graceful stop\n{}", node.log_tail());
    std::fs::remove_dir_all(node.data_dir().join("sled")).context("remove the state")?;
    node.restart()?;
    let second = LoadShape::small("second", 72, &from.to_string()).run(&node)?;
    node.prove(&[first, second])?;
    every_row_is_explained(&node, from)
}

#[test]
fn a_kill_while_the_log_is_trimmed_changes_no_number() -> Result<()> {
    let _turn = one_at_a_time();
    let from = hours_ago(3);
    let mut node = Node::start(NodeOptions::brisk().with_little_log())?;
    let first = LoadShape::small("first", 73, &from.to_string()).run(&node)?;
    trimmed(&node)?;
    node.kill()?;
    node.restart()?;
    let second = LoadShape::small("second", 74, &from.to_string()).run(&node)?;
    node.kill()?;
    std::fs::remove_dir_all(node.data_dir().join("sled")).context("remove the state")?;
    node.restart()?;
    node.prove(&[first, second])?;
    every_row_is_explained(&node, from)
}
