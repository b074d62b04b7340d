//! Bad input over real HTTP: each case gets a clear answer, and nothing else is lost.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twice_log::{Clock, WallClock};
use twice_tests::{Answer, Node, NodeOptions, one_at_a_time, run};

use crate::support::{bill, clicks, hourly, hours_ago, wait_for};

const CLICKS: &str = "/v1/clicks";
const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

/// A good click of the hour under test; `number` keeps two apart.
fn good(number: u32) -> Value {
    let event_time = hours_ago(2).start().plus_ms(i64::from(number) * 1_000);
    json!({
        "click_id": format!("0194f3a0-1111-7222-8333-{number:012}"),
        "campaign_id": "bad-input", "ad_id": "ad_9", "user_id": "u_7", "publisher_id": "pub_4",
        "event_time": event_time.to_string(), "schema_version": 2,
    })
}

fn with(mut click: Value, field: &str, value: Value) -> Value {
    click[field] = value;
    click
}

fn post(node: &Node, content_type: &str, body: impl Into<Vec<u8>>) -> Result<Answer> {
    node.client().post(CLICKS, content_type, &[], body.into())
}

/// One click that must be refused with this code; the answer names index 0 and says something about the field.
fn refused(node: &Node, click: &Value, code: &str, mentions: &str) -> Result<()> {
    let answer = node.client().post_json(CLICKS, click)?;
    let body = answer.json()?;
    ensure!(answer.status == 422, "{code}: {} {body}", answer.status);
    ensure!(body["accepted"] == 0 && body["retry"] == json!([]), "{code}: {body}");
    let rejected = &body["rejected"];
    ensure!(rejected.as_array().map(Vec::len) == Some(1), "{code}: {body}");
    ensure!(rejected[0]["index"] == 0 && rejected[0]["code"] == code, "{code}: {body}");
    let detail = rejected[0]["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(mentions), "{code}: the detail does not mention {mentions:?}: {detail}");
    Ok(())
}

/// A request that must be refused as a whole, with a problem document.
fn problem(answer: &Answer, status: u16, mentions: &str) -> Result<()> {
    ensure!(answer.status == status, "expected {status}: {} {}", answer.status, answer.body);
    ensure!(answer.header("content-type").starts_with("application/problem+json"), "{answer:?}");
    let body = answer.json()?;
    ensure!(body["status"] == status && body["title"].is_string() && body["type"].is_string(), "{body}");
    let detail = body["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(mentions), "the detail does not mention {mentions:?}: {detail}");
    Ok(())
}

#[test]
fn each_fault_has_a_clear_answer_and_the_rest_counts() -> Result<()> {
    let _turn = one_at_a_time();
    let settings = "body_bytes_max = 1000000\n".to_owned();
    let node = Node::start(NodeOptions { settings: Some(settings), ..NodeOptions::default() })?;
    bodies_that_are_refused_as_a_whole(&node)?;
    clicks_that_are_refused_one_by_one(&node)?;
    let counted = batches_of_which_one_click_is_bad(&node)? + bodies_in_other_forms(&node)?;

    // Whatever was refused left no trace, and every good click of every batch is in the bill.
    let hour = hours_ago(2);
    wait_for("the accepted clicks in the preliminary number", || {
        Ok((clicks(&hourly(&node, "bad-input", hour, 1, "stream")?) == counted).then_some(()))
    })
    .with_context(|| format!("{counted} clicks were accepted"))?;
    node.reconcile(&hour.to_string())?;
    let rows = bill(&node, hour, 1)?;
    ensure!(rows.len() == 1, "{rows:?}");
    for row in rows.values() {
        // The click sent twice under one key was stored twice; nobody set a price.
        ensure!(row["billable"] == counted && row["unpriced"] == counted && row["duplicates"] == 1, "{row}");
        ensure!(
            row["gross"] == counted + 1 && row["amount_micros"] == 0 && row["currency"].is_null(),
            "{row}"
        );
    }
    let metrics = node.client().get("/metrics")?;
    ensure!(metrics.status == 200 && metrics.body.contains("too_old"), "refusals are counted by code");
    Ok(())
}

fn bodies_that_are_refused_as_a_whole(node: &Node) -> Result<()> {
    problem(&post(node, JSON, "{\"campaign_id\":")?, 400, "JSON")?;
    problem(&post(node, JSON, format!("[{},", good(0)))?, 400, "line 1")?;
    problem(&post(node, JSON, "hello")?, 400, "JSON")?;
    problem(&post(node, JSON, b"{\"campaign_id\":\"caf\xe9\"}".as_slice())?, 400, "UTF-8")?;
    problem(&post(node, JSON, "[]")?, 422, "empty")?;
    problem(&post(node, JSON, "")?, 422, "empty")?;
    problem(&post(node, NDJSON, "\n\n")?, 422, "empty")?;
    problem(&post(node, "text/plain", good(0).to_string())?, 415, "application/json")?;
    problem(&post(node, JSON, vec![b' '; 1_000_001])?, 413, "1000000")?;
    let packed = node.client().post(CLICKS, JSON, &[("content-encoding", "gzip")], b"not gzip".to_vec())?;
    problem(&packed, 400, "gzip")?;
    let unknown = node.client().post(CLICKS, JSON, &[("content-encoding", "br")], b"x".to_vec())?;
    problem(&unknown, 415, "gzip")?;
    let long_key = "k".repeat(256);
    let headers = [("idempotency-key", long_key.as_str())];
    problem(&node.client().post(CLICKS, JSON, &headers, good(0).to_string().into_bytes())?, 400, "255")?;
    let import = node.client().post_json("/v1/clicks?import=nobody-announced-this", &good(0))?;
    problem(&import, 404, "import")?;
    problem(&node.client().get("/v1/nowhere")?, 404, "")?;
    let wrong_method = node.client().put_json(CLICKS, &good(0))?;
    problem(&wrong_method, 405, "POST")?;
    problem(&node.client().get("/v1/billing?hour=noon")?, 400, "hour")
}

fn clicks_that_are_refused_one_by_one(node: &Node) -> Result<()> {
    let now = WallClock.now();
    let day_ms = 24 * 3_600_000;
    let at = |ms: i64| json!(now.plus_ms(ms).to_string());
    refused(node, &with(good(0), "event_time", at(-8 * day_ms)), "too_old", "twice import")?;
    refused(node, &with(good(0), "event_time", at(10 * 60_000)), "in_future", "future")?;
    refused(node, &with(good(0), "event_time", json!("noon")), "invalid_time", "event_time")?;
    refused(node, &with(good(0), "campaign_id", json!("c".repeat(65))), "invalid_id", "campaign_id")?;
    refused(node, &with(good(0), "ad_id", json!("a".repeat(65))), "invalid_id", "ad_id")?;
    refused(node, &with(good(0), "user_id", json!("u".repeat(65))), "invalid_id", "user_id")?;
    refused(node, &with(good(0), "publisher_id", json!("p".repeat(65))), "invalid_id", "publisher_id")?;
    refused(node, &with(good(0), "campaign_id", json!("")), "invalid_id", "campaign_id")?;
    refused(node, &with(good(0), "campaign_id", json!("caf\u{e9}")), "invalid_id", "campaign_id")?;
    refused(node, &with(good(0), "click_id", json!("12345")), "click_id_not_uuid", "UUIDv5")?;
    refused(node, &with(good(0), "schema_version", json!(3)), "schema_version", "schema_version 3")?;
    refused(node, &with(good(0), "campaign_id", json!(7)), "malformed", "string")?;
    refused(node, &json!({ "click_id": "0194f3a0-1111-7222-8333-444455556666" }), "malformed", "campaign_id")
}

/// The bad click is named by its index, the others count. Returns how many do.
fn batches_of_which_one_click_is_bad(node: &Node) -> Result<u64> {
    let bad = with(good(0), "click_id", json!("12345"));
    let array = json!([good(1), bad, good(2), "not a click", good(3)]);
    let answer = node.client().post_json(CLICKS, &array)?;
    let body = answer.json()?;
    ensure!(answer.status == 202 && body["accepted"] == 3, "{} {body}", answer.status);
    ensure!(
        body["rejected"][0]["index"] == 1 && body["rejected"][0]["code"] == "click_id_not_uuid",
        "{body}"
    );
    ensure!(body["rejected"][1]["index"] == 3 && body["rejected"][1]["code"] == "malformed", "{body}");

    let mut lines = format!("{}\n", good(4)).into_bytes();
    lines.extend_from_slice(b"{\"campaign_id\":\"caf\xe9\"}\n");
    lines.extend_from_slice(format!("{{broken\n{}\n", good(5)).as_bytes());
    let answer = post(node, NDJSON, lines)?;
    let body = answer.json()?;
    ensure!(answer.status == 202 && body["accepted"] == 2, "{} {body}", answer.status);
    ensure!(body["rejected"][0]["index"] == 1 && body["rejected"][1]["index"] == 2, "{body}");
    Ok(5)
}

/// Forms of good input that are easy to get wrong. Returns how many clicks they add.
fn bodies_in_other_forms(node: &Node) -> Result<u64> {
    let file = node.root().join("clicks.json");
    std::fs::write(&file, json!([good(6), good(7)]).to_string())?;
    run(Command::new("gzip").arg(&file), Duration::from_secs(60))?.expect(0)?;
    let packed = std::fs::read(node.root().join("clicks.json.gz"))?;
    let answer = node.client().post(CLICKS, JSON, &[("content-encoding", "gzip")], packed)?;
    ensure!(answer.status == 202 && answer.json()?["accepted"] == 2, "{answer:?}");

    // The same key again derives the same ids: two requests, one click (CR-1).
    let mut nameless = good(8);
    nameless.as_object_mut().context("an object")?.remove("click_id");
    let send = |headers: &[(&str, &str)]| {
        node.client().post(CLICKS, JSON, headers, nameless.to_string().into_bytes())?.json()
    };
    let (first, second) =
        (send(&[("idempotency-key", "order-1")])?, send(&[("idempotency-key", "order-1")])?);
    ensure!(
        first["click_ids"]["0"].is_string() && first["click_ids"] == second["click_ids"],
        "{first} {second}"
    );
    // Without a key each request is a click of its own, with an id minted for it.
    let minted = json!([send(&[])?["click_ids"]["0"], send(&[])?["click_ids"]["0"]]);
    ensure!(minted[0].is_string() && minted[0] != minted[1], "{minted}");
    Ok(2 + 1 + 2)
}
