//! `twice reconcile`: closes hours on a node and shows each step.

use anyhow::{Context, Result};
use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use twice_log::archive::{BillingPath, BillingStatus};
use twice_log::{Currency, Day, Hour};
use twice_reconciler::{BillChange, Reconciler, ReconcilerConfig};

use super::client::{Server, json_lines};
use super::offline::{Access, DataDir, Offline};
use super::shadow::{self, Shadow};
use super::{Agreement, Outcome};

/// Closes an hour, a day or every hour that is due, and writes its authoritative billing rows.
///
/// Seals the hour in the stream, waits until the archive holds every click up to the cutoff, recounts it by SQL, and
/// explains each difference from the preliminary number. Running it again on unchanged inputs changes nothing; where a bill
/// that was there before changed, the difference is shown by campaign, and the exit status is 1.
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
    /// Past day in UTC, such as 2025-01-15: its hours become final at once, with the nightly horizon of duplicates
    #[arg(long, value_name = "DAY")]
    day: Option<Day>,
    /// Every billed hour that later clicks, verdicts or rates touch
    #[arg(long)]
    sweep: bool,
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
        change: Change,
    },
    Note {
        detail: String,
    },
    Failed {
        hour: Option<Hour>,
        detail: String,
    },
    #[serde(other)]
    Other,
}

/// How a run changed a bill that was there before.
#[derive(Debug, Default, Deserialize)]
struct Change {
    rows: u64,
    billable: i64,
    money: Vec<Money>,
    listed: Vec<RowChange>,
}

#[derive(Debug, Deserialize)]
struct Money {
    currency: Option<String>,
    amount_micros: i64,
}

#[derive(Debug, Deserialize)]
struct RowChange {
    campaign_id: String,
    version: u32,
    reason: String,
    billable: i64,
    amount_micros: i64,
    currency: Option<String>,
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
    let body = match arguments.which {
        Which { hour: Some(hour), .. } => serde_json::json!({ "hour": hour }),
        Which { day: Some(day), .. } => serde_json::json!({ "day": day }),
        Which { sweep: true, .. } => serde_json::json!({ "sweep": true }),
        Which { .. } => serde_json::json!({ "due": true }),
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
        change: report.change.into(),
    });
    summary.finish()
}

impl From<BillChange> for Change {
    fn from(change: BillChange) -> Self {
        let currency = |currency: Option<Currency>| currency.map(|currency| currency.to_string());
        let money = change.money.into_iter();
        let listed = change.listed.into_iter().map(|row| RowChange {
            campaign_id: row.campaign_id.to_string(),
            version: row.version,
            reason: row.reason.to_string(),
            billable: row.delta.billable,
            amount_micros: row.delta.amount_micros,
            currency: currency(row.currency),
        });
        Self {
            rows: change.rows,
            billable: change.billable,
            money: money
                .map(|money| Money { currency: currency(money.currency), amount_micros: money.amount_micros })
                .collect(),
            listed: listed.collect(),
        }
    }
}

impl Change {
    /// Returns what is shown: the sums, and row by row what changed.
    fn lines(&self, hour: Hour) -> Vec<String> {
        let money = self.money.iter().map(|money| amount(money.amount_micros, money.currency.as_deref()));
        let money = money.map(|amount| format!(", {amount}")).collect::<String>();
        let mut lines =
            vec![format!("{hour}  the bill changed: {} rows, {:+} clicks{money}", self.rows, self.billable)];
        lines.extend(self.listed.iter().map(|row| {
            let RowChange { campaign_id, version, reason, billable, .. } = row;
            let amount = amount(row.amount_micros, row.currency.as_deref());
            format!("    {campaign_id}  version {version} ({reason}): {billable:+} clicks, {amount}")
        }));
        let more = self.rows.saturating_sub(self.listed.len() as u64);
        if more > 0 {
            let to = hour.plus(1);
            lines.push(format!("    and {more} more; see GET /v1/billing/corrections?from={hour}&to={to}"));
        }
        lines
    }
}

/// Writes an amount with its sign, in whole units and six decimals.
fn amount(micros: i64, currency: Option<&str>) -> String {
    let (sign, micros) = (if micros < 0 { '-' } else { '+' }, micros.unsigned_abs());
    let currency = currency.unwrap_or("(no currency)");
    format!("{sign}{}.{:06} {currency}", micros / 1_000_000, micros % 1_000_000)
}

#[derive(Debug, Default)]
struct Summary {
    hours: u64,
    failed: u64,
    unexplained: u64,
    /// Why nothing was begun, or not all.
    refused: Option<String>,
    /// Hours whose bill was there and changed.
    changed: u64,
}

impl Summary {
    fn take(&mut self, event: Event) {
        match event {
            Event::Step { hour, step } => eprintln!("{hour}  {step} …"),
            Event::Note { detail } => eprintln!("{detail}"),
            Event::Done { hour, outcome, run_id, rows, unexplained, change } => {
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
                if change.rows > 0 {
                    self.changed += 1;
                    change.lines(hour).iter().for_each(|line| println!("{line}"));
                }
            }
            Event::Failed { hour: Some(hour), detail } => {
                self.failed += 1;
                eprintln!("{hour}  FAILED: {detail}");
            }
            Event::Failed { hour: None, detail } => self.refused = Some(detail),
            Event::Other => {}
        }
    }

    fn finish(self) -> Result<Outcome> {
        if let Some(detail) = self.refused {
            anyhow::bail!(detail);
        }
        if self.failed > 0 {
            anyhow::bail!("{} of {} hours could not be closed", self.failed, self.hours + self.failed);
        }
        if self.hours == 0 {
            println!("nothing to do");
        }
        let agrees = self.unexplained == 0 && self.changed == 0;
        let agreement = if agrees { Agreement::Agreed } else { Agreement::Differs };
        Ok(Outcome::Done(agreement))
    }
}
