//! The worked examples of docs/counting-rules.md, sent for real: each row and each cause comes out as written there.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twice_log::Hour;
use twice_tests::{Node, NodeOptions, one_at_a_time};

use crate::support::{bill, clicks, divergence, hourly, hours_ago, wait_for};

const CAMPAIGN: &str = "camp_123";

/// The copies of the table, in order: click, minutes and milliseconds after the first hour's start, ad.
const COPIES: &[(char, i64, i64, &str)] = &[
    ('a', 0, 0, "x"),
    ('b', 29, 59_999, "x"),
    ('c', 30, 0, "x"),
    ('a', 0, 0, "x"),
    ('b', 29, 59_999, "y"),
    ('e', 40, 0, "x"),
    ('e', 40, 0, "x"),
    ('d', 60, 0, "x"),
    ('c', 70, 0, "x"),
];

fn click_id(click: char) -> String {
    format!("0194f3a0-1111-7222-8333-{}", click.to_string().repeat(12))
}

fn send(node: &Node, first_hour: Hour) -> Result<()> {
    let path = format!("/v1/campaigns/{CAMPAIGN}");
    for (cpc_micros, minutes) in [(500_000, -600), (750_000, 30)] {
        let effective_from = first_hour.start().plus_ms(minutes * 60_000).to_string();
        let rate = json!({ "name": "example", "currency": "USD", "cpc_micros": cpc_micros,
            "daily_budget_micros": null, "effective_from": effective_from });
        let answer = node.client().put_json(&path, &rate)?;
        ensure!(answer.status / 100 == 2, "{answer:?}");
    }
    let copies: Vec<Value> = COPIES
        .iter()
        .map(|(click, minutes, ms, ad)| {
            let event_time = first_hour.start().plus_ms(minutes * 60_000 + ms).to_string();
            json!({ "click_id": click_id(*click), "campaign_id": CAMPAIGN, "ad_id": ad, "event_time": event_time })
        })
        .collect();
    let answer = node.client().post_json("/v1/clicks", &json!(copies))?;
    ensure!(answer.status == 202 && answer.json()?["accepted"] == COPIES.len(), "{answer:?}");
    let verdict = json!({ "campaign_id": CAMPAIGN, "click_id": click_id('e'), "verdict": "sivt",
        "model_version": "m1", "decided_at": first_hour.plus(1).start().to_string(), "click_event_time": null });
    let answer = node.client().post_json("/v1/verdicts", &verdict)?;
    ensure!(answer.status == 202 && answer.json()?["accepted"] == 1, "{answer:?}");
    Ok(())
}

#[test]
fn the_worked_examples_of_the_counting_rules_come_out_as_written() -> Result<()> {
    let _turn = one_at_a_time();
    let node = Node::start(NodeOptions::default())?;
    let first = hours_ago(5);
    send(&node, first)?;
    wait_for("the stream's numbers of the example", || {
        let rows = hourly(&node, CAMPAIGN, first, 2, "stream")?;
        Ok((clicks(&rows) == 6).then_some(()))
    })?;
    for hour in [first, first.plus(1)] {
        node.reconcile(&hour.to_string())?;
    }
    let rows: Vec<Value> = bill(&node, first, 2)?.into_values().collect();
    let expected = [
        json!({ "gross": 7, "duplicates": 3, "conflicts": 1, "invalid_givt": 0, "invalid_sivt": 1, "billable": 3,
            "unpriced": 0, "amount_micros": 1_750_000, "currency": "USD" }),
        json!({ "gross": 2, "duplicates": 1, "conflicts": 1, "invalid_givt": 0, "invalid_sivt": 0, "billable": 1,
            "unpriced": 0, "amount_micros": 750_000, "currency": "USD" }),
    ];
    says(&rows, &expected)?;
    let causes = [
        json!({ "preliminary": 4, "billed": 3, "late": 0, "late_duplicate": 0, "fraud": 1, "unexplained": 0 }),
        json!({ "preliminary": 2, "billed": 1, "late": 0, "late_duplicate": 1, "fraud": 0, "unexplained": 0 }),
    ];
    says(&divergence(&node, first, 2)?, &causes)
}

/// Checks that the rows have the expected values, in order, whatever else they have.
fn says(rows: &[Value], expected: &[Value]) -> Result<()> {
    ensure!(rows.len() == expected.len(), "{} rows: {rows:?}", rows.len());
    for (row, values) in rows.iter().zip(expected) {
        for (field, value) in values.as_object().context("an object")? {
            ensure!(row[field] == *value, "{field} must be {value}: {row}");
        }
    }
    Ok(())
}
