//! Settings of the batch path.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use twice_log::archive::{BillingStatus, CountingSettings};

use crate::error::{Error, Result};
use crate::recompute::ResourceLimits;

/// Below this nothing would be left for rows beside the program and what it reads.
const MEMORY_BYTES_MIN: u64 = 256 << 20;

const WEEK_MS: u64 = 604_800_000;
/// Below this, retention would reach for hours that clicks still come for.
const RETENTION_MS_MIN: u64 = 2_592_000_000;

/// Settings of the batch path. None of them changes a count; `counting` holds those that do.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ReconcilerConfig {
    /// Whether hours are closed by the clock; without it only requests close them. Default true.
    #[arg(long = "reconcile-schedule", id = "reconcile_schedule", action = ArgAction::Set, default_value_t = true)]
    pub schedule: bool,
    /// How often the schedule looks for hours to close. Shorter closes sooner and reads the archive more often.
    /// 100 to 600_000, default 5_000.
    #[arg(long = "reconcile-tick-ms", id = "reconcile_tick_ms", default_value_t = ReconcilerConfig::default().tick_ms)]
    pub tick_ms: u64,
    /// Wait after an hour's end before it closes. Longer makes fewer late clicks and a later bill. Default 120_000.
    #[arg(long, default_value_t = ReconcilerConfig::default().close_delay_ms)]
    pub close_delay_ms: u64,
    /// An hour already past when its clicks arrived closes after this long without arrivals for it. Longer makes fewer
    /// restatements of imports, and a later bill. Default 600_000.
    #[arg(long, default_value_t = ReconcilerConfig::default().backfill_quiet_ms)]
    pub backfill_quiet_ms: u64,
    /// Horizon of duplicates of the nightly close, in hours. Longer finds duplicates further apart and reads more files;
    /// what lies beyond it bills twice. At least `horizon_hours`, at most 168, default 24.
    #[arg(long, default_value_t = ReconcilerConfig::default().nightly_horizon_hours)]
    pub nightly_horizon_hours: u32,
    /// Whether days are closed and later events swept by the clock; without it only requests do. Default true.
    #[arg(long = "nightly-close", id = "nightly_close", action = ArgAction::Set, default_value_t = true)]
    pub nightly_close: bool,
    /// Wait after a day's end before its hours become final; an hour billed only after that waits as long from its first
    /// bill. Longer lets more verdicts in, and makes fewer restatements and a later invoice. Default 21_600_000.
    #[arg(long, default_value_t = ReconcilerConfig::default().verdict_maturity_ms)]
    pub verdict_maturity_ms: u64,
    /// How far before its arrival the click of a verdict that names no hour is looked for. Longer finds clicks of slower
    /// fraud models and reads more files each night. 3_600_000 to 8_640_000_000, default 604_800_000.
    #[arg(long, default_value_t = ReconcilerConfig::default().verdict_lookback_ms)]
    pub verdict_lookback_ms: u64,
    /// Time between sweeps for later clicks, verdicts and rates of final hours; they begin `verdict_maturity_ms` after
    /// midnight. Shorter restates sooner and more often. 60_000 to 604_800_000, default 86_400_000.
    #[arg(long, default_value_t = ReconcilerConfig::default().sweep_interval_ms)]
    pub sweep_interval_ms: u64,
    /// How long raw clicks, verdicts and quarantined records stay in the archive, counted from the end of the last hour that
    /// may read them; 0 = for ever. Longer can be counted again and audited by a recount for longer, and costs storage and
    /// keeps pseudonymous data. 0, or at least 2_592_000_000 (30 d) and a week more than `verdict_lookback_ms`; default
    /// 31_536_000_000 (365 d).
    #[arg(long, default_value_t = ReconcilerConfig::default().archive_retention_ms)]
    pub archive_retention_ms: u64,
    /// Time between passes that delete what is expired; they begin at midnight. Shorter deletes sooner after the day and
    /// lists the archive more often. 60_000 to 604_800_000, default 86_400_000.
    #[arg(long, default_value_t = ReconcilerConfig::default().retention_interval_ms)]
    pub retention_interval_ms: u64,
    /// How long a partition may take to seal before it is recorded as unsealed for ever. Longer waits out longer
    /// restarts of the stream, and delays the bill. Default 900_000.
    #[arg(long, default_value_t = ReconcilerConfig::default().seal_timeout_ms)]
    pub seal_timeout_ms: u64,
    /// How long manifests may take to reach the cutoff before the attempt fails. Default 900_000.
    #[arg(long, default_value_t = ReconcilerConfig::default().archive_timeout_ms)]
    pub archive_timeout_ms: u64,
    /// How often manifests are read while waiting for them. 10 to 60_000, default 250.
    #[arg(long, default_value_t = ReconcilerConfig::default().archive_poll_ms)]
    pub archive_poll_ms: u64,
    /// Attempts of one hour before it waits for a request or a restart. At least 1, default 8.
    #[arg(long = "reconcile-attempts-max", id = "reconcile_attempts_max", default_value_t = ReconcilerConfig::default().attempts_max)]
    pub attempts_max: u32,
    /// First pause after a failed attempt; it doubles up to ten minutes. Default 2_000.
    #[arg(long = "reconcile-backoff-ms-min", id = "reconcile_backoff_ms_min", default_value_t = ReconcilerConfig::default().backoff_ms_min)]
    pub backoff_ms_min: u64,
    /// Threads of one recompute; 0 means one a core. Default 0.
    #[arg(long = "recompute-threads", id = "recompute_threads", default_value_t = ReconcilerConfig::default().threads)]
    pub threads: usize,
    /// Peak resident memory of the recompute process, however large the hour. Less makes more slices, so more reading.
    /// At least 256 MiB, and about 50 MiB a thread; default 1 GiB.
    #[arg(long = "recompute-memory-bytes-max", id = "recompute_memory_bytes_max", default_value_t = ReconcilerConfig::default().memory_bytes_max)]
    pub memory_bytes_max: u64,
    /// Whether each file's SHA-256 is compared before it is read; costs one more read of the files. Default true.
    #[arg(long = "recompute-verify-files", id = "recompute_verify_files", action = ArgAction::Set, default_value_t = true)]
    pub verify_files: bool,
    /// Niceness of the recompute process. 0 to 19, default 10.
    #[arg(long = "recompute-nice", id = "recompute_nice", default_value_t = ReconcilerConfig::default().nice)]
    pub nice: i32,
    /// Where a recompute spills to; made if absent. Default: the system's temporary folder.
    #[arg(skip = ReconcilerConfig::default().spill_dir)]
    pub spill_dir: PathBuf,
    /// Counting settings, horizons and lateness. They must equal the stream's.
    #[arg(skip)]
    pub counting: CountingSettings,
}

