//! How long the stores of a node may keep a request waiting.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

/// Settings of the stores.
#[derive(Debug, Clone, Copy, Args)]
pub struct StoresConfig {
    /// Longest a request waits for the real-time store or the billing store to begin, in milliseconds. Then the answer
    /// does without it and says so, or is 503. Longer waits out longer stalls of the disk; shorter frees dashboards
    /// sooner. 50 to 60 000
    #[arg(long, default_value_t = 3_000, value_name = "MS")]
    pub store_timeout_ms: u64,
}

impl StoresConfig {
    /// Returns the bound.
    ///
    /// # Errors
    /// A setting out of its bounds.
    pub fn limit(&self) -> Result<Duration> {
        if !(50..=60_000).contains(&self.store_timeout_ms) {
            bail!("store_timeout_ms is {}; it must lie within 50 and 60000", self.store_timeout_ms);
        }
        Ok(Duration::from_millis(self.store_timeout_ms))
    }
}
