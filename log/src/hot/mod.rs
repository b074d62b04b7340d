//! The hot log: ordered, partitioned, durable once acknowledged.
//!
//! [`ClickLog`] is the contract; `embedded` keeps it with segmented files, `fluvio` with a Fluvio cluster; `conformance`
//! is the suite each backend passes.

pub mod conformance;
pub mod embedded;
pub mod fluvio;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;
use crate::event::{Generation, LogOffset, PartitionId, Topic};

/// One record to append.
#[derive(Debug, Clone)]
pub struct AppendRecord {
    pub partition: PartitionId,
    pub bytes: Bytes,
}

/// Records of one partition with contiguous offsets.
#[derive(Debug, Clone, Default)]
pub struct ReadBatch {
    /// (offset, bytes), each offset one above the one before.
    pub records: Vec<(LogOffset, Bytes)>,
}

/// Offsets a partition holds: `earliest` inclusive, `end` exclusive. Equal where it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetBounds {
    pub earliest: LogOffset,
    /// Offset the next record gets. Every record below it is durable and readable.
    pub end: LogOffset,
}

/// An ordered, partitioned log. All methods are safe to call at once from many tasks.
#[async_trait]
pub trait ClickLog: Send + Sync + 'static {
    /// Returns the generation now written to.
    fn generation(&self) -> Generation;

    /// Returns the number of partitions, the same for every topic.
    fn partitions(&self) -> u32;

    /// Appends records, in the order given within each partition.
    ///
    /// Resolves with `Ok` only when every record is durable (MUST survive power loss on the embedded backend; on Fluvio,
    /// what its servers promise: see `fluvio`). Records of one call are contiguous in a partition. Not idempotent: the
    /// same call twice stores two copies.
    ///
    /// # Errors
    /// `Busy`: certainly nothing was stored. `AppendUnknown` or `Stopped`: some, all or none may be stored; the caller
    /// sends the same records again, and identity dedup (CR-1) absorbs the copies.
    async fn append(&self, topic: Topic, records: Vec<AppendRecord>) -> Result<()>;

    /// Reads records from `from` (inclusive) until about `bytes_max`, at least one if there is one. Empty at the end.
    ///
    /// # Errors
    /// `OutOfRange` if `from` is below the earliest offset or above the end; `Damage` where bytes are wrong.
    async fn read(
        &self,
        topic: Topic,
        partition: PartitionId,
        from: LogOffset,
        bytes_max: usize,
    ) -> Result<ReadBatch>;

    /// Waits until the partition's end is above `offset`, that is until `offset` can be read. The tail of a log.
    async fn wait_for(&self, topic: Topic, partition: PartitionId, offset: LogOffset) -> Result<()>;

    /// Returns the offsets the partition holds now.
    async fn bounds(&self, topic: Topic, partition: PartitionId) -> Result<OffsetBounds>;

    /// Forgets whole segments whose records all lie below `before`. What is trimmed may be less than asked, never more:
    /// nothing, where the backend keeps records by rules of its own.
    async fn trim(&self, topic: Topic, partition: PartitionId, before: LogOffset) -> Result<()>;
}
