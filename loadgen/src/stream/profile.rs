//! The profiles of a load: what is special about a stream, its pace, or how its clients behave.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Share of `hot-campaign` that goes to one campaign, in percent.
pub(super) const HOT_PERCENT: u64 = 60;
/// Share of `malformed` that is bad, in percent.
pub(super) const BAD_PERCENT: u64 = 5;
/// Share of the bursts of `bots` that bots send, in percent; copies of one burst; and how many bots there are.
pub(super) const BOT_PERCENT: u64 = 30;
pub(super) const BURST_COPIES: u64 = 32;
pub(super) const BOTS: u64 = 8;
/// Duplicates that `retry-storm` adds to `--duplicates`, in parts per million.
const STORM_DUPLICATES: u32 = 200_000;

/// How fast `spike` gets at its top, and within how long.
const SPIKE_TIMES: f64 = 10.0;
const SPIKE_RAMP: Duration = Duration::from_secs(5);

/// What kind of load a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// One pace throughout.
    #[default]
    Steady,
    /// The pace of --rate, ten-fold within 5 s, held, and back.
    Spike,
    /// 60 % of the clicks on one campaign.
    HotCampaign,
    /// Clients that wait for nothing: on an error or after 250 ms they send again at once, whatever the node asks;
    /// 20 % more duplicates.
    RetryStorm,
    /// 30 % of the clicks by eight bots in bursts, for most of which fraud verdicts are sent at the end.
    Bots,
    /// 5 % bad clicks of every kind, and bad bodies between them; each refusal must be the right one.
    Malformed,
}

impl Profile {
    /// Returns the duplicates it adds to `--duplicates`, in parts per million.
    pub(super) fn more_duplicates(self) -> u32 {
        if self == Profile::RetryStorm { STORM_DUPLICATES } else { 0 }
    }
}

/// Which part of its copies a run has sent at a moment; the same for every rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    seconds: f64,
    spike: bool,
}

impl Pace {
    /// The pace of a run of `duration`.
    pub fn of(profile: Profile, duration: Duration) -> Self {
        Self { seconds: duration.as_secs_f64(), spike: profile == Profile::Spike }
    }

    /// Returns how many copies a run with `rate` sends.
    pub fn copies(&self, rate: u64) -> u64 {
        if self.spike {
            return (rate as f64 * self.weight(self.seconds)) as u64;
        }
        let ms = (self.seconds * 1_000.0).round() as u128; // the duration is whole milliseconds
        (u128::from(rate) * ms / 1_000).min(u128::from(u64::MAX)) as u64
    }

    /// Returns the moment at which `part` (0 to 1) of the copies has been sent.
    pub fn moment(&self, part: f64) -> Duration {
        let part = part.clamp(0.0, 1.0);
        if !self.spike {
            return Duration::from_secs_f64(self.seconds * part);
        }
        let wanted = self.weight(self.seconds) * part;
        let (mut low, mut high) = (0.0, self.seconds);
        for _ in 0..50 {
            let middle = (low + high) / 2.0;
            if self.weight(middle) < wanted { low = middle } else { high = middle }
        }
        Duration::from_secs_f64(high)
    }

    /// Returns the copies sent up to `at`, in seconds of the quiet pace.
    fn weight(&self, at: f64) -> f64 {
        let ramp = SPIKE_RAMP.as_secs_f64().min(self.seconds / 10.0);
        let level = self.seconds - 2.0 * ramp;
        let more = SPIKE_TIMES - 1.0;
        // (length, pace at its start, pace at its end), each pace beyond the quiet one.
        let stretches = [
            (0.4 * level, 0.0, 0.0),
            (ramp, 0.0, more),
            (0.3 * level, more, more),
            (ramp, more, 0.0),
            (0.3 * level, 0.0, 0.0),
        ];
        let mut weight = at;
        let mut left = at;
        for (length, from, to) in stretches {
            let passed = left.clamp(0.0, length);
            if length > 0.0 {
                weight += passed * (from + (to - from) * passed / length / 2.0);
            }
            left -= passed;
        }
        weight
    }
}

/// What is wrong with a bad click. Each has one code, whatever the body it goes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing that could be a click.
    Broken,
    NoCampaign,
    LongCampaign,
    ClickId,
    Time,
    TooOld,
    Future,
    Version,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Fault; 8] = [
        Fault::Broken,
        Fault::NoCampaign,
        Fault::LongCampaign,
        Fault::ClickId,
        Fault::Time,
        Fault::TooOld,
        Fault::Future,
        Fault::Version,
    ];

    /// Returns the kind as it stands in ledgers: `bad`, and the code that the node must refuse it with.
    pub fn kind(self) -> &'static str {
        match self {
            Fault::Broken | Fault::NoCampaign => "bad:malformed",
            Fault::LongCampaign => "bad:invalid_id",
            Fault::ClickId => "bad:click_id_not_uuid",
            Fault::Time => "bad:invalid_time",
            Fault::TooOld => "bad:too_old",
            Fault::Future => "bad:in_future",
            Fault::Version => "bad:schema_version",
        }
    }
}

/// Returns the code a copy of this kind must be refused with; `None` for a good one.
pub fn refusal_due(kind: &str) -> Option<&str> {
    kind.strip_prefix("bad:")
}

/// What fraud detection says of a bot's click.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ruling {
    Givt,
    Sivt,
}

impl Ruling {
    /// Returns the name as verdicts have it.
    pub fn name(self) -> &'static str {
        match self {
            Ruling::Givt => "givt",
            Ruling::Sivt => "sivt",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_ten_fold_within_five_seconds_and_goes_back() {
        let pace = Pace::of(Profile::Spike, Duration::from_secs(60));
        let copies = pace.copies(1_000);
        let sent_by = |at: f64| pace.weight(at) * 1_000.0;
        assert!((sent_by(10.0) - 10_000.0).abs() < 1.0);
        assert!((sent_by(26.0) - sent_by(25.0) - 10_000.0).abs() < 1.0, "20 s quiet, 5 s up, then ten-fold");
        assert!((sent_by(60.0) - sent_by(59.0) - 1_000.0).abs() < 1.0);
        assert_eq!(copies, 60_000 + 9 * (15_000 + 5_000));
        for at in [0.0, 7.0, 22.0, 30.0, 42.0, 59.0] {
            let back = pace.moment(sent_by(at) / copies as f64).as_secs_f64();
            assert!((back - at).abs() < 0.001, "{at} {back}");
        }
    }

    #[test]
    fn any_other_pace_is_even() {
        let pace = Pace::of(Profile::Bots, Duration::from_millis(1_500));
        assert_eq!(pace.copies(1_000), 1_500);
        assert_eq!(pace.moment(0.5), Duration::from_millis(750));
    }
}
