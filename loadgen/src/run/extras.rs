//! What some profiles send besides clicks: fraud verdicts of `bots`, bad bodies of `malformed`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::Shared;
use crate::cli::ServerArgs;
use crate::ledger::Worker;
use crate::server::{Server, backoff, describe, excerpt};
use crate::stream::{Profile, Texts, write_click_id};

const VERDICTS_A_REQUEST: usize = 1_000;
const BAD_BODY_EVERY: Duration = Duration::from_millis(200);

/// Bodies that no node takes, and the status each must be answered with.
const BAD_BODIES: [(&str, &[u8], u16); 9] = [
    ("application/json", b"[{\"campaign_id\":", 400),
    ("application/json", b"{\"campaign_id\":\"\xff\"}", 400),
    ("application/json", b"[]", 422),
    ("application/x-ndjson", b"\n\n", 422),
    ("text/plain", b"campaign_id=c", 415),
    ("application/vnd.apache.arrow.stream", b"no stream", 400),
    ("application/cloudevents+json", b"[]", 400),
    ("application/cloudevents-batch+json", b"{}", 400),
    ("application/cloudevents", b"{}", 415),
];

/// Sends verdicts on the bots' clicks that this process sent, each until the node has it; returns how many.
///
/// # Errors
/// If the node refuses them, or answers nothing for `--give-up-after`.
pub(super) async fn send_verdicts(
    server: &Server,
    args: &ServerArgs,
    shared: &Shared,
    worker: Option<Worker>,
) -> Result<u64> {
    let stream = &shared.stream;
    if stream.settings().profile != Profile::Bots {
        return Ok(0);
    }
    let texts = Texts::new(stream.settings());
    let mut sent = 0;
    let mut lines = Vec::new();
    let mut in_lines = 0;
    for copy in stream.iter().filter(|copy| copy.kind.is_base()) {
        let Some(ruling) = stream.ruling(copy.original) else { continue };
        if worker.is_some_and(|worker| !worker.has(copy.original)) {
            continue;
        }
        let (mut campaign, mut click_id) = (Vec::new(), Vec::new());
        texts.campaign_id(&mut campaign, copy.content.campaign);
        write_click_id(&mut click_id, &copy.content);
        let verdict = json!({
            "campaign_id": String::from_utf8_lossy(&campaign),
            "click_id": String::from_utf8_lossy(&click_id),
            "verdict": ruling.name(),
            "model_version": "twice-loadgen",
            "decided_at": copy.content.event_time_ms,
            "click_event_time": copy.content.event_time_ms,
        });
        lines.extend_from_slice(verdict.to_string().as_bytes());
        lines.push(b'\n');
        in_lines += 1;
        if in_lines == VERDICTS_A_REQUEST {
            deliver(server, args, std::mem::take(&mut lines)).await?;
            sent += std::mem::take(&mut in_lines) as u64;
        }
    }
    if in_lines > 0 {
        deliver(server, args, lines).await?;
        sent += in_lines as u64;
    }
    Ok(sent)
}

/// A verdict that is stored twice rules as it does once: so a request is repeated as a whole.
async fn deliver(server: &Server, args: &ServerArgs, lines: Vec<u8>) -> Result<()> {
    let body = bytes::Bytes::from(lines);
    let begun = Instant::now();
    let mut attempt = 0;
    loop {
        let request = server
            .request(Method::POST, "/v1/verdicts")
            .header("content-type", "application/x-ndjson")
            .timeout(args.timeout)
            .body(body.clone());
        let problem = match request.send().await {
            Ok(answer) => {
                let status = answer.status();
                let said = answer.bytes().await.unwrap_or_default();
                let whole = serde_json::from_slice::<serde_json::Value>(&said).is_ok_and(|said| {
                    let empty = |field: &str| said[field].as_array().is_none_or(Vec::is_empty);
                    empty("retry") && empty("rejected")
                });
                if status == StatusCode::ACCEPTED && whole {
                    return Ok(());
                }
                if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
                    bail!("the node refused verdicts: {status} {}", excerpt(&said));
                }
                format!("{status} {}", excerpt(&said))
            }
            Err(error) => describe(error),
        };
        if begun.elapsed() >= args.give_up_after {
            bail!("verdicts were not taken: {problem}");
        }
        tokio::time::sleep(backoff(attempt)).await;
        attempt += 1;
    }
}

/// Sends a bad body every 200 ms and checks what it is answered, as long as the run lasts.
pub(super) async fn send_bad_bodies(server: Server, timeout: Duration, shared: Arc<Shared>) {
    if shared.stream.settings().profile != Profile::Malformed {
        return;
    }
    let counters = &shared.counters;
    let mut ticks = tokio::time::interval(BAD_BODY_EVERY);
    for (content_type, body, due) in BAD_BODIES.iter().cycle() {
        ticks.tick().await;
        let request = server
            .request(Method::POST, "/v1/clicks")
            .header("content-type", *content_type)
            .timeout(timeout)
            .body(*body);
        // A node that is down or busy says nothing about the body.
        let Ok(answer) = request.send().await else { continue };
        let got = answer.status();
        if got == StatusCode::TOO_MANY_REQUESTS || got.is_server_error() {
            continue;
        }
        counters.bad_bodies.fetch_add(1, Ordering::Relaxed);
        if got.as_u16() != *due {
            counters.wrong_refusals.fetch_add(1, Ordering::Relaxed);
            counters.note_problem(&format!("a bad {content_type} body was answered {got} instead of {due}"));
        }
    }
}
