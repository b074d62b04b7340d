//! Replays on request: the billed hours of a range counted again by replay, beside the schedule.
//!
//! Guarantee: one replay at a time, and no hour waits for it: it has nothing of the schedule's but the store's writer, for
//! the moment of each commit. Inputs of every hour are recorded before any work; a replay that was killed goes on with
//! exactly these (G-4). A close that meets an hour in the middle of a replay ends that run itself: both commit the same.
//! An hour that the schedule counts anew meanwhile fails, and its replay is given up: older counts never take the place
//! of newer ones. Memory: the rows of one batch of hours.
//! Flow, batch by batch: hours with a lambda run -> inputs of their newest -> one replay -> each hour compared with
//! lambda and committed.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{Mutex, mpsc};
use twice_log::archive::{BillingPath, ManifestIndex, RunInputs, RunOutcome, StoredRunInputs};
use twice_log::{Hour, UtcMillis};
use twice_store::replay::REPLAY_HOURS_MAX;
use twice_store::{BillingCounts, ReplayProgress};

use super::handle::ReconcilerDeps;
use super::hour_actor::HourWork;
use super::inputs::reads_the_same;
use super::kappa::{self, LambdaRuns, LambdaSide};
use super::progress::HourReport;
use super::run::run_id;
use crate::config::ReconcilerConfig;
use crate::error::{Error, Result, describe};
use crate::recompute::rules_sha256;
use crate::stored;

