//! The settings that decide a stream, as they also stand in the ledger.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use twice_log::{Clock, UtcMillis};

use super::profile::Profile;
use crate::cli::{EventStart, Share, StreamArgs};

/// Longest campaign prefix: with a number of seven digits the id stays well below 64 bytes.
const PREFIX_BYTES_MAX: usize = 40;
const SPAN_MS_DEFAULT: i64 = 2 * 3_600_000;

/// Everything that decides which copy is number n.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamSettings {
    pub seed: u64,
    /// Copies in all, duplicates and differing ones included.
    pub copies: u64,
    pub campaigns: u32,
    pub campaign_prefix: String,
    pub zipf: f64,
    pub duplicates: Share,
    pub late: Share,
    pub conflicts: Share,
    pub ads: u32,
    pub users: u32,
    pub publishers: u32,
    pub unknown_campaigns: u32,
    pub price_changes: u32,
    pub event_start: UtcMillis,
    pub event_span_ms: i64,
    pub disorder_ms: i64,
    /// Event times are the wall clock's of the run.
    pub live: bool,
    /// `Steady` in ledgers of before there were profiles.
    #[serde(default)]
    pub profile: Profile,
}

/// How long a stream takes to send, where it is sent at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// Over this long.
    Sent(Duration),
    /// Written to a file: there is no sending time, so no `live` either.
    Written,
}

impl StreamSettings {
    /// Fills in what the flags leave open and checks the rest.
    ///
    /// # Errors
    /// Any value that makes no stream, with advice.
    pub fn from_args(args: &StreamArgs, copies: u64, timing: Timing, clock: &dyn Clock) -> Result<Self> {
        let now = clock.now();
        let live = args.event_start == Some(EventStart::Live);
        let event_span_ms = match (live, args.event_span, timing) {
            (true, Some(_), _) => {
                anyhow::bail!("--event-span has no meaning with live event times; leave it away")
            }
            (true, None, Timing::Written) => {
                anyhow::bail!("a file has no live event times; give --event-start a time")
            }
            (true, None, Timing::Sent(duration)) => millis(duration),
            (false, Some(span), _) => millis(span),
            (false, None, _) => SPAN_MS_DEFAULT,
        };
        let event_start = match args.event_start {
            Some(EventStart::At(start)) => start,
            Some(EventStart::Live) => now,
            None => {
                let hours = event_span_ms.div_euclid(3_600_000) + i64::from(event_span_ms % 3_600_000 != 0);
                now.hour().plus(-hours).start()
            }
        };
        let settings = Self {
            seed: args.seed,
            copies,
            campaigns: args.campaigns,
            campaign_prefix: args.campaign_prefix.clone().unwrap_or_else(|| format!("load{}-", args.seed)),
            zipf: args.zipf,
            duplicates: args.duplicates,
            late: args.late,
            conflicts: args.conflicts,
            ads: args.ads,
            users: args.users,
            publishers: args.publishers,
            unknown_campaigns: args.unknown_campaigns.unwrap_or(args.campaigns / 100),
            price_changes: args.price_changes.unwrap_or(args.campaigns / 20),
            event_start,
            event_span_ms,
            disorder_ms: millis(args.disorder),
            live,
            profile: args.profile,
        };
        settings.check()?;
        Ok(settings)
    }

    /// Returns the end of the span of event times, exclusive.
    pub fn event_end(&self) -> UtcMillis {
        self.event_start.plus_ms(self.event_span_ms)
    }

    fn check(&self) -> Result<()> {
        ensure!(self.copies > 0, "there is nothing to send; raise --rate or --duration");
        ensure!(self.event_span_ms > 0, "--event-span must be longer than 0");
        ensure!(
            self.zipf.is_finite() && (0.0..=10.0).contains(&self.zipf),
            "--zipf must lie between 0 and 10; 1.05 is usual"
        );
        let repeats = u64::from(self.duplicates.parts_per_million + self.profile.more_duplicates())
            + u64::from(self.conflicts.parts_per_million);
        ensure!(
            repeats + u64::from(self.late.parts_per_million) <= 900_000,
            "--duplicates, --late and --conflicts together must leave at least 10% ordinary clicks"
        );
        ensure!(
            self.unknown_campaigns <= self.campaigns && self.price_changes <= self.campaigns,
            "--unknown-campaigns and --price-changes cannot exceed --campaigns"
        );
        let prefix = self.campaign_prefix.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        ensure!(
            prefix.len() <= PREFIX_BYTES_MAX && prefix.iter().all(plain),
            "--campaign-prefix takes at most {PREFIX_BYTES_MAX} letters, digits, '-', '_' and '.'"
        );
        Ok(())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    /// A clock that stands at 2025-01-15T12:34:56Z.
    pub(crate) struct Standing;

    impl Clock for Standing {
        fn now(&self) -> UtcMillis {
            UtcMillis::clamped(1_736_944_496_000)
        }
    }

    pub(crate) fn settings(flags: &str, copies: u64) -> Result<StreamSettings> {
        let line = format!("twice-loadgen run {flags}");
        let Command::Run(args) = Cli::try_parse_from(line.split_whitespace())?.command else {
            unreachable!("the line says run")
        };
        StreamSettings::from_args(&args.stream, copies, Timing::Sent(Duration::from_secs(30)), &Standing)
    }

    #[test]
    fn the_default_span_is_the_two_full_hours_before_the_current_one() {
        let settings = settings("", 1).expect("valid");
        assert_eq!(settings.event_start.to_string(), "2025-01-15T10:00:00.000Z");
        assert_eq!(settings.event_end().to_string(), "2025-01-15T12:00:00.000Z");
        assert_eq!((settings.unknown_campaigns, settings.price_changes), (10, 50));
    }

    #[test]
    fn a_span_of_part_of_an_hour_starts_on_an_hour() {
        let settings = settings("--event-span 90m", 1).expect("valid");
        assert_eq!(settings.event_start.to_string(), "2025-01-15T10:00:00.000Z");
    }

    #[test]
    fn live_times_start_now_and_last_as_long_as_the_run() {
        let settings = settings("--event-start live", 1).expect("valid");
        assert!(settings.live);
        assert_eq!(settings.event_start, Standing.now());
        assert_eq!(settings.event_span_ms, 30_000);
    }

    #[test]
    fn impossible_streams_are_refused() {
        for flags in [
            "--zipf -1",
            "--duplicates 95%",
            "--unknown-campaigns 2000",
            "--campaign-prefix a\"b",
            "--event-start live --event-span 1h",
            "--event-span 0s",
        ] {
            assert!(settings(flags, 1).is_err(), "{flags}");
        }
        assert!(settings("", 0).is_err());
    }
}
