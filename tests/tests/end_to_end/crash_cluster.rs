//! The crash test on Fluvio and S3: node, SPU, SC and S3 server are killed with SIGKILL in turn while clicks come in,
//! and the ledger still agrees to the click.

use std::time::Duration;

use anyhow::{Context, Result};
use twice_tests::{FluvioCluster, Node, NodeOptions, Random, S3Server, one_at_a_time};

use crate::crash::{Loads, kill_during_reconcile, kills_wanted};
use crate::support::{hours_ago, oracle_agrees_after_outage};

const BUCKET: &str = "clicks";
/// Each of the four dies twice.
const KILLS_DEFAULT: u64 = 8;

/// Everything that may die.
struct Site {
    node: Node,
    cluster: FluvioCluster,
    bucket: S3Server,
}

impl Site {
    fn start(cluster: FluvioCluster) -> Result<Self> {
        let bucket = S3Server::start(&[BUCKET])?;
        let mut options = bucket.archive_into(NodeOptions::brisk(), BUCKET);
        options.arguments.extend(cluster.node_arguments(&cluster.new_prefix()));
        // Soon enough that each outage of the bucket meets several flushes.
        let brisk = ["--archive-flush-interval-ms", "500", "--archive-retry-pause-ms-max", "1000"];
        options.arguments.extend(brisk.map(str::to_owned));
        Ok(Self { node: Node::start(options)?, cluster, bucket })
    }

    /// Kills one of the four, leaves it dead for `down`, and starts it again.
    fn kill(&mut self, kill: u64, hour: &str, down: Duration) -> Result<()> {
        match kill % 4 {
            // Every second time while an hour is being closed.
            1 if kill % 8 == 1 => kill_during_reconcile(&mut self.node, hour, down)?,
            1 => self.node.kill()?,
            2 => self.cluster.kill_spu()?,
            3 => self.cluster.kill_sc()?,
            _ => self.bucket.kill()?,
        }
        std::thread::sleep(down);
        match kill % 4 {
            1 => self.node.restart(),
            2 => self.cluster.restart_spu(),
            3 => self.cluster.restart_sc(),
            _ => self.bucket.restart(),
        }
    }
}

#[test]
fn kills_of_node_spu_sc_and_bucket_in_turn_lose_nothing_and_bill_nothing_twice() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "kills_of_node_spu_sc_and_bucket_in_turn_lose_nothing_and_bill_nothing_twice";
    let Some(cluster) = FluvioCluster::own_for_test(name)? else { return Ok(()) };
    let (mut random, seed) = Random::from_environment();
    crash(cluster, &mut random).with_context(|| format!("play it again with TWICE_TEST_SEED={seed}"))
}

fn crash(cluster: FluvioCluster, random: &mut Random) -> Result<()> {
    let mut site = Site::start(cluster)?;
    let from = hours_ago(3);
    let mut loads = Loads::from(from, 500).without_conflicts();
    for kill in 1..=kills_wanted(KILLS_DEFAULT) {
        loads.keep_going(&site.node)?;
        let alive = random.duration_between(Duration::from_millis(500), Duration::from_millis(4_000));
        let down = random.duration_between(Duration::from_millis(100), Duration::from_millis(3_000));
        let victim = ["the bucket", "the node", "the SPU", "the SC"][(kill % 4) as usize];
        eprintln!("kill {kill}: {victim} after {alive:?}, for {down:?}");
        std::thread::sleep(alive);
        site.kill(kill, &from.to_string(), down)
            .with_context(|| format!("{}\n{}", site.node.log_tail(), site.cluster.output_tail()))?;
    }
    loads.finish(&site.node)?;
    site.node.prove_after_outage(&loads.ledgers)?;
    oracle_agrees_after_outage(&site.node, &loads.ledgers, from, 2)
}
