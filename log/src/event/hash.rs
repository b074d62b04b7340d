//! The hashes that decide bytes on disk: partition, payload and content.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::{CampaignId, Click, PartitionId};

/// Name of the partition hash, as manifests record it.
pub const PARTITION_HASH_NAME: &str = "xxh3_64";

/// Returns the partition of `campaign` among `partitions`.
pub fn partition_of(campaign: &CampaignId, partitions: u32) -> PartitionId {
    let hash = xxh3_64(campaign.as_str().as_bytes());
    PartitionId((hash % u64::from(partitions.max(1))) as u32)
}

/// Returns the hash of a click's payload (CR-2), by which a conflict is told from a plain duplicate.
///
/// xxh3_64 as a signed number over `ad_id`, stored `user_id`, `publisher_id` (each u16 LE length and bytes) and
/// `event_time` (i64 LE milliseconds), after schema upgrade; absent is empty.
pub fn payload_hash(click: &Click) -> i64 {
    let mut hasher = Xxh3Default::new();
    for field in [click.ad_id.as_str(), click.user_id.as_str(), click.publisher_id.as_str()] {
        hasher.update(&(field.len() as u16).to_le_bytes()); // ids are at most 64 bytes
        hasher.update(field.as_bytes());
    }
    hasher.update(&click.event_time.epoch_ms().to_le_bytes());
    hasher.digest() as i64
}

/// SHA-256 of some bytes, in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sha256Hex(pub String);

impl Sha256Hex {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Returns the first eight characters: what file names carry.
    pub fn prefix(&self) -> &str {
        self.0.get(..8).unwrap_or(&self.0)
    }
}

impl std::fmt::Display for Sha256Hex {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}
