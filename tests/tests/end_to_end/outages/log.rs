//! The hot log is down, slow or out of room: clicks are spooled and acknowledged, hours wait for them, and the bill is
//! what the ledger says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use twice_tests::{FluvioCluster, LoadShape, Node, NodeOptions, one_at_a_time};

use super::metric;
use crate::damage::disk::SmallDisk;
use crate::support::{hours_ago, wait_for};

/// Queues small enough to meet several segments, and a deadline short enough for a short test.
const SPOOL: [&str; 4] = ["--spool-after-ms", "300", "--spool-segment-bytes", "65536"];

fn held(node: &Node) -> Result<f64> {
    metric(node, "twice_spool_records{", "queue=\"spool\"")
}

fn wait_spooled(node: &Node, records: f64) -> Result<()> {
    wait_for("spooled records", || Ok((held(node)? >= records).then_some(())))
        .with_context(|| node.log_tail())
}

fn options(cluster: &FluvioCluster) -> NodeOptions {
    let mut options = NodeOptions::brisk();
    options.arguments = cluster.node_arguments(&cluster.new_prefix());
    options.arguments.extend(SPOOL.map(str::to_owned));
    options
}

#[test]
fn a_dead_cluster_costs_no_click_and_the_node_may_die_beside_it() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "a_dead_cluster_costs_no_click_and_the_node_may_die_beside_it";
    let Some(mut cluster) = FluvioCluster::own_for_test(name)? else { return Ok(()) };
    let mut node = Node::start(options(&cluster))?;
    let from = hours_ago(3);
    let mut shape = LoadShape::small("outage", 131, &from.to_string()).without_conflicts();
    (shape.rate, shape.duration) = (1_000, Duration::from_secs(10));
    let load = shape.start(&node)?;
    std::thread::sleep(Duration::from_secs(2));
    cluster.kill_spu()?;
    wait_spooled(&node, 500.0)?;
    ensure!(node.client().get("/readyz")?.status == 200, "it takes clicks, so it is ready");
    // What is spooled outlives the process, and is drained by the next one.
    node.kill()?;
    cluster.restart_spu()?;
    node.restart()?;
    let ledger = load.finish(&node)?;
    node.prove_after_outage(&[ledger])?;
    ensure!(held(&node)? == 0.0);
    node.kill()
}

#[test]
fn a_full_spool_refuses_and_loses_nothing_it_had_taken() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "a_full_spool_refuses_and_loses_nothing_it_had_taken";
    let Some(mut cluster) = FluvioCluster::own_for_test(name)? else { return Ok(()) };
    let mut options = options(&cluster);
    options.arguments.extend(["--spool-bytes-max", "1048576"].map(str::to_owned));
    let node = Node::start(options)?;
    cluster.kill_spu()?;
    let mut shape = LoadShape::small("full", 132, &hours_ago(3).to_string()).without_conflicts();
    (shape.rate, shape.duration) = (4_000, Duration::from_secs(5));
    let load = shape.start(&node)?;
    let ready = wait_for("the refusal", || {
        let answer = node.client().get("/readyz")?;
        Ok((answer.status == 503).then_some(answer))
    })
    .with_context(|| node.log_tail())?;
    ensure!(ready.body.contains("spool_bytes_max"), "{ready:?}");
    let clicks: Vec<_> = (0..400).map(|_| json!({"campaign_id": "over", "ad_id": "x".repeat(60)})).collect();
    let refused = node.client().post_json("/v1/clicks", &json!(clicks))?;
    ensure!(refused.status == 503 && refused.json()?["accepted"] == 0, "{refused:?}");
    ensure!(!refused.header("retry-after").is_empty(), "{refused:?}");
    cluster.restart_spu()?;
    let ledger = load.finish(&node)?;
    ensure!(node.client().get("/readyz")?.status == 200, "room again");
    node.prove_after_outage(&[ledger]).map(drop)
}

#[test]
fn with_the_log_on_a_full_disk_clicks_go_to_the_spool_on_another_one() -> Result<()> {
    let _turn = one_at_a_time();
    let mut options = NodeOptions::brisk();
    let spool = tempfile::tempdir()?;
    let spool_dir = spool.path().join("spool").to_string_lossy().into_owned();
    options.arguments.extend(["--spool-dir", &spool_dir].map(str::to_owned));
    options.arguments.extend(SPOOL.map(str::to_owned));
    let mut node = Node::prepare(options)?;
    let Some(disk) = SmallDisk::mount(&node.data_dir(), 256)? else {
        eprintln!("SKIPPED: this user may not mount a small disk; the spool on another disk is not tested");
        return Ok(());
    };
    node.restart()?;
    let filler = disk.fill_to(3)?;
    wait_for("the full disk", || {
        Ok(node.client().get("/readyz")?.body.contains("disk_free_percent_min").then_some(()))
    })?;
    let ledger = LoadShape::small("apart", 133, &hours_ago(3).to_string()).without_conflicts().run(&node)?;
    ensure!(held(&node)? > 1_000.0, "the log's disk was filled further");
    ensure!(node.client().get("/readyz")?.status == 200, "it takes clicks, so it is ready");
    node.kill()?;
    std::fs::remove_file(filler)?;
    node.restart()?;
    node.prove_after_outage(&[ledger])?;
    node.kill()
}
