//! Settings of the stream path and of the archiver. Counting rules are not here: both paths share `CountingSettings`.

use clap::Args;

use crate::error::{Error, Result};

/// Settings of the stream path. None of them changes a count.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StreamConfig {
    /// Longest wait before changed windows are shown. Larger means fewer writes, later numbers. 50 to 2_000,
    /// default 1_000.
    #[arg(long, default_value_t = StreamConfig::default().publish_interval_ms)]
    pub publish_interval_ms: u64,
    /// Time between checkpoints. Larger means fewer writes to sled, a longer replay after a crash. 100 to 600_000,
    /// default 5_000.
    #[arg(long, default_value_t = StreamConfig::default().checkpoint_interval_ms)]
    pub checkpoint_interval_ms: u64,
    /// Bytes read from the log at once, per partition. Larger means more clicks a message and more memory; two such
    /// batches are in memory at most. 4 KiB to 64 MiB, default 1 MiB.
    #[arg(long = "stream-read-bytes-max", id = "stream_read_bytes_max", default_value_t = StreamConfig::default().read_bytes_max)]
    pub read_bytes_max: usize,
    /// Memory for dedup sets, all partitions together. Above it the oldest entries are dropped before their time and
    /// the hours they could decide are marked incomplete. At least 1 MiB, default 4 GiB (about 140 M clicks).
    #[arg(long, default_value_t = StreamConfig::default().dedup_bytes_max)]
    pub dedup_bytes_max: u64,
    /// Threads that count; 0 means one a core. Never more than there are partitions. Default 0.
    #[arg(long = "stream-threads", id = "stream_threads", default_value_t = StreamConfig::default().threads)]
    pub threads: u32,
    /// Page cache of the checkpoint store. Default 128 MiB.
    #[arg(long, default_value_t = StreamConfig::default().checkpoint_cache_bytes)]
    pub checkpoint_cache_bytes: u64,
    /// Time without a click after which a campaign leaves memory; its state stays in the checkpoints and its next click
    /// brings it back. Shorter means less memory, more reads from sled. 10 to 86_400_000, default 600_000.
    #[arg(long, default_value_t = StreamConfig::default().campaign_idle_ms)]
    pub campaign_idle_ms: u64,
    /// Wait after a failed read of the log, or before a failed partition starts again. Default 500.
    #[arg(long = "stream-retry-pause-ms", id = "stream_retry_pause_ms", default_value_t = StreamConfig::default().retry_pause_ms)]
    pub retry_pause_ms: u64,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            publish_interval_ms: 1_000,
            checkpoint_interval_ms: 5_000,
            read_bytes_max: 1 << 20,
            dedup_bytes_max: 4 << 30,
            threads: 0,
            checkpoint_cache_bytes: 128 << 20,
            campaign_idle_ms: 600_000,
            retry_pause_ms: 500,
        }
    }
}

impl StreamConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first setting out of bounds.
    pub fn validate(&self) -> Result<()> {
        check("publish_interval_ms", self.publish_interval_ms, 50, 2_000)?;
        check("checkpoint_interval_ms", self.checkpoint_interval_ms, 100, 600_000)?;
        check("read_bytes_max", self.read_bytes_max as u64, 4 << 10, 64 << 20)?;
        check("dedup_bytes_max", self.dedup_bytes_max, 1 << 20, u64::MAX)?;
        check("checkpoint_cache_bytes", self.checkpoint_cache_bytes, 1 << 20, u64::MAX)?;
        check("campaign_idle_ms", self.campaign_idle_ms, 10, 86_400_000)?;
        check("retry_pause_ms", self.retry_pause_ms, 1, 60_000)
    }
}

/// Settings of the archiver: when a file is cut. Smaller and sooner means fresher archives of more, smaller files.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ArchiverConfig {
    /// Rows a partition gathers at most before it writes. 1 to 16_777_216, default 1_000_000.
    #[arg(long = "archive-rows-max", id = "archive_rows_max", default_value_t = ArchiverConfig::default().rows_max)]
    pub rows_max: u64,
    /// Bytes of records a partition gathers at most before it writes: the memory bound. At least 64 KiB, default
    /// 256 MiB.
    #[arg(long = "archive-bytes-max", id = "archive_bytes_max", default_value_t = ArchiverConfig::default().bytes_max)]
    pub bytes_max: u64,
    /// Age of the oldest record gathered at which a partition writes. 1 to 3_600_000, default 300_000.
    #[arg(long = "archive-flush-interval-ms", id = "archive_flush_interval_ms", default_value_t = ArchiverConfig::default().flush_interval_ms)]
    pub flush_interval_ms: u64,
    /// Bytes read from the log at once. 4 KiB to 64 MiB, default 1 MiB.
    #[arg(long = "archive-read-bytes-max", id = "archive_read_bytes_max", default_value_t = ArchiverConfig::default().read_bytes_max)]
    pub read_bytes_max: usize,
    /// First wait after an object store error; doubles, with jitter, up to `retry_pause_ms_max`. Default 200.
    #[arg(long = "archive-retry-pause-ms", id = "archive_retry_pause_ms", default_value_t = ArchiverConfig::default().retry_pause_ms)]
    pub retry_pause_ms: u64,
    /// Longest wait between tries. Default 30_000.
    #[arg(long = "archive-retry-pause-ms-max", id = "archive_retry_pause_ms_max", default_value_t = ArchiverConfig::default().retry_pause_ms_max)]
    pub retry_pause_ms_max: u64,
}

impl Default for ArchiverConfig {
    fn default() -> Self {
        Self {
            rows_max: 1_000_000,
            bytes_max: 256 << 20,
            flush_interval_ms: 300_000,
            read_bytes_max: 1 << 20,
            retry_pause_ms: 200,
            retry_pause_ms_max: 30_000,
        }
    }
}

impl ArchiverConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first setting out of bounds.
    pub fn validate(&self) -> Result<()> {
        check("rows_max", self.rows_max, 1, 1 << 24)?;
        check("bytes_max", self.bytes_max, 64 << 10, u64::MAX)?;
        check("flush_interval_ms", self.flush_interval_ms, 1, 3_600_000)?;
        check("read_bytes_max", self.read_bytes_max as u64, 4 << 10, 64 << 20)?;
        check("retry_pause_ms", self.retry_pause_ms, 1, 60_000)?;
        check("retry_pause_ms_max", self.retry_pause_ms_max, self.retry_pause_ms, 3_600_000)
    }
}

pub(crate) fn check(setting: &'static str, value: u64, min: u64, max: u64) -> Result<()> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(Error::Config { setting, value, min, max }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_within_their_bounds() {
        assert!(StreamConfig::default().validate().is_ok());
        assert!(ArchiverConfig::default().validate().is_ok());
    }

    #[test]
    fn a_setting_out_of_bounds_is_named() {
        let config = StreamConfig { publish_interval_ms: 5_000, ..StreamConfig::default() };
        let message = config.validate().expect_err("too slow").to_string();
        assert_eq!(message, "publish_interval_ms is 5000; it must lie between 50 and 2000");
    }
}
