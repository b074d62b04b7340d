//! The disk of the data folder is read-only: a node does not start on it, says why, and afterwards bills what it had taken.
//! A full one is in `damage/disk.rs`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use twice_tests::{LoadShape, Node, NodeOptions, one_at_a_time};

use crate::damage::disk::SmallDisk;
use crate::support::{hours_ago, wait_for};

const REFUSAL_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_read_only_disk_stops_the_start_with_the_reason_and_costs_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::prepare(NodeOptions::brisk())?;
    let Some(disk) = SmallDisk::mount(&node.data_dir(), 256)? else {
        eprintln!("SKIPPED: this user may not mount a small disk; the read-only disk is not tested");
        return Ok(());
    };
    node.restart()?;
    let ledger = LoadShape::small("before", 111, &hours_ago(3).to_string()).run(&node)?;
    node.kill()?;
    wait_for("a read-only disk", || Ok(disk.make_read_only()?.then_some(())))?;
    node.restart_unready()?;
    let ended = node.death_within(REFUSAL_LIMIT)?.with_context(|| node.log_tail())?;
    let said = node.log_tail();
    ensure!(ended.code() == Some(2) && said.contains("Read-only file system"), "{ended}\n{said}");
    disk.make_writable()?;
    node.restart()?;
    node.prove(&[ledger])?;
    node.kill()
}
