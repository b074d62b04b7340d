//! The archiver: writes every partition of every topic from the hot log into the archive, in the background.
//!
//! Guarantee: the cursor is the newest manifest, so a crash repeats nothing and loses nothing; an object
//! store outage only makes it lag.
//! Words: *gathered* = read and not yet in a manifest; *flush* = gathered rows to Parquet files and one manifest.
//! Flow: `actor` gives each topic and partition a mailbox; `worker` reads, gathers and flushes at a bound, at an age or
//! on request, and tries again with growing pauses (`backoff`).

mod actor;
mod backoff;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::{Arc, Mutex, PoisonError};

use actix::{Actor, Addr, Arbiter};
use futures::future::{join_all, try_join_all};
use serde::Serialize;
use twice_log::archive::{Archive, CountingSettings};
use twice_log::fail::FailPoints;
use twice_log::hot::ClickLog;
use twice_log::{LogOffset, PartitionId, Topic};

use crate::config::ArchiverConfig;
use crate::error::{Error, Result};

pub use actor::{ArchiverActor, FlushThrough, StopArchiver};
use worker::Worker;

/// What the archiver works with.
#[derive(Clone)]
pub struct ArchivingParts {
    pub log: Arc<dyn ClickLog>,
    pub archive: Archive,
    /// The stream path MUST be given the same: the archive stores the watermark by them.
    pub settings: CountingSettings,
    pub fail_points: FailPoints,
}

/// How far the archive of one partition is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArchiverStatus {
    pub topic: Topic,
    pub partition: PartitionId,
    /// Manifests cover every record below this offset.
    pub archived_end: LogOffset,
    /// End of the log when last looked at, at most a second ago.
    pub log_end: LogOffset,
    /// Records gathered and not yet written.
    pub gathered_rows: u64,
    /// Why the last write or read failed; `None` while all is well.
    pub last_error: Option<String>,
}

/// Handle of the running archiver. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct Archiving {
    shared: Arc<Shared>,
}

struct Shared {
    /// In order of topic and partition.
    archivers: Vec<Archiver>,
    /// Emptied by the stop.
    arbiter: Mutex<Option<Arbiter>>,
}

struct Archiver {
    topic: Topic,
    partition: PartitionId,
    address: Addr<ArchiverActor>,
    status: Arc<Mutex<ArchiverStatus>>,
}

impl Archiving {
    /// Starts one archiver a topic and partition, on an arbiter of their own.
    ///
    /// MUST be called inside a running `actix::System`. An object store that does not answer is waited for in the
    /// background.
    ///
    /// # Errors
    /// `Config` if a setting is out of bounds; `Log` if the archive belongs to a log of another layout.
    pub async fn start(parts: ArchivingParts, config: ArchiverConfig) -> Result<Self> {
        config.validate()?;
        let arbiter =
            Arbiter::try_new().map_err(|source| Error::Thread { what: "the archiver's thread", source })?;
        let partitions = parts.log.partitions();
        let chains = Topic::ARCHIVED
            .into_iter()
            .flat_map(|topic| (0..partitions).map(move |each| (topic, PartitionId(each))));
        // Side by side: a store that does not answer is waited for once, not once a partition.
        let opened = chains.map(|(topic, partition)| {
            let (worker, status) = Worker::new(&parts, &config, topic, partition);
            async move { Ok::<_, Error>((topic, partition, worker.opened().await?, status)) }
        });
        let start = |(topic, partition, worker, status)| {
            let address =
                ArchiverActor::start_in_arbiter(&arbiter.handle(), move |_| ArchiverActor::new(worker));
            Archiver { topic, partition, address, status }
        };
        let archivers = try_join_all(opened).await?.into_iter().map(start).collect();
        Ok(Self { shared: Arc::new(Shared { archivers, arbiter: Mutex::new(Some(arbiter)) }) })
    }

    /// Writes at once, and returns when manifests cover every record below each end given.
    ///
    /// Object store errors are retried for as long as the caller waits.
    ///
    /// # Errors
    /// `UnknownPartition`, `Stopped`.
    pub async fn flush_through(&self, topic: Topic, ends: &[(PartitionId, LogOffset)]) -> Result<()> {
        let flush = |(partition, end): (PartitionId, LogOffset)| async move {
            let archivers = self.shared.archivers.iter();
            let archiver = archivers
                .into_iter()
                .find(|archiver| (archiver.topic, archiver.partition) == (topic, partition));
            let archiver = archiver.ok_or(Error::UnknownPartition { partition })?;
            archiver.address.send(FlushThrough { end }).await.unwrap_or(Err(Error::Stopped))
        };
        try_join_all(ends.iter().copied().map(flush)).await.map(|_| ())
    }

    /// Returns how far each partition is, in order of topic and partition.
    pub fn status(&self) -> Vec<ArchiverStatus> {
        let status =
            |archiver: &Archiver| archiver.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.shared.archivers.iter().map(status).collect()
    }

    /// Stops reading and ends the thread. What was gathered is read from the log again at the next start.
    ///
    /// # Errors
    /// `Stopped` if an archiver had ended before.
    pub async fn stop(&self) -> Result<()> {
        let stop = |archiver: &Archiver| archiver.address.send(StopArchiver);
        let stopped = join_all(self.shared.archivers.iter().map(stop)).await;
        let arbiter = self.shared.arbiter.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(arbiter) = arbiter {
            arbiter.stop();
            let _ = tokio::task::spawn_blocking(move || drop(arbiter.join())).await;
        }
        stopped.into_iter().try_for_each(|outcome| outcome.unwrap_or(Err(Error::Stopped)))
    }
}
