//! Settings of the spool and of the spill queue.

use std::path::PathBuf;

use clap::Args;

use crate::error::{Error, Result};

const MIB: u64 = 1024 * 1024;

/// Settings of the spool; see each field for its default, bound and trade-off.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SpoolConfig {
    /// Folder of the spool. On another disk than the data folder, clicks are taken while that one is full or broken.
    /// Default: spool in the data folder
    #[arg(long, value_name = "DIR")]
    pub spool_dir: Option<PathBuf>,
    /// Bytes of records kept while the log is down or slow; above it senders get 503. 1 GiB holds about 7 million clicks:
    /// ten minutes at 12 000/s. Default 1 GiB; 0 turns it off, else at least 1 MiB
    #[arg(long, default_value_t = SpoolConfig::default().spool_bytes_max, value_name = "BYTES")]
    pub spool_bytes_max: u64,
    /// How long the log may take to acknowledge before the records are spooled instead. Shorter answers sooner, and
    /// stores more clicks twice when the log is only slow. Default 1000; 10 to 60000
    #[arg(long, default_value_t = SpoolConfig::default().spool_after_ms, value_name = "MS")]
    pub spool_after_ms: u64,
    /// Records a second appended from the spool once the log is back. More empties it sooner and takes more from new
    /// clicks. Default 20000; 1 to 10000000
    #[arg(long, default_value_t = SpoolConfig::default().spool_drain_rate, value_name = "RECORDS")]
    pub spool_drain_rate: u32,
    /// Size of a segment file of both queues. What is given up are whole segments; larger ones mean fewer files. Default 8 MiB; 64 KiB to 64 MiB
    #[arg(long, default_value_t = SpoolConfig::default().spool_segment_bytes, value_name = "BYTES")]
    pub spool_segment_bytes: u64,
    /// Bytes of records kept for clicks over their limit, of keys that may spill. Default 256 MiB; 0 turns it off, else at
    /// least 1 MiB
    #[arg(long, default_value_t = SpoolConfig::default().spill_bytes_max, value_name = "BYTES")]
    pub spill_bytes_max: u64,
    /// How much of the spill queue the clicks of one key may take up, in percent. More lets one sender spill longer, less
    /// leaves room for others. What a process before this one spilled counts for no key. Default 25; 1 to 100
    #[arg(long, default_value_t = SpoolConfig::default().spill_key_percent_max, value_name = "PERCENT")]
    pub spill_key_percent_max: u8,
    /// Records a second appended from the spill queue while there is room. Default 5000; 1 to 10000000
    #[arg(long, default_value_t = SpoolConfig::default().spill_drain_rate, value_name = "RECORDS")]
    pub spill_drain_rate: u32,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            spool_dir: None,
            spool_bytes_max: 1024 * MIB,
            spool_after_ms: 1000,
            spool_drain_rate: 20_000,
            spool_segment_bytes: 8 * MIB,
            spill_bytes_max: 256 * MIB,
            spill_key_percent_max: 25,
            spill_drain_rate: 5_000,
        }
    }
}

impl SpoolConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// `Config` naming the first setting out of its bounds.
    pub fn validate(&self) -> Result<()> {
        let or_off = |bytes: u64| if bytes == 0 { MIB } else { bytes };
        let bounds = [
            ("spool_bytes_max", or_off(self.spool_bytes_max), MIB, u64::MAX),
            // The bound keeps what is under way far below the delay by which an hour closes.
            ("spool_after_ms", self.spool_after_ms, 10, 60_000),
            ("spool_drain_rate", self.spool_drain_rate.into(), 1, 10_000_000),
            ("spool_segment_bytes", self.spool_segment_bytes, 64 * 1024, 64 * MIB),
            ("spill_bytes_max", or_off(self.spill_bytes_max), MIB, u64::MAX),
            ("spill_key_percent_max", self.spill_key_percent_max.into(), 1, 100),
            ("spill_drain_rate", self.spill_drain_rate.into(), 1, 10_000_000),
        ];
        match bounds.iter().find(|(_, value, low, high)| value < low || value > high) {
            None => Ok(()),
            Some((name, value, low, high)) => Err(Error::Config {
                reason: format!("{name} is {value}; it must lie within {low} and {high}"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_bounds_are_refused_by_name() {
        let default = SpoolConfig::default;
        assert!(default().validate().is_ok());
        assert!(SpoolConfig { spool_bytes_max: 0, spill_bytes_max: 0, ..default() }.validate().is_ok());
        for (name, wrong) in [
            ("spool_bytes_max", SpoolConfig { spool_bytes_max: 1, ..default() }),
            ("spool_after_ms", SpoolConfig { spool_after_ms: 9, ..default() }),
            ("spool_after_ms", SpoolConfig { spool_after_ms: 60_001, ..default() }),
            ("spill_key_percent_max", SpoolConfig { spill_key_percent_max: 101, ..default() }),
            ("spill_drain_rate", SpoolConfig { spill_drain_rate: 0, ..default() }),
        ] {
            assert!(wrong.validate().expect_err(name).to_string().contains(name));
        }
    }
}
