//! The stream's counting rules as pure functions of watermark and event time (CR-3).

use twice_log::UtcMillis;
use twice_log::archive::CountingSettings;
use twice_log::event::MINUTE_MS;

/// Lateness and dedup horizon of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRules {
    grace_ms: i64,
    dedup_ms: i64,
}

impl StreamRules {
    /// Takes the stream's part of the settings both paths share.
    pub fn new(settings: &CountingSettings) -> Self {
        Self { grace_ms: settings.grace_ms, dedup_ms: settings.stream_dedup_ms }
    }

    /// Returns the dedup horizon in milliseconds: another copy of the identity this near or nearer makes a duplicate.
    pub fn dedup_ms(&self) -> i64 {
        self.dedup_ms
    }

    /// Returns whether the minute of `event_time` had closed at `watermark`; never where there is none.
    pub fn is_late(&self, watermark: Option<UtcMillis>, event_time: UtcMillis) -> bool {
        let window_end = event_time.minute_start().plus_ms(MINUTE_MS);
        watermark.is_some_and(|watermark| watermark >= window_end.plus_ms(self.grace_ms))
    }

    /// Returns the newest event time whose dedup entry decides nothing any more; `None`: every entry may.
    ///
    /// A copy within the horizon of such an entry lies at most one horizon and one window above it, so it is late.
    pub fn dedup_floor(&self, watermark: Option<UtcMillis>) -> Option<UtcMillis> {
        watermark.map(|watermark| watermark.plus_ms(-(self.dedup_ms + MINUTE_MS + self.grace_ms)))
    }

    /// Returns an event time below which every copy is late at `watermark`.
    pub fn late_below(&self, watermark: Option<UtcMillis>) -> Option<UtcMillis> {
        watermark.map(|watermark| watermark.plus_ms(-(self.grace_ms + MINUTE_MS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch_ms: i64) -> UtcMillis {
        UtcMillis::clamped(epoch_ms)
    }

    #[test]
    fn a_copy_is_late_from_window_end_plus_grace_on() {
        let rules = StreamRules::new(&CountingSettings::default());
        assert!(!rules.is_late(None, at(0)));
        assert!(!rules.is_late(Some(at(89_999)), at(59_999)));
        assert!(rules.is_late(Some(at(90_000)), at(59_999)));
        assert!(!rules.is_late(Some(at(90_000)), at(60_000)));
    }

    #[test]
    fn every_copy_within_the_horizon_of_an_expired_entry_is_late() {
        let rules = StreamRules::new(&CountingSettings::default());
        for watermark in (0..4 * MINUTE_MS).step_by(997) {
            let floor = rules.dedup_floor(Some(at(watermark))).expect("there is a watermark");
            let nearest = floor.plus_ms(rules.dedup_ms());
            assert!(rules.is_late(Some(at(watermark)), nearest), "watermark {watermark}");
            let below = rules.late_below(Some(at(watermark))).expect("there is a watermark").plus_ms(-1);
            assert!(rules.is_late(Some(at(watermark)), below), "watermark {watermark}");
        }
    }
}
