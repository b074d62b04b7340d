//! Steps 2 and 3: the end offsets are read again, and manifests have to reach them without a hole (G-3).
//!
//! Guarantee: a cutoff is at or above every seal of the hour and every cutoff of an earlier run of any hour; no run
//! begins before manifests, read from their beginning and checked link by link, cover it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use twice_log::archive::{ChainKey, Cutoff, ManifestIndex, SealInput};
use twice_log::{Hour, LogOffset, PartitionId, Topic};

use super::hour_actor::HourWork;
use super::progress::Step;
use crate::error::{Error, Result};

impl HourWork {
    /// Reads the end offset of every partition of both topics, never below a seal or an earlier cutoff.
    pub(super) async fn ends(
        &self,
        hour: Hour,
        seals: &[SealInput],
    ) -> Result<BTreeMap<ChainKey, LogOffset>> {
        self.begin(hour, Step::Cutoff);
        let generation = self.deps.log.generation();
        let mut ends: BTreeMap<ChainKey, LogOffset> = BTreeMap::new();
        let mut raise = |chain: ChainKey, end: LogOffset| {
            let highest = ends.entry(chain).or_insert(end);
            *highest = end.max(*highest);
        };
        for topic in Topic::ARCHIVED {
            for partition in (0..self.deps.log.partitions()).map(PartitionId) {
                let end = self.deps.log.bounds(topic, partition).await?.end;
                raise(ChainKey { topic, generation, partition }, end);
            }
        }
        for cutoff in self.deps.billing.newest_cutoffs().await? {
            raise(cutoff.chain(), cutoff.end);
        }
        for seal in seals {
            if let Some(reference) = &seal.seal {
                let (generation, partition) = (seal.generation, seal.partition);
                raise(ChainKey { topic: Topic::AdClicks, generation, partition }, reference.end);
            }
        }
        // Closed generations are archived to their end.
        let index = self.index.lock().await;
        for chain in index.chains().filter(|chain| chain.generation < generation) {
            raise(chain, index.covered_end(chain));
        }
        Ok(ends)
    }

    /// Waits until manifests cover `ends` and returns the cutoffs with their head manifests.
    ///
    /// # Errors
    /// `ArchiveBehind` if they do not in time; `Log` at a hole.
    pub(super) async fn archived(
        &self,
        hour: Hour,
        ends: &BTreeMap<ChainKey, LogOffset>,
    ) -> Result<Vec<Cutoff>> {
        self.begin(hour, Step::Archiving);
        let deadline = Instant::now() + Duration::from_millis(self.config.archive_timeout_ms);
        loop {
            let behind = {
                let mut index = self.index.lock().await;
                index.refresh().await?;
                match covered(&index, ends) {
                    Ok(cutoffs) => return Ok(cutoffs),
                    Err(behind) => behind,
                }
            };
            if Instant::now() >= deadline {
                return Err(first_behind(&behind));
            }
            self.ask_archivers(&behind).await;
            sleep(Duration::from_millis(self.config.archive_poll_ms)).await;
        }
    }

    /// Brings the archive up to what is acknowledged by now: who asks for work has just sent what it is to find. The
    /// schedule leaves what is still in the log to its next turn.
    ///
    /// # Errors
    /// Those of [`HourWork::archived`].
    pub(super) async fn archive_the_present(&self) -> Result<()> {
        let hour = self.deps.clock.now().hour();
        let ends = self.ends(hour, &[]).await?;
        self.archived(hour, &ends).await.map(|_| ())
    }

    async fn ask_archivers(&self, behind: &[Behind]) {
        let generation = self.deps.log.generation();
        for Behind { chain, end, .. } in behind.iter().filter(|behind| behind.chain.generation == generation)
        {
            // The deadline decides about an archiver that stays away.
            if let Err(error) = self.deps.archiver.flush_through(chain.topic, chain.partition, *end).await {
                tracing::debug!(topic = %chain.topic, partition = %chain.partition, %error, "archiver does not flush");
            }
        }
    }
}

/// A chain that does not reach its cutoff yet.
struct Behind {
    chain: ChainKey,
    reached: LogOffset,
    end: LogOffset,
}

fn covered(index: &ManifestIndex, ends: &BTreeMap<ChainKey, LogOffset>) -> Result<Vec<Cutoff>, Vec<Behind>> {
    let mut cutoffs = Vec::with_capacity(ends.len());
    let mut behind = Vec::new();
    for (chain, end) in ends {
        match index.cutoff(*chain, *end) {
            Some(cutoff) => cutoffs.push(cutoff),
            None => behind.push(Behind { chain: *chain, reached: index.covered_end(*chain), end: *end }),
        }
    }
    if behind.is_empty() { Ok(cutoffs) } else { Err(behind) }
}

fn first_behind(behind: &[Behind]) -> Error {
    match behind.first() {
        Some(Behind { chain, reached, end }) => Error::ArchiveBehind {
            topic: chain.topic,
            partition: chain.partition,
            reached: *reached,
            cutoff: *end,
        },
        None => Error::Contradiction { reason: "the archive is behind in no partition".to_owned() },
    }
}
