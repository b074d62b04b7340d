//! Where seals are kept for ever: the archive, as a partition needs it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use twice_log::archive::layout::{parse_seal_path, seal_folder};
use twice_log::archive::{Archive, Seal, StoredSeal};
use twice_log::{Generation, Hour, PartitionId};

/// The keeper of seals. Each is put once and never changes.
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

    /// Returns the seals of one partition, of hours from `from` on; `None`: of every hour.
    async fn seals_of_partition(
        &self,
        generation: Generation,
        partition: PartitionId,
        from: Option<Hour>,
    ) -> twice_log::Result<Vec<StoredSeal>>;
}

#[async_trait]
impl SealArchive for Archive {
    async fn put_seal(&self, seal: &Seal) -> twice_log::Result<StoredSeal> {
        Archive::put_seal(self, seal).await
    }

    async fn seal(
        &self,
        hour: Hour,
        generation: Generation,
        partition: PartitionId,
    ) -> twice_log::Result<Option<StoredSeal>> {
        let seals = self.seals(hour).await?;
        Ok(seals.into_iter().find(|stored| is_of(stored, generation, partition)))
    }

    async fn seals_of_partition(
        &self,
        generation: Generation,
        partition: PartitionId,
        from: Option<Hour>,
    ) -> twice_log::Result<Vec<StoredSeal>> {
        let Some(from) = from else { return Archive::seals_of_partition(self, generation, partition).await };
        // Paths sort by hour: a restart lists the last hours only, however old the archive.
        let objects = self.list("seals", Some(&seal_folder(from))).await?;
        let hours: BTreeSet<Hour> = objects
            .iter()
            .filter_map(|object| parse_seal_path(object.location.as_ref()))
            .filter(|(_, of_generation, of_partition)| {
                (*of_generation, *of_partition) == (generation, partition)
            })
            .map(|(hour, _, _)| hour)
            .collect();
        let mut seals = Vec::new();
        for hour in hours {
            seals.extend(SealArchive::seal(self, hour, generation, partition).await?);
        }
        Ok(seals)
    }
}

fn is_of(stored: &StoredSeal, generation: Generation, partition: PartitionId) -> bool {
    (stored.seal.generation, stored.seal.partition) == (generation, partition)
}
