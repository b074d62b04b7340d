//! Opening a partition's last checkpoint: every entry is checked, whatever does not belong to it is deleted. Blocking.
//!
//! No state is kept: a summary of each campaign is, so that a million idle ones cost neither time nor memory to speak of.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hashbrown::HashMap;
use twice_log::{CampaignId, Generation, PartitionId, UtcMillis};

use super::codec;
use super::commit::{CheckpointNumber, Commit};
use super::entry::{self, CampaignMeta, EntryKind, EntryTotals, ParsedKey, StoredEntry};
use super::resting::Resting;
use super::write::{CheckpointWriter, failed};
use crate::campaign::{DedupEntry, Window};
use crate::error::{Error, Result};

/// The state of one campaign as a checkpoint held it.
#[derive(Debug)]
pub struct LoadedCampaign {
    pub campaign: CampaignId,
    pub meta: Option<(CampaignMeta, StoredEntry)>,
    pub windows: Vec<(UtcMillis, Window, StoredEntry)>,
    pub chunks: Vec<(Vec<DedupEntry>, StoredEntry)>,
}

/// A committed checkpoint with a summary of every campaign in it.
#[derive(Debug)]
pub struct LoadedCheckpoint {
    pub commit: Commit,
    pub resting: HashMap<CampaignId, Resting>,
}

impl CheckpointWriter {
    /// Loads the last committed checkpoint; `None` if there never was one.
    ///
    /// Entries above it, superseded and expired ones are deleted, durably, before this returns (G-2).
    ///
    /// # Errors
    /// `CheckpointDamage` if a checksum is wrong, an entry is missing or sled panics; `Checkpoint` if sled fails.
    pub fn load(&mut self, generation: Generation) -> Result<Option<LoadedCheckpoint>> {
        // Damage can make sled panic instead of answering.
        catch_unwind(AssertUnwindSafe(|| self.load_checked(generation)))
            .unwrap_or_else(|_| Err(self.damage("sled panicked while it was read")))
    }

    /// Forgets every entry of the partition, durably: it is rebuilt from the log.
    pub fn clear(&mut self) -> Result<()> {
        self.tree.clear().map_err(|source| failed("clear", source))?;
        self.totals = EntryTotals::default();
        self.committed = None;
        self.flush()
    }

    fn load_checked(&mut self, generation: Generation) -> Result<Option<LoadedCheckpoint>> {
        let Some(commit) = self.newest_commit()? else {
            self.clear()?;
            return Ok(None);
        };
        if (commit.generation, commit.partition) != (generation, self.partition) {
            return Err(self.damage("its commit record belongs to another partition"));
        }
        let mut scan = self.scan(&commit)?;
        scan.forget_bare_campaigns();
        let committed = EntryTotals { entries: commit.entries, sum: commit.entries_sum };
        // Commits of the first format count meta records too.
        if scan.totals != committed && scan.totals_with_metas != committed {
            return Err(self.damage(&format!(
                "{} entries were found where the commit record names {}",
                scan.totals.entries, commit.entries
            )));
        }
        for key in &scan.deletions {
            self.tree.remove(key).map_err(|source| failed("delete an entry", source))?;
        }
        self.flush()?;
        self.totals = scan.totals;
        self.committed = Some(commit.checkpoint);
        Ok(Some(LoadedCheckpoint { commit, resting: scan.campaigns }))
    }

    /// A commit record with a wrong checksum is damage, even if an older one is sound: it was flushed once.
    fn newest_commit(&self) -> Result<Option<Commit>> {
        let mut newest: Option<Commit> = None;
        let first = entry::commit_key(CheckpointNumber(0));
        for item in self.tree.scan_prefix(&first[..1]) {
            let (key, value) = item.map_err(|source| read_failed(self.partition, source))?;
            let (payload, _) =
                entry::open_value(&key, &value).ok_or_else(|| self.damage("a commit record's checksum"))?;
            let commit: Commit = serde_json::from_slice(payload)
                .map_err(|error| self.damage(&format!("a commit record does not read: {error}")))?;
            newest = Some(commit); // keys sort by number
        }
        Ok(newest)
    }

