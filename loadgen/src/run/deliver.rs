//! Delivering one batch: send, read the answer, send the rest again, until every copy is settled or the run stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::header::RETRY_AFTER;
use reqwest::{Method, StatusCode};
use tokio::sync::mpsc;

use super::Shared;
use super::batch::{Answer, Batch, Pending, settle};
use crate::cli::ServerArgs;
use crate::ledger::Settled;
use crate::server::{Server, advice, backoff, describe, excerpt, never_sent};
use crate::stream::{Profile, Texts, refusal_due};

/// Longest wait a node's `Retry-After` is followed for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// How long a client of `retry-storm` waits for an answer before it sends again.
const STORM_TIMEOUT: Duration = Duration::from_millis(250);
/// Its wait between two sends: as good as none, but not none, so that a refused connection does not fill a core.
const STORM_WAIT: Duration = Duration::from_millis(1);

/// What one send of a batch came to.
#[derive(Debug)]
enum Sent {
    /// The node says what became of each copy.
    Answered { answer: Answer, wait: Option<Duration> },
    /// The node certainly stored none; the same request may succeed later.
    NotStored { problem: String, wait: Option<Duration> },
    /// Each copy may or may not be stored.
    Unknown { problem: String },
    /// The node certainly stored none and will not, whenever asked.
    Refused { status: StatusCode, problem: String },
}

/// Delivers batches over one connection.
#[derive(Debug)]
pub(super) struct Deliverer {
    server: Server,
    args: ServerArgs,
    shared: Arc<Shared>,
    texts: Texts,
    /// Sends again at once, whatever the node asks.
    storm: bool,
    timeout: Duration,
    settled: mpsc::Sender<Vec<Settled>>,
}

impl Deliverer {
    pub(super) fn new(
        server: Server,
        args: ServerArgs,
        shared: Arc<Shared>,
        settled: mpsc::Sender<Vec<Settled>>,
    ) -> Self {
        let texts = Texts::new(shared.stream.settings());
        let storm = shared.stream.settings().profile == Profile::RetryStorm;
        let timeout = if storm { args.timeout.min(STORM_TIMEOUT) } else { args.timeout };
        Self { server, args, shared, texts, storm, timeout, settled }
    }

