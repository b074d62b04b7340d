//! Steps 4 and 5: recompute in the child, commit in one transaction, put the result (G-4).
//!
//! Guarantee: a run killed anywhere is run again with exactly its recorded inputs; one whose commit exists is not
//! computed again, its result is put first; half a bill is never visible.

use twice_log::UtcMillis;
use twice_log::archive::{
    Archive, BillingPath, ResultRow, RunInputs, RunKey, RunOutcome, RunResult, StoredRunInputs, layout,
};
use twice_log::fail::FailPoint;
use twice_store::{BillingRow, CommittedRun, NewBillingRow, RunCommit};

use super::hour_actor::HourWork;
use super::progress::{HourReport, Step};
use crate::error::{Error, Result};
use crate::metrics;
use crate::recompute::{RecomputeRequest, Recomputed, SpillFolder, Task, rules_sha256};

impl HourWork {
    /// Ends a run begun before; `None` if it cannot be, and was recorded as abandoned.
    pub(super) async fn resume(&self, stored: &StoredRunInputs) -> Result<Option<HourReport>> {
        let inputs = &stored.inputs;
        let run_id = run_id(inputs);
        tracing::info!(run = %run_id, "going on with a run that has no result");
        if let Some(committed) = self.deps.billing.committed_run(&run_id).await? {
            self.put_result(stored, &committed).await?;
            return Ok(Some(self.report_of(inputs, &committed).await?));
        }
        if rules_sha256(&inputs.settings)? != inputs.rules_sha256 {
            tracing::warn!(run = %run_id, "abandoning a run that was begun under other rules");
            self.abandon(stored).await?;
            return Ok(None);
        }
        if let Err(Error::Frozen { reason, .. }) = self.check_countable(inputs.hour).await {
            tracing::warn!(run = %run_id, reason, "abandoning a run of an hour that can no longer be counted");
            self.abandon(stored).await?;
            return Ok(None);
        }
        if self.is_overtaken(inputs).await? {
            // It would put older counts in the place of newer ones.
            tracing::warn!(run = %run_id, "abandoning a replay of inputs that lambda has counted anew since");
            self.abandon(stored).await?;
            return Ok(None);
        }
        Ok(Some(self.run(stored).await?))
    }

    /// Gives up a run that was not committed: its result says so.
    async fn abandon(&self, stored: &StoredRunInputs) -> Result<()> {
        let mode = self.deps.billing.mode(stored.inputs.hour).await?;
        let abandoned =
            CommittedRun { outcome: RunOutcome::Abandoned, committed_at: None, mode, rows: Vec::new() };
        self.put_result(stored, &abandoned).await
    }

    /// Counts and commits one run.
    pub(super) async fn run(&self, stored: &StoredRunInputs) -> Result<HourReport> {
        let inputs = &stored.inputs;
        let started_at = self.deps.clock.now();
        self.begin(inputs.hour, Step::Recomputing);
        let recomputed = self.counted(stored).await?;
        self.commit(stored, started_at, &recomputed).await
    }

    /// Commits what was counted, and puts the result.
    pub(super) async fn commit(
        &self,
        stored: &StoredRunInputs,
        started_at: UtcMillis,
        recomputed: &Recomputed,
    ) -> Result<HourReport> {
        let inputs = &stored.inputs;
        self.deps.fail_points.pass(FailPoint::RunBeforeCommit);
        self.begin(inputs.hour, Step::Committing);
        let rows = recomputed.rows.iter().cloned();
        let commit = RunCommit {
            path: inputs.path,
            hour: inputs.hour,
            seq: inputs.seq,
            run_id: run_id(inputs),
            status: inputs.status,
            inputs_sha256: stored.sha256.clone(),
            cutoffs: inputs.cutoffs.clone(),
            started_at,
            mode_change: inputs.mode_change,
            rows: rows.map(|counts| NewBillingRow::new(inputs.hour, counts)).collect(),
            divergence: recomputed.divergence.clone(),
        };
        let committed = self.deps.billing.commit_run(commit).await?;
        self.deps.fail_points.pass(FailPoint::RunAfterCommit);
        self.put_result(stored, &committed).await?;
        let report = self.report(inputs, &committed, &recomputed.rows, &recomputed.divergence).await?;
        Ok(HourReport { memory_retries: recomputed.summary.memory_retries, ..report })
    }

