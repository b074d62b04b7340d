//! The real-time store is down: its disk is full. Windows wait in memory and are shown again.

use anyhow::{Result, ensure};
use twice_tests::{LoadShape, Node, NodeOptions, one_at_a_time};

use super::{metric, wait_for_degraded, wait_for_notice, wait_for_recovered};
use crate::damage::disk::SmallDisk;
use crate::support::{clicks, divergence, hourly, hours_ago, text, wait_for};

#[test]
fn with_its_disk_full_answers_say_so_and_with_room_again_every_window_is_shown() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::prepare(NodeOptions::brisk())?;
    let Some(disk) = SmallDisk::mount(&node.data_dir().join("sled/windows"), 24)? else {
        eprintln!("SKIPPED: this user may not mount a small disk; the full window store is not tested");
        return Ok(());
    };
    node.restart()?;
    let from = hours_ago(3);
    let first = LoadShape::small("before", 81, &from.to_string()).run(&node)?;
    let filler = disk.fill_to(0)?;
    let second = LoadShape::small("during", 82, &from.to_string()).run(&node)?;
    wait_for_degraded(&node, "real-time store")?;
    let answer = wait_for_notice(&node, "load81-1", from, "stream_unavailable")?;
    ensure!(answer["rows"].as_array().is_some(), "{answer}");
    ensure!(metric(&node, "twice_stream_publish_failures_total", "")? > 0.0, "no failed publish");
    let unshown = |node: &Node| -> Result<f64> {
        let page = node.client().get("/metrics")?.body;
        let lines = page.lines().filter(|line| line.starts_with("twice_stream_unshown_seconds{"));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).fold(0.0, f64::max))
    };
    wait_for("the age of what is not shown", || Ok((unshown(&node)? > 0.0).then_some(())))?;

    std::fs::remove_file(filler)?;
    wait_for_recovered(&node, "real-time store")?;
    let third = LoadShape::small("after", 83, &from.to_string()).run(&node)?;
    wait_for("everything shown", || Ok((unshown(&node)? == 0.0).then_some(())))?;
    node.prove(&[first, second, third])?;

    // What a dashboard reads is what the seals counted, through the outage too.
    let rows = divergence(&node, from, 2)?;
    ensure!(!rows.is_empty(), "nothing was sealed");
    for row in rows {
        let hour = text(&row, "hour_bucket").get(..13).unwrap_or_default().parse()?;
        let shown = clicks(&hourly(&node, &text(&row, "campaign_id"), hour, 1, "stream")?);
        ensure!(row["stream"] == "complete", "an outage of windows left a hole in the seals: {row}");
        ensure!(Some(shown) == row["preliminary"].as_u64(), "{shown} are shown of {row}");
    }
    ensure!(node.stop()?.success(), "a graceful stop\n{}", node.log_tail());
    Ok(())
}
