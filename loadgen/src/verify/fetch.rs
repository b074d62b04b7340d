//! Asking the node: billing, divergence and runs page by page, and reconciling an hour.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use twice_log::Hour;

use crate::cli::ServerArgs;
use crate::console::tell;
use crate::server::{Server, advice, backoff, describe, excerpt};

/// Rows a page.
const PAGE_ROWS: usize = 1_000;

/// A row of `GET /v1/billing`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BillingRow {
    pub campaign_id: String,
    pub hour_bucket: Hour,
    pub gross: u64,
    pub duplicates: u64,
    pub conflicts: u64,
    pub invalid_givt: u64,
    pub invalid_sivt: u64,
    pub billable: u64,
    pub unpriced: u64,
    pub amount_micros: i64,
    #[serde(default)]
    pub currency: Option<String>,
}

/// A row of `GET /v1/divergence`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DivergenceRow {
    pub campaign_id: String,
    pub hour_bucket: Hour,
    /// `complete`, `incomplete` or `unsealed`.
    pub stream: String,
    pub preliminary: Option<u64>,
    pub billed: u64,
    pub late: Option<u64>,
    pub late_duplicate: Option<u64>,
    pub fraud: Option<u64>,
    pub unexplained: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Page<T> {
    rows: Vec<T>,
    #[serde(default)]
    next_cursor: Option<String>,
}

/// The hour of a row of `GET /v1/reconciliations`; the rest is of no interest here.
#[derive(Debug, Deserialize)]
struct RunRow {
    #[serde(alias = "hour_bucket")]
    hour: Hour,
}

/// A line of the answer to `POST /v1/reconciliations`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Progress {
    Step {
        #[serde(default)]
        step: String,
    },
    Done {
        outcome: String,
    },
    Failed {
        #[serde(default)]
        detail: String,
    },
    #[serde(other)]
    Other,
}

/// What asking to reconcile an hour came to.
#[derive(Debug)]
enum Asked {
    /// The run ended, with this outcome.
    Ended(String),
    /// The node answered and then broke off, or is busy: ask again.
    Broken,
    /// No answer at all.
    Unreachable(String),
}

/// A node to verify.
#[derive(Debug)]
pub(super) struct Node {
    server: Server,
    args: ServerArgs,
}

impl Node {
    pub(super) fn new(server: Server, args: ServerArgs) -> Self {
        Self { server, args }
    }

    pub(super) async fn billing(&self, hour: Hour) -> Result<Vec<BillingRow>> {
        self.rows(&format!("/v1/billing?hour={hour}")).await
    }

    pub(super) async fn divergence(&self, hour: Hour) -> Result<Vec<DivergenceRow>> {
        self.rows(&format!("/v1/divergence?hour={hour}")).await
    }

    /// Returns the hours that have a run, each once.
    pub(super) async fn billed_hours(&self) -> Result<Vec<Hour>> {
        let runs: Vec<RunRow> = self.rows("/v1/reconciliations?").await?;
        let mut hours: Vec<Hour> = runs.into_iter().map(|run| run.hour).collect();
        hours.sort();
        hours.dedup();
        Ok(hours)
    }

