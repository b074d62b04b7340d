//! The hot log: ordered, partitioned, durable once acknowledged.
//!
//! [`ClickLog`] is the contract; `embedded` keeps it with segmented files, `fluvio` with a Fluvio cluster; `conformance`
//! is the suite each backend passes.

pub mod conformance;
pub mod embedded;
pub mod fluvio;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, Result};
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

    /// Notes that every offset below `end` was given out before, as a checkpoint or a manifest says.
    ///
    /// The caller does this before it lets anyone append: a new record under an old offset would pass for one that was
    /// counted and archived. A cluster that does not answer is no error; it is compared when it does.
    ///
    /// # Errors
    /// `WentBackwards` if the log ends below it. From then on the log MUST NOT acknowledge records there.
    async fn note_end(&self, topic: Topic, partition: PartitionId, end: LogOffset) -> Result<()> {
        check_end(topic, partition, end, self.bounds(topic, partition).await?)
    }

    /// Forgets whole segments whose records all lie below `before`. What is trimmed may be less than asked, never more:
    /// nothing, where the backend keeps records by rules of its own.
    async fn trim(&self, topic: Topic, partition: PartitionId, before: LogOffset) -> Result<()>;
}

/// Returns `WentBackwards` if the log ends below what was given out before.
fn check_end(topic: Topic, partition: PartitionId, noted: LogOffset, bounds: OffsetBounds) -> Result<()> {
    if noted <= bounds.end {
        return Ok(());
    }
    Err(Error::WentBackwards { topic, partition, known: LogOffset(noted.0 - 1), end: bounds.end })
}
