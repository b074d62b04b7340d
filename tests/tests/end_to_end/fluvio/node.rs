//! A whole node on a real Fluvio cluster: the main job, a restart, and a topic that vanished under a checkpoint.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twice_log::hot::ClickLog;
use twice_log::hot::fluvio::FluvioLog;
use twice_log::{LogOffset, PartitionId, Topic};
use twice_tests::{Binaries, FluvioCluster, LoadShape, Node, NodeOptions, one_at_a_time, run};

use super::{config, run as run_log};
use crate::support::{hours_ago, oracle_agrees, text};

fn options(cluster: &FluvioCluster, prefix: &str) -> NodeOptions {
    NodeOptions { arguments: cluster.node_arguments(prefix), ..NodeOptions::brisk() }
}

#[test]
fn a_node_on_fluvio_counts_bills_and_starts_again_like_any_other() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "a_node_on_fluvio_counts_bills_and_starts_again_like_any_other";
    let Some(cluster) = FluvioCluster::for_test(name)? else { return Ok(()) };
    let prefix = cluster.new_prefix();
    let mut node = Node::start(options(&cluster, &prefix))?;
    let from = hours_ago(3);
    let first = LoadShape::small("fluvio-1", 81, &from.to_string()).run(&node)?;
    node.kill()?;
    node.restart()?;
    let second = LoadShape::small("fluvio-2", 82, &from.to_string()).run(&node)?;
    ensure!(node.stop()?.success(), "SIGTERM is a graceful stop\n{}", node.log_tail());
    node.restart()?;
    let ledgers = [first, second];
    node.prove(&ledgers)?;
    oracle_agrees(&node, &ledgers, from, 2)?;
    the_log_prints_as_json_lines(&cluster, &prefix)?;
    let metrics = node.client().get("/metrics")?.body;
    for name in ["twice_fluvio_append_retries_total", "twice_fluvio_holes_repaired_total"] {
        ensure!(metrics.contains(name), "no {name}:\n{metrics}");
    }
    ensure!(!node.data_dir().join("log").exists(), "the embedded log was made all the same");
    Ok(())
}

fn the_log_prints_as_json_lines(cluster: &FluvioCluster, prefix: &str) -> Result<()> {
    let mut command: Command = Binaries::get().twice();
    command.args(["log", "cat", "ad-clicks", "--limit", "5", "--log", "fluvio"]);
    // By variables, as one who has them set for the node would.
    command.env("TWICE_FLUVIO_ENDPOINT", cluster.endpoint()).env("TWICE_FLUVIO_TOPIC_PREFIX", prefix);
    let printed = run(&mut command, Duration::from_secs(60))?.expect(0)?;
    ensure!(printed.lines().count() > 5, "records of several partitions: {printed}");
    for line in printed.lines() {
        let record: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        ensure!(record["record"]["campaign_id"].is_string() && record["offset"].is_i64(), "{line}");
        ensure!(!text(&record["record"], "user_id").starts_with("u_"), "a user id in clear: {line}");
    }
    Ok(())
}

#[test]
fn a_node_whose_cluster_does_not_answer_says_what_to_do() -> Result<()> {
    let _turn = one_at_a_time();
    let arguments =
        ["--log", "fluvio", "--fluvio-endpoint", "127.0.0.1:1", "--fluvio-connect-timeout-ms", "300"];
    let arguments = arguments.map(str::to_owned).to_vec();
    let mut node = Node::prepare(NodeOptions { arguments, ..NodeOptions::default() })?;
    node.restart_unready()?;
    let status = node.death_within(Duration::from_secs(60))?.context("it goes on without a log")?;
    ensure!(status.code() == Some(2), "could not run: {status}");
    let log = node.log_tail();
    ensure!(
        log.contains("no Fluvio cluster answers at 127.0.0.1:1") && log.contains("--fluvio-endpoint"),
        "{log}"
    );
    Ok(())
}

#[test]
fn a_start_on_fluvio_without_a_cluster_named_says_what_to_do() -> Result<()> {
    let _turn = one_at_a_time();
    let absent = "/absent/fluvio/config";
    let nameless = (["--fluvio-profile-file", absent, "--log", "fluvio"], "--fluvio-endpoint HOST:PORT");
    let tls_in_part = (["--fluvio-tls-ca", "ca.pem", "--log", "fluvio"], "fluvio_tls_key");
    for (arguments, advice) in [nameless, tls_in_part] {
        let arguments = arguments.map(str::to_owned).to_vec();
        let mut node = Node::prepare(NodeOptions { arguments, ..NodeOptions::default() })?;
        node.restart_unready()?;
        let status = node.death_within(Duration::from_secs(60))?.context("it goes on without a log")?;
        let log = node.log_tail();
        ensure!(status.code() == Some(2) && !log.contains("panicked"), "{status}\n{log}");
        ensure!(log.contains(advice), "{log}");
    }
    Ok(())
}

#[test]
fn a_topic_deleted_under_a_checkpoint_stops_the_start_and_no_click_takes_its_place() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "a_topic_deleted_under_a_checkpoint_stops_the_start_and_no_click_takes_its_place";
    let Some(cluster) = FluvioCluster::for_test(name)? else { return Ok(()) };
    let prefix = cluster.new_prefix();
    let mut node = Node::start(options(&cluster, &prefix))?;
    let shape = LoadShape {
        duration: Duration::from_secs(2),
        ..LoadShape::small("fluvio-gone", 83, &hours_ago(3).to_string())
    };
    shape.run(&node)?;
    ensure!(node.stop()?.success(), "{}", node.log_tail());
    cluster.delete_topics(&prefix)?;
    // Twice: the first start makes the topics anew, over which a second must not go on either.
    for _start in 0..2 {
        node.restart_unready()?;
        let ended = node.death_within(Duration::from_secs(120))?;
        let log = node.log_tail();
        let status = ended.with_context(|| format!("it goes on and takes clicks\n{log}"))?;
        ensure!(status.code() == Some(2) && !log.contains("panicked"), "{status}\n{log}");
        ensure!(log.contains("now ends at 0") && log.contains("new topic prefix"), "{log}");
    }
    // Nobody was told of a click in place of those that vanished: none is there.
    run_log(async {
        let log = FluvioLog::open_reader(&config(&cluster, &prefix)).await?;
        for partition in (0..log.partitions()).map(PartitionId) {
            let end = log.bounds(Topic::AdClicks, partition).await?.end;
            ensure!(end == LogOffset(0), "partition {partition} ends at {end}");
        }
        Ok(())
    })
}
