//! What several tests need: hours in the past, waiting for a fact, numbers out of answers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use twice_log::{Clock, Hour, WallClock};
use twice_tests::{Node, Oracle};

/// How long a test waits for something that takes a moment. Far beyond what it should take: no test asserts a time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the hour that began `hours` full hours before the current one, as `2025-01-15T12`.
pub fn hours_ago(hours: i64) -> Hour {
    WallClock.now().hour().plus(-hours)
}

/// Asks `question` until it answers, and fails with `what` past the limit of patience.
///
/// # Errors
/// If the question fails or stays unanswered.
pub fn wait_for<T>(what: &str, mut question: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = question().with_context(|| format!("while waiting for {what}"))? {
            return Ok(answer);
        }
        if started.elapsed() > PATIENCE {
            bail!("{what}: not within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Returns the rows of one campaign by hour, from `path` (`merged`, `stream` or `lambda`).
///
/// # Errors
/// On any answer but 200.
pub fn hourly(node: &Node, campaign: &str, from: Hour, hours: i64, path: &str) -> Result<Vec<Value>> {
    let (start, end) = (from.start(), from.plus(hours).start());
    let query = format!("from={start}&to={end}&granularity=hour&path={path}");
    let answer = node.client().get_json(&format!("/v1/campaigns/{campaign}/clicks?{query}"))?;
    answer["rows"].as_array().cloned().with_context(|| format!("rows of {answer}"))
}

/// Returns the sum of `clicks` over rows.
pub fn clicks(rows: &[Value]) -> u64 {
    rows.iter().filter_map(|row| row["clicks"].as_u64()).sum()
}

/// Returns every billing row of the hours, by (hour, campaign).
///
/// # Errors
/// On any answer but 200.
pub fn bill(node: &Node, from: Hour, hours: i64) -> Result<BTreeMap<(String, String), Value>> {
    let mut rows = BTreeMap::new();
    for hour in 0..hours {
        for row in node.client().get_rows(&format!("/v1/billing?hour={}", from.plus(hour)))? {
            let key = (text(&row, "hour_bucket"), text(&row, "campaign_id"));
            if let Some(twice) = rows.insert(key, row) {
                bail!("two billing rows of one campaign and hour: {twice}");
            }
        }
    }
    Ok(rows)
}

/// Returns every divergence row of the hours.
///
/// # Errors
/// On any answer but 200.
pub fn divergence(node: &Node, from: Hour, hours: i64) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for hour in 0..hours {
        rows.extend(node.client().get_rows(&format!("/v1/divergence?hour={}", from.plus(hour)))?);
    }
    Ok(rows)
}

/// Returns a text field, empty where it is none.
pub fn text(row: &Value, field: &str) -> String {
    row[field].as_str().unwrap_or_default().to_owned()
}

/// Checks every billing row of the hours against the oracle, which knows the ledgers and the rules, and no code of ours.
///
/// # Errors
/// If it disagrees on one count of one row.
pub fn oracle_agrees(node: &Node, ledgers: &[PathBuf], from: Hour, hours: i64) -> Result<()> {
    ask_oracle(node, ledgers, (from, hours), &[])
}

/// As [`oracle_agrees`], after an outage of the log: an append whose outcome nobody told is spooled, so a copy may be stored
/// once more than the ledger knows. What is billed must be the same.
///
/// # Errors
/// As there.
pub fn oracle_agrees_after_outage(node: &Node, ledgers: &[PathBuf], from: Hour, hours: i64) -> Result<()> {
    ask_oracle(node, ledgers, (from, hours), &["--extra-copies"])
}

fn ask_oracle(node: &Node, ledgers: &[PathBuf], (from, hours): (Hour, i64), flags: &[&str]) -> Result<()> {
    let rows: Vec<Value> = bill(node, from, hours)?.into_values().collect();
    let file = node.root().join("billing.json");
    std::fs::write(&file, serde_json::to_vec(&serde_json::json!({ "rows": rows }))?)?;
    let mut arguments = vec![
        "check".to_owned(),
        "--exclusive".to_owned(),
        "--billing".to_owned(),
        file.display().to_string(),
    ];
    for ledger in ledgers {
        arguments.extend(["--ledger".to_owned(), ledger.display().to_string()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    Oracle::run(&arguments)?.expect(0)?;
    Ok(())
}
