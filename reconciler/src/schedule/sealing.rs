//! Step 1: each partition closes the hour in the stream path, at or above the end offsets of now (G-3).
//!
//! Guarantee: seals are taken once an hour, by its first run; a partition that did not seal in time is unsealed for
//! ever, and the hour is billed all the same.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout_at};
use twice_log::archive::{BillingPath, SealInput, SealReference};
use twice_log::{Generation, Hour, LogOffset, PartitionId, Topic};

use super::hour_actor::HourWork;
use super::progress::Step;
use crate::error::Result;
use crate::metrics;
use crate::ports::PortError;

/// Pause before a partition that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

impl HourWork {
    /// Returns the hour's seals: those its first run recorded, else new ones.
    pub(super) async fn seals(&self, hour: Hour) -> Result<Vec<SealInput>> {
        if let Some(first) = self.deps.archive.run_inputs(BillingPath::Lambda, hour, 1).await? {
            return Ok(first.inputs.seals);
        }
        self.begin(hour, Step::Sealing);
        let generation = self.deps.log.generation();
        let deadline = Instant::now() + Duration::from_millis(self.config.seal_timeout_ms);
        let mut ends = Vec::new();
        for partition in (0..self.deps.log.partitions()).map(PartitionId) {
            ends.push((partition, self.deps.log.bounds(Topic::AdClicks, partition).await?.end));
        }
        join_all(ends.iter().map(|(partition, end)| self.seal(hour, *partition, *end, deadline))).await;
        self.found_seals(hour, generation).await
    }

    /// Asks one partition until it has sealed or the time is over.
    async fn seal(&self, hour: Hour, partition: PartitionId, end: LogOffset, deadline: Instant) {
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
        if timeout_at(deadline, asked).await.is_err() {
            tracing::warn!(%hour, %partition, "partition did not seal in time and stays unsealed for ever");
        }
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
