//! The crash test: the real node is killed with SIGKILL at random moments, and the ledger still agrees to the click.

use std::time::Duration;

use anyhow::{Context, Result};
use twice_log::Hour;
use twice_tests::{Load, LoadShape, Node, NodeOptions, Random, one_at_a_time, spawn};

use crate::support::{hours_ago, oracle_agrees};

const KILLS_DEFAULT: u64 = 5;

/// Loads one after the other, so that there is load whenever a kill comes.
pub(super) struct Loads {
    from: String,
    next_seed: u64,
    running: Option<Load>,
    conflicts: bool,
    pub(super) ledgers: Vec<std::path::PathBuf>,
}

impl Loads {
    /// Event times begin in hour `from`; seeds count up from `seed`.
    pub(super) fn from(from: Hour, seed: u64) -> Self {
        Self { from: from.to_string(), next_seed: seed, running: None, conflicts: true, ledgers: Vec::new() }
    }

    /// Returns loads for a log that has outages of its own; see [`LoadShape::without_conflicts`].
    pub(super) fn without_conflicts(self) -> Self {
        Self { conflicts: false, ..self }
    }

    /// Starts the next load where the last one has ended.
    pub(super) fn keep_going(&mut self, node: &Node) -> Result<()> {
        if let Some(load) = &mut self.running
            && load.is_running()?
        {
            return Ok(());
        }
        self.finish(node)?;
        let mut shape = LoadShape::small(&format!("crash-{}", self.next_seed), self.next_seed, &self.from);
        if !self.conflicts {
            shape = shape.without_conflicts();
        }
        shape.duration = Duration::from_secs(20);
        shape.rate = 2_000;
        self.next_seed += 1;
        self.running = Some(shape.start(node)?);
        Ok(())
    }

    /// Waits until everything was acknowledged.
    pub(super) fn finish(&mut self, node: &Node) -> Result<()> {
        if let Some(load) = self.running.take() {
            self.ledgers.push(load.finish(node)?);
        }
        Ok(())
    }
}

/// Kills asked for by `TWICE_TEST_KILLS`.
pub(super) fn kills_wanted(default: u64) -> u64 {
    std::env::var("TWICE_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn kills_at_random_moments_lose_nothing_and_bill_nothing_twice() -> Result<()> {
    let _turn = one_at_a_time();
    let (mut random, seed) = Random::from_environment();
    crash(&mut random).with_context(|| format!("play it again with TWICE_TEST_SEED={seed}"))
}

fn crash(random: &mut Random) -> Result<()> {
    let mut node = Node::start(NodeOptions::brisk())?;
    let from = hours_ago(3);
    let mut loads = Loads::from(from, 100);
    for kill in 1..=kills_wanted(KILLS_DEFAULT) {
        loads.keep_going(&node)?;
        let alive = random.duration_between(Duration::from_millis(200), Duration::from_millis(4_000));
        eprintln!("kill {kill}: after {alive:?}");
        // Every fourth comes while an hour is being closed, every fifth while the node is still starting.
        if kill % 4 == 0 {
            kill_during_reconcile(&mut node, &from.to_string(), alive / 2)?;
        } else {
            std::thread::sleep(alive);
            node.kill()?;
        }
        if kill % 5 == 0 {
            node.restart_unready()?;
            std::thread::sleep(alive / 10);
            node.kill()?;
        }
        node.restart()?;
    }
    loads.finish(&node)?;
    node.prove(&loads.ledgers)?;
    oracle_agrees(&node, &loads.ledgers, from, 2)
}

/// Kills the node `after` this time into the close of an hour.
pub(super) fn kill_during_reconcile(node: &mut Node, hour: &str, after: Duration) -> Result<()> {
    let mut reconcile =
        spawn(&mut node.command_line(&["reconcile", "--hour", hour]), node.root(), "reconcile")?;
    std::thread::sleep(after);
    node.kill()?;
    // It says that it could not finish, or had finished before; a hang would be a third thing.
    let ended = reconcile.wait_until_ended(Duration::from_secs(120))?;
    ended.map(|_| ()).context("`twice reconcile` hangs when its node dies")
}
