//! The inputs of a run: everything it will read, recorded in the archive before any work (G-4, CR-8).

use twice_log::Hour;
use twice_log::archive::{
    BillingPath, BillingStatus, Cutoff, FileKind, RunInputs, SealInput, StoredRunInputs,
};
use twice_log::fail::FailPoint;

use super::hour_actor::HourWork;
use super::retention::Reach;
use crate::error::Result;
use crate::recompute::{Rules, rules_sha256};

/// Verdicts that arrived more hours before the hour than this are not asked (CR-10).
const VERDICT_HOURS_BEFORE: i64 = 24;

impl HourWork {
    /// Goes through the steps up to complete inputs, and returns them unrecorded; path and number are the caller's.
    ///
    /// # Errors
    /// `Frozen` where something it would read was deleted, before anything is sealed.
    pub(super) async fn gather(&self, hour: Hour, status: BillingStatus) -> Result<RunInputs> {
        self.check_countable(hour).await?;
        let seals = self.seals(hour).await?;
        let ends = self.ends(hour, &seals).await?;
        let cutoffs = self.archived(hour, &ends).await?;
        self.inputs(hour, status, seals, cutoffs).await
    }

    /// Refuses an hour that can no longer be counted with the nightly horizon, to which every bill comes in the end.
    ///
    /// # Errors
    /// `Frozen`, with the reason, and those of the archive.
    pub(super) async fn check_countable(&self, hour: Hour) -> Result<()> {
        Reach::read(&self.deps.archive, hour, self.config.nightly_horizon_hours).await?.check(hour)
    }

    async fn inputs(
        &self,
        hour: Hour,
        status: BillingStatus,
        seals: Vec<SealInput>,
        cutoffs: Vec<Cutoff>,
    ) -> Result<RunInputs> {
        let settings = self.config.counting_of(status);
        // Before the rates are read: one recorded meanwhile counts as later, and the sweep looks at it.
        let created_at = self.deps.clock.now();
        let horizon = i64::from(settings.horizon_hours);
        // Verdicts may come long after the click: all up to the cutoff can matter.
        let newest = Hour::from_since_epoch(i64::MAX);
        let (click_files, verdict_files) = {
            let index = self.index.lock().await;
            let clicks = hour.plus(-horizon)..=hour.plus(horizon);
            let verdicts = hour.plus(-VERDICT_HOURS_BEFORE)..=newest;
            (
                index.files_for_hours(FileKind::Clicks, clicks, &cutoffs)?,
                index.files_for_hours(FileKind::Verdicts, verdicts, &cutoffs)?,
            )
        };
        Ok(RunInputs {
            path: BillingPath::Lambda,
            hour,
            seq: 1,
            status,
            settings,
            cutoffs,
            seals,
            click_files,
            verdict_files,
            rates: self.deps.campaigns.rates_effective_before(hour.end()).await?,
            announced: self.deps.imports.is_announced(hour).await?,
            mode_change: false,
            rules_sha256: rules_sha256(&settings)?,
            created_at,
        })
    }

    /// Records the inputs; returns those that stand, which are the ones to use.
    pub(super) async fn record(&self, inputs: &RunInputs) -> Result<StoredRunInputs> {
        // First, or a death in between would leave inputs whose rules nobody kept.
        Rules::of_build(&inputs.settings)?.put(&self.deps.archive).await?;
        self.deps.fail_points.pass(FailPoint::RulesPut);
        let stored = self.deps.archive.put_run_inputs(inputs).await?;
        self.deps.fail_points.pass(FailPoint::RunInputsPut);
        Ok(stored)
    }
}

/// Returns whether a new run with `new` inputs would read exactly what `old` read.
pub(super) fn reads_the_same(old: &RunInputs, new: &RunInputs) -> bool {
    let as_old = RunInputs { path: old.path, seq: old.seq, created_at: old.created_at, ..new.clone() };
    as_old == *old
}
