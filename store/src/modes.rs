//! Which path's rows are the bill of hours not yet billed.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::archive::BillingPath;
use twice_log::{Hour, UtcMillis};

use crate::billing::{Page, UtcMicros};
use crate::error::Result;

/// A mode set for an hour and all later ones, until the next setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeSetting {
    pub from: Hour,
    pub path: BillingPath,
    pub recorded_at: UtcMillis,
}

/// The path that became the bill of an hour at a moment: by the hour's first commit, or by a change of mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourMode {
    pub hour: Hour,
    pub path: BillingPath,
    pub committed_at: UtcMicros,
}

/// The store of modes. An hour's first commit fixes its mode; a setting changes hours not yet billed only.
#[async_trait]
pub trait ModeStore: Send + Sync + 'static {
    /// Sets the mode of hours from `from` on. Settings are append-only: of those whose `from` is not after an hour, the
    /// one set last counts. Without any the mode is `lambda`.
    async fn set_mode(&self, path: BillingPath, from: Hour, recorded_at: UtcMillis) -> Result<()>;

    /// Returns every setting, oldest first.
    async fn mode_settings(&self) -> Result<Vec<ModeSetting>>;

    /// Returns the modes fixed for hours in `[from, to)`, each hour's changes after its first commit too; the latest
    /// hour, and of it the latest change, first.
    async fn hour_modes(
        &self,
        from: Hour,
        to: Hour,
        limit: u32,
        cursor: Option<String>,
    ) -> Result<Page<HourMode>>;
}
