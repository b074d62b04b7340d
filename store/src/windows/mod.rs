//! Real-time windows: what the stream has counted so far, by campaign and minute, as absolute values.
//!
//! Guarantee: a row is replaced only by one that reflects more of the log (`Fence`), so a late writer changes nothing.
//! Words: *row* = one minute of one campaign; *fence* = lease epoch, generation and applied offset of its state.

mod encoding;
mod live;
mod observed;
mod resilient;
mod sled;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::{AdId, CampaignId, Generation, Hour, LogOffset, UtcMillis};

use crate::error::Result;
use crate::sketch::UserSketch;

pub use self::live::{LiveSubscription, LiveWindows, WindowUpdate};
pub use self::observed::{ObservedWindows, Telling, WindowObserver};
pub use self::resilient::ResilientWindows;
pub use self::sled::SledWindows;

/// Which state a row reflects. A row is replaced only by one with a higher fence, in this order of fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fence {
    pub lease_epoch: u64,
    pub generation: Generation,
    /// Offset applied through; the row reflects every copy up to it.
    pub applied: LogOffset,
}

/// Counts of one ad within a window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdCounts {
    pub ad_id: AdId,
    pub clicks: u64,
    pub users: UserSketch,
}

/// One minute of one campaign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowRow {
    pub campaign_id: CampaignId,
    /// Start of the minute.
    pub window_start: UtcMillis,
    pub fence: Fence,
    pub clicks: u64,
    pub users: UserSketch,
    pub ads: Vec<AdCounts>,
}

/// The real-time store of windows.
#[async_trait]
pub trait WindowStore: Send + Sync + 'static {
    /// Stores rows as absolute values; a row whose stored fence is equal or higher is left as it is.
    ///
    /// Visible to reads at once, row by row; durable after [`WindowStore::flush`].
    async fn publish(&self, rows: Vec<WindowRow>) -> Result<()>;

    /// Returns the rows of a campaign with `from <= window_start < to`, in time order.
    async fn read(&self, campaign: &CampaignId, from: UtcMillis, to: UtcMillis) -> Result<Vec<WindowRow>>;

    /// Makes everything published durable.
    async fn flush(&self) -> Result<()>;

    /// Removes every row of the hours given (billed ones, past their keeping time).
    async fn remove_hours(&self, hours: &[Hour]) -> Result<()>;

    /// Returns the hours that have rows, in order.
    async fn hours(&self) -> Result<Vec<Hour>>;

    /// Returns how often the store was opened in this process. When it grows, what was published and not flushed may be
    /// gone: whoever publishes shows everything again. MUST answer from memory.
    fn openings(&self) -> u64 {
        1
    }
}
