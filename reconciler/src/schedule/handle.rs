//! The reconciler as the rest of the node sees it.

use std::sync::Arc;

use actix::{Actor, Addr, Arbiter, ArbiterHandle, System};
use object_store::ObjectStore;
use tokio::sync::oneshot;
use twice_log::archive::{Archive, BillingPath, RunOutcome, layout};
use twice_log::fail::FailPoints;
use twice_log::hot::ClickLog;
use twice_log::{CampaignId, Clock, Day, Hour};
use twice_store::{BillingStore, CampaignStore, ImportStore, Replay};

use super::messages::{GetStatus, ReconcileDay, ReconcileDue, ReconcileHour, RetainNow, Stop, SweepNow};
use super::progress::{HourReport, ProgressSender, ReconcilerStatus, SweepReport};
use super::reconciler_actor::ReconcilerActor;
use super::replays::{ReplayEventSender, ReplayOrder, Replays};
use super::retention::{Reach, RetentionReport, RetentionScope};
use crate::compare::Explanation;
use crate::config::ReconcilerConfig;
use crate::error::{Error, Result};
use crate::ports::{ArchiveControl, ClockWitness, Holding, SealControl};
use crate::recompute::{ArchiveLocation, Recompute, RecomputeRequest, ShadowReport, Task, sweep_spill};

/// What the reconciler works with. Cheap to clone.
#[derive(Clone)]
pub struct ReconcilerDeps {
    pub clock: Arc<dyn Clock>,
    /// Asked before anything is deleted for good because its time is over.
    pub clock_witness: Arc<dyn ClockWitness>,
    /// Partitions and their end offsets.
    pub log: Arc<dyn ClickLog>,
    /// The archive, for reading manifests and seals and for putting run records.
    pub archive: Archive,
    /// Where a recompute process opens the same archive.
    pub archive_location: ArchiveLocation,
    pub billing: Arc<dyn BillingStore>,
    pub campaigns: Arc<dyn CampaignStore>,
    pub imports: Arc<dyn ImportStore>,
    pub seals: Arc<dyn SealControl>,
    pub archiver: Arc<dyn ArchiveControl>,
    /// What has not reached the log yet: hours wait for it (G-3).
    pub held: Arc<dyn Holding>,
    pub recompute: Arc<dyn Recompute>,
    /// Counts runs by replay through the stream's code (kappa).
    pub replay: Arc<dyn Replay>,
    pub fail_points: FailPoints,
}

/// Starts the actor tree.
#[derive(Debug)]
pub struct Reconciler;

impl Reconciler {
    /// Starts the reconciler on an arbiter of its own and returns its handle.
    ///
    /// Must be called where an actix `System` runs. With `config.schedule` it begins to close hours at once.
    ///
    /// # Errors
    /// `Config` where no actix system runs, or a setting does not fit.
    pub fn start(config: ReconcilerConfig, deps: ReconcilerDeps) -> Result<ReconcilerHandle> {
        config.validate()?;
        if System::try_current().is_none() {
            return Err(Error::Config { reason: "the reconciler needs a running actix system".to_owned() });
        }
        let swept = sweep_spill(&config.spill_dir);
        if swept > 0 {
            tracing::info!(folders = swept, "removed what killed recomputes had spilled");
        }
        let arbiter = Arbiter::new();
        let replays = Replays::new(config.clone(), deps.clone());
        let actor = ReconcilerActor::new(config.clone(), deps.clone(), replays.turn());
        let actor = ReconcilerActor::start_in_arbiter(&arbiter.handle(), move |_| actor);
        Ok(ReconcilerHandle { actor, arbiter: arbiter.handle(), config, deps, replays })
    }
}

/// Orders and questions to the running reconciler. Cheap to clone; usable from any thread and runtime.
#[derive(Clone)]
pub struct ReconcilerHandle {
    actor: Addr<ReconcilerActor>,
    arbiter: ArbiterHandle,
    config: ReconcilerConfig,
    deps: ReconcilerDeps,
    replays: Replays,
}

