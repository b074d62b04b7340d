//! The kappa path as the others see it: a counter of recorded runs that goes through the stream's code.
//!
//! The stream path implements it; the schedule, the audit and the comparison ask it. It counts and commits nothing:
//! runs of both paths are recorded and committed by one piece of code, under G-3 and G-4.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use twice_log::Hour;
use twice_log::archive::StoredRunInputs;

use crate::billing::BillingCounts;
use crate::cost::Cost;
use crate::error::Result;

/// Hours of one replay on request at most: a node lists and commits them on its own. Longer ranges are asked for in parts.
pub const REPLAY_HOURS_MAX: i64 = 31 * 24;

/// How far a replay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayProgress {
    /// Copies read, and copies to read in all slices together.
    pub copies_done: u64,
    pub copies_total: u64,
    /// Slices of campaigns finished, and in all.
    pub slices_done: u32,
    pub slices_total: u32,
}

/// Takes progress. A receiver that went away is no error.
pub type ReplayProgressSender = mpsc::UnboundedSender<ReplayProgress>;

/// The rows of one run, in order of campaign: one a campaign that has copies in the hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayedHour {
    pub hour: Hour,
    pub rows: Vec<BillingCounts>,
}

/// What a replay answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Replayed {
    /// In the order of the runs asked for.
    pub hours: Vec<ReplayedHour>,
    /// Copies read once: a copy that several slices read is counted once.
    pub copies: u64,
    pub slices: u32,
    /// What the process that counted took.
    pub cost: Cost,
}

/// Counts recorded runs by replay.
#[async_trait]
pub trait Replay: Send + Sync + 'static {
    /// Counts each run at exactly its recorded inputs (cutoffs, files, verdicts, rates, horizon), all in one pass.
    ///
    /// The inputs may be of either path: only what they record is read. The same inputs give the same rows on any
    /// number of workers. A replay of the same runs that was killed goes on after its last finished slice.
    ///
    /// # Errors
    /// `Replay`, with the reason; `Archive` if a file is missing or is not the one recorded.
    async fn replay(
        &self,
        runs: &[StoredRunInputs],
        progress: Option<ReplayProgressSender>,
    ) -> Result<Replayed>;
}
