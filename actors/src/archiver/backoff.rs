//! Pauses between tries: doubling, bounded, with jitter so that partitions do not knock all at once.

use std::time::Duration;

use rand::RngExt;

/// The pauses of one partition's archiver.
#[derive(Debug)]
pub(super) struct Backoff {
    first_ms: u64,
    max_ms: u64,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(first_ms: u64, max_ms: u64) -> Self {
        Self { first_ms, max_ms, failures: 0 }
    }

    /// Notes a failure; returns the pause before the next try: half of it fixed, half drawn.
    pub(super) fn failed(&mut self) -> Duration {
        let doubled = self.first_ms.saturating_mul(1_u64.checked_shl(self.failures).unwrap_or(u64::MAX));
        self.failures = self.failures.saturating_add(1);
        let full = doubled.min(self.max_ms).max(1);
        Duration::from_millis(full / 2 + rand::rng().random_range(0..=full.div_ceil(2)))
    }

    /// Notes a success.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound_and_start_over() {
        let mut backoff = Backoff::new(100, 1_000);
        for full in [100, 200, 400, 800, 1_000, 1_000] {
            let pause = backoff.failed().as_millis() as u64;
            assert!((full / 2..=full).contains(&pause), "{pause} of {full}");
        }
        (0..200).for_each(|_| assert!(backoff.failed().as_millis() <= 1_000));
        backoff.succeeded();
        assert!(backoff.failed().as_millis() <= 100);
    }
}