/// Hours replayed in one pass: more would read fewer files twice at the borders, and hold more rows until the commits.
const BATCH_HOURS: usize = 24;
/// How often an hour is looked at anew where others take the numbers of its runs.
const ATTEMPTS_MAX: u32 = 3;

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

    /// Returns what is held while a replay runs.
    pub fn turn(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.running)
    }

    /// Carries an order out, after the one that runs; says how it went to `events`.
    pub async fn run(&self, order: ReplayOrder, events: &ReplayEventSender) {
        let _turn = self.running.lock().await;
        let ended = match order.mode_change {
            _ if order.from.plus(REPLAY_HOURS_MAX) < order.to => Err(too_long(order)),
            Some(BillingPath::Lambda) => self.restate_to_lambda(order, events).await,
            Some(BillingPath::Kappa) | None => self.replay(order, events).await,
        };
        if let Err(error) = ended {
            fail(events, None, &error);
        }
    }

    async fn replay(&self, order: ReplayOrder, events: &ReplayEventSender) -> Result<()> {
        for batch in self.hours(order).await?.chunks(BATCH_HOURS) {
            self.replay_batch(batch, order, events).await?;
        }
        Ok(())
    }

    async fn replay_batch(
        &self,
        hours: &[Hour],
        order: ReplayOrder,
        events: &ReplayEventSender,
    ) -> Result<()> {
        let mut planned = Vec::new();
        for &hour in hours {
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
            match self.commit(&plan, started_at, counted.rows).await {
                Ok((report, differing)) => done(events, report, differing),
                Err(error) => fail(events, Some(hour), &error),
            }
        }
        Ok(())
    }

    /// Compares and commits one hour, unless lambda has counted it anew since it was planned.
    async fn commit(
        &self,
        plan: &Planned,
        started_at: UtcMillis,
        rows: Vec<BillingCounts>,
    ) -> Result<(HourReport, u64)> {
        let inputs = &plan.kappa.inputs;
        let side = self.lambda_side(inputs.hour, plan.lambda_seq).await?;
        // After lambda's rows were read, or they might be of a later run than the inputs.
        if self.work.is_overtaken(inputs).await? {
            self.work.resume(&plan.kappa).await?; // gives it up, or puts the result of a close that has ended it
            return Err(Error::Overtaken { hour: inputs.hour });
        }
        let (counted, differing) = self.work.beside_lambda(&plan.kappa, rows, &side).await?;
        let report = self.work.commit(&plan.kappa, started_at, &counted).await?;
        if inputs.mode_change && self.work.is_overtaken(inputs).await? {
            // Begun in the moment of the commit: its counts are beside the bill now, and must become it.
            return Err(Error::Overtaken { hour: inputs.hour });
        }
        Ok((report, differing))
    }

    /// Counts billed hours again by SQL, over the inputs of their newest run, and makes lambda's rows their bill.
    async fn restate_to_lambda(&self, order: ReplayOrder, events: &ReplayEventSender) -> Result<()> {
        for hour in self.hours(order).await? {
            match self.restate_hour_to_lambda(hour).await {
                Ok(report) => done(events, report, 0),
                Err(error) => fail(events, Some(hour), &error),
            }
        }
        Ok(())
    }

    async fn restate_hour_to_lambda(&self, hour: Hour) -> Result<HourReport> {
        for _ in 0..ATTEMPTS_MAX {
            let LambdaRuns { newest, open, ended } = self.work.lambda_runs(hour).await?;
            if let Some(open) = open {
                self.work.resume(&open).await?;
                continue;
            }
            let newest = newest.ok_or(Error::NotReconciled { hour })?;
            self.work.check_countable(hour).await?;
            let wanted = RunInputs { seq: ended + 1, mode_change: true, ..newest.inputs };
            if let Some(recorded) = self.record_own(&wanted).await? {
                return self.work.run(&recorded).await;
            }
        }
        Err(Error::Overtaken { hour })
    }

    /// Records inputs; `None` where the number was taken meanwhile by other ones, which are for their owner to end.
    async fn record_own(&self, wanted: &RunInputs) -> Result<Option<StoredRunInputs>> {
        let stored = self.work.record(wanted).await?;
        Ok(Some(stored).filter(|stored| stored.inputs == *wanted))
    }

    /// Returns the hours of the range that lambda has billed.
    async fn hours(&self, order: ReplayOrder) -> Result<Vec<Hour>> {
        Ok(self.work.deps.billing.billed_hours(Some(BillingPath::Lambda), order.from, order.to).await?)
    }

    /// Records the inputs of an hour's kappa run, or takes those that a replay before left open.
    async fn plan(&self, hour: Hour, mode_change: bool) -> Result<Planned> {
        for _ in 0..ATTEMPTS_MAX {
            let LambdaRuns { newest, open, .. } = self.work.lambda_runs(hour).await?;
            if open.is_some() {
                return Err(Error::Overtaken { hour });
            }
            let lambda = newest.ok_or(Error::NotReconciled { hour })?.inputs;
            self.work.check_countable(hour).await?;
            check_rules(&lambda)?;
            let lambda_seq = lambda.seq;
            let wanted = RunInputs { path: BillingPath::Kappa, mode_change, ..lambda };
            let mut seq = 1;
            if let Some(run) = self.work.deps.archive.latest_run(BillingPath::Kappa, hour).await? {
                seq = run.inputs.inputs.seq + 1;
                if run.result.is_none() {
                    if self.goes_on_with(&run.inputs.inputs, &wanted).await? {
                        return Ok(Planned { kappa: run.inputs, lambda_seq });
                    }
                    self.work.resume(&run.inputs).await?;
                }
            }
            let created_at = self.work.deps.clock.now();
            if let Some(kappa) = self.record_own(&RunInputs { seq, created_at, ..wanted }).await? {
                return Ok(Planned { kappa, lambda_seq });
            }
        }
        Err(Error::Overtaken { hour })
    }

    /// Returns whether an open run reads what is wanted and waits for its commit, not only for its result.
    async fn goes_on_with(&self, open: &RunInputs, wanted: &RunInputs) -> Result<bool> {
        let is_committed = self.work.deps.billing.committed_run(&run_id(open)).await?.is_some();
        Ok(reads_the_same(open, wanted) && !is_committed)
    }

    /// Returns what lambda's newest run says: its rows, the causes stored with the bill in force, and its aggregates.
    async fn lambda_side(&self, hour: Hour, seq: u32) -> Result<LambdaSide> {
        let billing = self.work.deps.billing.as_ref();
        let rows = stored::newest_rows(billing, hour, BillingPath::Lambda).await?;
        let rows = rows.into_iter().map(|row| row.counts).collect();
        let divergence = stored::divergence(billing, hour).await?;
        Ok(LambdaSide { rows, divergence, aggregates: self.work.lambda_aggregates(hour, seq).await? })
    }
}

fn too_long(ReplayOrder { from, to, .. }: ReplayOrder) -> Error {
    let reason = format!("{from} to {to} are more than {REPLAY_HOURS_MAX} hours; replay them in parts");
    Error::Config { reason }
}

/// Both paths must say the same rules: an hour counted under others is counted by lambda under these first.
fn check_rules(lambda: &RunInputs) -> Result<()> {
    if rules_sha256(&lambda.settings)? == lambda.rules_sha256 {
        return Ok(());
    }
    let hour = lambda.hour;
    let reason = format!(
        "the newest run of {hour} was counted under other rules than this build's; run `twice reconcile --hour \
         {hour}`, then replay it"
    );
    Err(Error::Config { reason })
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
