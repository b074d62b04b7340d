//! Replays on request: the billed hours of a range counted again by replay, in one pass, beside the schedule.
//!
//! Guarantee: one replay at a time, and no hour waits for it: it has nothing of the schedule's but the store's writer, for
//! the moment of each commit. Inputs of every hour are recorded before any work; a replay that was killed goes on with
//! exactly these (G-4). A close that meets an hour in the middle of a replay ends that run itself: both commit the same.
//! Flow: hours with a lambda run -> inputs of their newest -> one replay -> each hour compared with lambda and committed.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{Mutex, mpsc};
use twice_log::Hour;
use twice_log::archive::{BillingPath, ManifestIndex, RunInputs, RunOutcome, StoredRunInputs};
use twice_store::{BillingCounts, BillingQuery, Divergence, ReplayProgress};

use super::handle::ReconcilerDeps;
use super::hour_actor::HourWork;
use super::inputs::reads_the_same;
use super::kappa::{self, LambdaSide};
use super::progress::HourReport;
use crate::config::ReconcilerConfig;
use crate::error::{Error, Result, describe};
use crate::recompute::rules_sha256;

/// Rows read at once.
const PAGE: u32 = 1000;

/// What is to be replayed, or restated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayOrder {
    pub from: Hour,
    /// Exclusive.
    pub to: Hour,
    /// Whose rows become the bill of the hours; `None`: replay only.
    pub mode_change: Option<BillingPath>,
}

/// How one hour of a replay ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    pub hour: Hour,
    pub outcome: RunOutcome,
    pub run_id: String,
    pub rows: u64,
    /// Versions written; 0 where the outcome is `identical`.
    pub rows_written: u64,
    /// Rows that lambda counted differently on the same inputs (G-7).
    pub differing: u64,
}

/// One line of the event stream of a replay.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplayEvent {
    Progress(ReplayProgress),
    Done(ReplayReport),
    /// An hour, or all, could not be replayed.
    Failed {
        hour: Option<Hour>,
        detail: String,
    },
}

/// Where events go. A receiver that went away is no error.
pub type ReplayEventSender = mpsc::UnboundedSender<ReplayEvent>;

/// Does replays, one after the other.
#[derive(Clone)]
pub(super) struct Replays {
    work: HourWork,
    running: Arc<Mutex<()>>,
}

/// One hour to replay, with the lambda run whose inputs it has.
struct Planned {
    kappa: StoredRunInputs,
    lambda_seq: u32,
}

impl Replays {
    pub fn new(config: ReconcilerConfig, deps: ReconcilerDeps) -> Self {
        let index = Arc::new(Mutex::new(ManifestIndex::new(deps.archive.clone())));
        Self { work: HourWork::beside_the_schedule(config, deps, index), running: Arc::default() }
    }

    /// Carries an order out, after the one that runs; says how it went to `events`.
    pub async fn run(&self, order: ReplayOrder, events: &ReplayEventSender) {
        let _turn = self.running.lock().await;
        let ended = match order.mode_change {
            Some(BillingPath::Lambda) => self.restate_to_lambda(order, events).await,
            Some(BillingPath::Kappa) | None => self.replay(order, events).await,
        };
        if let Err(error) = ended {
            fail(events, None, &error);
        }
    }

    async fn replay(&self, order: ReplayOrder, events: &ReplayEventSender) -> Result<()> {
        let mut planned = Vec::new();
        for hour in self.hours(order).await? {
            match self.plan(hour, order.mode_change.is_some()).await {
                Ok(plan) => planned.push(plan),
                Err(error) => fail(events, Some(hour), &error),
            }
        }
        if planned.is_empty() {
            return Ok(());
        }
        let started_at = self.work.deps.clock.now();
        let runs: Vec<StoredRunInputs> = planned.iter().map(|plan| plan.kappa.clone()).collect();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let pass_on = async {
            while let Some(progress) = receiver.recv().await {
                let _ = events.send(ReplayEvent::Progress(progress));
            }
        };
        let counting = async move { self.work.deps.replay.replay(&runs, Some(sender)).await };
        let (replayed, ()) = futures::join!(counting, pass_on);
        let replayed = replayed?;
        kappa::measure(&replayed);
        for (plan, counted) in planned.into_iter().zip(replayed.hours) {
            let hour = counted.hour;
            let committed = async {
                let side = self.lambda_side(hour, plan.lambda_seq).await?;
                let (counted, differing) = self.work.beside_lambda(&plan.kappa, counted.rows, &side).await?;
                Ok::<_, Error>((self.work.commit(&plan.kappa, started_at, &counted).await?, differing))
            };
            match committed.await {
                Ok((report, differing)) => done(events, report, differing),
                Err(error) => fail(events, Some(hour), &error),
            }
        }
        Ok(())
    }

