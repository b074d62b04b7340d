//! Announced imports: hours for which the door lifts its age limit (CR-7).

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::event::Sha256Hex;
use twice_log::{Hour, UtcMillis};

use crate::error::Result;

/// An announced import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    pub import_id: String,
    pub hours: Vec<Hour>,
    /// Hash of the file.
    pub sha256: Sha256Hex,
    pub announced_at: UtcMillis,
}

/// The store of announced imports.
#[async_trait]
pub trait ImportStore: Send + Sync + 'static {
    /// Announces an import. The same hash and hours again return the first announcement.
    async fn announce_import(&self, hours: Vec<Hour>, sha256: Sha256Hex, at: UtcMillis) -> Result<Import>;

    /// Returns one import.
    async fn import(&self, import_id: &str) -> Result<Option<Import>>;

    /// Returns whether any import announced the hour.
    async fn is_announced(&self, hour: Hour) -> Result<bool>;
}
