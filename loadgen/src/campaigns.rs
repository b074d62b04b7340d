//! Putting campaigns and rates: bulk NDJSON, repeated while the node is away.

use std::time::Instant;

use anyhow::{Result, bail};
use reqwest::{Method, StatusCode};

use crate::cli::{CampaignsArgs, Ended, ServerArgs};
use crate::console::{print, tell};
use crate::ledger::read_rates;
use crate::server::{Server, advice, backoff, describe, excerpt};
use crate::stream::CampaignRate;

/// Rates a request: some hundred kilobytes.
const RATES_A_REQUEST: usize = 2_000;

/// Runs `campaigns`.
///
/// # Errors
/// If the ledger has no rates or the node refuses them.
pub fn run(args: &CampaignsArgs) -> Result<Ended> {
    let rates = read_rates(&args.ledger)?;
    let server = Server::new(&args.server, 1)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(put_rates(&server, &args.server, &rates))?;
    print(&format!("{} rates put\n", rates.len()));
    Ok(Ended::Agreed)
}

/// Puts `rates` in their order. A request whose outcome is unknown is repeated: a rate in force already adds nothing.
///
/// # Errors
/// If the node refuses, or is away for longer than `--give-up-after`.
pub async fn put_rates(server: &Server, args: &ServerArgs, rates: &[CampaignRate]) -> Result<()> {
    for chunk in rates.chunks(RATES_A_REQUEST) {
        let mut body = Vec::new();
        for rate in chunk {
            serde_json::to_writer(&mut body, rate)?;
            body.push(b'\n');
        }
        put_chunk(server, args, bytes::Bytes::from(body)).await?;
    }
    Ok(())
}

async fn put_chunk(server: &Server, args: &ServerArgs, body: bytes::Bytes) -> Result<()> {
    let started = Instant::now();
    let mut attempt = 0;
    loop {
        let request = server
            .request(Method::POST, "/v1/campaigns")
            .header("content-type", "application/x-ndjson")
            .timeout(args.timeout)
            .body(body.clone());
        let problem = match request.send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => {
                let status = answer.status();
                let said = excerpt(&answer.bytes().await.unwrap_or_default());
                let retry = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                if !retry {
                    let advice = advice(status).unwrap_or("try another --campaign-prefix");
                    bail!("the node refused the campaigns: {status} {said}; {advice}");
                }
                format!("{status} {said}")
            }
            Err(error) => describe(error),
        };
        if started.elapsed() >= args.give_up_after {
            bail!("cannot put campaigns at {}: {problem}; is the node running? (--target)", server.base());
        }
        if attempt == 0 {
            let patience = args.give_up_after.as_secs();
            tell(&format!("waiting up to {patience} s for {}: {problem}", server.base()));
        }
        tokio::time::sleep(backoff(attempt)).await;
        attempt += 1;
    }
}