    /// Counts billed hours again by SQL, over the inputs of their newest run, and makes lambda's rows their bill.
    async fn restate_to_lambda(&self, order: ReplayOrder, events: &ReplayEventSender) -> Result<()> {
        for hour in self.hours(order).await? {
            let restated = async {
                if let Some(open) = self.open_run(BillingPath::Lambda, hour).await? {
                    self.work.resume(&open).await?;
                }
                let (newest, count) = self.newest_lambda(hour).await?;
                let inputs = RunInputs { seq: count + 1, mode_change: true, ..newest.inputs };
                self.work.run(&self.work.record(&inputs).await?).await
            };
            match restated.await {
                Ok(report) => done(events, report, 0),
                Err(error) => fail(events, Some(hour), &error),
            }
        }
        Ok(())
    }

    /// Returns the hours of the range that lambda has billed.
    async fn hours(&self, order: ReplayOrder) -> Result<Vec<Hour>> {
        Ok(self.work.deps.billing.billed_hours(Some(BillingPath::Lambda), order.from, order.to).await?)
    }

    async fn open_run(&self, path: BillingPath, hour: Hour) -> Result<Option<StoredRunInputs>> {
        let latest = self.work.deps.archive.latest_run(path, hour).await?;
        Ok(latest.filter(|run| run.result.is_none()).map(|run| run.inputs))
    }

    /// Returns the newest lambda run of an hour that ended with rows, and how many runs there are.
    async fn newest_lambda(&self, hour: Hour) -> Result<(StoredRunInputs, u32)> {
        let archive = &self.work.deps.archive;
        let results = archive.run_results(BillingPath::Lambda, hour).await?;
        let count = results.last().map_or(0, |last| last.result.seq);
        let ended = results.iter().rev().find(|stored| stored.result.outcome != RunOutcome::Abandoned);
        let seq = ended.ok_or(Error::NotReconciled { hour })?.result.seq;
        let inputs = archive.run_inputs(BillingPath::Lambda, hour, seq).await?;
        Ok((inputs.ok_or(Error::NotReconciled { hour })?, count))
    }

    /// Records the inputs of an hour's kappa run, or takes those that a replay before left open.
    async fn plan(&self, hour: Hour, mode_change: bool) -> Result<Planned> {
        let (lambda, _) = self.newest_lambda(hour).await?;
        let lambda_seq = lambda.inputs.seq;
        if rules_sha256(&lambda.inputs.settings)? != lambda.inputs.rules_sha256 {
            // Both paths must say the same rules: the hour is counted by lambda under these first.
            let reason = format!(
                "the newest run of {hour} was counted under other rules than this build's; run \
                 `twice reconcile --hour {hour}`, then replay it"
            );
            return Err(Error::Config { reason });
        }
        let wanted = RunInputs { path: BillingPath::Kappa, mode_change, ..lambda.inputs };
        let latest = self.work.deps.archive.latest_run(BillingPath::Kappa, hour).await?;
        let mut seq = 1;
        if let Some(run) = latest {
            seq = run.inputs.inputs.seq + 1;
            if run.result.is_none() {
                if reads_the_same(&run.inputs.inputs, &wanted)
                    && self
                        .work
                        .deps
                        .billing
                        .committed_run(&super::run::run_id(&run.inputs.inputs))
                        .await?
                        .is_none()
                {
                    return Ok(Planned { kappa: run.inputs, lambda_seq });
                }
                self.work.resume(&run.inputs).await?;
            }
        }
        let created_at = self.work.deps.clock.now();
        let kappa = self.work.record(&RunInputs { seq, created_at, ..wanted }).await?;
        Ok(Planned { kappa, lambda_seq })
    }

    /// Returns what lambda's newest run says: its rows, the causes stored with the bill in force, and its aggregates.
    async fn lambda_side(&self, hour: Hour, seq: u32) -> Result<LambdaSide> {
        let mut rows: Vec<BillingCounts> = Vec::new();
        let mut query = BillingQuery {
            from: hour,
            to: hour.plus(1),
            campaign: None,
            path: Some(BillingPath::Lambda),
            version: None,
            as_of: None,
            limit: PAGE,
            cursor: None,
        };
        loop {
            let page = self.work.deps.billing.billing(&query).await?;
            rows.extend(page.rows.into_iter().map(|row| row.counts));
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                break;
            }
        }
        let mut divergence: Vec<Divergence> = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.work.deps.billing.divergence(hour, None, PAGE, cursor).await?;
            divergence.extend(page.rows.into_iter().map(|row| row.divergence));
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        Ok(LambdaSide { rows, divergence, aggregates: self.work.lambda_aggregates(hour, seq).await? })
    }
}

fn done(events: &ReplayEventSender, report: HourReport, differing: u64) {
    let HourReport { hour, outcome, run_id, rows, rows_written, .. } = report;
    let _ =
        events.send(ReplayEvent::Done(ReplayReport { hour, outcome, run_id, rows, rows_written, differing }));
}

fn fail(events: &ReplayEventSender, hour: Option<Hour>, error: &Error) {
    let detail = describe(error);
    tracing::warn!(?hour, error = %detail, "a replay failed");
    let _ = events.send(ReplayEvent::Failed { hour, detail });
}
