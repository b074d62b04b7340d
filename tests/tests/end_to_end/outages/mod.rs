//! Outages of one part at a time: every click goes on being taken, answers say what they lack, and afterwards the bill is
//! what the ledger says.

mod billing;
mod disk;
mod log;
mod object_store;
mod windows;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twice_log::Hour;
use twice_tests::Node;

use crate::support::wait_for;

/// Waits until `/readyz` names the part that is down; the node takes work all the same.
fn wait_for_degraded(node: &Node, part: &str) -> Result<()> {
    wait_for(&format!("{part} in /readyz"), || {
        let answer = node.client().get("/readyz")?;
        ensure!(answer.status == 200, "it takes clicks, so it is ready: {answer:?}");
        Ok(answer.body.contains(part).then_some(()))
    })
}

/// Waits until `/readyz` no longer names the part.
fn wait_for_recovered(node: &Node, part: &str) -> Result<()> {
    wait_for(&format!("no {part} in /readyz"), || {
        let answer = node.client().get("/readyz")?;
        Ok((answer.status == 200 && !answer.body.contains(part)).then_some(()))
    })
    .with_context(|| node.log_tail())
}

/// Asks for a campaign's clicks by hour; the answer is 200 whatever is down.
fn ask(node: &Node, campaign: &str, from: Hour) -> Result<Value> {
    let (start, end) = (from.start(), from.plus(2).start());
    let query = format!("from={start}&to={end}&granularity=hour");
    node.client().get_json(&format!("/v1/campaigns/{campaign}/clicks?{query}"))
}

/// Waits until an answer has the notice.
fn wait_for_notice(node: &Node, campaign: &str, from: Hour, code: &str) -> Result<Value> {
    wait_for(&format!("the notice {code}"), || {
        let answer = ask(node, campaign, from)?;
        Ok(answer["notices"].to_string().contains(code).then_some(answer))
    })
    .with_context(|| node.log_tail())
}

/// Returns the value of the first series of a metric whose line contains `labels`.
fn metric(node: &Node, name: &str, labels: &str) -> Result<f64> {
    let page = node.client().get("/metrics")?.body;
    let mut lines = page.lines().filter(|line| line.starts_with(name) && line.contains(labels));
    let line = lines.next().with_context(|| format!("no {name} with {labels:?}"))?;
    let value = line.rsplit(' ').next().unwrap_or_default();
    value.parse().with_context(|| line.to_owned())
}