    /// Counts the run by its path: what follows is the same for all of them.
    async fn counted(&self, stored: &StoredRunInputs) -> Result<Recomputed> {
        match stored.inputs.path {
            BillingPath::Lambda => self.recomputed(stored).await,
            BillingPath::Kappa => self.replayed(stored).await,
        }
    }

    /// Counts by SQL in the child process, and puts what it made beside the rows into the archive.
    pub(super) async fn recomputed(&self, stored: &StoredRunInputs) -> Result<Recomputed> {
        // Gone with what is in it when this attempt ends, however it ends.
        let folder = self.spill_folder().await?;
        let recomputed = self.recompute_into(stored, &folder).await?;
        if let Some(made) = &recomputed.aggregates {
            self.put_aggregates(&stored.inputs, made).await?;
        }
        drop(tokio::task::spawn_blocking(move || drop(folder))); // off the arbiter, and nothing waits for it
        Ok(recomputed)
    }

    /// Counts by SQL in the child process, which leaves its aggregates in `folder`.
    pub(super) async fn recompute_into(
        &self,
        stored: &StoredRunInputs,
        folder: &SpillFolder,
    ) -> Result<Recomputed> {
        let request =
            RecomputeRequest { aggregates_dir: Some(folder.path().to_path_buf()), ..self.request(stored) };
        let recomputed = self.deps.recompute.recompute(request).await?;
        measure(&recomputed);
        Ok(recomputed)
    }

    pub(super) async fn spill_folder(&self) -> Result<SpillFolder> {
        let spill_dir = self.config.spill_dir.clone();
        let made = tokio::task::spawn_blocking(move || SpillFolder::make(&spill_dir)).await;
        let made = made.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        made.map_err(|source| Error::Process { action: "make a folder for aggregates", source })
    }

    fn request(&self, stored: &StoredRunInputs) -> RecomputeRequest {
        let RunInputs { path, hour, seq, .. } = stored.inputs;
        RecomputeRequest {
            archive: self.deps.archive_location.clone(),
            inputs_path: layout::run_inputs_path(path, hour, seq),
            inputs_sha256: stored.sha256.clone(),
            limits: self.config.limits(),
            task: Task::Bill,
            aggregates_dir: None,
        }
    }

    async fn put_result(&self, stored: &StoredRunInputs, committed: &CommittedRun) -> Result<()> {
        put_result(&self.deps.archive, stored, committed).await?;
        self.deps.fail_points.pass(FailPoint::RunResultPut);
        Ok(())
    }
}

/// Puts the result of a run: what its commit did, with the aggregates that were put before it.
pub(crate) async fn put_result(
    archive: &Archive,
    stored: &StoredRunInputs,
    committed: &CommittedRun,
) -> Result<()> {
    let RunInputs { path, hour, seq, .. } = stored.inputs;
    let set = archive.aggregate_set(RunKey { path, hour, seq }).await?;
    let result = RunResult {
        path,
        hour,
        seq,
        outcome: committed.outcome,
        committed_at: committed.committed_at.map(|at| at.to_string()),
        mode: committed.mode,
        inputs_sha256: stored.sha256.clone(),
        rows: committed.rows.iter().map(result_row).collect(),
        aggregates: set.map(|set| set.files).unwrap_or_default(),
    };
    archive.put_run_result(&result).await?;
    Ok(())
}

pub(crate) fn run_id(inputs: &RunInputs) -> String {
    format!("{}/{}/{:06}", inputs.path, inputs.hour, inputs.seq)
}

fn result_row(row: &BillingRow) -> ResultRow {
    ResultRow {
        campaign_id: row.counts.campaign_id.clone(),
        version: row.version,
        status: row.status,
        reason: row.reason.to_string(),
        digest: row.digest.clone(),
    }
}

fn measure(recomputed: &Recomputed) {
    let summary = &recomputed.summary;
    ::metrics::histogram!(metrics::RECOMPUTE_SECONDS).record(summary.cost.wall_seconds);
    ::metrics::gauge!(metrics::RECOMPUTE_RSS_PEAK_BYTES).set(summary.cost.rss_peak_bytes as f64);
    ::metrics::gauge!(metrics::RECOMPUTE_ROWS).set(summary.copies as f64);
    let unpriced: u64 = recomputed.rows.iter().map(|row| row.unpriced).sum();
    ::metrics::gauge!(metrics::UNPRICED_CLICKS).set(unpriced as f64);
}
