//! Budgets of a real node: used up by real clicks, decided once whatever dies, corrected by the bill, and stopped where the
//! spend is not known.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twice_tests::{Binaries, Node, NodeOptions, one_at_a_time, run};

use crate::support::{PATIENCE, hours_ago, wait_for};

const CAMPAIGN: &str = "/v1/campaigns/spender";

fn put(node: &Node, budget: i64, strict: bool) -> Result<()> {
    let rate = json!({"name": "Spender", "currency": "USD", "cpc_micros": 100, "daily_budget_micros": budget,
        "strict": strict, "effective_from": "2020-01-01T00:00:00Z"});
    let answer = node.client().put_json(CAMPAIGN, &rate)?;
    ensure!(answer.status == 200, "{}", answer.body);
    Ok(())
}

/// Sends clicks with the ids 1 to `count`, of now or of a moment.
fn click(node: &Node, ids: std::ops::Range<u32>, at: Option<&str>) -> Result<()> {
    let of = |id: u32| {
        json!({"click_id": format!("00000000-0000-4000-8000-{id:012}"), "campaign_id": "spender", "ad_id": "a",
            "user_id": format!("u{id}"), "event_time": at})
    };
    let clicks: Vec<Value> = ids.map(of).collect();
    let answer = node.client().post_json("/v1/clicks", &json!(clicks))?;
    ensure!(answer.status == 202, "{}", answer.body);
    Ok(())
}

/// Waits until the day stands at a state and number.
fn stands_at(node: &Node, day: &str, state: &str, number: u64) -> Result<Value> {
    wait_for(&format!("{state} as decision {number}"), || {
        let budget = node.client().get(&format!("{CAMPAIGN}/budget{day}"))?;
        if budget.status != 200 {
            return Ok(None); // not seeded yet, right after a start
        }
        let budget = budget.json()?;
        Ok((budget["state"] == state && budget["decision_number"] == number).then_some(budget))
    })
    .with_context(|| node.log_tail())
}

/// Returns number, state and cause of every decision.
fn decisions(node: &Node) -> Result<Vec<(u64, String, String)>> {
    let text = read_events(node, "/v1/budget-decisions?after=0", "")?;
    let parse = |line: &str| -> Option<(u64, String, String)> {
        let decision: Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
        let name = |field: &str| decision[field].as_str().unwrap_or_default().to_owned();
        Some((decision["number"].as_u64()?, name("state"), name("cause")))
    };
    Ok(text.lines().filter_map(parse).collect())
}

/// Reads an event stream until `wanted` is in it; where nothing is wanted, until a first event came and a moment passed.
fn read_events(node: &Node, path: &str, wanted: &str) -> Result<String> {
    let address = node.url().replace("http://", "");
    let mut stream = TcpStream::connect(&address)?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let limit = if wanted.is_empty() { Duration::from_secs(1) } else { PATIENCE };
    stream.set_read_timeout(Some(limit))?;
    let (mut bytes, mut part) = (Vec::new(), [0_u8; 4_096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if !wanted.is_empty() && text.contains(wanted) {
            return Ok(text);
        }
        match stream.read(&mut part) {
            Ok(0) => return Ok(text),
            Ok(read) => bytes.extend_from_slice(&part[..read]),
            Err(_) if wanted.is_empty() => return Ok(text),
            Err(error) => return Err(error).with_context(|| format!("{wanted:?} did not come: {text}")),
        }
    }
}

/// Returns the numbers of the decisions in the log's topic, in order.
fn published(node: &Node) -> Result<Vec<u64>> {
    let mut command = Binaries::get().twice();
    command.args(["log", "cat", "budget-decisions", "--data-dir"]).arg(node.data_dir());
    let printed = run(&mut command, PATIENCE)?.expect(0)?;
    let number = |line: &str| {
        let record: Value = serde_json::from_str(line)?;
        record["record"]["number"].as_u64().with_context(|| format!("no decision: {line}"))
    };
    printed.lines().map(number).collect()
}

fn wait_published(node: &Node, wanted: &[u64]) -> Result<()> {
    wait_for(&format!("{wanted:?} in the log"), || Ok((published(node)? == wanted).then_some(())))
}

fn died_at_the_point(node: &mut Node) -> Result<()> {
    let status = node.death_within(PATIENCE)?.context("the point was never passed")?;
    ensure!(!status.success(), "{status}");
    Ok(())
}

#[test]
fn a_decision_is_made_once_whatever_dies_around_it() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::start(NodeOptions::brisk())?;
    put(&node, 1_000, false)?;
    stands_at(&node, "", "serving", 1)?;
    click(&node, 1..10, None)?;
    click(&node, 1..10, None)?; // again: duplicates cost nothing
    click(&node, 10..11, None)?;
    read_events(&node, "/v1/budget-decisions?after=0", "\"state\":\"exhausted\"")?;
    let budget = stands_at(&node, "", "exhausted", 2)?;
    ensure!(budget["spend_micros"] == 1_000 && budget["decision_cause"] == "stream", "{budget}");
    click(&node, 11..13, None)?;
    wait_for("overspend", || {
        let budget = node.client().get_json(&format!("{CAMPAIGN}/budget"))?;
        Ok((budget["overspend_micros"] == 200 && budget["spent_after_exhausted_micros"] == 200).then_some(()))
    })?;
    read_events(&node, &format!("{CAMPAIGN}/live"), "\"clicks\":")?;
    node.kill()?;
    node.restart()?;
    let budget = stands_at(&node, "", "exhausted", 2)?;
    ensure!(budget["spend_micros"] == 1_200, "{budget}");
    wait_published(&node, &[1, 2])?;

    node.kill()?;
    node.restart_armed("budget-decision-stored")?;
    put(&node, 5_000, false)?;
    died_at_the_point(&mut node)?;
    node.restart()?;
    stands_at(&node, "", "serving", 3)?;
    wait_published(&node, &[1, 2, 3])?;

    node.kill()?;
    node.restart_armed("budget-decision-published")?;
    put(&node, 500, false)?;
    died_at_the_point(&mut node)?;
    node.restart()?;
    stands_at(&node, "", "exhausted", 4)?;
    wait_published(&node, &[1, 2, 3, 4, 4])?; // the same number once more, and no other
    let all = decisions(&node)?;
    let numbers: Vec<u64> = all.iter().map(|(number, ..)| *number).collect();
    ensure!(numbers == [1, 2, 3, 4], "{all:?}");
    ensure!(all[2].1 == "serving" && all[2].2 == "budget_changed", "{all:?}");
    let mut command = Binaries::get().twice();
    command.args(["campaigns", "--server", &node.url(), "budget", "spender"]);
    let told = run(&mut command, PATIENCE)?.expect(0)?;
    ensure!(told.contains("exhausted") && told.contains("0.001200 USD"), "{told}");
    ensure!(node.stop()?.success(), "graceful stop\n{}", node.log_tail());
    Ok(())
}

