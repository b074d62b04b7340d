//! Minutes, ads and unique users of billed hours against the ledger, on the real node.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twice_log::Hour;
use twice_tests::{LoadShape, Node, NodeOptions, one_at_a_time, python, run};

use crate::support::{clicks, hourly, hours_ago, text};

/// Clicks and users that were acknowledged, by ad and minute and by hour; every copy of a click says the same here.
const TRUTH: &str = "
import duckdb, json, sys
of = 'FROM read_parquet($ledger) WHERE acknowledged AND campaign_id = $campaign'
counts = 'count(DISTINCT click_id), count(DISTINCT nullif(user_id, \\'\\'))'
given = {'ledger': sys.argv[1], 'campaign': sys.argv[2]}
def ask(width, ad):
    sql = f'SELECT {ad}, epoch_ms(event_time) // {width}, {counts} {of} GROUP BY ALL'
    return duckdb.execute(sql, given).fetchall()
print(json.dumps({'minutes': ask(60000, 'ad_id'), 'hours': ask(3600000, '1')}))
";

/// Relative error allowed for a number of users: four standard errors of the sketch.
const USERS_ERROR_MAX: f64 = 4.0 * 0.01625;

#[test]
fn minutes_ads_and_users_of_a_billed_hour_are_those_of_the_ledger() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::start(NodeOptions::default())?;
    let from = hours_ago(3);
    let mut shape = LoadShape::small("detail", 41, &from.to_string());
    shape.campaigns = 4;
    shape.flags =
        ["--duplicates", "2%", "--conflicts", "0%", "--late", "1%", "--ads", "3"].map(str::to_owned).to_vec();
    let campaign = format!("load{}-0", shape.seed);
    let ledger = shape.start(&node)?.finish(&node)?;
    for hour in [from, from.plus(1)] {
        node.reconcile(&hour.to_string())?;
    }
    let truth = truth(&ledger, &campaign)?;
    check(&node, &campaign, from, &truth)?;
    // What a node that was killed had in memory is not what is answered.
    node.kill()?;
    node.restart()?;
    check(&node, &campaign, from, &truth)
}

fn truth(ledger: &Path, campaign: &str) -> Result<Value> {
    let mut command = Command::new(python()?);
    command.args(["-c", TRUTH]).arg(ledger).arg(campaign);
    let printed = run(&mut command, Duration::from_secs(120))?.expect(0)?;
    serde_json::from_str(printed.trim()).with_context(|| format!("the truth does not read: {printed}"))
}

fn check(node: &Node, campaign: &str, from: Hour, truth: &Value) -> Result<()> {
    let bill = hourly(node, campaign, from, 2, "merged")?;
    let mut by_hour = BTreeMap::new();
    for row in truth["hours"].as_array().context("hours")? {
        by_hour.insert(row[1].as_i64().context("an hour")?, &row[3]);
    }
    for row in &bill {
        let hour: Hour = text(row, "window_start").get(..13).unwrap_or_default().parse()?;
        let expected = by_hour.get(&hour.since_epoch()).and_then(|users| users.as_u64()).unwrap_or(0);
        near(&row["unique_users"], expected).with_context(|| format!("users of {row}"))?;
    }
    ensure!(clicks(&bill) > 1_000, "the load reached the campaign: {bill:?}");
    let mut by_ad: BTreeMap<String, BTreeMap<i64, (u64, u64)>> = BTreeMap::new();
    for row in truth["minutes"].as_array().context("minutes")? {
        let number = |index: usize| row[index].as_u64().context("a number");
        let ad = by_ad.entry(row[0].as_str().unwrap_or_default().to_owned()).or_default();
        ad.insert(row[1].as_i64().context("a minute")?, (number(2)?, number(3)?));
    }
    ensure!(by_ad.len() >= 3, "several ads: {:?}", by_ad.keys());
    let mut of_ads = 0;
    for (ad, expected) in &by_ad {
        let rows = minutes(node, &format!("{campaign}/ads/{ad}"), from)?;
        for row in &rows {
            let minute = text(row, "window_start").parse::<twice_log::UtcMillis>()?.epoch_ms() / 60_000;
            let (billable, users) = expected.get(&minute).copied().unwrap_or_default();
            ensure!(row["status"] == "reconciled" && row["clicks"] == billable, "{row} is not {billable}");
            ensure!(
                row["billable"] == billable && row["currency"].is_string(),
                "no columns of the bill: {row}"
            );
            near(&row["unique_users"], users).with_context(|| format!("users of {row}"))?;
        }
        of_ads += clicks(&rows);
    }
    let of_minutes = clicks(&minutes(node, campaign, from)?);
    ensure!(
        (of_ads, of_minutes) == (clicks(&bill), clicks(&bill)),
        "ads {of_ads} and minutes {of_minutes} do not sum to the bill, {}",
        clicks(&bill)
    );
    Ok(())
}

fn minutes(node: &Node, of: &str, from: Hour) -> Result<Vec<Value>> {
    let query = format!("granularity=minute&from={}&to={}", from.start(), from.plus(2).start());
    let answer = node.client().get_json(&format!("/v1/campaigns/{of}/clicks?{query}"))?;
    ensure!(answer["notices"] == serde_json::json!([]), "{}", answer["notices"]);
    answer["rows"].as_array().cloned().context("rows")
}

/// Checks a number of users: exact up to 128, within the sketch's error above.
fn near(found: &Value, expected: u64) -> Result<()> {
    let found = found.as_u64().with_context(|| format!("{found} is no number"))?;
    let error = found.abs_diff(expected) as f64;
    let allowed = if expected <= 128 { 0.0 } else { USERS_ERROR_MAX * expected as f64 };
    ensure!(error <= allowed, "{found} users, the ledger has {expected}");
    Ok(())
}
