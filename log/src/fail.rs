//! Fail points: places around durable steps where a test ends the process as a power cut would.
//!
//! The registry is passed in by the constructor; a node arms it from `TWICE_FAIL_POINT=NAME[:NTH]`, tests only. Armed as
//! `NAME@FILE` whoever comes by waits while the file is there.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Wait between two looks whether a point is still held.
const HELD_POLL: std::time::Duration = std::time::Duration::from_millis(20);

macro_rules! fail_points {
    ($($variant:ident = $name:literal: $doc:literal,)*) => {
        /// A place where the process can be made to die.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum FailPoint { $(#[doc = $doc] $variant,)* }

        impl FailPoint {
            /// Every fail point.
            pub const ALL: &'static [FailPoint] = &[$(FailPoint::$variant,)*];

            /// Returns the name by which it is armed.
            pub fn name(self) -> &'static str {
                match self { $(FailPoint::$variant => $name,)* }
            }
        }
    };
}

fail_points! {
    LogWritten = "log-written": "A group of the log is written and not yet synced.",
    LogSynced = "log-synced": "A group of the log is synced and nobody was told.",
    LogSegmentRemoved = "log-segment-removed": "A trimmed segment's file is removed, its folder is not synced.",
    ArchiveFilesPut = "archive-files-put": "Data files are in the archive, their manifest is not.",
    ManifestPut = "manifest-put": "A manifest is put and the archiver has not gone on.",
    CheckpointStatesWritten = "checkpoint-states-written": "States of a checkpoint are written and not flushed.",
    CheckpointStatesFlushed = "checkpoint-states-flushed": "States are flushed, the commit record is not written.",
    CheckpointCommitted = "checkpoint-committed": "The commit record is flushed, superseded states still stand.",
    SealBeforePut = "seal-before-put": "A seal is committed in the checkpoint and not in the archive.",
    SealPut = "seal-put": "A seal is in the archive and the reconciler was not told.",
    StreamApplying = "stream-applying": "A batch is read and nothing of it is applied.",
    BudgetDecisionStored = "budget-decision-stored": "A budget decision is stored, nobody was told.",
    BudgetDecisionPublished = "budget-decision-published": "A budget decision is in the log, that it is was not noted.",
    RulesPut = "rules-put": "The texts of the counting rules are put, no inputs name them yet.",
    RunInputsPut = "run-inputs-put": "Run inputs are put, no work is done.",
    AggregateFilesPut = "aggregate-files-put": "Files of aggregates are put, their list is not.",
    AggregatesPut = "aggregates-put": "The list of a run's aggregates is put, nothing is committed.",
    RunBeforeCommit = "run-before-commit": "Rows are computed, the transaction is not begun.",
    RunAfterCommit = "run-after-commit": "The transaction is committed, the result is not put.",
    SettledPut = "settled-put": "What was billed of an hour is put for good, no tombstone names a file it was counted from.",
    TombstonePut = "tombstone-put": "A tombstone is put, its files are still there.",
    BuriedFileRemoved = "buried-file-removed": "A file that a tombstone names is removed, others are still there.",
    FirstKeyStored = "first-key-stored": "A node's first key is stored and was shown to nobody.",
    RunResultPut = "run-result-put": "The result is put and nobody was told.",
}

/// The registry. Cheap to clone; unarmed it costs one branch.
#[derive(Debug, Clone, Default)]
pub struct FailPoints(Option<Arc<Armed>>);

#[derive(Debug)]
struct Armed {
    point: FailPoint,
    passes_left: AtomicU32,
    /// While this file is there, whoever comes by waits instead.
    held_by: Option<PathBuf>,
}

impl FailPoints {
    /// Arms `point` to end the process at its `nth` pass (1 = the first).
    pub fn armed(point: FailPoint, nth: u32) -> Self {
        Self(Some(Arc::new(Armed { point, passes_left: AtomicU32::new(nth.max(1)), held_by: None })))
    }

    /// Makes whoever comes by `point` wait while the file `held_by` is there: a part that hangs, and does not die.
    pub fn holding(point: FailPoint, held_by: PathBuf) -> Self {
        Self(Some(Arc::new(Armed { point, passes_left: AtomicU32::new(0), held_by: Some(held_by) })))
    }

    /// Ends the process with SIGKILL if `point` is armed and its pass has come.
    pub fn pass(&self, point: FailPoint) {
        if let Some(armed) = &self.0
            && armed.point == point
            && armed.held_by.is_none()
            && armed.passes_left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

impl FailPoints {
    /// Waits while `point` is held.
    pub async fn hold(&self, point: FailPoint) {
        if let Some(armed) = &self.0
            && armed.point == point
            && let Some(file) = &armed.held_by
        {
            while file.exists() {
                tokio::time::sleep(HELD_POLL).await;
            }
        }
    }
}

/// The text names no fail point.
#[derive(Debug, thiserror::Error)]
#[error("is not NAME, NAME:NTH or NAME@FILE with a known fail point")]
pub struct UnknownFailPoint;

impl FromStr for FailPoints {
    type Err = UnknownFailPoint;
    fn from_str(text: &str) -> Result<Self, UnknownFailPoint> {
        if let Some((name, file)) = text.split_once('@') {
            let point = FailPoint::ALL.iter().find(|point| point.name() == name).ok_or(UnknownFailPoint)?;
            return Ok(Self::holding(*point, PathBuf::from(file)));
        }
        let (name, nth) = match text.split_once(':') {
            Some((name, nth)) => (name, nth.parse().map_err(|_| UnknownFailPoint)?),
            None => (text, 1),
        };
        let point = FailPoint::ALL.iter().find(|point| point.name() == name).ok_or(UnknownFailPoint)?;
        Ok(Self::armed(*point, nth))
    }
}
