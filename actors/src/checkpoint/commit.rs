//! The commit record: the one write that makes a checkpoint exist (G-2), and carries seals (G-3).

use serde::{Deserialize, Serialize};
use twice_log::archive::{CountingSettings, Seal};
use twice_log::{Generation, Hour, LogOffset, PartitionId, UtcMillis};

/// Number of a checkpoint within its partition; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CheckpointNumber(pub u64);

impl CheckpointNumber {
    /// Returns the number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A seal as the partition keeps it: what lateness needs, and the whole seal until the archive has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealRecord {
    pub hour: Hour,
    /// First offset not counted.
    pub end: LogOffset,
    /// `Some` until the archive is known to hold it: a restart puts it again.
    pub seal: Option<Seal>,
}

/// Says that every entry of the tree numbered at or below `checkpoint`, newest first, is the state after `applied_end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    pub checkpoint: CheckpointNumber,
    pub generation: Generation,
    pub partition: PartitionId,
    /// Every record below this offset is applied; replay begins here.
    pub applied_end: LogOffset,
    /// Highest min(event time, arrival time) applied: what the watermark goes on from.
    pub highest_time: Option<UtcMillis>,
    /// Settings the state was counted with.
    pub settings: CountingSettings,
    /// Dedup chunks whose newest event time is at or below this are dropped.
    pub dedup_floor: Option<UtcMillis>,
    /// Hours whose windows this checkpoint dropped; deletions of earlier ones are durable with this commit.
    pub retired_hours: Vec<Hour>,
    /// Number of live entries, and the sum of their hashes: a missing entry is found at load.
    pub entries: u64,
    pub entries_sum: u64,
    /// Every hour up to this one may miss something: history was lost.
    pub incomplete_through: Option<Hour>,
    /// Unsealed hours that may miss something.
    pub incomplete_hours: Vec<Hour>,
    /// Sealed hours that the watermark alone does not close yet, or whose seal may be missing in the archive.
    pub seals: Vec<SealRecord>,
}
