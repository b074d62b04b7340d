//! The messages of a campaign's actor. Bulk payloads print as counts.

use std::fmt;
use std::sync::Arc;

use actix::Message;
use twice_log::{ClickCopy, Hour, UtcMillis};
use twice_store::windows::{Fence, WindowRow};

use super::dedup::{DroppedEntries, OldestGroup};
use super::state::{ClosedHour, SealEnds, Tallies};
use crate::budget::Touched;
use crate::checkpoint::{CampaignSnapshot, CheckpointNumber, Resting};

/// Applies the copies of one campaign; those at or below the state's own offset are skipped (G-2).
#[derive(Message)]
#[rtype(result = "Applied")]
pub struct ApplyClickBatch {
    /// In offset order.
    pub copies: Vec<ClickCopy>,
    /// Whether the answer is to say which minutes were counted into.
    pub is_watched: bool,
    pub seals: Arc<SealEnds>,
}

impl fmt::Debug for ApplyClickBatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ApplyClickBatch").field("copies", &self.copies.len()).finish()
    }
}

/// What a batch did, and what the dedup set takes now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub tallies: Tallies,
    /// What was counted; `None` where nothing was, or nobody watches.
    pub touched: Option<Touched>,
    pub dedup_bytes: u64,
    pub oldest_dedup: Option<OldestGroup>,
}

/// Takes the windows changed since the last call, under `fence`.
#[derive(Debug, Message)]
#[rtype(result = "Vec<WindowRow>")]
pub struct TakeChangedWindows {
    pub fence: Fence,
    /// Takes every window, changed or not: after a publish that failed.
    pub all: bool,
}

/// Forgets the windows of sealed, published hours and returns their counts.
#[derive(Debug, Message)]
#[rtype(result = "Vec<ClosedHour>")]
pub struct CloseHours {
    pub hours: Arc<Vec<Hour>>,
}

/// Encodes what changed since the last checkpoint.
#[derive(Debug, Message)]
#[rtype(result = "CampaignSnapshot")]
pub struct TakeSnapshot {
    pub checkpoint: CheckpointNumber,
    pub dedup_floor: Option<UtcMillis>,
}

/// Asks what memory must keep of the campaign when its actor stops; `None`: not all of it is stored, it must stay.
#[derive(Debug, Message)]
#[rtype(result = "Option<Resting>")]
pub struct PrepareRest;

/// Forgets identities that decide nothing any more; returns what the set takes now.
#[derive(Debug, Message)]
#[rtype(result = "Applied")]
pub struct ExpireDedup {
    pub watermark: Option<UtcMillis>,
}

/// Forgets the groups of identities that start at or before `start`, though they may decide something.
#[derive(Debug, Message)]
#[rtype(result = "(Applied, Option<DroppedEntries>)")]
pub struct DropOldestDedup {
    pub start: UtcMillis,
}
