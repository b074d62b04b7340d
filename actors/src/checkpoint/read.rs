//! Reading single campaigns of a partition's last checkpoint, beside the line that counts. Blocking.
//!
//! Guarantee: a campaign at rest comes back with every window and chunk its checkpoint held, or as damage. Its entries
//! change only in a checkpoint that names it, which the caller waits for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use twice_log::{CampaignId, LogOffset, PartitionId, UtcMillis};

use super::codec;
use super::entry::{self, CampaignMeta, EntryKind, EntryTotals, ParsedKey, StoredEntry};
use super::load::{LoadedCampaign, read_failed};
use super::resting::Resting;
use crate::campaign::Window;
use crate::error::{Error, Result};

/// Reads the entries of single campaigns. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CheckpointReader {
    pub(super) tree: sled::Tree,
    pub(super) partition: PartitionId,
}

/// The windows of one campaign as stored.
#[derive(Debug)]
pub struct StoredWindows {
    pub campaign: CampaignId,
    /// Offset they reflect; `None` if the campaign's meta record is missing.
    pub applied: Option<LogOffset>,
    pub windows: Vec<(UtcMillis, Window)>,
}

/// One entry, checked.
pub(super) struct ReadEntry {
    pub(super) key: sled::IVec,
    pub(super) value: sled::IVec,
    pub(super) kind: EntryKind,
    pub(super) stored: StoredEntry,
}

impl ReadEntry {
    /// Returns the value without its checksum.
    pub(super) fn payload(&self) -> &[u8] {
        entry::payload_of(&self.value)
    }
}

impl CheckpointReader {
    /// Loads campaigns that are at rest.
    ///
    /// # Errors
    /// `CheckpointDamage` if an entry is wrong or missing or sled panics; `Checkpoint` if sled fails.
    pub fn campaigns(&self, wanted: &[(CampaignId, Resting)]) -> Result<Vec<LoadedCampaign>> {
        let load = || wanted.iter().map(|(campaign, resting)| self.campaign(campaign, resting)).collect();
        self.guarded(load)
    }

    /// Reads the windows of campaigns, to show them.
    ///
    /// The offset is read before the windows: should a checkpoint be written meanwhile, it says too little, never too
    /// much, and the row is replaced by the line's own.
    ///
    /// # Errors
    /// As [`CheckpointReader::campaigns`].
    pub fn windows(&self, campaigns: &[CampaignId]) -> Result<Vec<StoredWindows>> {
        let read = |campaign: &CampaignId| {
            let applied = self.meta(campaign)?.map(|(meta, _)| meta.applied);
            let mut windows = Vec::new();
            for entry in self.entries(entry::window_prefix(campaign)) {
                let entry = entry?;
                if let EntryKind::Window(start) = entry.kind {
                    let unreadable =
                        || self.damage(&format!("an entry of campaign {campaign} does not read"));
                    windows.push((start, codec::decode_window(entry.payload()).ok_or_else(unreadable)?));
                }
            }
            Ok(StoredWindows { campaign: campaign.clone(), applied, windows })
        };
        self.guarded(|| campaigns.iter().map(read).collect())
    }

    /// Sums up what is stored of a campaign.
    #[cfg(test)]
    pub(super) fn summary(&self, campaign: &CampaignId) -> Result<Resting> {
        let mut summary = Resting::default();
        let chunks = self.entries(entry::chunk_prefix(campaign));
        for entry in chunks.chain(self.entries(entry::window_prefix(campaign))) {
            let entry = entry?;
            if let EntryKind::Window(start) = entry.kind {
                let window = codec::decode_window(entry.payload()).expect("reads");
                summary.add_window(start, window.clicks, entry.stored.sum);
            } else {
                let chunk = codec::decode_chunk(entry.payload()).expect("reads");
                let latest = chunk.iter().map(|entry| entry.event_time).max().expect("an entry");
                summary.add_chunk(latest, entry.stored.sum);
            }
        }
        Ok(summary)
    }

    fn campaign(&self, campaign: &CampaignId, resting: &Resting) -> Result<LoadedCampaign> {
        let unreadable = || self.damage(&format!("an entry of campaign {campaign} does not read"));
        let mut loaded = LoadedCampaign {
            campaign: campaign.clone(),
            meta: self.meta(campaign)?,
            windows: Vec::new(),
            chunks: Vec::new(),
        };
        let mut totals = EntryTotals::default();
        let chunks = self.entries(entry::chunk_prefix(campaign));
        for entry in chunks.chain(self.entries(entry::window_prefix(campaign))) {
            let entry = entry?;
            totals.add(entry.stored.sum);
            match entry.kind {
                EntryKind::DedupChunk => {
                    let chunk = codec::decode_chunk(entry.payload()).ok_or_else(unreadable)?;
                    loaded.chunks.push((chunk, entry.stored));
                }
                EntryKind::Window(start) => {
                    let window = codec::decode_window(entry.payload()).ok_or_else(unreadable)?;
                    loaded.windows.push((start, window, entry.stored));
                }
                EntryKind::Meta => {}
            }
        }
        if totals == resting.totals() {
            return Ok(loaded);
        }
        let expected = resting.totals().entries;
        Err(self.damage(&format!(
            "campaign {campaign} has {} entries where {expected} were stored, or others",
            totals.entries
        )))
    }

    fn meta(&self, campaign: &CampaignId) -> Result<Option<(CampaignMeta, StoredEntry)>> {
        // The newest is last; one it superseded may still stand beside it while a checkpoint is being written.
        let Some(newest) = self.entries(entry::meta_prefix(campaign)).last().transpose()? else {
            return Ok(None);
        };
        let unreadable = || self.damage(&format!("the meta record of campaign {campaign} does not read"));
        let meta = codec::decode_meta(newest.payload()).ok_or_else(unreadable)?;
        Ok(Some((meta, newest.stored)))
    }

    /// Returns the entries under a prefix in order, each with its checksum checked.
    pub(super) fn entries(&self, prefix: Vec<u8>) -> impl Iterator<Item = Result<ReadEntry>> {
        self.tree.scan_prefix(prefix).map(|item| {
            let (key, value) = item.map_err(|source| read_failed(self.partition, source))?;
            let parsed = entry::parse_key(&key);
            let Some(ParsedKey::Entry { kind, checkpoint, .. }) = parsed else {
                return Err(self.damage("a key is not one of ours"));
            };
            let (_, sum) =
                entry::open_value(&key, &value).ok_or_else(|| self.damage("an entry's checksum is wrong"))?;
            let stored = StoredEntry { checkpoint, sum };
            Ok(ReadEntry { key, value, kind, stored })
        })
    }

    /// Damage can make sled panic instead of answering.
    fn guarded<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        catch_unwind(AssertUnwindSafe(read))
            .unwrap_or_else(|_| Err(self.damage("sled panicked while it was read")))
    }

    fn damage(&self, reason: &str) -> Error {
        Error::CheckpointDamage { partition: self.partition, reason: reason.to_owned() }
    }
}
