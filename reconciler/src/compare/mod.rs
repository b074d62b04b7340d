//! Why preliminary and billed differ, by cause, each a list of copies (G-5).
//!
//! Words: S = copies which the stream's rules say it counted, derived from the archive; B = billed copies. Guarantee:
//! `preliminary - billed = late_duplicate + fraud - late + unexplained`, where each cause is counted from its own list
//! and only `unexplained` is a difference; a copy that fits no cause is an error of the run.

mod causes;
mod explain;
pub mod paths;

use serde::{Deserialize, Serialize};
use twice_log::{ClickId, Generation, LogOffset, PartitionId, UtcMillis};
use twice_store::Divergence;

pub(crate) use causes::{CauseCounts, divergence_rows, read_cause_counts};
pub(crate) use explain::explain_inputs;

/// The statement that lists S \ B and B \ S.
pub const CAUSES_SQL: &str = include_str!("causes.sql");

/// Why one copy makes preliminary and billed differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Counted by the stream, a duplicate for the bill: its first copy lay outside the stream's horizon.
    LateDuplicate,
    /// Counted by the stream, ruled invalid.
    Fraud,
    /// Billed, and too late for the stream.
    Late,
}

impl Cause {
    /// Returns the name as it stands in the SQL and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Cause::LateDuplicate => "late_duplicate",
            Cause::Fraud => "fraud",
            Cause::Late => "late",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Cause::LateDuplicate, Cause::Fraud, Cause::Late].into_iter().find(|cause| cause.name() == name)
    }
}

/// One copy by which preliminary and billed differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedCopy {
    pub cause: Cause,
    pub click_id: ClickId,
    pub event_time: UtcMillis,
    pub generation: Generation,
    pub partition: PartitionId,
    pub log_offset: LogOffset,
    /// Archive files of the hour whose offset range holds this position.
    pub files: Vec<String>,
}

/// Why preliminary and billed of one campaign and hour differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `None` where the campaign has neither billed nor preliminary clicks in the hour.
    pub divergence: Option<Divergence>,
    /// In order of position; at most the limit asked for.
    pub copies: Vec<ExplainedCopy>,
    /// Whether there are more copies than the limit.
    pub truncated: bool,
}
