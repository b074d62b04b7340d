//! Writing one checkpoint: entries, flush, commit, flush, deletions. Blocking; never call it on an arbiter.

use std::sync::Arc;

use twice_log::PartitionId;
use twice_log::fail::{FailPoint, FailPoints};

use super::commit::{CheckpointNumber, Commit};
use super::entry::{self, CampaignSnapshot, EntryTotals};
use crate::error::{Error, Result};

/// Everything one checkpoint writes. `commit.entries` and `commit.entries_sum` are set by the writer.
#[derive(Debug)]
pub struct CheckpointBatch {
    pub commit: Commit,
    pub snapshots: Vec<CampaignSnapshot>,
}

/// What a checkpoint wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenCheckpoint {
    pub checkpoint: CheckpointNumber,
    pub entries: u64,
    pub bytes: u64,
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
    /// Held so that the folder's lock outlives every writer.
    pub(super) _store: Arc<()>,
}

impl CheckpointWriter {
    /// Returns the number the next checkpoint takes.
    pub fn next_number(&self) -> CheckpointNumber {
        self.committed.unwrap_or(CheckpointNumber(0)).next()
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
        let mut written = WrittenCheckpoint { checkpoint, entries: 0, bytes: 0 };
        for snapshot in &batch.snapshots {
            for (key, value, sum) in &snapshot.entries {
                self.tree.insert(key, value.as_slice()).map_err(|source| failed("write an entry", source))?;
                self.totals.add(*sum);
                written.entries += 1;
                written.bytes += (key.len() + value.len()) as u64;
            }
            snapshot.superseded.iter().for_each(|(_, stored)| self.totals.remove(stored.sum));
        }
        Ok(written)
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