impl Default for ReconcilerConfig {
    fn default() -> Self {
        Self {
            schedule: true,
            tick_ms: 5_000,
            close_delay_ms: 120_000,
            backfill_quiet_ms: 600_000,
            nightly_horizon_hours: 24,
            nightly_close: true,
            verdict_maturity_ms: 21_600_000,
            verdict_lookback_ms: 604_800_000,
            sweep_interval_ms: 86_400_000,
            archive_retention_ms: 31_536_000_000,
            retention_interval_ms: 86_400_000,
            seal_timeout_ms: 900_000,
            archive_timeout_ms: 900_000,
            archive_poll_ms: 250,
            attempts_max: 8,
            backoff_ms_min: 2_000,
            threads: 0,
            memory_bytes_max: 1 << 30,
            spill_dir: std::env::temp_dir(),
            verify_files: true,
            nice: 10,
            counting: CountingSettings::default(),
        }
    }
}

impl ReconcilerConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// `Config` naming the first setting out of its bounds.
    pub fn validate(&self) -> Result<()> {
        let bounds = [
            ("reconcile_tick_ms", self.tick_ms, 100, 600_000),
            ("archive_poll_ms", self.archive_poll_ms, 10, 60_000),
            (
                "nightly_horizon_hours",
                u64::from(self.nightly_horizon_hours),
                u64::from(self.counting.horizon_hours),
                168,
            ),
            ("verdict_lookback_ms", self.verdict_lookback_ms, 3_600_000, 8_640_000_000),
            ("sweep_interval_ms", self.sweep_interval_ms, 60_000, 604_800_000),
            ("retention_interval_ms", self.retention_interval_ms, 60_000, 604_800_000),
            ("archive_retention_ms", self.kept_ms(), self.kept_ms_min(), u64::MAX),
            ("reconcile_attempts_max", u64::from(self.attempts_max), 1, u64::from(u32::MAX)),
            ("recompute_memory_bytes_max", self.memory_bytes_max, MEMORY_BYTES_MIN, u64::MAX),
            ("recompute_nice", u64::try_from(self.nice).unwrap_or(u64::MAX), 0, 19),
        ];
        match bounds.iter().find(|(_, value, low, high)| value < low || value > high) {
            None => Ok(()),
            Some((name, value, low, high)) => Err(Error::Config {
                reason: format!("{name} is {value}; it must lie within {low} and {high}"),
            }),
        }
    }

    /// Returns how long the raw archive is kept: for ever is the longest.
    fn kept_ms(&self) -> u64 {
        if self.archive_retention_ms == 0 { u64::MAX } else { self.archive_retention_ms }
    }

    /// Returns how long it must be kept at least: what clicks and verdicts are still looked for in must be there.
    fn kept_ms_min(&self) -> u64 {
        RETENTION_MS_MIN.max(self.verdict_lookback_ms.saturating_add(WEEK_MS))
    }

    /// Returns the counting settings of a run of this status: final hours look further for duplicates (CR-3).
    pub(crate) fn counting_of(&self, status: BillingStatus) -> CountingSettings {
        match status {
            BillingStatus::Reconciled => self.counting,
            BillingStatus::Final => {
                CountingSettings { horizon_hours: self.nightly_horizon_hours, ..self.counting }
            }
        }
    }

    /// Returns what one recompute may use.
    pub fn limits(&self) -> ResourceLimits {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        ResourceLimits {
            threads: if self.threads == 0 { cores } else { self.threads },
            memory_bytes_max: self.memory_bytes_max,
            spill_dir: self.spill_dir.clone(),
            verify_files: self.verify_files,
            rows_per_slice_max: None,
        }
    }
}
