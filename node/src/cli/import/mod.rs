//! `twice import`: clicks from files, through the same door as live ones, in order, and resumable.
//!
//! Guarantee: a row's identity without a `click_id` is derived from the file's hash and the row's number (CR-1), so a
//! row sent twice is a duplicate, never a second click. Rows go one request after the other: order is kept.
//! Flow: read once for hash and hours -> announce -> send from the last acknowledged row -> remember each acknowledgement.

mod progress;
mod rows;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use twice_log::Hour;
use twice_log::event::Sha256Hex;

use self::progress::Progress;
use self::rows::Rows;
use super::client::{Client, Server};
use super::{Agreement, Outcome};

/// Imports clicks from files. Run it again after a break: it goes on where it was.
///
/// Rows have the fields of a click as JSON (campaign_id required; click_id, ad_id, user_id, publisher_id, event_time,
/// schema_version optional). Clicks of any age are taken; the hours they belong to are announced to the node.
#[derive(Debug, Clone, Args)]
pub struct Import {
    /// Files to import, in this order
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Format of the files; told from the name if left out (.ndjson, .jsonl, .csv, .parquet)
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Rows sent in one request
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Folder that remembers how far each file got
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
}

/// Format of a file to import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One JSON object a line
    Ndjson,
    /// Comma-separated, with a header line
    Csv,
    /// Parquet, with the field names as columns
    Parquet,
}

/// What a first reading of a file tells.
struct Survey {
    sha256: Sha256Hex,
    rows: u64,
    hours: BTreeSet<Hour>,
}

#[derive(Deserialize)]
struct Announced {
    import_id: String,
}

#[derive(Deserialize)]
struct Answer {
    accepted: u64,
    #[serde(default)]
    rejected: Vec<Rejected>,
    #[serde(default)]
    retry: Vec<u64>,
}

#[derive(Deserialize)]
struct Rejected {
    index: u64,
    code: String,
    detail: String,
}

/// Runs the command.
pub async fn run(arguments: Import) -> Result<Outcome> {
    let client = arguments.server.client()?;
    let state_dir = match &arguments.state_dir {
        Some(folder) => folder.clone(),
        None => progress::default_folder()?,
    };
    let mut rejected = 0;
    for file in &arguments.files {
        let format = format_of(file, arguments.format)?;
        rejected += import_file(&client, file, format, arguments.batch, &state_dir)
            .await
            .with_context(|| format!("import of {}", file.display()))?;
    }
    Ok(Outcome::Done(if rejected == 0 { Agreement::Agreed } else { Agreement::Differs }))
}

fn format_of(file: &Path, given: Option<Format>) -> Result<Format> {
    let extension = file.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    match (given, extension.as_deref()) {
        (Some(format), _) => Ok(format),
        (None, Some("ndjson" | "jsonl")) => Ok(Format::Ndjson),
        (None, Some("csv")) => Ok(Format::Csv),
        (None, Some("parquet")) => Ok(Format::Parquet),
        _ => bail!("cannot tell the format of {} from its name; give --format", file.display()),
    }
}

async fn import_file(
    client: &Client,
    file: &Path,
    format: Format,
    batch: u32,
    state_dir: &Path,
) -> Result<u64> {
    let survey = survey(file, format)?;
    if survey.rows == 0 {
        println!("{}: no rows", file.display());
        return Ok(0);
    }
    let mut progress = Progress::open(state_dir, &survey.sha256, client.base())?;
    if progress.rows() > 0 {
        println!("{}: going on after row {}", file.display(), progress.rows());
    }
    let announced: Announced = client
        .send(
            client
                .request(Method::POST, "/v1/imports")
                .json(&serde_json::json!({ "hours": survey.hours, "sha256": survey.sha256 })),
        )
        .await?
        .json()
        .await
        .context("the node's answer is not the documented JSON")?;
    let bar = bar(survey.rows, "sending");
    bar.set_position(progress.rows());
    let mut rejected = 0;
    let mut rows = Rows::open(file, format)?;
    rows.skip(progress.rows())?;
    loop {
        let first = progress.rows();
        let mut body = String::new();
        let count = rows.fill(&mut body, batch)?;
        if count == 0 {
            break;
        }
        let answer = send_batch(client, &announced.import_id, first, &body).await?;
        for row in answer.rejected.iter().take(20_usize.saturating_sub(rejected as usize)) {
            bar.suspend(|| eprintln!("row {} refused: {}: {}", first + row.index, row.code, row.detail));
        }
        rejected += answer.rejected.len() as u64;
        progress.advance(u64::from(count))?;
        bar.set_position(progress.rows());
    }
    bar.finish_and_clear();
    let accepted = survey.rows - rejected;
    println!("{}: {} rows, {accepted} accepted, {rejected} refused", file.display(), survey.rows);
    Ok(rejected)
}

/// Sends one batch until the node has taken or refused each of its rows.
///
/// A whole batch goes again where an outcome is unknown: its rows keep their identities, so copies are duplicates.
async fn send_batch(client: &Client, import_id: &str, first_row: u64, body: &str) -> Result<Answer> {
    let mut wait = Duration::from_millis(100);
    for _ in 0..60 {
        let request = client
            .request(Method::POST, &format!("/v1/clicks?import={import_id}&first_row={first_row}"))
            .header("content-type", "application/x-ndjson")
            .body(body.to_owned());
        match request.send().await {
            Ok(response) => match response.status() {
                StatusCode::ACCEPTED | StatusCode::UNPROCESSABLE_ENTITY => {
                    let text = response.text().await.context("the node's answer broke off")?;
                    let answer: Answer = serde_json::from_str(&text)
                        .with_context(|| format!("the node refused the batch at row {first_row}: {text}"))?;
                    debug_assert!(
                        answer.accepted + answer.rejected.len() as u64 > 0 || !answer.retry.is_empty()
                    );
                    if answer.retry.is_empty() {
                        return Ok(answer);
                    }
                }
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {}
                status => bail!("the node answered {status}: {}", response.text().await.unwrap_or_default()),
            },
            Err(error)
                if error.is_connect() || error.is_timeout() || error.is_request() || error.is_body() => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
    bail!(
        "the node took nothing for minutes; run the same command again once it is up: it goes on at row {first_row}"
    )
}

fn survey(file: &Path, format: Format) -> Result<Survey> {
    let sha256 = rows::sha256(file)?;
    let mut rows = Rows::open(file, format)?;
    let bar = ProgressBar::new_spinner();
    let mut survey = Survey { sha256, rows: 0, hours: BTreeSet::new() };
    rows.each(|line| {
        survey.rows += 1;
        if let Some(hour) = rows::hour_of(line) {
            survey.hours.insert(hour);
        }
        if survey.rows.is_multiple_of(100_000) {
            bar.set_message(format!("read {} rows", survey.rows));
            bar.tick();
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok(survey)
}

fn bar(rows: u64, message: &'static str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} rows, {per_sec}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(rows).with_style(style).with_message(message)
}
