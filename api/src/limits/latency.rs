//! How long durable appends take: counted by every request, read about once a second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bins by powers of two of a microsecond: 2^31 us is over half an hour.
const BINS: usize = 32;
/// Weight of the newest reading, percent. A single slow sync moves the limits little, three seconds of them much.
const NEWEST_PERCENT: u64 = 30;

/// Appends since the last reading, by how long they took.
#[derive(Debug, Default)]
pub(super) struct Latency {
    bins: [AtomicU64; BINS],
    /// Smoothed p99, in microseconds.
    smoothed_us: AtomicU64,
}

impl Latency {
    /// Counts one append.
    pub fn note(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let bin = (us.ilog2() as usize).min(BINS - 1);
        self.bins[bin].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes out what was counted and returns the smoothed p99 in milliseconds, rounded up. Without appends it decays.
    pub fn read(&self) -> u32 {
        let counts: Vec<u64> = self.bins.iter().map(|bin| bin.swap(0, Ordering::Relaxed)).collect();
        let newest_us = p99_us(&counts);
        let before_us = self.smoothed_us.load(Ordering::Relaxed);
        let us = (newest_us * NEWEST_PERCENT + before_us * (100 - NEWEST_PERCENT)) / 100;
        self.smoothed_us.store(us, Ordering::Relaxed);
        u32::try_from(us.div_ceil(1_000)).unwrap_or(u32::MAX)
    }
}

/// Returns the upper end of the bin that holds the p99; 0 where nothing was counted.
fn p99_us(counts: &[u64]) -> u64 {
    let total: u64 = counts.iter().sum();
    let rank = (total * 99).div_ceil(100);
    let mut below = 0;
    for (bin, count) in counts.iter().enumerate() {
        below += count;
        if below >= rank && rank > 0 {
            return 1 << (bin + 1);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_append_of_many_is_not_the_p99() {
        let latency = Latency::default();
        let note = |count: u32, ms| (0..count).for_each(|_| latency.note(Duration::from_millis(ms)));
        note(999, 1);
        note(1, 5_000);
        assert!(latency.read() <= 2);
        note(95, 1);
        note(5, 5_000);
        assert!(latency.read() > 1_000);
    }

    #[test]
    fn a_slow_log_shows_within_seconds_and_is_forgotten_when_nothing_comes() {
        let latency = Latency::default();
        for second in 1..=3 {
            (0..10).for_each(|_| latency.note(Duration::from_millis(400)));
            let smoothed = latency.read();
            assert!(smoothed > 100, "second {second}: {smoothed} ms");
        }
        let last = (0..40).map(|_| latency.read()).last();
        assert_eq!(last, Some(0));
    }
}
