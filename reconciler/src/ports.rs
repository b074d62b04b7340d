//! What the batch path needs of the stream path, as traits the node implements with its actors.
//!
//! Sealing and archiving are requests to make something durable in the archive. The reconciler believes only the archive: after a port
//! answered it reads the seal or the manifests itself.

use async_trait::async_trait;
use twice_log::{Hour, LogOffset, PartitionId, Topic, UtcMillis};

/// Why a port could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The part is not there now (restarting, lost); the reconciler asks again until its time limit.
    #[error("{part} does not answer: {detail}")]
    Unavailable { part: &'static str, detail: String },
    /// No such part runs in this process and none will; the reconciler does not wait for it.
    #[error("{part} does not run here")]
    Absent { part: &'static str },
}

/// Records that were acknowledged and have not reached the log yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRecords {
    /// Who holds them, in words.
    pub holder: String,
    /// How many arrived before the moment asked for; `None` where nobody knows.
    pub records: Option<u64>,
    /// Records that do not read any more, of whatever time.
    pub missing: u64,
}

/// What gateways hold back from the log.
pub trait Holding: Send + Sync + 'static {
    /// Returns every holder of records that arrived before `instant`, or of some that do not read. Answers from memory.
    fn held_before(&self, instant: UtcMillis) -> Vec<HeldRecords>;
}

/// No gateway holds anything.
#[derive(Debug)]
pub struct NothingHeld;

impl Holding for NothingHeld {
    fn held_before(&self, _instant: UtcMillis) -> Vec<HeldRecords> {
        Vec::new()
    }
}

/// Says whether the clock may be believed where something is deleted for good.
pub trait ClockWitness: Send + Sync + 'static {
    /// Returns why the clock may be ahead of the time; `None` where it may be believed. Answers from memory.
    fn doubt(&self) -> Option<String>;
}

/// Believes the clock, where nothing is deleted by it.
#[derive(Debug)]
pub struct ClockBelieved;

impl ClockWitness for ClockBelieved {
    fn doubt(&self) -> Option<String> {
        None
    }
}

/// Closes hours in the stream path.
#[async_trait]
pub trait SealControl: Send + Sync + 'static {
    /// Seals `hour` in `partition` of the present generation at a position at or above `at_least` (G-3).
    ///
    /// Resolves once `seals/{hour}/{generation}-{partition}.json` is durable in the archive. An hour sealed before keeps
    /// its first seal. Idempotent. May wait until the partition has read up to `at_least`.
    async fn seal(&self, hour: Hour, partition: PartitionId, at_least: LogOffset) -> Result<(), PortError>;
}

/// Moves the archive up to a cutoff.
#[async_trait]
pub trait ArchiveControl: Send + Sync + 'static {
    /// Asks that every record of the partition below `end` (exclusive) be put into the archive now, not at the next
    /// file boundary. May resolve before it is done: the reconciler waits for the manifests. Idempotent.
    async fn flush_through(
        &self,
        topic: Topic,
        partition: PartitionId,
        end: LogOffset,
    ) -> Result<(), PortError>;
}
