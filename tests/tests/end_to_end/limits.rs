//! A premium key far over its limit: all of it is acknowledged, spilled, drained and billed, through a kill.

use anyhow::{Context, Result, ensure};
use twice_tests::{LoadShape, Node, NodeOptions, one_at_a_time};

use crate::support::{hours_ago, oracle_agrees, wait_for};

/// Sums a metric over its labels, of which each of `labels` must be there.
fn metric(node: &Node, name: &str, labels: &[&str]) -> Result<f64> {
    let page = node.client().get("/metrics")?;
    ensure!(page.status == 200, "metrics answer {}", page.status);
    let lines = page.body.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    lines
        .map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>().context("a metric's value"))
        .sum()
}

#[test]
fn a_premium_key_over_its_limit_loses_nothing_and_is_never_refused() -> Result<()> {
    let _turn = one_at_a_time();
    let mut options = NodeOptions::brisk();
    let settings = options.settings.get_or_insert_default();
    settings.push_str("metrics_open = true\nlimits_sample_ms = 50\nspill_drain_rate = 2000\n");
    let mut node = Node::start(options)?;
    let key = premium_key(&node)?;
    node.command(&[
        "limits",
        "put",
        "--tier",
        "premium",
        "--floor",
        "500",
        "--ceiling",
        "500",
        "--burst",
        "500",
        "--canary-ms",
        "100",
    ])?
    .expect(0)?;
    wait_for("the end of the canary", || {
        let shown = node.command(&["limits", "show"])?.expect(0)?;
        Ok(shown.contains("in force: version 1").then_some(()))
    })?;
    node.stop()?;
    node.ask_for_keys(true);
    node.restart()?;

    let from = hours_ago(3);
    let mut shape = LoadShape::small("premium", 23, &from.to_string());
    shape.flags.extend(["--api-key".to_owned(), key]);
    let ledger = shape.run(&node)?;
    let spilled = metric(&node, "twice_limits_clicks_total", &["outcome=\"spilled\""])?;
    let limited = metric(&node, "twice_limits_requests_total", &["outcome=\"limited\""])?;
    let held = metric(&node, "twice_spool_records", &["queue=\"spill\""])?;
    eprintln!("of 20 000 clicks {spilled} were spilled, {held} of them are not yet in the log");
    ensure!(spilled > 10_000.0, "only {spilled} of 20 000 clicks were over 500 a second");
    ensure!(limited == 0.0, "{limited} requests of a premium key were refused");

    // What is spilled is as durable as what is in the log.
    node.kill()?;
    node.ask_for_keys(false);
    node.restart()?;
    wait_for("an empty spill queue", || {
        Ok((metric(&node, "twice_spool_records", &["queue=\"spill\""])? == 0.0).then_some(()))
    })?;
    node.prove(std::slice::from_ref(&ledger))?;
    oracle_agrees(&node, &[ledger], from, 2)
}

/// Makes a key that may spill, and set up the load's campaigns.
fn premium_key(node: &Node) -> Result<String> {
    let made =
        node.command(&["keys", "create", "--name", "load", "--scope", "admin", "--tier", "premium"])?;
    let shown = made.expect(0)?;
    let key = shown.split_whitespace().find(|word| word.starts_with("twice_"));
    key.map(str::to_owned).with_context(|| format!("no key in {shown}"))
}
