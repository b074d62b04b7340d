//! How far a partition is, as the API and the tests see it.

use std::time::{Duration, Instant};

use serde::Serialize;
use twice_log::{Hour, LogOffset, PartitionId, UtcMillis};

/// What a partition is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionPhase {
    /// The checkpoint is being loaded.
    Loading,
    /// Records are read and counted.
    Running,
    /// The partition failed and starts again from its checkpoint; the reason.
    Failed(String),
    /// The partition was stopped.
    Stopped,
}

/// How far one partition is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    pub partition: PartitionId,
    pub phase: PartitionPhase,
    /// Every record below this offset is applied.
    pub applied_end: LogOffset,
    /// Every record below this offset is in the last checkpoint.
    pub checkpoint_end: LogOffset,
    /// Highest min(event time, arrival time) in the last checkpoint; `None` if it holds nothing or there is none.
    pub checkpoint_time: Option<UtcMillis>,
    /// End of the log when asked; `log_end - applied_end` is the lag.
    pub log_end: LogOffset,
    /// Highest min(event time, arrival time) applied; `None` while nothing was.
    pub highest_time: Option<UtcMillis>,
    /// Every record below this offset is in the windows that readers see.
    pub shown_end: LogOffset,
    /// Since when something applied is not shown; `None` while everything is.
    #[serde(skip)]
    pub waiting_since: Option<Instant>,
    /// Hours with windows that are not sealed yet, in order.
    pub hours_unsealed: Vec<Hour>,
    /// Unsealed hours whose counts may miss something, in order.
    pub hours_incomplete: Vec<Hour>,
    /// Memory of the dedup sets.
    pub dedup_bytes: u64,
    /// Campaigns in memory.
    pub campaigns: u64,
    /// Campaigns at rest: their state is in the checkpoint store alone.
    pub campaigns_resting: u64,
    pub applied: u64,
    pub counted: u64,
    pub duplicates: u64,
    pub late: u64,
    pub undecodable: u64,
    pub skipped: u64,
    /// Starts from a checkpoint since the process began, the first not counted.
    pub restarts: u64,
}

impl PartitionStatus {
    /// Returns the status of a partition that has done nothing yet.
    pub fn new(partition: PartitionId) -> Self {
        Self {
            partition,
            phase: PartitionPhase::Loading,
            applied_end: LogOffset(0),
            checkpoint_end: LogOffset(0),
            checkpoint_time: None,
            log_end: LogOffset(0),
            highest_time: None,
            shown_end: LogOffset(0),
            waiting_since: None,
            hours_unsealed: Vec::new(),
            hours_incomplete: Vec::new(),
            dedup_bytes: 0,
            campaigns: 0,
            campaigns_resting: 0,
            applied: 0,
            counted: 0,
            duplicates: 0,
            late: 0,
            undecodable: 0,
            skipped: 0,
            restarts: 0,
        }
    }

    /// Returns for how long something applied is not shown.
    pub fn unshown_for(&self) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Returns the number of records not applied yet.
    pub fn lag(&self) -> u64 {
        u64::try_from(self.log_end.0 - self.applied_end.0).unwrap_or(0)
    }
}
