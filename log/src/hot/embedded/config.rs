//! Settings of the embedded log.

use clap::Args;

use super::segment::SEGMENT_BYTES_MIN;
use crate::error::{Error, Result};

const MIB: u64 = 1024 * 1024;

/// Settings of the embedded log; see each field for its default, bound and trade-off.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct EmbeddedConfig {
    /// Partitions of each topic, fixed when the log is created. More spread the work over more cores, and cost one
    /// sync each per group commit. Default 4; 1 to 1024.
    #[arg(long, default_value_t = EmbeddedConfig::default().partitions)]
    pub partitions: u32,
    /// Size of a segment file, reserved when it is created; what is trimmed are whole segments. Larger means fewer
    /// files, and more disk held by an almost empty log. Default 64 MiB; 4 KiB to 1 GiB.
    #[arg(long = "log-segment-bytes", id = "log_segment_bytes", default_value_t = EmbeddedConfig::default().segment_bytes)]
    pub segment_bytes: u64,
    /// Bytes that may wait for the disk before an append is refused with `Busy`. It must hold the largest append.
    /// Default 64 MiB; at least 4 KiB.
    #[arg(long = "log-waiting-bytes-max", id = "log_waiting_bytes_max", default_value_t = EmbeddedConfig::default().waiting_bytes_max)]
    pub waiting_bytes_max: u64,
    /// Newest bytes of each partition kept in memory, from which readers at the tail are served. 0 reads all from
    /// files. Default 4 MiB.
    #[arg(long = "log-tail-cache-bytes-max", id = "log_tail_cache_bytes_max", default_value_t = EmbeddedConfig::default().tail_cache_bytes_max)]
    pub tail_cache_bytes_max: u64,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            partitions: 4,
            segment_bytes: 64 * MIB,
            waiting_bytes_max: 64 * MIB,
            tail_cache_bytes_max: 4 * MIB,
        }
    }
}

impl EmbeddedConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// `Config` naming the first setting out of its bounds.
    pub fn validate(&self) -> Result<()> {
        let bounds = [
            ("partitions", u64::from(self.partitions), 1, 1024),
            ("segment_bytes", self.segment_bytes, SEGMENT_BYTES_MIN, 1024 * MIB),
            ("waiting_bytes_max", self.waiting_bytes_max, 4096, u64::MAX),
        ];
        match bounds.iter().find(|(_, value, low, high)| value < low || value > high) {
            None => Ok(()),
            Some((name, value, low, high)) => Err(Error::Config {
                reason: format!("{name} of the embedded log is {value}; it must lie within {low} and {high}"),
            }),
        }
    }
}
