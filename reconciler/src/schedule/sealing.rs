//! Step 1: each partition closes the hour in the stream path, at or above the end offsets of now (G-3).
//!
//! Guarantee: seals are taken once an hour, by its first run; a partition that did not seal in time is unsealed for
//! ever, and the hour is billed all the same. An archive that did not answer does not count against a partition: who is
//! missing when it answers is asked once more.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout_at};
use twice_log::archive::{SealInput, SealReference};
use twice_log::{Generation, Hour, LogOffset, PartitionId, Topic};

use super::close::PATHS;
use super::hour_actor::HourWork;
use super::progress::Step;
use crate::error::Result;
use crate::metrics;
use crate::ports::PortError;

/// Pause before a partition that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Longer than any pause of a partition that tries to put its seal.
const ARCHIVE_GRACE: Duration = Duration::from_secs(60);

impl HourWork {
    /// Returns the hour's seals: those its first run recorded, else new ones.
    pub(super) async fn seals(&self, hour: Hour) -> Result<Vec<SealInput>> {
        for path in PATHS {
            if let Some(first) = self.deps.archive.run_inputs(path, hour, 1).await? {
                return Ok(first.inputs.seals);
            }
        }
        self.begin(hour, Step::Sealing);
        let generation = self.deps.log.generation();
        let deadline = Instant::now() + Duration::from_millis(self.config.seal_timeout_ms);
        let mut ends = Vec::new();
        for partition in (0..self.deps.log.partitions()).map(PartitionId) {
            ends.push((partition, self.deps.log.bounds(Topic::AdClicks, partition).await?.end));
        }
        self.seal_all(hour, &ends, deadline).await;
        let found = self.found_seals(hour, generation).await?;
        let is_missing = |partition: PartitionId| {
            found.iter().any(|input| {
                input.partition == partition && input.generation == generation && input.seal.is_none()
            })
        };
        ends.retain(|(partition, _)| is_missing(*partition));
        if ends.is_empty() {
            return Ok(found);
        }
        // The archive has just answered. Seals that waited for it are put within the pauses of those who put them.
        let deadline = Instant::now() + ARCHIVE_GRACE.min(Duration::from_millis(self.config.seal_timeout_ms));
        for partition in self.seal_all(hour, &ends, deadline).await {
            tracing::warn!(%hour, %partition, "partition did not seal in time and stays unsealed for ever");
        }
        self.found_seals(hour, generation).await
    }

    /// Asks the partitions side by side; returns those that did not answer in time.
    async fn seal_all(
        &self,
        hour: Hour,
        ends: &[(PartitionId, LogOffset)],
        deadline: Instant,
    ) -> Vec<PartitionId> {
        let asked = ends.iter().map(|(partition, end)| self.seal(hour, *partition, *end, deadline));
        let in_time = join_all(asked).await;
        let late = ends.iter().zip(in_time).filter(|(_, in_time)| !in_time);
        late.map(|((partition, _), _)| *partition).collect()
    }

    /// Asks one partition until it has sealed or the time is over; returns whether it answered.
    async fn seal(&self, hour: Hour, partition: PartitionId, end: LogOffset, deadline: Instant) -> bool {
        let asked = async {
            loop {
                match self.deps.seals.seal(hour, partition, end).await {
                    Ok(()) => return,
                    Err(PortError::Absent { part }) => {
                        tracing::warn!(%hour, %partition, part, "partition stays unsealed");
                        return;
                    }
                    Err(error @ PortError::Unavailable { .. }) => {
                        tracing::debug!(%hour, %partition, %error, "asking again for the seal");
                        sleep(ASK_AGAIN).await;
                    }
                }
            }
        };
        timeout_at(deadline, asked).await.is_ok()
    }

    /// Reads what stands in the archive: only that is a seal.
    async fn found_seals(&self, hour: Hour, generation: Generation) -> Result<Vec<SealInput>> {
        let mut inputs: BTreeMap<(Generation, PartitionId), Option<SealReference>> =
            (0..self.deps.log.partitions())
                .map(|partition| ((generation, PartitionId(partition)), None))
                .collect();
        for stored in self.deps.archive.seals(hour).await? {
            let reference =
                SealReference { end: stored.seal.end, complete: stored.seal.complete, sha256: stored.sha256 };
            inputs.insert((stored.seal.generation, stored.seal.partition), Some(reference));
        }
        let unsealed = inputs.values().filter(|seal| seal.is_none()).count();
        ::metrics::gauge!(metrics::UNSEALED_PARTITIONS).set(unsealed as f64);
        let seals = inputs.into_iter();
        Ok(seals.map(|((generation, partition), seal)| SealInput { generation, partition, seal }).collect())
    }
}
