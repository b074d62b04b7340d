//! A whole node on a real Fluvio cluster: the main job, a restart, and a topic that vanished under a checkpoint.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twice_tests::{Binaries, FluvioCluster, LoadShape, Node, NodeOptions, one_at_a_time, run};

use crate::support::{hours_ago, oracle_agrees, text, wait_for};

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
fn a_topic_deleted_under_a_checkpoint_is_an_error_that_says_what_to_do() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "a_topic_deleted_under_a_checkpoint_is_an_error_that_says_what_to_do";
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
    node.restart_unready()?;
    wait_for("the node to say that its log went backwards", || {
        let log = node.log_tail();
        Ok((log.contains("ends at 0") && log.contains("that was counted already")).then_some(()))
    })?;
    // Nothing was counted in place of what vanished.
    let log = node.log_tail();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}
