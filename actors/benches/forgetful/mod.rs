//! What stands in for window store, click history and seal archive where a benchmark measures neither.

use async_trait::async_trait;
use twice_actors::{ClickHistory, ManifestsFrom, SealArchive};
use twice_log::archive::{FileEntry, Seal, StoredManifest, StoredSeal};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, ClickCopy, Generation, Hour, PartitionId, UtcMillis};
use twice_store::windows::{WindowRow, WindowStore};

/// Takes everything and keeps nothing.
pub struct Forgetful;

#[async_trait]
impl WindowStore for Forgetful {
    async fn publish(&self, _: Vec<WindowRow>) -> twice_store::Result<()> {
        Ok(())
    }

    async fn read(&self, _: &CampaignId, _: UtcMillis, _: UtcMillis) -> twice_store::Result<Vec<WindowRow>> {
        Ok(Vec::new())
    }

    async fn flush(&self) -> twice_store::Result<()> {
        Ok(())
    }

    async fn remove_hours(&self, _: &[Hour]) -> twice_store::Result<()> {
        Ok(())
    }

    async fn hours(&self) -> twice_store::Result<Vec<Hour>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl ClickHistory for Forgetful {
    async fn manifests(
        &self,
        _: Generation,
        _: PartitionId,
        _: ManifestsFrom,
    ) -> twice_log::Result<Vec<StoredManifest>> {
        Ok(Vec::new())
    }

    async fn clicks(&self, _: &FileEntry) -> twice_log::Result<Vec<ClickCopy>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl SealArchive for Forgetful {
    async fn put_seal(&self, seal: &Seal) -> twice_log::Result<StoredSeal> {
        Ok(StoredSeal { seal: seal.clone(), sha256: Sha256Hex::of(b"") })
    }

    async fn seal(&self, _: Hour, _: Generation, _: PartitionId) -> twice_log::Result<Option<StoredSeal>> {
        Ok(None)
    }

    async fn seals_of_partition(
        &self,
        _: Generation,
        _: PartitionId,
        _: Option<Hour>,
    ) -> twice_log::Result<Vec<StoredSeal>> {
        Ok(Vec::new())
    }
}