impl ReconcilerHandle {
    /// Does `work` on the reconciler's own thread: comparing and hashing rows must not hold up requests on the asker's.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        // A reconciler that has stopped drops the work; whoever listens to it hears the end.
        self.arbiter.spawn(work);
    }

    /// Closes `hour` at once, at the offsets present, and waits for the end. A billed hour is run again.
    ///
    /// Only one hour runs at a time; requests go before the schedule. Progress ends with one `Done` or `Failed`.
    ///
    /// # Errors
    /// Whatever failed the attempt; requests are not repeated by themselves. `HourNotOver` before the hour's end.
    pub async fn reconcile(&self, hour: Hour, progress: Option<ProgressSender>) -> Result<HourReport> {
        let (reply, answer) = oneshot::channel();
        let order = ReconcileHour { hour, progress, reply };
        self.actor.send(order).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Closes every hour that is due, oldest first, and waits for the end.
    ///
    /// # Errors
    /// The first failure; hours after it are still tried, and progress names each.
    pub async fn reconcile_due(&self, progress: Option<ProgressSender>) -> Result<Vec<HourReport>> {
        let (reply, answer) = oneshot::channel();
        self.actor.send(ReconcileDue { progress, reply }).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Replays the billed hours of a range, or makes another path's rows their bill, beside the schedule; waits for the
    /// replay before, then for the end. Events end with one `Done` or `Failed` an hour.
    pub async fn replay(&self, order: ReplayOrder, events: ReplayEventSender) {
        self.replays.run(order, &events).await;
    }

    /// Makes every hour of a past day that has clicks or a bill final, oldest first, and waits for the end (CR-9).
    ///
    /// The hour that has just ended goes before them. Progress has a note where verdicts may still come.
    ///
    /// # Errors
    /// `DayNotOver` before the day's end; else as for [`ReconcilerHandle::reconcile_due`].
    pub async fn close_day(&self, day: Day, progress: Option<ProgressSender>) -> Result<Vec<HourReport>> {
        let (reply, answer) = oneshot::channel();
        self.actor.send(ReconcileDay { day, progress, reply }).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Runs every billed hour again that later clicks, verdicts or rates touch, and waits for the end (CR-9, CR-10).
    ///
    /// # Errors
    /// The first failure; the next sweep looks at the same events again.
    pub async fn sweep(&self, progress: Option<ProgressSender>) -> Result<SweepReport> {
        let (reply, answer) = oneshot::channel();
        self.actor.send(SweepNow { progress, reply }).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Deletes what is expired of the raw archive, or says what that would be, and waits for the end.
    ///
    /// # Errors
    /// Those of archive and store, and `Config` while a replay runs; what was not done is done by the next pass.
    pub async fn retain(&self, scope: RetentionScope, dry_run: bool) -> Result<RetentionReport> {
        let (reply, answer) = oneshot::channel();
        self.actor.send(RetainNow { scope, dry_run, reply }).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Refuses hours of which something was deleted that a count of them would read.
    ///
    /// # Errors
    /// `Frozen` naming the first of them; `Log` if the archive does not answer.
    pub async fn check_countable(&self, hours: &[Hour]) -> Result<()> {
        let Some(first) = hours.iter().min() else { return Ok(()) };
        let reach = Reach::read(&self.deps.archive, *first, self.config.nightly_horizon_hours).await?;
        hours.iter().try_for_each(|hour| reach.check(*hour))
    }

    /// Returns what the reconciler is doing and what failed.
    ///
    /// # Errors
    /// `Stopped` after the end.
    pub async fn status(&self) -> Result<ReconcilerStatus> {
        self.actor.send(GetStatus).await.map_err(|_| Error::Stopped)
    }

    /// Stops: an attempt in hand is dropped where it stands, which is safe at any point (G-4).
    pub async fn stop(&self) {
        // An error means that it is stopped already.
        let _ = self.actor.send(Stop).await;
    }

    /// Lists the copies by which preliminary and billed of `campaign` differ in the newest ended run of `hour`.
    ///
    /// # Errors
    /// `NotReconciled` if the hour has no ended run.
    pub async fn explain(&self, hour: Hour, campaign: CampaignId, limit: u32) -> Result<Explanation> {
        self.deps.explain(&self.config, hour, campaign, limit).await
    }

    /// Compares a candidate billing statement with the one in use on the newest ended run of `hour`; writes nothing.
    ///
    /// # Errors
    /// `NotReconciled` if the hour has no ended run; `Candidate` if the statement cannot be run.
    pub async fn shadow(
        &self,
        hour: Hour,
        sql: String,
        campaign: Option<CampaignId>,
    ) -> Result<ShadowReport> {
        self.deps.shadow(&self.config, hour, sql, campaign).await
    }
}

impl ReconcilerDeps {
    /// Does what [`ReconcilerHandle::replay`] does; needs no running reconciler.
    pub async fn replay(&self, config: &ReconcilerConfig, order: ReplayOrder, events: ReplayEventSender) {
        Replays::new(config.clone(), self.clone()).run(order, &events).await;
    }

    /// Lists the copies by which preliminary and billed of `campaign` differ in the newest ended run of `hour`; needs no
    /// running reconciler.
    ///
    /// # Errors
    /// `NotReconciled` if the hour has no ended run.
    pub async fn explain(
        &self,
        config: &ReconcilerConfig,
        hour: Hour,
        campaign: CampaignId,
        limit: u32,
    ) -> Result<Explanation> {
        let run = self.archive.latest_run(BillingPath::Lambda, hour).await?;
        let run = run.filter(|run| run.result.is_some() || run.inputs.inputs.seq > 1);
        let Some(run) = run else { return Err(Error::NotReconciled { hour }) };
        let stored = match &run.result {
            Some(_) => run.inputs,
            None => {
                let seq = run.inputs.inputs.seq - 1;
                let inputs = self.archive.run_inputs(BillingPath::Lambda, hour, seq).await?;
                inputs.ok_or(Error::NotReconciled { hour })?
            }
        };
        let horizon_hours = stored.inputs.settings.horizon_hours;
        Reach::read(&self.archive, hour, horizon_hours).await?.check_readable(hour)?;
        let request = RecomputeRequest {
            archive: self.archive_location.clone(),
            inputs_path: twice_log::archive::layout::run_inputs_path(
                BillingPath::Lambda,
                hour,
                stored.inputs.seq,
            ),
            inputs_sha256: stored.sha256,
            limits: config.limits(),
            task: Task::Explain { campaign, limit },
            aggregates_dir: None,
        };
        self.recompute.explain(request).await
    }
}

impl ReconcilerDeps {
    /// Does what [`ReconcilerHandle::shadow`] does; needs no running reconciler.
    ///
    /// # Errors
    /// The same.
    pub async fn shadow(
        &self,
        config: &ReconcilerConfig,
        hour: Hour,
        sql: String,
        campaign: Option<CampaignId>,
    ) -> Result<ShadowReport> {
        let results = self.archive.run_results(BillingPath::Lambda, hour).await?;
        let ended = results.iter().rev().find(|stored| stored.result.outcome != RunOutcome::Abandoned);
        let Some(ended) = ended else { return Err(Error::NotReconciled { hour }) };
        Reach::read(&self.archive, hour, config.nightly_horizon_hours).await?.check_readable(hour)?;
        let request = RecomputeRequest {
            archive: self.archive_location.clone(),
            inputs_path: layout::run_inputs_path(BillingPath::Lambda, hour, ended.result.seq),
            inputs_sha256: ended.result.inputs_sha256.clone(),
            limits: config.limits(),
            task: Task::Shadow { sql, campaign },
            aggregates_dir: None,
        };
        self.recompute.shadow(request).await
    }
}

impl std::fmt::Debug for ReconcilerDeps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let store: &dyn ObjectStore = self.archive.store().as_ref();
        formatter.debug_struct("ReconcilerDeps").field("archive", &store.to_string()).finish_non_exhaustive()
    }
}
