//! `twice reconcile`: closes hours on a node and shows each step.

use anyhow::{Context, Result};
use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use twice_log::Hour;
use twice_log::archive::{BillingPath, BillingStatus};
use twice_reconciler::{Reconciler, ReconcilerConfig};

use super::client::{Server, json_lines};
use super::offline::{Access, DataDir, Offline};
use super::shadow::{self, Shadow};
use super::{Agreement, Outcome};

/// Closes an hour, or every hour that is due, and writes its authoritative billing rows.
///
/// Seals the hour in the stream, waits until the archive holds every click up to the cutoff, recounts it by SQL, and
/// explains each difference from the preliminary number. Running it again on unchanged inputs changes nothing.
#[derive(Debug, Clone, Args)]
pub struct Reconcile {
    #[command(flatten)]
    which: Which,
    /// Return at once; the node goes on by itself
    #[arg(long, conflicts_with = "shadow")]
    no_wait: bool,
    #[command(flatten)]
    shadow: Shadow,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    place: DataDir,
}

#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Hour in UTC, such as 2025-01-15T12; closed at once, with the clicks present
    #[arg(long, value_name = "HOUR")]
    hour: Option<Hour>,
    /// Every hour that has clicks, is past, and is not billed yet; a backfilled one after 10 quiet minutes
    #[arg(long)]
    due: bool,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    Step {
        hour: Hour,
        step: String,
    },
    Done {
        hour: Hour,
        outcome: String,
        run_id: String,
        rows: u64,
        unexplained: Option<i64>,
    },
    Failed {
        hour: Option<Hour>,
        detail: String,
    },
    #[serde(other)]
    Other,
}

/// Runs the command.
pub async fn run(arguments: Reconcile) -> Result<Outcome> {
    if let (true, Some(hour)) = (arguments.shadow.shadow, arguments.which.hour) {
        return shadow::run(arguments.shadow, hour, arguments.server, arguments.place).await;
    }
    if let Some(offline) = arguments.place.open(Access::Write).await? {
        let hour = arguments.which.hour.context("with --data-dir, name an hour: --hour 2025-01-15T12")?;
        return rerun_offline(&offline, hour).await;
    }
    let client = arguments.server.client()?;
    let body = match arguments.which.hour {
        Some(hour) => serde_json::json!({ "hour": hour }),
        None => serde_json::json!({ "due": true }),
    };
    let path = if arguments.no_wait { "/v1/reconciliations?wait=false" } else { "/v1/reconciliations" };
    let response = client.send(client.request(Method::POST, path).json(&body)).await?;
    if arguments.no_wait {
        println!("started; see GET {}/v1/reconciliations", client.base());
        return Ok(Outcome::Done(Agreement::Agreed));
    }
    let mut summary = Summary::default();
    json_lines(response, |line| {
        let event: Event =
            serde_json::from_slice(line).context("the node's progress line is not as documented")?;
        summary.take(event);
        Ok(())
    })
    .await?;
    summary.finish()
}

/// Runs an hour again on the folder of a stopped node, by the settings of its run before.
async fn rerun_offline(offline: &Offline, hour: Hour) -> Result<Outcome> {
    let deps = offline.reconciler_deps()?;
    let before = deps.archive.latest_run(BillingPath::Lambda, hour).await?;
    let before = before.with_context(|| {
        format!(
            "{hour} was never closed, and only a running node can seal it: start the node and close it there"
        )
    })?;
    let counting = before.inputs.inputs.settings;
    let nightly_horizon_hours = match before.inputs.inputs.status {
        BillingStatus::Final => counting.horizon_hours,
        BillingStatus::Reconciled => {
            ReconcilerConfig::default().nightly_horizon_hours.max(counting.horizon_hours)
        }
    };
    let config = ReconcilerConfig { counting, nightly_horizon_hours, ..offline.closing_config() };
    let reconciler = Reconciler::start(config, deps)?;
    let report = reconciler.reconcile(hour, None).await;
    reconciler.stop().await;
    let report = report?;
    let mut summary = Summary::default();
    summary.take(Event::Done {
        hour,
        outcome: format!("{:?}", report.outcome).to_lowercase(),
        run_id: report.run_id,
        rows: report.rows_written,
        unexplained: report.unexplained,
    });
    summary.finish()
}

#[derive(Debug, Default)]
struct Summary {
    hours: u64,
    failed: u64,
    unexplained: u64,
}

impl Summary {
    fn take(&mut self, event: Event) {
        match event {
            Event::Step { hour, step } => eprintln!("{hour}  {step} …"),
            Event::Done { hour, outcome, run_id, rows, unexplained } => {
                self.hours += 1;
                let difference = match unexplained {
                    Some(0) => "every difference explained".to_owned(),
                    Some(count) => {
                        format!("{count} UNEXPLAINED, see `twice explain --hour {hour} --campaign …`")
                    }
                    None => "the stream's number is not complete, so no difference is judged".to_owned(),
                };
                self.unexplained += unexplained.map_or(0, i64::unsigned_abs);
                println!("{hour}  {outcome}: {rows} rows written, run {run_id}, {difference}");
            }
            Event::Failed { hour, detail } => {
                self.failed += 1;
                let hour = hour.map_or_else(String::new, |hour| format!("{hour}  "));
                eprintln!("{hour}FAILED: {detail}");
            }
            Event::Other => {}
        }
    }

    fn finish(self) -> Result<Outcome> {
        if self.failed > 0 {
            anyhow::bail!("{} of {} hours could not be closed", self.failed, self.hours + self.failed);
        }
        if self.hours == 0 {
            println!("nothing is due");
        }
        let agreement = if self.unexplained == 0 { Agreement::Agreed } else { Agreement::Differs };
        Ok(Outcome::Done(agreement))
    }
}