    /// Sends `batch` until every copy is settled; what a stopped run leaves is given up.
    pub(super) async fn deliver(&self, mut batch: Batch) {
        if self.shared.gate.is_stopped() {
            return; // never sent, so the ledger has no row of it
        }
        let counters = &self.shared.counters;
        counters.sent.fetch_add(batch.copies.len() as u64, Ordering::Relaxed);
        let mut last_success = Instant::now();
        let mut attempt = 0;
        loop {
            let (problem, wait) = match self.send(&batch).await {
                Sent::Answered { answer, wait } => match self.take_answer(&mut batch, &answer).await {
                    Ok(settled) if settled > 0 => {
                        last_success = Instant::now();
                        attempt = 0;
                        ("the node asks to send again".to_owned(), wait)
                    }
                    Ok(_) => ("the node asks to send again".to_owned(), wait),
                    Err(error) => {
                        count_unknown(&mut batch.copies);
                        (error.to_string(), None)
                    }
                },
                Sent::NotStored { problem, wait } => (problem, wait),
                Sent::Unknown { problem } => {
                    count_unknown(&mut batch.copies);
                    (problem, None)
                }
                Sent::Refused { status, problem } => {
                    let code = format!("http_{}", status.as_u16());
                    let rows = batch.copies.drain(..).map(|copy| copy.refused(&code)).collect();
                    self.settle(rows, false).await;
                    let advice = advice(status).unwrap_or("see the node's log");
                    self.shared.gate.stop(format!("the node refused a batch: {status} {problem}; {advice}"));
                    return;
                }
            };
            if batch.copies.is_empty() {
                return;
            }
            if last_success.elapsed() >= self.args.give_up_after {
                self.shared.gate.stop(format!(
                    "no success for {} s ({problem}); is the node running? (--target, --give-up-after)",
                    self.args.give_up_after.as_secs()
                ));
            }
            if self.shared.gate.is_stopped() {
                let rows = batch.copies.drain(..).map(Pending::given_up).collect();
                self.settle(rows, true).await;
                return;
            }
            counters.note_problem(&problem);
            counters.retries.fetch_add(1, Ordering::Relaxed);
            let wait = if self.storm { STORM_WAIT } else { wait.unwrap_or_else(|| backoff(attempt)) };
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    async fn send(&self, batch: &Batch) -> Sent {
        let request = self
            .server
            .request(Method::POST, "/v1/clicks")
            .header("content-type", self.shared.form.content_type())
            .timeout(self.timeout)
            .body(batch.body.clone());
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if never_sent(&error) => {
                return Sent::NotStored { problem: describe(error), wait: None };
            }
            Err(error) => return Sent::Unknown { problem: describe(error) },
        };
        let status = answer.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            self.shared.counters.limited.fetch_add(1, Ordering::Relaxed);
        }
        let wait = retry_after(answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()));
        let body = match answer.bytes().await {
            Ok(body) => body,
            Err(error) => return Sent::Unknown { problem: describe(error) },
        };
        classify(status, wait, &body)
    }

    /// Returns how many copies the answer settled.
    async fn take_answer(&self, batch: &mut Batch, answer: &Answer) -> anyhow::Result<usize> {
        let rows = settle(&mut batch.copies, answer)?;
        let accepted = rows.iter().filter(|row| row.acknowledged).count() as u64;
        self.shared.counters.record(batch.due.elapsed(), accepted);
        let settled = rows.len();
        self.settle(rows, false).await;
        if settled > 0 && !batch.copies.is_empty() {
            let again = batch.copies.iter().map(|copy| copy.sequence);
            batch.body = self.shared.form.write(&self.shared.stream, &self.texts, again)?;
        }
        Ok(settled)
    }

    /// Counts a refusal as due, where the copy is bad and the code is its fault's, or as one that should not be.
    fn count_refusal(&self, row: &Settled) {
        let counters = &self.shared.counters;
        let kind = self.shared.stream.copy(row.sequence).kind;
        match (refusal_due(kind.name()), row.rejected.as_deref()) {
            (None, None) => {}
            (None, Some(_)) => _ = counters.rejected.fetch_add(1, Ordering::Relaxed),
            (Some(due), Some(code)) if due == code => {
                _ = counters.refused_as_due.fetch_add(1, Ordering::Relaxed)
            }
            (Some(due), got) => {
                let got = got.unwrap_or("accepted");
                counters.note_problem(&format!("a bad click was {got} instead of {due}"));
                counters.wrong_refusals.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn settle(&self, rows: Vec<Settled>, given_up: bool) {
        if rows.is_empty() {
            return;
        }
        let counters = &self.shared.counters;
        if given_up {
            counters.given_up.fetch_add(rows.len() as u64, Ordering::Relaxed);
        }
        for row in &rows {
            self.count_refusal(row);
        }
        // First the gate: what waits for these may go as soon as they are acknowledged, ledger or not.
        self.shared.gate.settle(rows.iter().map(|row| row.sequence), given_up);
        // The ledger's thread ends early only after it stopped the run; its error is the run's.
        let _ = self.settled.send(rows).await;
    }
}

fn count_unknown(copies: &mut [Pending]) {
    for copy in copies {
        copy.attempts_unknown = copy.attempts_unknown.saturating_add(1);
    }
}

/// Reads a `Retry-After` of seconds; fractions and zero are followed too.
fn retry_after(value: Option<&str>) -> Option<Duration> {
    let seconds: f64 = value?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok().map(|wait| wait.min(RETRY_AFTER_MAX))
}

/// Says what status and body mean for the copies of the request.
fn classify(status: StatusCode, wait: Option<Duration>, body: &[u8]) -> Sent {
    let answered = matches!(
        status,
        StatusCode::OK
            | StatusCode::ACCEPTED
            | StatusCode::UNPROCESSABLE_ENTITY
            | StatusCode::SERVICE_UNAVAILABLE
    );
    if answered && let Ok(answer) = Answer::read(body) {
        return Sent::Answered { answer, wait };
    }
    let problem = format!("{status} {}", excerpt(body));
    if status == StatusCode::TOO_MANY_REQUESTS {
        Sent::NotStored { problem, wait }
    } else if status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT {
        Sent::Refused { status, problem: excerpt(body) }
    } else {
        Sent::Unknown { problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_certainly_stored_nothing_counts_as_not_stored() {
        let answer = br#"{"accepted":0,"rejected":[],"retry":[0]}"#;
        assert!(matches!(classify(StatusCode::SERVICE_UNAVAILABLE, None, answer), Sent::Answered { .. }));
        assert!(matches!(classify(StatusCode::SERVICE_UNAVAILABLE, None, b"busy"), Sent::Unknown { .. }));
        assert!(matches!(classify(StatusCode::INTERNAL_SERVER_ERROR, None, answer), Sent::Unknown { .. }));
        assert!(matches!(classify(StatusCode::ACCEPTED, None, b"{}"), Sent::Unknown { .. }));
        assert!(matches!(classify(StatusCode::TOO_MANY_REQUESTS, None, b""), Sent::NotStored { .. }));
        assert!(matches!(classify(StatusCode::UNAUTHORIZED, None, b""), Sent::Refused { .. }));
    }

    #[test]
    fn retry_after_is_followed_up_to_a_minute() {
        assert_eq!(retry_after(Some("2")), Some(Duration::from_secs(2)));
        assert_eq!(retry_after(Some("600")), Some(Duration::from_secs(60)));
        assert_eq!(retry_after(Some("Wed, 21 Oct 2026 07:28:00 GMT")), None);
        assert_eq!(retry_after(None), None);
    }
}
