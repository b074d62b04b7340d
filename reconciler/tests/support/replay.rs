//! A kappa counter for tests of the schedule: it counts by SQL, in this process, and can be told to miscount.
//!
//! The real one is the stream path's, which this crate must not know; that both agree is tested beside it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use twice_log::archive::{Archive, StoredRunInputs};
use twice_reconciler::recompute::recompute_inputs;
use twice_store::{Cost, Error, Replay, ReplayProgressSender, Replayed, ReplayedHour, Result};

use super::limits;

/// Counts runs by SQL.
pub struct SqlReplay {
    pub archive: Archive,
    pub spill_dir: PathBuf,
    /// Billable clicks turned into duplicates in the first row of each run.
    pub miscounted: AtomicU64,
}

#[async_trait]
impl Replay for SqlReplay {
    async fn replay(
        &self,
        runs: &[StoredRunInputs],
        _progress: Option<ReplayProgressSender>,
    ) -> Result<Replayed> {
        let mut replayed = Replayed { slices: 1, cost: Cost::default(), ..Replayed::default() };
        for run in runs {
            let limits = limits(&self.spill_dir, 1, None);
            let recomputed = recompute_inputs(&self.archive, &run.inputs, &limits).await;
            let recomputed = recomputed.map_err(|error| Error::Replay { reason: error.to_string() })?;
            replayed.copies += recomputed.summary.copies;
            let mut rows = recomputed.rows;
            if let Some(row) = rows.iter_mut().find(|row| row.billable > 0 && row.unpriced == row.billable) {
                let wrong = self.miscounted.load(Ordering::SeqCst).min(row.billable);
                (row.billable, row.unpriced) = (row.billable - wrong, row.unpriced - wrong);
                row.duplicates += wrong;
            }
            replayed.hours.push(ReplayedHour { hour: run.inputs.hour, rows });
        }
        Ok(replayed)
    }
}
