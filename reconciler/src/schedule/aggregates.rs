//! Puts a run's aggregates into the archive, before it commits.
//!
//! Guarantee: when a row is committed its aggregates are there. Files come first, then the list that names them; a run
//! that dies in between is run again with the same inputs, makes the same bytes, and finds them put.

use twice_log::archive::{AggregateFile, AggregateSet, RunInputs, RunKey, layout};
use twice_log::event::Sha256Hex;
use twice_log::fail::FailPoint;

use super::hour_actor::HourWork;
use crate::error::{Error, Result};
use crate::recompute::LocalAggregates;

impl HourWork {
    /// Puts the files the recompute made, then their list.
    ///
    /// # Errors
    /// `Process` if a file is not the one the recompute made; `Log` if the archive fails.
    pub(super) async fn put_aggregates(&self, inputs: &RunInputs, made: &[LocalAggregates]) -> Result<()> {
        let RunInputs { path, hour, seq, .. } = *inputs;
        let mut set = AggregateSet { path, hour, seq, files: Vec::new() };
        for local in made {
            let bytes = read(local).await?;
            let place = layout::aggregate_path(path, hour, local.level, &local.sha256);
            self.deps.archive.put_aggregate_file(&place, bytes.into()).await?;
            set.files.push(AggregateFile {
                level: local.level,
                path: place,
                rows: local.rows,
                bytes: local.bytes,
                sha256: local.sha256.clone(),
                campaign_first: local.campaign_first.clone(),
                campaign_last: local.campaign_last.clone(),
            });
        }
        self.deps.fail_points.pass(FailPoint::AggregateFilesPut);
        self.deps.archive.put_aggregate_set(&set).await?;
        self.deps.fail_points.pass(FailPoint::AggregatesPut);
        Ok(())
    }

    /// Returns the files a run put, for its result.
    pub(super) async fn aggregates_of(&self, inputs: &RunInputs) -> Result<Vec<AggregateFile>> {
        let RunInputs { path, hour, seq, .. } = *inputs;
        let set = self.deps.archive.aggregate_set(RunKey { path, hour, seq }).await?;
        Ok(set.map(|set| set.files).unwrap_or_default())
    }
}

/// Reads a file and compares it with what the recompute said of it, off the arbiter.
async fn read(local: &LocalAggregates) -> Result<Vec<u8>> {
    let failed = |source| Error::Process { action: "take over aggregates", source };
    let local = local.clone();
    let work = tokio::task::spawn_blocking(move || {
        let bytes = std::fs::read(&local.file)?;
        if Sha256Hex::of(&bytes) == local.sha256 {
            Ok(bytes)
        } else {
            Err(std::io::Error::other(format!("{} changed since it was made", local.file.display())))
        }
    });
    work.await.map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)
}