    fn scan(&self, commit: &Commit) -> Result<Scan> {
        let mut scan = Scan::default();
        // The newest entry so far of one (campaign, kind): an entry with the next number supersedes it.
        let mut candidate: Option<Candidate> = None;
        for item in self.tree.iter() {
            let (key, value) = item.map_err(|source| read_failed(self.partition, source))?;
            let parsed = entry::parse_key(&key).ok_or_else(|| self.damage("a key is not one of ours"))?;
            match parsed {
                ParsedKey::Commit(number) if number != commit.checkpoint => scan.deletions.push(key),
                ParsedKey::Commit(_) => {}
                // Never committed: whatever it holds, it is deleted before anything is applied.
                ParsedKey::Entry { checkpoint, .. } if checkpoint > commit.checkpoint => {
                    scan.deletions.push(key);
                }
                ParsedKey::Entry { campaign, kind, .. } => {
                    let next = Candidate { campaign, kind, key, value };
                    if let Some(before) = candidate.take() {
                        if before.is_superseded_by(&next) {
                            scan.deletions.push(before.key);
                        } else {
                            self.take_in(before, commit, &mut scan)?;
                        }
                    }
                    candidate = Some(next);
                }
            }
        }
        if let Some(last) = candidate {
            self.take_in(last, commit, &mut scan)?;
        }
        Ok(scan)
    }

    fn take_in(&self, candidate: Candidate, commit: &Commit, scan: &mut Scan) -> Result<()> {
        let Candidate { campaign, kind, key, value } = candidate;
        let (payload, sum) =
            entry::open_value(&key, &value).ok_or_else(|| self.damage("an entry's checksum is wrong"))?;
        let unreadable = || self.damage(&format!("an entry of campaign {campaign} does not read"));
        let retired = |start: UtcMillis| commit.retired_hours.contains(&start.hour());
        match kind {
            EntryKind::Meta => {
                codec::decode_meta(payload).ok_or_else(unreadable)?;
                scan.totals_with_metas.add(sum);
                if !scan.campaigns.contains_key(&campaign) {
                    scan.bare_metas.push((campaign, key)); // its windows come later, if it has any
                }
                return Ok(());
            }
            EntryKind::Window(start) if retired(start) => {
                scan.deletions.push(key);
                return Ok(());
            }
            EntryKind::Window(start) => {
                let window = codec::decode_window(payload).ok_or_else(unreadable)?;
                scan.campaigns.entry(campaign).or_default().add_window(start, window.clicks, sum);
            }
            EntryKind::DedupChunk => {
                let entries = codec::decode_chunk(payload).ok_or_else(unreadable)?;
                match entries.iter().map(|entry| entry.event_time).max() {
                    Some(latest) if Some(latest) > commit.dedup_floor => {
                        scan.campaigns.entry(campaign).or_default().add_chunk(latest, sum);
                    }
                    _ => {
                        scan.deletions.push(key);
                        return Ok(());
                    }
                }
            }
        }
        scan.totals.add(sum);
        scan.totals_with_metas.add(sum);
        Ok(())
    }

    fn damage(&self, reason: &str) -> Error {
        Error::CheckpointDamage { partition: self.partition, reason: reason.to_owned() }
    }
}

/// What one pass over the tree found.
#[derive(Default)]
struct Scan {
    campaigns: HashMap<CampaignId, Resting>,
    totals: EntryTotals,
    totals_with_metas: EntryTotals,
    /// Meta records of campaigns of which no chunk was found.
    bare_metas: Vec<(CampaignId, sled::IVec)>,
    deletions: Vec<sled::IVec>,
}

impl Scan {
    /// A campaign without windows and chunks decides nothing: its meta record goes, as it may have gone before.
    fn forget_bare_campaigns(&mut self) {
        for (campaign, key) in std::mem::take(&mut self.bare_metas) {
            if !self.campaigns.contains_key(&campaign) {
                self.deletions.push(key);
            }
        }
    }
}

struct Candidate {
    campaign: CampaignId,
    kind: EntryKind,
    key: sled::IVec,
    value: sled::IVec,
}

impl Candidate {
    fn is_superseded_by(&self, next: &Candidate) -> bool {
        self.kind != EntryKind::DedupChunk && self.kind == next.kind && self.campaign == next.campaign
    }
}

/// Corruption found while reading is damage of the folder; anything else is an error of the machine.
pub(super) fn read_failed(partition: PartitionId, source: sled::Error) -> Error {
    match source {
        sled::Error::Corruption { .. } => {
            Error::CheckpointDamage { partition, reason: format!("sled found corruption: {source}") }
        }
        source => failed("read", source),
    }
}
