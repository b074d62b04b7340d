//! Writing one checkpoint: entries, flush, commit, flush, deletions. Blocking; never call it on an arbiter.
//!
//! Campaigns at rest have no actor to say what of theirs is over: the writer looks into the store for those named.

use std::sync::Arc;

use twice_log::fail::{FailPoint, FailPoints};
use twice_log::{CampaignId, PartitionId};

use super::codec;
use super::commit::{CheckpointNumber, Commit};
use super::entry::{self, CampaignSnapshot, EntryKind, EntryTotals, SealedEntry};
use super::read::CheckpointReader;
use super::resting::Resting;
use crate::error::{Error, Result};

/// Everything one checkpoint writes. `commit.entries` and `commit.entries_sum` are set by the writer.
#[derive(Debug)]
pub struct CheckpointBatch {
    pub commit: Commit,
    pub snapshots: Vec<CampaignSnapshot>,
    /// Campaigns at rest of which a window is in a retired hour, a chunk is at or below the floor, or nothing is left.
    pub shed: Vec<CampaignId>,
}

/// What a checkpoint wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenCheckpoint {
    pub checkpoint: CheckpointNumber,
    pub entries: u64,
    pub bytes: u64,
    /// What is left of the campaigns named in `shed`; `None`: nothing, the campaign is forgotten.
    pub shed: Vec<(CampaignId, Option<Resting>)>,
}

/// Writes the checkpoints of one partition, one after the other.
///
/// After an error the writer is of no more use: the partition loads again, which deletes what was written in part.
#[derive(Debug)]
pub struct CheckpointWriter {
    pub(super) db: sled::Db,
    pub(super) tree: sled::Tree,
    pub(super) partition: PartitionId,
    pub(super) fail_points: FailPoints,
    pub(super) totals: EntryTotals,
    pub(super) committed: Option<CheckpointNumber>,
    /// Entries of campaigns at rest that the checkpoint being written lets go of.
    pub(super) shed_keys: Vec<sled::IVec>,
    /// Held so that the folder's lock outlives every writer.
    pub(super) _store: Arc<()>,
}

impl CheckpointWriter {
    /// Returns the number the next checkpoint takes.
    pub fn next_number(&self) -> CheckpointNumber {
        self.committed.unwrap_or(CheckpointNumber(0)).next()
    }

    /// Returns a reader of single campaigns.
    pub fn reader(&self) -> CheckpointReader {
        CheckpointReader { tree: self.tree.clone(), partition: self.partition }
    }

    /// Returns the partition.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Writes a checkpoint durably, in G-2's order.
    ///
    /// # Errors
    /// `Checkpoint` if sled fails: the checkpoint may or may not exist, and the partition starts again from whichever
    /// is the last committed one.
    pub fn write(&mut self, batch: CheckpointBatch) -> Result<WrittenCheckpoint> {
        debug_assert_eq!(batch.commit.checkpoint, self.next_number());
        let written = self.write_entries(&batch)?;
        self.fail_points.pass(FailPoint::CheckpointStatesWritten);
        self.flush()?;
        self.fail_points.pass(FailPoint::CheckpointStatesFlushed);
        let commit_bytes = self.write_commit(&batch)?;
        self.flush()?;
        self.fail_points.pass(FailPoint::CheckpointCommitted);
        self.remove_superseded(&batch)?;
        Ok(WrittenCheckpoint { bytes: written.bytes + commit_bytes, ..written })
    }

    /// One insert an entry: a batch would hold sled's process-wide lock against every reader.
    pub(super) fn write_entries(&mut self, batch: &CheckpointBatch) -> Result<WrittenCheckpoint> {
        let checkpoint = batch.commit.checkpoint;
        let shed = self.shed(batch)?;
        let mut written = WrittenCheckpoint { checkpoint, entries: 0, bytes: 0, shed };
        for snapshot in &batch.snapshots {
            for SealedEntry { kind, key, value, sum } in &snapshot.entries {
                self.tree.insert(key, value.as_slice()).map_err(|source| failed("write an entry", source))?;
                if kind.is_counted() {
                    self.totals.add(*sum);
                }
                written.entries += 1;
                written.bytes += (key.len() + value.len()) as u64;
            }
            let counted = snapshot.superseded.iter().filter(|(kind, _)| kind.is_counted());
            counted.for_each(|(_, stored)| self.totals.remove(stored.sum));
        }
        Ok(written)
    }

