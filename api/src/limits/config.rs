//! Settings of the rate limits. The limits themselves are no settings: they have versions (`twice limits`).

use clap::Args;

use super::adapt::Bounds;
use crate::config::within;
use crate::error::Result;

/// Settings of the rate limits.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Rate limits")]
pub struct LimitsConfig {
    /// How often the room behind the gateway is measured and the limits follow it, 10 to 60 000. Shorter follows sooner and
    /// swings more. Default 1 000.
    #[arg(long, default_value_t = LimitsConfig::default().limits_sample_ms)]
    pub limits_sample_ms: u32,
    /// Smoothed p99 of durable appends above which limits are cut, 1 to 60 000. Lower keeps acknowledgements fast at the
    /// price of clicks refused or spilled; below what the disk can do, limits stay at their floors. Default 100.
    #[arg(long, default_value_t = LimitsConfig::default().limits_acknowledge_ms_max)]
    pub limits_acknowledge_ms_max: u32,
    /// Clicks of a partition that the stream path may be behind before limits are cut, at least 1 000. Lower keeps dashboards
    /// and budgets close, and cuts limits while a node catches up after its start. Default 500 000.
    #[arg(long, default_value_t = LimitsConfig::default().limits_lag_records_max)]
    pub limits_lag_records_max: u64,
    /// How full the spool may be before limits are cut, 1 to 100. Lower leaves more room for an outage of the
    /// log. Default 50.
    #[arg(long, default_value_t = LimitsConfig::default().limits_spool_percent_max)]
    pub limits_spool_percent_max: u8,
    /// Share of the keys that a new version is tried on, 1 to 100. More keys show more, and more suffer. Default 5.
    #[arg(long, default_value_t = LimitsConfig::default().limits_canary_percent)]
    pub limits_canary_percent: u8,
    /// How long a new version is tried before it holds for all, 100 to 604 800 000, unless it is put with a time of its own.
    /// Longer sees more of the day, and makes the next version wait. Default 10 minutes.
    #[arg(long, default_value_t = LimitsConfig::default().limits_canary_ms)]
    pub limits_canary_ms: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            limits_sample_ms: 1_000,
            limits_acknowledge_ms_max: 100,
            limits_lag_records_max: 500_000,
            limits_spool_percent_max: 50,
            limits_canary_percent: 5,
            limits_canary_ms: 600_000,
        }
    }
}

/// Bounds of a canary's time, in milliseconds.
pub(crate) const CANARY_MS: std::ops::RangeInclusive<u64> = 100..=604_800_000;

impl LimitsConfig {
    /// Checks every bound.
    pub(crate) fn validate(&self) -> Result<()> {
        within("limits_sample_ms", self.limits_sample_ms.into(), 10, 60_000)?;
        within("limits_acknowledge_ms_max", self.limits_acknowledge_ms_max.into(), 1, 60_000)?;
        let lag = i64::try_from(self.limits_lag_records_max).unwrap_or(i64::MAX);
        within("limits_lag_records_max", lag, 1_000, i64::MAX)?;
        within("limits_spool_percent_max", self.limits_spool_percent_max.into(), 1, 100)?;
        within("limits_canary_percent", self.limits_canary_percent.into(), 1, 100)?;
        let canary_ms = i64::try_from(self.limits_canary_ms).unwrap_or(i64::MAX);
        within("limits_canary_ms", canary_ms, 100, 604_800_000)
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            acknowledge_ms_max: self.limits_acknowledge_ms_max,
            lag_records_max: self.limits_lag_records_max,
            spool_percent_max: self.limits_spool_percent_max.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_lie_within_their_bounds_and_others_are_named() {
        LimitsConfig::default().validate().expect("valid");
        let config = LimitsConfig { limits_canary_percent: 0, ..LimitsConfig::default() };
        let error = config.validate().expect_err("out of bounds").to_string();
        assert!(error.contains("limits_canary_percent"), "{error}");
        assert!(CANARY_MS.contains(&LimitsConfig::default().limits_canary_ms));
    }
}
