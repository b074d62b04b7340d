//! Whether the stream is near enough to the log for spend to be known. Pure: told the moment, the log's ends and the
//! offsets applied.
//!
//! Guarantee: a lag that comes and goes changes nothing: the spend counts as unknown only past the limit, and as known
//! again only once the stream has kept up for a while.

use std::collections::VecDeque;

use twice_log::{LogOffset, UtcMillis};

use super::config::BudgetConfig;

/// Marks kept while a partition lags; more would only make its lag finer.
const MARKS_MAX: usize = 64;

/// How far one partition's counts lie behind.
#[derive(Debug, Clone)]
pub struct Sight {
    lag_ms_max: i64,
    settle_ms: i64,
    /// Moments with the end the log had just after them, oldest first, not applied yet.
    marks: VecDeque<(UtcMillis, LogOffset)>,
    /// Every record of before this moment is counted.
    caught_up: UtcMillis,
    lag_ms: i64,
    is_known: bool,
    kept_up_since: Option<UtcMillis>,
    looked_at: UtcMillis,
}

impl Sight {
    /// Starts as if all were well at `now`: a restart gets the time it takes before anything stops.
    pub fn new(config: &BudgetConfig, now: UtcMillis) -> Self {
        Self {
            lag_ms_max: i64::try_from(config.budget_lag_ms_max).unwrap_or(i64::MAX),
            settle_ms: i64::try_from(config.budget_settle_ms).unwrap_or(i64::MAX),
            marks: VecDeque::new(),
            caught_up: now,
            lag_ms: 0,
            is_known: true,
            kept_up_since: None,
            looked_at: now,
        }
    }

    /// Looks at the partition at `now`, which was taken before `log_end` was asked; `None`: the log did not answer.
    /// `waiting_since` is the arrival of the oldest click that was taken and is not in the log.
    pub fn look(
        &mut self,
        now: UtcMillis,
        log_end: Option<LogOffset>,
        applied_end: LogOffset,
        waiting_since: Option<UtcMillis>,
    ) {
        self.follow_back(now);
        if let Some(end) = log_end
            && self.marks.len() < MARKS_MAX
        {
            self.marks.push_back((now, end));
        }
        while let Some((moment, end)) = self.marks.front().copied()
            && end <= applied_end
        {
            self.caught_up = moment;
            self.marks.pop_front();
        }
        let counted_to = waiting_since.map_or(self.caught_up, |since| since.min(self.caught_up));
        self.lag_ms = (now.epoch_ms() - counted_to.epoch_ms()).max(0);
        if self.lag_ms > self.lag_ms_max {
            self.is_known = false;
            self.kept_up_since = None;
        } else if !self.is_known {
            let since = *self.kept_up_since.get_or_insert(now);
            self.is_known = now.epoch_ms() - since.epoch_ms() >= self.settle_ms;
        }
    }

    /// Follows a clock that was set back: what was known to be some time ago still is as long ago. A lag that the clock
    /// swallowed would go unseen for as long as the clock was set back.
    fn follow_back(&mut self, now: UtcMillis) {
        let back_ms = self.looked_at.epoch_ms() - now.epoch_ms();
        self.looked_at = now;
        if back_ms <= 0 {
            return;
        }
        let moments = self.marks.iter_mut().map(|(moment, _)| moment);
        for moment in moments.chain([&mut self.caught_up]).chain(&mut self.kept_up_since) {
            *moment = moment.plus_ms(-back_ms);
        }
    }

    /// Returns whether the spend of the partition's campaigns counts as known.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// Returns how far the counts lay behind at the last look.
    pub fn lag_ms(&self) -> i64 {
        self.lag_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> UtcMillis {
        UtcMillis::clamped(ms)
    }

    fn sight() -> Sight {
        Sight::new(&BudgetConfig::default(), at(0))
    }

    #[test]
    fn an_idle_partition_is_known_for_ever() {
        let mut sight = sight();
        for second in 0..100 {
            sight.look(at(second * 1_000), Some(LogOffset(7)), LogOffset(7), None);
        }
        assert!(sight.is_known() && sight.lag_ms() == 0);
    }

    #[test]
    fn a_stream_that_stands_still_is_unknown_past_the_limit_and_known_after_it_kept_up() {
        let mut sight = sight();
        sight.look(at(0), Some(LogOffset(7)), LogOffset(7), None);
        for second in 1..=10 {
            sight.look(at(second * 1_000), Some(LogOffset(20)), LogOffset(7), None);
            assert!(sight.is_known(), "second {second}");
        }
        sight.look(at(10_001), Some(LogOffset(30)), LogOffset(7), None);
        assert!(!sight.is_known());
        for ms in [11_000, 13_000, 15_999] {
            sight.look(at(ms), Some(LogOffset(30)), LogOffset(30), None);
            assert!(!sight.is_known(), "{ms}");
        }
        sight.look(at(16_000), Some(LogOffset(30)), LogOffset(30), None);
        assert!(sight.is_known());
    }

    #[test]
    fn a_lag_that_comes_back_begins_the_wait_anew() {
        let mut sight = sight();
        sight.look(at(0), Some(LogOffset(1)), LogOffset(1), None);
        sight.look(at(1_000), Some(LogOffset(9)), LogOffset(1), None);
        sight.look(at(12_000), Some(LogOffset(9)), LogOffset(1), None);
        sight.look(at(13_000), Some(LogOffset(9)), LogOffset(9), None);
        sight.look(at(24_000), None, LogOffset(9), None);
        sight.look(at(25_000), Some(LogOffset(9)), LogOffset(9), None);
        sight.look(at(29_000), Some(LogOffset(9)), LogOffset(9), None);
        assert!(!sight.is_known());
        sight.look(at(30_000), Some(LogOffset(9)), LogOffset(9), None);
        assert!(sight.is_known());
    }

    #[test]
    fn clicks_that_wait_outside_the_log_are_not_known() {
        let mut sight = sight();
        sight.look(at(20_000), Some(LogOffset(1)), LogOffset(1), Some(at(9_000)));
        assert!(!sight.is_known());
        assert_eq!(sight.lag_ms(), 11_000);
    }

    #[test]
    fn a_clock_set_back_hides_no_stream_that_stands_still() {
        let mut sight = sight();
        sight.look(at(3_600_000), Some(LogOffset(1)), LogOffset(1), None);
        sight.look(at(3_601_000), Some(LogOffset(9)), LogOffset(1), None);
        sight.look(at(1_000), Some(LogOffset(9)), LogOffset(1), None);
        assert!(sight.is_known() && sight.lag_ms() == 1_000);
        sight.look(at(10_001), Some(LogOffset(9)), LogOffset(1), None);
        assert!(!sight.is_known());
    }

    #[test]
    fn a_log_that_does_not_answer_is_a_lag() {
        let mut sight = sight();
        sight.look(at(11_000), None, LogOffset(1), None);
        assert!(!sight.is_known());
    }
}
