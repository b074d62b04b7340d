//! The billing store is down: another process holds SQLite's locks. Clicks are taken, answers are preliminary.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use twice_tests::{LoadShape, Node, NodeOptions, Running, one_at_a_time, python, spawn};

use super::{metric, wait_for_degraded, wait_for_notice, wait_for_recovered};
use crate::support::{hours_ago, wait_for};

/// Takes every lock of readers and writers, and keeps them until it is killed: the bytes 120 to 127 of the `-shm` file,
/// as SQLite's own locks are.
const HOLD_LOCKS: &str = "
import fcntl, sys, time
file = open(sys.argv[1] + '-shm', 'r+b')
fcntl.lockf(file, fcntl.LOCK_EX, 8, 120)
print('held', flush=True)
time.sleep(600)
";

/// A process that holds the locks; they are free when it is dropped.
struct Locks(Running);

impl Locks {
    fn take(database: &Path, folder: &Path) -> Result<Self> {
        let mut holder = Command::new(python()?);
        holder.arg("-c").arg(HOLD_LOCKS).arg(database);
        let locks = Self(spawn(&mut holder, folder, "locks")?);
        wait_for("the locks", || {
            Ok(std::fs::read_to_string(folder.join("locks.out"))?.contains("held").then_some(()))
        })?;
        Ok(locks)
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

#[test]
fn with_its_locks_held_clicks_are_taken_answers_are_preliminary_and_the_hour_waits() -> Result<()> {
    let _turn = one_at_a_time();
    let mut options = NodeOptions::brisk();
    options.arguments.extend(["--store-timeout-ms", "500"].map(str::to_owned));
    let mut node = Node::start(options)?;
    let from = hours_ago(3);
    let mut shape = LoadShape::small("through", 91, &from.to_string());
    shape.duration = Duration::from_secs(10);
    let load = shape.start(&node)?;
    std::thread::sleep(Duration::from_secs(2));
    let locks = Locks::take(&node.data_dir().join("twice.sqlite"), node.root())?;

    let answer = wait_for_notice(&node, "load91-1", from, "billing_unavailable")?;
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    ensure!(rows.iter().all(|row| row["status"] == "preliminary"), "{answer}");
    let listed = node.client().get(&format!("/v1/billing?hour={from}"))?;
    ensure!(listed.status == 503 && !listed.header("retry-after").is_empty(), "{listed:?}");
    wait_for_degraded(&node, "billing store")?;
    wait_for("the open breaker", || {
        Ok((metric(&node, "twice_breaker_state", "billing-reads")? > 0.0).then_some(()))
    })?;
    let waits = node.command(&["reconcile", "--hour", &from.to_string(), "--no-wait"])?;
    ensure!(node.client().get("/livez")?.status == 200, "it lives: {waits:?}");
    // Clicks have no need of it.
    let ledger = load.finish(&node)?;

    drop(locks);
    wait_for_recovered(&node, "billing store")?;
    let listed = node.client().get(&format!("/v1/billing?hour={from}"))?;
    ensure!(listed.status == 200, "{listed:?}");
    node.prove(&[ledger])?;
    ensure!(node.stop()?.success(), "a graceful stop\n{}", node.log_tail());
    Ok(())
}
