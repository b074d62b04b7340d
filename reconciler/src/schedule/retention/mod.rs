//! Retention: deletes the raw archive hour by hour, once nothing will be counted from it any more.
//!
//! Guarantee: a bill never changes by it (G-3): a count that would read a deleted file is refused, never made smaller.
//! Clicks of an hour go only when every hour within the horizon of duplicates around it is final, has seen every click it
//! has, and has no run open; verdicts when every hour that could read them is settled. What was billed of such hours is
//! put into the archive first, by which the billing store can still be rebuilt, and whose digests the results name.
//! Words: *expired* = older than `archive_retention_ms`; *settled* = its bill is in `settled/{hour}.json`, checked row by row
//! against the results, and is never counted again; *frozen* = settled, or within reach of a tombstone; *buried* = named by
//! a tombstone.
//! Flow, in place of a run and never beside one: finish what a death left -> settle -> tombstone -> remove -> marker.
//! Each step is put if absent, so a death anywhere is gone on from by the next pass.

mod carry_out;
mod facts;
mod frozen;
mod plan;
pub(crate) mod settled;

use serde::{Deserialize, Serialize};
use twice_log::Hour;
use twice_log::archive::{Grave, Tombstone};

pub(super) use carry_out::{RetentionWork, due_at};
pub(crate) use frozen::Reach;

/// What a pass looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetentionScope {
    /// Everything that is expired.
    Due,
    /// One hour, by the same conditions; files of its tombstones that reappeared are removed again.
    Hour(Hour),
}

/// Files that were deleted, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buried {
    /// `ad-clicks`, `fraud-verdicts`, or one of these behind `quarantine-`.
    pub grave: Grave,
    pub hour: Hour,
    pub files: u64,
    pub rows: u64,
    pub bytes: u64,
    /// Whether they came too late for any bill.
    pub never_billed: bool,
}

impl Buried {
    fn of(tombstone: &Tombstone) -> Self {
        let Tombstone { grave, hour, rows, bytes, never_billed, .. } = *tombstone;
        Self { grave, hour, files: tombstone.files.len() as u64, rows, bytes, never_billed }
    }
}

/// An expired hour whose files stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub grave: Grave,
    pub hour: Hour,
    pub reason: String,
}

/// What a pass did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionReport {
    pub dry_run: bool,
    pub deleted: Vec<Buried>,
    /// Oldest first; the schedule looks at them again.
    pub kept: Vec<Kept>,
    /// Tombstones whose files a pass before had not all removed.
    pub finished: u64,
    /// Hours whose bill was put for good.
    pub settled: u64,
    pub spool_objects: u64,
    pub spool_bytes: u64,
    /// Whether more is due than one pass does.
    #[serde(skip)]
    pub more: bool,
}

impl RetentionReport {
    /// Adds what a later pass did.
    pub(super) fn add(&mut self, later: RetentionReport) {
        self.deleted.extend(later.deleted);
        self.kept = later.kept;
        self.finished += later.finished;
        self.settled += later.settled;
        self.spool_objects += later.spool_objects;
        self.spool_bytes += later.spool_bytes;
        self.more = later.more;
    }
}
