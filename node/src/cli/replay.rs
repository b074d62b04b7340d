//! `twice replay`: counts billed hours again by replay, and shows how far it is.

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde::Deserialize;
use tokio::sync::mpsc;
use twice_log::Hour;
use twice_log::archive::BillingPath;
use twice_reconciler::{ReplayEvent, ReplayOrder};

use super::client::{Server, json_lines};
use super::offline::{Access, DataDir, Offline};
use super::{Agreement, Outcome};

/// Counts billed hours a second time, by replay of the archive through the stream's code (kappa).
///
/// All hours of the range are read in one pass, beside the live path and the schedule. Their rows are versioned as path
/// kappa and compared with lambda's, which had the same inputs: exit status 1 says that a row differs.
#[derive(Debug, Clone, Args)]
pub struct Replay {
    /// First event hour in UTC, such as 2025-01-15T00
    #[arg(long, value_name = "HOUR")]
    from: Hour,
    /// Hour at which to stop, itself not replayed
    #[arg(long, value_name = "HOUR")]
    to: Hour,
    /// Return at once; the node goes on by itself
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    place: DataDir,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    Progress {
        copies_done: u64,
        copies_total: u64,
    },
    Done {
        hour: Hour,
        outcome: String,
        run_id: String,
        rows: u64,
        rows_written: u64,
        differing: u64,
    },
    Failed {
        hour: Option<Hour>,
        detail: String,
    },
    Ended,
    #[serde(other)]
    Other,
}

/// Runs the command.
pub async fn run(arguments: Replay) -> Result<Outcome> {
    let Replay { from, to, no_wait, server, place } = arguments;
    match place.open(Access::Write).await? {
        Some(offline) => replay_offline(&offline, ReplayOrder { from, to, mode_change: None }).await,
        None => start(&server, (from, to), None, no_wait).await,
    }
}

/// Replays hours of a stopped node's folder.
async fn replay_offline(offline: &Offline, order: ReplayOrder) -> Result<Outcome> {
    let (deps, config) = (offline.reconciler_deps()?, offline.closing_config());
    let (sender, mut events) = mpsc::unbounded_channel();
    let mut summary = Summary::new()?;
    let read = async {
        while let Some(event) = events.recv().await {
            summary.take(event_of(event));
        }
    };
    futures::join!(deps.replay(&config, order, sender), read);
    summary.ended = true;
    summary.bar.finish_and_clear();
    summary.finish()
}

fn event_of(event: ReplayEvent) -> Event {
    match event {
        ReplayEvent::Progress(progress) => {
            Event::Progress { copies_done: progress.copies_done, copies_total: progress.copies_total }
        }
        ReplayEvent::Done(report) => Event::Done {
            hour: report.hour,
            outcome: format!("{:?}", report.outcome).to_lowercase(),
            run_id: report.run_id,
            rows: report.rows,
            rows_written: report.rows_written,
            differing: report.differing,
        },
        ReplayEvent::Failed { hour, detail } => Event::Failed { hour, detail },
    }
}

/// Restates the billed hours of a range by `path`: its rows become their bill.
pub async fn restate(
    server: &Server,
    range: (Hour, Hour),
    path: BillingPath,
    no_wait: bool,
) -> Result<Outcome> {
    start(server, range, Some(path), no_wait).await
}

async fn start(
    server: &Server,
    (from, to): (Hour, Hour),
    restate: Option<BillingPath>,
    no_wait: bool,
) -> Result<Outcome> {
    let client = server.client()?;
    let body = match restate {
        Some(path) => serde_json::json!({ "from": from, "to": to, "restate": path }),
        None => serde_json::json!({ "from": from, "to": to }),
    };
    let path = if no_wait { "/v1/replays?wait=false" } else { "/v1/replays" };
    let response = client.send(client.request(Method::POST, path).json(&body)).await?;
    if no_wait {
        println!("started; see GET {}/v1/reconciliations", client.base());
        return Ok(Outcome::Done(Agreement::Agreed));
    }
    let mut summary = Summary::new()?;
    let read = json_lines(response, |line| {
        let event: Event =
            serde_json::from_slice(line).context("the node's progress line is not as documented")?;
        summary.take(event);
        Ok(())
    })
    .await;
    summary.bar.finish_and_clear();
    read?;
    summary.finish()
}

#[derive(Debug)]
struct Summary {
    bar: ProgressBar,
    hours: u64,
    failed: u64,
    differing: u64,
    ended: bool,
}

impl Summary {
    fn new() -> Result<Self> {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} clicks  {per_sec}  {eta} left")
            .context("the progress bar's template")?;
        let bar = ProgressBar::new(0).with_style(style);
        Ok(Self { bar, hours: 0, failed: 0, differing: 0, ended: false })
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Progress { copies_done, copies_total } => {
                self.bar.set_length(copies_total);
                self.bar.set_position(copies_done);
            }
            Event::Done { hour, outcome, run_id, rows, rows_written, differing } => {
                self.hours += 1;
                self.differing += differing;
                let verdict = match differing {
                    0 => "equal to lambda".to_owned(),
                    count => format!("{count} rows DIFFER from lambda, see the node's log"),
                };
                self.bar.suspend(|| {
                    println!(
                        "{hour}  {outcome}: {rows} rows, {rows_written} written, run {run_id}, {verdict}"
                    );
                });
            }
            Event::Failed { hour, detail } => {
                self.failed += 1;
                let hour = hour.map_or_else(String::new, |hour| format!("{hour}  "));
                self.bar.suspend(|| eprintln!("{hour}FAILED: {detail}"));
            }
            Event::Ended => self.ended = true,
            Event::Other => {}
        }
    }

    fn finish(self) -> Result<Outcome> {
        if self.failed > 0 {
            anyhow::bail!("{} hours replayed, {} failures", self.hours, self.failed);
        }
        if !self.ended {
            anyhow::bail!("the node stopped before the replay ended; run it again, it goes on where it was");
        }
        if self.hours == 0 {
            println!("no hour of the range is billed");
        }
        let agreement = if self.differing == 0 { Agreement::Agreed } else { Agreement::Differs };
        Ok(Outcome::Done(agreement))
    }
}