#[test]
fn a_bill_corrects_the_spend_and_the_decision() -> Result<()> {
    let _turn = one_at_a_time();
    let node = Node::start(NodeOptions::brisk())?;
    let hour = hours_ago(2);
    let day = format!("?day={}", hour.to_string().split('T').next().context("a day")?);
    put(&node, 1_000, false)?;
    click(&node, 1..11, Some(&hour.start().to_string()))?;
    let budget = wait_for("exhausted", || {
        let budget = node.client().get_json(&format!("{CAMPAIGN}/budget{day}"))?;
        Ok((budget["state"] == "exhausted" && budget["decision_cause"] == "stream").then_some(budget))
    })?;
    let number = budget["decision_number"].as_u64().context("decided")?;
    let verdict = json!({"campaign_id": "spender", "click_id": "00000000-0000-4000-8000-000000000003",
        "verdict": "sivt", "model_version": "m", "decided_at": hour.end(), "click_event_time": hour.start()});
    let answer = node.client().post_json("/v1/verdicts", &verdict)?;
    ensure!(answer.status == 202, "{}", answer.body);
    node.reconcile(&hour.to_string())?;
    let budget = stands_at(&node, &day, "serving", number + 1)?;
    ensure!(budget["decision_cause"] == "reconciled" && budget["billed_micros"] == 900, "{budget}");
    ensure!(budget["preliminary_micros"] == 0, "{budget}");
    Ok(())
}

#[test]
fn a_strict_campaign_stops_while_the_stream_hangs_and_goes_on_after_it() -> Result<()> {
    let _turn = one_at_a_time();
    let held = tempfile::NamedTempFile::new()?;
    let file = held.path().with_extension("held");
    let environment = vec![("TWICE_FAIL_POINT".to_owned(), format!("stream-applying@{}", file.display()))];
    let settings = "budget_lag_ms_max = 2000\nbudget_settle_ms = 500\nbudget_look_ms = 500\n".to_owned();
    let options = NodeOptions { settings: Some(settings), environment, ..NodeOptions::default() };
    let node = Node::start(options)?;
    put(&node, 1_000, true)?;
    stands_at(&node, "", "serving", 1)?;
    std::fs::write(&file, "")?;
    click(&node, 1..3, None)?;
    let budget = stands_at(&node, "", "unknown", 2)?;
    ensure!(budget["decision_cause"] == "lag" && budget["strict"] == true, "{budget}");
    std::fs::remove_file(&file)?;
    let budget = stands_at(&node, "", "serving", 3)?;
    ensure!(budget["spend_micros"] == 200, "{budget}");
    Ok(())
}
