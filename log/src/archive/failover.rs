//! Decides which bucket the next data file goes to. Pure: told what happened and when, it answers where to.
//!
//! Words: the primary *refuses* while each put of a data file into it fails; it *rests* while files go to the secondary
//! without asking it first.
//! Flow: refused for longer than `after` -> secondary, and the primary rests for `after` -> asked once -> taken: back to the
//! primary; refused: the secondary for another `after`.

use std::time::{Duration, Instant};

use super::Bucket;

/// The state of one archiver's choice.
#[derive(Debug, Default)]
pub(super) struct Failover {
    /// `None` without a secondary bucket: then everything goes to the primary.
    after: Option<Duration>,
    refused_since: Option<Instant>,
    rests_until: Option<Instant>,
}

impl Failover {
    /// Begins with the primary.
    pub(super) fn new(after: Option<Duration>) -> Self {
        Self { after, ..Self::default() }
    }

    /// Returns the bucket to try first.
    pub(super) fn target(&self, now: Instant) -> Bucket {
        match self.rests_until {
            Some(until) if now < until => Bucket::Secondary,
            _ => Bucket::Primary,
        }
    }

    /// Notes that the primary took a data file.
    pub(super) fn taken(&mut self) {
        self.refused_since = None;
        self.rests_until = None;
    }

    /// Notes that the primary refused a data file; returns whether it now goes to the secondary.
    pub(super) fn refused(&mut self, now: Instant) -> bool {
        let Some(after) = self.after else { return false };
        let since = *self.refused_since.get_or_insert(now);
        if now.saturating_duration_since(since) < after {
            return false;
        }
        self.rests_until = Some(now + after);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(60);

    #[test]
    fn without_a_secondary_the_primary_is_asked_for_ever() {
        let mut failover = Failover::new(None);
        let start = Instant::now();
        assert!((0..10).all(|round| !failover.refused(start + AFTER * round)));
        assert_eq!(failover.target(start + AFTER * 10), Bucket::Primary);
    }

    #[test]
    fn the_secondary_takes_over_once_the_primary_refused_for_long_enough() {
        let mut failover = Failover::new(Some(AFTER));
        let start = Instant::now();
        assert!(!failover.refused(start));
        assert!(!failover.refused(start + AFTER / 2));
        assert_eq!(failover.target(start + AFTER / 2), Bucket::Primary);
        assert!(failover.refused(start + AFTER));
        assert_eq!(failover.target(start + AFTER + AFTER / 2), Bucket::Secondary);
    }

    #[test]
    fn a_rested_primary_is_asked_once_and_goes_back_to_rest_or_to_work() {
        let mut failover = Failover::new(Some(AFTER));
        let start = Instant::now();
        failover.refused(start);
        failover.refused(start + AFTER);
        assert_eq!(failover.target(start + AFTER * 2), Bucket::Primary);
        assert!(failover.refused(start + AFTER * 2), "still refused: at once to the secondary");
        assert_eq!(failover.target(start + AFTER * 2), Bucket::Secondary);
        failover.taken();
        assert_eq!(failover.target(start + AFTER * 2), Bucket::Primary);
        assert!(!failover.refused(start + AFTER * 3), "a new outage begins to count anew");
    }

    #[test]
    fn one_put_that_works_ends_the_outage() {
        let mut failover = Failover::new(Some(AFTER));
        let start = Instant::now();
        failover.refused(start);
        failover.taken();
        assert!(!failover.refused(start + AFTER));
    }
}
