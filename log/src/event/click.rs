//! The click and its stored copies.

use serde::{Deserialize, Serialize};

use super::{AdId, CampaignId, ClickId, PartitionId, Position, PublisherId, UserId, UtcMillis};

/// Newest schema version written. Version 1 lacks `publisher_id` and `ip_hash`.
pub const SCHEMA_VERSION_LATEST: u8 = 2;

/// First 16 bytes of the salted SHA-256 of the sender's address.
pub type IpHash = [u8; 16];

/// One ad click as stored: validated, pseudonymous, stamped with its arrival.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Click {
    pub campaign_id: CampaignId,
    pub click_id: ClickId,
    pub ad_id: AdId,
    pub user_id: UserId,
    pub publisher_id: PublisherId,
    /// The client's time, or the arrival time where it gave none (CR-4).
    pub event_time: UtcMillis,
    /// When the gateway took it in.
    pub arrival_time: UtcMillis,
    pub ip_hash: Option<IpHash>,
    /// Schema version the record was written with; the other fields are already upgraded.
    pub schema_version: u8,
}

impl Click {
    /// Returns the event time, or the arrival time if that is earlier: what the watermark advances by.
    pub fn watermark_time(&self) -> UtcMillis {
        self.event_time.min(self.arrival_time)
    }
}

/// One stored record of a click, with its place and the watermark before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClickCopy {
    pub partition: PartitionId,
    pub position: Position,
    /// Watermark of the partition at this copy: from lower offsets only. `None` at a generation's start.
    pub watermark: Option<UtcMillis>,
    pub click: Click,
}