    async fn rows<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let mut rows = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let after =
                cursor.map(|cursor| format!("&cursor={}", percent_encoded(&cursor))).unwrap_or_default();
            let page: Page<T> =
                self.get(&format!("{path}&limit={PAGE_ROWS}{after}").replace("?&", "?")).await?;
            rows.extend(page.rows);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(rows);
            }
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            let request = self.server.request(Method::GET, path).timeout(self.args.timeout);
            let problem = match request.send().await {
                Ok(answer) => {
                    let status = answer.status();
                    match answer.bytes().await {
                        Ok(body) if status.is_success() => {
                            return serde_json::from_slice(&body).with_context(|| {
                                format!("the answer to {path} has another shape: {}", excerpt(&body))
                            });
                        }
                        Ok(body) if status.is_client_error() => {
                            let advice = advice(status).unwrap_or("see the node's log");
                            bail!("GET {path}: {status} {}; {advice}", excerpt(&body));
                        }
                        Ok(body) => format!("{status} {}", excerpt(&body)),
                        Err(error) => describe(error),
                    }
                }
                Err(error) => describe(error),
            };
            if started.elapsed() >= self.args.give_up_after {
                bail!("GET {}{path}: {problem}; is the node running? (--target)", self.server.base());
            }
            tokio::time::sleep(backoff(attempt)).await;
            attempt += 1;
        }
    }

    /// Reconciles `hour` and waits for the end. A connection that breaks is made again: a rerun changes nothing.
    pub(super) async fn reconcile(&self, hour: Hour, timeout: Duration) -> Result<()> {
        let started = Instant::now();
        let mut last_answer = started;
        let mut attempt = 0;
        loop {
            let left = timeout.saturating_sub(started.elapsed());
            match tokio::time::timeout(left, self.reconcile_once(hour)).await {
                Ok(Ok(Asked::Ended(outcome))) => {
                    tell(&format!("{hour} reconciled: {outcome}"));
                    return Ok(());
                }
                Ok(Ok(Asked::Broken)) => last_answer = Instant::now(),
                Ok(Ok(Asked::Unreachable(problem))) if last_answer.elapsed() >= self.args.give_up_after => {
                    bail!(
                        "reconcile {hour} at {}: {problem}; is the node running? (--target)",
                        self.server.base()
                    )
                }
                Ok(Ok(Asked::Unreachable(_))) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => bail!(
                    "{hour} was not reconciled within {} s; raise --reconcile-timeout",
                    timeout.as_secs()
                ),
            }
            tokio::time::sleep(backoff(attempt)).await;
            attempt += 1;
        }
    }

    async fn reconcile_once(&self, hour: Hour) -> Result<Asked> {
        let request = self
            .server
            .request(Method::POST, "/v1/reconciliations")
            .header("content-type", "application/json")
            .body(format!(r#"{{"hour":"{hour}"}}"#));
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Ok(Asked::Unreachable(describe(error))),
        };
        let status = answer.status();
        if status.is_client_error() {
            let said = excerpt(&answer.bytes().await.unwrap_or_default());
            bail!("reconcile {hour}: {status} {said}; {}", advice(status).unwrap_or("see the node's log"));
        }
        if !status.is_success() {
            return Ok(Asked::Broken);
        }
        let mut text = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            text.extend_from_slice(&chunk);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                if let Some(outcome) = read_progress(hour, &line)? {
                    return Ok(Asked::Ended(outcome));
                }
            }
        }
        Ok(read_progress(hour, &text)?.map_or(Asked::Broken, Asked::Ended))
    }
}

/// Returns the outcome if `line` is the end of the hour.
fn read_progress(hour: Hour, line: &[u8]) -> Result<Option<String>> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let progress = serde_json::from_slice(line)
        .with_context(|| format!("reconcile {hour}: unknown answer {}", excerpt(line)))?;
    match progress {
        Progress::Step { step } => {
            tell(&format!("{hour} {step}"));
            Ok(None)
        }
        Progress::Other => Ok(None),
        Progress::Done { outcome } if outcome == "abandoned" => {
            bail!("the run of {hour} was abandoned; reconcile again, and see the node's log")
        }
        Progress::Done { outcome } => Ok(Some(outcome)),
        Progress::Failed { detail } => bail!("the node could not reconcile {hour}: {detail}"),
    }
}

fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour() -> Hour {
        "2025-01-15T12".parse().expect("valid hour")
    }

    #[test]
    fn cursors_are_encoded_byte_by_byte() {
        assert_eq!(percent_encoded("a-b=c/é"), "a-b%3Dc%2F%C3%A9");
    }

    #[test]
    fn the_end_of_a_reconciliation_is_told_from_its_steps() {
        let step = br#"{"event":"step","hour":"2025-01-15T12","step":"sealing"}"#;
        assert_eq!(read_progress(hour(), step).expect("known"), None);
        let done = br#"{"event":"done","hour":"2025-01-15T12","outcome":"identical","run_id":"r","rows":0}"#;
        assert_eq!(read_progress(hour(), done).expect("known"), Some("identical".to_owned()));
        let failed = br#"{"event":"failed","hour":"2025-01-15T12","detail":"a hole"}"#;
        assert!(read_progress(hour(), failed).expect_err("failed").to_string().contains("a hole"));
        assert_eq!(
            read_progress(hour(), br#"{"event":"queued","rank":1}"#).expect("additions are fine"),
            None
        );
    }
}
