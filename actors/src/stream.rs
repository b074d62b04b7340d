//! The stream path as one handle: starts each partition on its arbiter, seals hours, tells how far it is.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use actix::{Actor, Addr, Arbiter};
use futures::future::{join_all, try_join_all};
use tokio::sync::Semaphore;
use twice_log::archive::{CountingSettings, StoredSeal};
use twice_log::fail::FailPoints;
use twice_log::hot::ClickLog;
use twice_log::{Clock, Hour, LogOffset, PartitionId, Topic};
use twice_store::windows::WindowStore;

use crate::budget::SpendFeed;
use crate::campaign::StreamRules;
use crate::checkpoint::{CheckpointLayout, CheckpointStore, CheckpointWriter, LoadedCheckpoint};
use crate::config::StreamConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::freshness::{Freshness, FreshnessMeter};
use crate::metrics::{LAG_RECORDS, UNSHOWN_SECONDS};
use crate::partition::{
    ClickHistory, DedupBudget, PartitionActor, PartitionSetup, PartitionStatus, SealArchive, SealHour,
    StopPartition,
};

/// What the stream path works with.
#[derive(Clone)]
pub struct StreamParts {
    pub log: Arc<dyn ClickLog>,
    pub windows: Arc<dyn WindowStore>,
    pub seals: Arc<dyn SealArchive>,
    /// Where clicks are read that the log no longer holds.
    pub history: Arc<dyn ClickHistory>,
    /// Where counts of campaigns with a budget go; one that nobody watches takes nothing.
    pub spend: Arc<SpendFeed>,
    pub clock: Arc<dyn Clock>,
    /// The rules both paths share; the reconciler MUST be given the same.
    pub settings: CountingSettings,
    /// Folder of the checkpoints, created if absent. The caller holds the data directory's own lock.
    pub checkpoints: PathBuf,
    /// Fencing epoch of the lease under which the partitions are run; 0 where one process owns all.
    pub lease_epoch: u64,
    pub fail_points: FailPoints,
}

/// Handle of the running stream path. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct StreamPath {
    shared: Arc<Shared>,
}

struct Shared {
    log: Arc<dyn ClickLog>,
    /// In order of partition.
    partitions: Vec<Partition>,
    /// Emptied by the stop.
    arbiters: Mutex<Vec<Arbiter>>,
    freshness: Arc<FreshnessMeter>,
}

struct Partition {
    address: Addr<PartitionActor>,
    status: Arc<Mutex<PartitionStatus>>,
}

impl StreamPath {
    /// Loads every partition's last checkpoint, or rebuilds it from the log, and starts to read on from there.
    ///
    /// MUST be called inside a running `actix::System`. Returns when all states are loaded and reading has begun.
    ///
    /// # Errors
    /// `Config`, `Layout`, `CheckpointFolder`, a log that went backwards: the operator changes something first. Damage is no error: the folder
    /// is moved aside and the partitions rebuild themselves.
    pub async fn start(parts: StreamParts, config: StreamConfig) -> Result<Self> {
        config.validate()?;
        let loaded = load_all(&parts, &config).await?;
        note_ends(parts.log.as_ref(), &loaded).await?;
        let count = loaded.len();
        let arbiters = start_arbiters(config.threads, count)?;
        let budget = Arc::new(DedupBudget::new(config.dedup_bytes_max, parts.log.partitions()));
        let rebuild_turn = Arc::new(Semaphore::new(1));
        let freshness = Arc::new(FreshnessMeter::new(parts.clock.now()));
        let mut partitions = Vec::with_capacity(count);
        for (index, (writer, checkpoint)) in loaded.into_iter().enumerate() {
            let partition = writer.partition();
            let status = Arc::new(Mutex::new(PartitionStatus::new(partition)));
            let setup = PartitionSetup {
                partition,
                rules: StreamRules::new(&parts.settings),
                parts: parts.clone(),
                config: config.clone(),
                budget: budget.clone(),
                rebuild_turn: rebuild_turn.clone(),
                status: status.clone(),
                freshness: freshness.clone(),
            };
            let arbiter = arbiters[index % arbiters.len()].handle();
            let address = PartitionActor::start_in_arbiter(&arbiter, move |_| {
                PartitionActor::new(setup, writer, checkpoint)
            });
            partitions.push(Partition { address, status });
        }
        let arbiters = Mutex::new(arbiters);
        Ok(Self { shared: Arc::new(Shared { log: parts.log, partitions, arbiters, freshness }) })
    }

    /// Seals `hour` in each partition named, once it has applied every record below the offset given (G-3).
    ///
    /// Waits as long as that takes: the caller sets the time limit, and dropping the future gives up the answer, not
    /// the seal. An hour sealed before returns its stored seal. Partitions answer independently.
    pub async fn seal(
        &self,
        hour: Hour,
        ends: &[(PartitionId, LogOffset)],
    ) -> Vec<(PartitionId, Result<StoredSeal>)> {
        let seal = |(partition, at_or_after): (PartitionId, LogOffset)| async move {
            let sealed = match self.shared.partitions.get(partition.0 as usize) {
                None => Err(Error::UnknownPartition { partition }),
                Some(running) => {
                    let answer = running.address.send(SealHour { hour, at_or_after }).await;
                    answer.unwrap_or(Err(Error::Stopped))
                }
            };
            (partition, sealed)
        };
        join_all(ends.iter().copied().map(seal)).await
    }

