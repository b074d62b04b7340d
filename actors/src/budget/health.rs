//! Whether the stores answer those who keep budgets. Pure: told the moment.
//!
//! Guarantee: a store that hangs is noticed like one that fails: what counts is when it last did what was asked of it, not
//! whether it said that it did not.

use std::time::Duration;

use tokio::time::Instant;

/// When the stores last did their part.
#[derive(Debug)]
pub(super) struct Health {
    /// What was set and billed was last read whole.
    read_at: Instant,
    /// Every decision that was due was last stored.
    stored_at: Instant,
    /// For how long either may be missing.
    limit: Duration,
}

impl Health {
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        Self { read_at: now, stored_at: now, limit }
    }

    pub(super) fn read(&mut self, now: Instant) {
        self.read_at = now;
    }

    pub(super) fn stored(&mut self, now: Instant) {
        self.stored_at = now;
    }

    /// Returns whether spend is not known, because terms and bills are not read or decisions not stored.
    pub(super) fn is_down(&self, now: Instant) -> bool {
        let oldest = self.read_at.min(self.stored_at);
        now.saturating_duration_since(oldest) > self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_says_nothing_is_down_after_the_limit_and_up_once_both_parts_are_done() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut health = Health::new(Duration::from_secs(10), start);
        assert!(!health.is_down(at(10)));
        health.read(at(9));
        assert!(health.is_down(at(11)), "nothing was stored since");
        health.stored(at(12));
        assert!(!health.is_down(at(19)));
        assert!(health.is_down(at(20)), "nothing was read since");
    }
}
