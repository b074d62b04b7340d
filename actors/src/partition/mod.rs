//! One partition of the log, counted: reads, checks contiguity, routes to campaigns, publishes, checkpoints, seals.

mod status;

pub use status::{PartitionPhase, PartitionStatus};

use async_trait::async_trait;
use twice_log::archive::{Seal, StoredSeal};
use twice_log::{Generation, Hour, PartitionId};

/// Where seals are kept for ever: the archive, as a partition needs it.
#[async_trait]
pub trait SealArchive: Send + Sync + 'static {
    /// Puts the seal if its place is free and returns the one that stands there: this, or the winner (G-3).
    async fn put_seal(&self, seal: &Seal) -> twice_log::Result<StoredSeal>;

    /// Returns the seal of one hour and partition.
    async fn seal(
        &self,
        hour: Hour,
        generation: Generation,
        partition: PartitionId,
    ) -> twice_log::Result<Option<StoredSeal>>;

    /// Returns every seal of one partition.
    async fn seals_of_partition(
        &self,
        generation: Generation,
        partition: PartitionId,
    ) -> twice_log::Result<Vec<StoredSeal>>;
}