    /// Returns how far each partition is, in order of partition. Sets the lag metric: call it at each scrape.
    pub async fn status(&self) -> Vec<PartitionStatus> {
        let status = |partition: &Partition| {
            let status = partition.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
            async move {
                let bounds = self.shared.log.bounds(Topic::AdClicks, status.partition).await;
                let log_end = bounds.map_or(status.applied_end, |bounds| bounds.end);
                let status = PartitionStatus { log_end, ..status };
                let label = status.partition.to_string();
                metrics::gauge!(LAG_RECORDS, "partition" => label.clone()).set(status.lag() as f64);
                metrics::gauge!(UNSHOWN_SECONDS, "partition" => label)
                    .set(status.unshown_for().as_secs_f64());
                status
            }
        };
        join_all(self.shared.partitions.iter().map(status)).await
    }

    /// Returns up to where each partition is applied, in order of partition. The log is not asked.
    pub fn applied_ends(&self) -> Vec<LogOffset> {
        let applied_end = |partition: &Partition| {
            partition.status.lock().unwrap_or_else(PoisonError::into_inner).applied_end
        };
        self.shared.partitions.iter().map(applied_end).collect()
    }

    /// Returns how soon clicks were visible since the start. Sets the metrics of it: call it at each scrape.
    pub fn freshness(&self) -> Freshness {
        self.shared.freshness.report()
    }

    /// Stops reading, applies what was read, publishes, flushes the windows, checkpoints, and ends the threads.
    ///
    /// # Errors
    /// The first failure; a partition that failed replays from its last checkpoint at the next start.
    pub async fn flush_and_stop(&self) -> Result<()> {
        let stop = |partition: &Partition| partition.address.send(StopPartition);
        let stopped = join_all(self.shared.partitions.iter().map(stop)).await;
        let arbiters = {
            let mut arbiters = self.shared.arbiters.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *arbiters)
        };
        arbiters.iter().for_each(|arbiter| {
            arbiter.stop();
        });
        // The threads hold the checkpoint folder open until they end.
        let join = move || arbiters.into_iter().for_each(|arbiter| drop(arbiter.join()));
        let _ = tokio::task::spawn_blocking(join).await;
        stopped.into_iter().try_for_each(|outcome| outcome.unwrap_or(Err(Error::Stopped)))
    }
}

type Loaded = Vec<(CheckpointWriter, Option<LoadedCheckpoint>)>;

/// Opens the folder and loads every partition; one that is damaged sends the whole folder aside.
async fn load_all(parts: &StreamParts, config: &StreamConfig) -> Result<Loaded> {
    let parts = parts.clone();
    let cache_bytes = config.checkpoint_cache_bytes;
    let load = move || {
        let layout = CheckpointLayout::new(parts.log.generation(), parts.log.partitions());
        let store = CheckpointStore::open(&parts.checkpoints, layout, cache_bytes)?;
        match load_from(&store, &parts) {
            Err(error) if error.kind() == ErrorKind::Damage => {
                let store = store.replace_damaged(cache_bytes, &error)?;
                load_from(&store, &parts)
            }
            loaded => loaded,
        }
    };
    tokio::task::spawn_blocking(load).await.map_err(|_| Error::TaskDied { what: "loading checkpoints" })?
}

/// Holds the log to what the checkpoints have counted, before anyone may append: the same offset given again would be
/// passed over as counted (G-1).
async fn note_ends(log: &dyn ClickLog, loaded: &Loaded) -> Result<()> {
    let note = |(writer, checkpoint): &(CheckpointWriter, Option<LoadedCheckpoint>)| {
        let (partition, end) =
            (writer.partition(), checkpoint.as_ref().map(|loaded| loaded.commit.applied_end));
        async move {
            match end {
                Some(end) => log.note_end(Topic::AdClicks, partition, end).await,
                None => Ok(()),
            }
        }
    };
    try_join_all(loaded.iter().map(note)).await?; // side by side: leaders that lag are waited for once
    Ok(())
}

fn load_from(store: &CheckpointStore, parts: &StreamParts) -> Result<Loaded> {
    let partitions = (0..parts.log.partitions()).map(PartitionId);
    partitions
        .map(|partition| {
            let mut writer = store.partition(partition, parts.fail_points.clone())?;
            let loaded = writer.load(parts.log.generation())?;
            Ok((writer, loaded))
        })
        .collect()
}

/// One thread a core at most, and no more than partitions: a partition's messages never leave its thread.
fn start_arbiters(threads: u32, partitions: usize) -> Result<Vec<Arbiter>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = if threads == 0 { cores } else { threads as usize };
    let start = |_| Arbiter::try_new().map_err(|source| Error::Thread { what: "a stream thread", source });
    (0..wanted.min(partitions).max(1)).map(start).collect()
}