    /// Takes what is over of campaigns at rest out of the totals, by the rules by which a load drops it.
    fn shed(&mut self, batch: &CheckpointBatch) -> Result<Vec<(CampaignId, Option<Resting>)>> {
        self.shed_keys.clear();
        let reader = self.reader();
        let mut shed = Vec::with_capacity(batch.shed.len());
        for campaign in &batch.shed {
            let left = self.shed_campaign(&reader, campaign, &batch.commit)?;
            shed.push((campaign.clone(), (!left.is_over()).then_some(left)));
        }
        Ok(shed)
    }

    fn shed_campaign(
        &mut self,
        reader: &CheckpointReader,
        campaign: &CampaignId,
        commit: &Commit,
    ) -> Result<Resting> {
        let unreadable = || Error::CheckpointDamage {
            partition: reader.partition,
            reason: format!("an entry of campaign {campaign} does not read"),
        };
        let mut left = Resting::default();
        let chunks = reader.entries(entry::chunk_prefix(campaign));
        for entry in chunks.chain(reader.entries(entry::window_prefix(campaign))) {
            let entry = entry?;
            match entry.kind {
                EntryKind::Window(start) if !commit.retired_hours.contains(&start.hour()) => {
                    let window = codec::decode_window(entry.payload()).ok_or_else(unreadable)?;
                    left.add_window(start, window.clicks, entry.stored.sum);
                    continue;
                }
                EntryKind::DedupChunk => {
                    let chunk = codec::decode_chunk(entry.payload()).ok_or_else(unreadable)?;
                    let latest = chunk.iter().map(|entry| entry.event_time).max();
                    if let Some(latest) = latest.filter(|latest| Some(*latest) > commit.dedup_floor) {
                        left.add_chunk(latest, entry.stored.sum);
                        continue;
                    }
                }
                EntryKind::Window(_) | EntryKind::Meta => {}
            }
            self.totals.remove(entry.stored.sum);
            self.shed_keys.push(entry.key);
        }
        if left.is_over() {
            for meta in reader.entries(entry::meta_prefix(campaign)) {
                self.shed_keys.push(meta?.key);
            }
        }
        Ok(left)
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.db.flush().map(|_| ()).map_err(|source| failed("flush", source))
    }

    pub(super) fn write_commit(&mut self, batch: &CheckpointBatch) -> Result<u64> {
        let commit =
            Commit { entries: self.totals.entries, entries_sum: self.totals.sum, ..batch.commit.clone() };
        let key = entry::commit_key(commit.checkpoint);
        let payload = serde_json::to_vec(&commit).map_err(|error| Error::CheckpointDamage {
            partition: self.partition,
            reason: format!("the commit record has no JSON form: {error}"),
        })?;
        let (value, _) = entry::seal_value(&key, payload);
        let bytes = (key.len() + value.len()) as u64;
        self.tree.insert(key, value).map_err(|source| failed("write the commit record", source))?;
        Ok(bytes)
    }

    /// Not flushed: should the deletions be lost, loading repeats them.
    pub(super) fn remove_superseded(&mut self, batch: &CheckpointBatch) -> Result<()> {
        for snapshot in &batch.snapshots {
            for (kind, stored) in &snapshot.superseded {
                let key = entry::entry_key(&snapshot.campaign, *kind, stored.checkpoint);
                self.tree.remove(key).map_err(|source| failed("delete an entry", source))?;
            }
        }
        for key in self.shed_keys.drain(..) {
            self.tree.remove(key).map_err(|source| failed("delete an entry", source))?;
        }
        if let Some(before) = self.committed.replace(batch.commit.checkpoint) {
            let key = entry::commit_key(before);
            self.tree.remove(key).map_err(|source| failed("delete the commit record before", source))?;
        }
        Ok(())
    }
}

pub(super) fn failed(action: &'static str, source: sled::Error) -> Error {
    Error::Checkpoint { action, source }
}
