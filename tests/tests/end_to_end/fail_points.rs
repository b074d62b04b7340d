//! Every fail point in turn: the node dies exactly at a durable step, is started again, and nothing is wrong.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use twice_log::fail::FailPoint;
use twice_tests::{LoadShape, Node, NodeOptions, Running, one_at_a_time, spawn};

use crate::support::{hours_ago, oracle_agrees};

/// Which pass of the point is the deadly one: late enough that there is something to lose.
fn pass(point: FailPoint) -> u32 {
    match point {
        FailPoint::LogWritten | FailPoint::LogSynced => 25,
        FailPoint::CheckpointStatesWritten
        | FailPoint::CheckpointStatesFlushed
        | FailPoint::CheckpointCommitted => 3,
        FailPoint::ArchiveFilesPut
        | FailPoint::ManifestPut
        | FailPoint::LogSegmentRemoved
        | FailPoint::SealBeforePut
        | FailPoint::SealPut => 2,
        FailPoint::RulesPut
        | FailPoint::RunInputsPut
        | FailPoint::AggregateFilesPut
        | FailPoint::AggregatesPut
        | FailPoint::RunBeforeCommit
        | FailPoint::RunAfterCommit
        | FailPoint::RunResultPut => 1,
        // Met by retention alone: its own test dies there.
        // Met by the first start of a node with keys: its own test dies there.
        FailPoint::FirstKeyStored => 0,
        // Met by campaigns with budgets, and by a stream that hangs: `budgets` dies there.
        FailPoint::StreamApplying | FailPoint::BudgetDecisionStored | FailPoint::BudgetDecisionPublished => 0,
        FailPoint::SettledPut | FailPoint::TombstonePut | FailPoint::BuriedFileRemoved => 0,
    }
}

#[test]
fn a_death_at_any_durable_step_changes_no_number() -> Result<()> {
    let _turn = one_at_a_time();
    for (index, point) in FailPoint::ALL.iter().enumerate().filter(|(_, point)| pass(**point) > 0) {
        let armed = format!("{}:{}", point.name(), pass(*point));
        eprintln!("fail point {armed}");
        die_and_recover(&armed, 200 + index as u64).with_context(|| format!("fail point {armed}"))?;
    }
    Ok(())
}

fn die_and_recover(armed: &str, seed: u64) -> Result<()> {
    let mut node = Node::prepare(NodeOptions::brisk().with_little_log())?;
    let from = hours_ago(3);
    node.restart_armed(armed)?;
    let mut shape = LoadShape::small("load", seed, &from.to_string());
    shape.duration = Duration::from_secs(4);
    shape.rate = 2_000;
    let mut load = shape.start(&node)?;
    let mut reconcile: Option<Running> = None;
    // Points of the stream path are met under load; those of the archive, seals and runs when an hour is closed.
    let status = loop {
        if let Some(status) = node.death_within(Duration::from_millis(100))? {
            break status;
        }
        if load.is_running()? {
            continue;
        }
        match &mut reconcile {
            None => {
                let mut command = node.command_line(&["reconcile", "--hour", &from.to_string()]);
                reconcile = Some(spawn(&mut command, node.root(), "reconcile")?);
            }
            Some(process) => {
                if process.ended()?.is_some() && node.death_within(Duration::from_secs(10))?.is_none() {
                    bail!("the point was never passed\n{}\n{}", process.output_tail(), node.log_tail());
                }
            }
        }
    };
    ensure!(
        status.signal() == Some(9),
        "the node ended with {status}, not at the fail point\n{}",
        node.log_tail()
    );
    drop(reconcile);
    node.restart()?;
    let ledger = load.finish(&node)?;
    node.prove(std::slice::from_ref(&ledger))?;
    oracle_agrees(&node, &[ledger], from, 2)
}
