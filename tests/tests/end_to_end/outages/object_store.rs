//! The archive is down: its disk is read-only. Clicks wait in the log, which keeps them; hours wait and say so. A bucket
//! that is down is in `s3.rs`.

use anyhow::{Context, Result, ensure};
use twice_tests::{LoadShape, Node, NodeOptions, one_at_a_time};

use super::{metric, wait_for_degraded, wait_for_recovered};
use crate::damage::disk::SmallDisk;
use crate::support::{hours_ago, oracle_agrees, wait_for};

#[test]
fn with_its_disk_read_only_the_log_keeps_what_is_not_archived_and_no_hour_closes() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::prepare(NodeOptions::brisk().with_little_log())?;
    let Some(disk) = SmallDisk::mount(&node.data_dir().join("archive"), 128)? else {
        eprintln!("SKIPPED: this user may not mount a small disk; the read-only archive is not tested");
        return Ok(());
    };
    node.restart()?;
    let from = hours_ago(3);
    let mut ledgers = vec![LoadShape::small("before", 101, &from.to_string()).run(&node)?];
    // Between two puts, or the kernel refuses.
    wait_for("a moment without a put", || Ok(disk.make_read_only()?.then_some(())))?;
    ledgers.push(LoadShape::small("during", 102, &from.to_string()).run(&node)?);

    wait_for_degraded(&node, "archiver")?;
    ensure!(metric(&node, "twice_archiver_failing", " 1")? > 0.0, "archiving works");
    wait_for("a log above its limit", || {
        Ok((metric(&node, "twice_log_over_limit_bytes", "")? > 0.0).then_some(()))
    })?;
    nothing_unarchived_is_trimmed(&node)?;
    let waits = node.command(&["reconcile", "--hour", &from.to_string(), "--no-wait"])?;
    let billed = node.client().get_rows(&format!("/v1/billing?hour={from}"))?;
    ensure!(billed.is_empty(), "billed without an archive: {waits:?}");

    disk.make_writable()?;
    wait_for_recovered(&node, "archiver")?;
    ledgers.push(LoadShape::small("after", 103, &from.to_string()).run(&node)?);
    node.prove(&ledgers)?;
    oracle_agrees(&node, &ledgers, from, 2)?;
    node.kill()
}

fn nothing_unarchived_is_trimmed(node: &Node) -> Result<()> {
    let stream = node.client().get_json("/v1/stream")?;
    let partitions = stream["partitions"].as_array().cloned().context("partitions")?;
    ensure!(!partitions.is_empty(), "{stream}");
    let mut behind = 0;
    for status in partitions {
        let (number, archived) = (&status["partition"], status["archived_end"].as_f64().context("an end")?);
        let labels = format!("topic=\"ad-clicks\",partition=\"{number}\"");
        let earliest = metric(node, "twice_log_earliest_offset", &labels)?;
        ensure!(earliest <= archived, "partition {number} begins at {earliest}, archived to {archived}");
        behind += i32::from(status["log_end"].as_f64() > Some(archived));
    }
    ensure!(behind > 0, "nothing waits for the archive: {stream}");
    Ok(())
}
