//! Seals: what the stream path had counted of an hour when the hour closed. They are its preliminary number for ever.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::{CampaignId, Generation, Hour, LogOffset, PartitionId, Sha256Hex};

/// The close of one hour in one partition, put once as `seals/{hour}/{generation}-{partition}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub hour: Hour,
    pub generation: Generation,
    pub partition: PartitionId,
    /// First offset not counted: copies of the hour at or above it are late.
    pub end: LogOffset,
    /// Whether the counts are known to be what the rules say (G-5).
    pub complete: bool,
    /// Counted clicks a campaign; campaigns without any are left out.
    pub counts: BTreeMap<CampaignId, u64>,
}

/// A seal with the hash of its stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSeal {
    pub seal: Seal,
    pub sha256: Sha256Hex,
}
