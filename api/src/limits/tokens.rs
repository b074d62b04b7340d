//! One key's token bucket, on a clock that counts tokens instead of seconds.
//!
//! Guarantee: over any time a key takes at most what its tier earned in it, plus the burst, plus one batch. Words: *earned*
//! = clicks the limit in force has allowed since the clock began; *owed* = clicks of a batch larger than the burst, which
//! are earned before anything else passes. A change of the limit changes how fast the clock counts from then on: no
//! bucket has to be touched, and what a key has left keeps its worth in clicks.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock as GovernorClock;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use twice_log::{Clock, UtcMillis};

/// Parts of a click the clock counts in: clicks a second times milliseconds then is a whole number of them.
const PARTS: u64 = 1_000;
/// A clock put back by more than this earns from where it was put. One that wavers by less earns once it has passed where
/// it was: each waver would earn the same moment again.
const WAVER_MS: i64 = 1_000;

/// What the limit earned, as a pure sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Earning {
    /// Parts of clicks.
    earned: u64,
    seen_ms: i64,
    clicks_per_second: u32,
}

impl Earning {
    /// Adds what was earned since the last call. A clock put back earns nothing and loses nothing; one put forward fills
    /// buckets at most, as a pause would.
    fn advance(&mut self, now: UtcMillis) -> u64 {
        let elapsed_ms = u64::try_from(now.epoch_ms().saturating_sub(self.seen_ms)).unwrap_or(0);
        self.earned =
            self.earned.saturating_add(elapsed_ms.saturating_mul(u64::from(self.clicks_per_second)));
        let is_put_back = now.epoch_ms() < self.seen_ms.saturating_sub(WAVER_MS);
        if elapsed_ms > 0 || is_put_back {
            self.seen_ms = now.epoch_ms();
        }
        self.earned
    }
}

/// The clock of all buckets of a tier and version. Clones are the same clock.
#[derive(Clone)]
pub(super) struct TokenClock {
    wall: Arc<dyn Clock>,
    earning: Arc<Mutex<Earning>>,
}

impl TokenClock {
    /// Begins to count.
    pub fn new(wall: Arc<dyn Clock>, clicks_per_second: u32) -> Self {
        // A bucket that stands at nothing is taken for new, so the clock does not begin there.
        let earning = Earning { earned: PARTS, seen_ms: wall.now().epoch_ms(), clicks_per_second };
        Self { wall, earning: Arc::new(Mutex::new(earning)) }
    }

    /// Changes the limit from now on.
    pub fn set_limit(&self, clicks_per_second: u32) {
        let mut earning = self.earning.lock().unwrap_or_else(PoisonError::into_inner);
        earning.advance(self.wall.now());
        earning.clicks_per_second = clicks_per_second;
    }

    /// Returns the limit in force, clicks a second.
    pub fn limit(&self) -> u32 {
        self.earning.lock().unwrap_or_else(PoisonError::into_inner).clicks_per_second
    }

    /// Returns how long so many parts of clicks take to be earned at the limit in force, at least a second.
    fn seconds_for(&self, parts: u64) -> u32 {
        let per_second = u64::from(self.limit().max(1)) * PARTS;
        u32::try_from(parts.div_ceil(per_second)).unwrap_or(u32::MAX).max(1)
    }
}

impl GovernorClock for TokenClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        // Read under the lock: in the order in which it is counted.
        let mut earning = self.earning.lock().unwrap_or_else(PoisonError::into_inner);
        earning.advance(self.wall.now()).into()
    }
}

/// The state of a bucket, which its limiter and the bucket itself write: the limiter alone cannot owe or give back.
#[derive(Debug, Clone, Default)]
struct Level(Arc<InMemoryState>);

impl StateStore for Level {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, key: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.measure_and_replace(key, decide)
    }
}

impl Level {
    /// Returns when the bucket will be full again, in parts since it began; 0 where nothing was ever taken.
    fn full_at(&self) -> u64 {
        let looked: Result<(), u64> =
            self.measure_and_replace(&NotKeyed::NonKey, |level| Err(level.map_or(0, Nanos::as_u64)));
        looked.err().unwrap_or(0)
    }

    fn change(&self, change: impl Fn(u64) -> u64) {
        let changed: Result<(), ()> = self.measure_and_replace(&NotKeyed::NonKey, |level| {
            Ok(((), change(level.map_or(0, Nanos::as_u64)).into()))
        });
        // The decision above is always yes.
        debug_assert!(changed.is_ok());
    }
}

/// The bucket has too little; nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Short {
    /// Until the same batch passes, if nothing else is taken; rounded up, at least 1.
    pub retry_after_s: u32,
}

/// What a bucket holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    /// Clicks that pass at once.
    pub clicks: u32,
    /// Until it is full; 0 if it is.
    pub full_in_s: u32,
}

/// One key's bucket.
pub(super) struct Bucket {
    limiter: RateLimiter<NotKeyed, Level, TokenClock>,
    level: Level,
    clock: TokenClock,
    /// What the clock showed when the bucket began; its level counts from there.
    began: u64,
    burst: NonZeroU32,
}

impl Bucket {
    /// Makes a full bucket.
    pub fn new(clock: TokenClock, burst: NonZeroU32) -> Self {
        let level = Level::default();
        let each = Duration::from_nanos(PARTS); // the clock's parts stand where governor has nanoseconds
        let quota = Quota::with_period(each).unwrap_or_else(|| Quota::per_second(burst)).allow_burst(burst);
        let limiter = RateLimiter::new(quota, level.clone(), clock.clone());
        // Read after the limiter's own start: never earlier than it, so that no bucket passes for full before it is.
        let began = GovernorClock::now(&clock).as_u64();
        Self { limiter, level, clock, began, burst }
    }

    /// Takes a batch whole, or nothing of it. A batch larger than the burst passes when the bucket is full, and what it
    /// has more is owed: it would never pass otherwise.
    pub fn take(&self, clicks: u32) -> Result<(), Short> {
        let Some(clicks) = NonZeroU32::new(clicks) else { return Ok(()) };
        let covered = clicks.min(self.burst);
        match self.limiter.check_n(covered) {
            Ok(Ok(())) => {
                let owed = u64::from(clicks.get() - covered.get()) * PARTS;
                if owed > 0 {
                    self.level.change(|level| level.saturating_add(owed));
                }
                Ok(())
            }
            Ok(Err(until)) => {
                let missing = until.earliest_possible().as_u64().saturating_sub(self.now());
                Err(Short { retry_after_s: self.clock.seconds_for(missing) })
            }
            // Never more than the burst is asked for.
            Err(_) => Err(Short { retry_after_s: 1 }),
        }
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&self, clicks: u32) {
        let parts = u64::from(clicks) * PARTS;
        self.level.change(|level| level.saturating_sub(parts));
    }

    /// Says when one click will pass, if none does now; takes nothing.
    pub fn glance(&self) -> Result<(), Short> {
        let full = u64::from(self.burst.get()) * PARTS;
        let missing = (self.missing() + PARTS).saturating_sub(full);
        if missing == 0 { Ok(()) } else { Err(Short { retry_after_s: self.clock.seconds_for(missing) }) }
    }

    /// Returns what the bucket holds now.
    pub fn rest(&self) -> Rest {
        let missing = self.missing();
        let full = u64::from(self.burst.get()) * PARTS;
        // Bounded by the burst.
        let clicks = (full.saturating_sub(missing) / PARTS) as u32;
        Rest { clicks, full_in_s: if missing == 0 { 0 } else { self.clock.seconds_for(missing) } }
    }

    /// Returns whether the bucket is as good as new.
    pub fn is_full(&self) -> bool {
        self.missing() == 0
    }

    fn now(&self) -> u64 {
        GovernorClock::now(&self.clock).as_u64()
    }

    /// Returns the parts of clicks that the bucket lacks; more than it holds if some are owed.
    fn missing(&self) -> u64 {
        self.level.full_at().saturating_sub(self.now().saturating_sub(self.began))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    /// A clock that stands where the test put it.
    pub struct HandClock(pub AtomicI64);

    impl HandClock {
        pub fn new() -> Arc<Self> {
            Arc::new(Self(AtomicI64::new(1_736_942_400_000)))
        }

        pub fn advance(&self, ms: i64) {
            self.0.fetch_add(ms, Ordering::SeqCst);
        }
    }

    impl Clock for HandClock {
        fn now(&self) -> UtcMillis {
            UtcMillis::clamped(self.0.load(Ordering::SeqCst))
        }
    }

    fn bucket(limit: u32, burst: u32) -> (Arc<HandClock>, TokenClock, Bucket) {
        let wall = HandClock::new();
        let clock = TokenClock::new(wall.clone(), limit);
        let bucket = Bucket::new(clock.clone(), NonZeroU32::new(burst).expect("some"));
        (wall, clock, bucket)
    }

    fn retry_after(bucket: &Bucket, clicks: u32) -> u32 {
        bucket.take(clicks).expect_err("too little").retry_after_s
    }

    #[test]
    fn tokens_are_clicks_and_a_batch_is_taken_whole_or_not_at_all() {
        let (wall, _, bucket) = bucket(100, 300);
        bucket.take(200).expect("a full bucket");
        assert_eq!(bucket.rest(), Rest { clicks: 100, full_in_s: 2 });
        assert_eq!(retry_after(&bucket, 200), 1);
        assert_eq!(bucket.rest().clicks, 100, "nothing of the batch was taken");
        wall.advance(1_000);
        bucket.take(200).expect("earned");
        assert_eq!(bucket.rest().clicks, 0);
    }

    #[test]
    fn the_wait_named_is_long_enough_and_no_longer() {
        let (wall, _, bucket) = bucket(10, 50);
        bucket.take(50).expect("a full bucket");
        let wait_s = retry_after(&bucket, 25);
        assert_eq!(wait_s, 3, "25 clicks at 10 a second, rounded up");
        wall.advance(i64::from(wait_s - 1) * 1_000);
        assert_eq!(retry_after(&bucket, 25), 1);
        wall.advance(1_000);
        bucket.take(25).expect("after the wait");
    }

    #[test]
    fn a_batch_larger_than_the_burst_passes_when_the_bucket_is_full_and_is_owed() {
        let (wall, _, bucket) = bucket(100, 100);
        bucket.take(1_000).expect("a full bucket");
        assert_eq!(bucket.rest(), Rest { clicks: 0, full_in_s: 10 });
        assert_eq!(bucket.glance().expect_err("owes").retry_after_s, 10, "900 owed and one to pass");
        assert_eq!(retry_after(&bucket, 1), 10);
        wall.advance(9_000);
        assert_eq!(retry_after(&bucket, 1), 1);
        wall.advance(10);
        bucket.take(1).expect("the debt is earned");
        assert_eq!(retry_after(&bucket, 500), 1, "and the next large batch waits until it is full");
        wall.advance(1_000);
        bucket.take(500).expect("full again");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_never_makes_more_than_a_burst() {
        let (wall, _, bucket) = bucket(10, 50);
        bucket.take(50).expect("a full bucket");
        bucket.give_back(50);
        bucket.take(50).expect("given back");
        wall.advance(60_000);
        bucket.give_back(50);
        assert_eq!(bucket.rest().clicks, 50);
        bucket.take(50).expect("full");
        assert!(bucket.take(1).is_err());
    }

    #[test]
    fn a_changed_limit_holds_from_then_on_and_keeps_what_is_left() {
        let (wall, clock, bucket) = bucket(100, 100);
        bucket.take(100).expect("a full bucket");
        wall.advance(500);
        clock.set_limit(10);
        assert_eq!(bucket.rest().clicks, 50, "earned at the old limit");
        wall.advance(1_000);
        assert_eq!(bucket.rest().clicks, 60, "earned at the new one");
        assert_eq!(retry_after(&bucket, 100), 4);
    }

    #[test]
    fn a_clock_put_back_blocks_nobody_and_one_put_forward_gives_a_burst_at_most() {
        let (wall, _, bucket) = bucket(100, 100);
        bucket.take(100).expect("a full bucket");
        wall.advance(-3_600_000);
        assert_eq!(retry_after(&bucket, 50), 1);
        wall.advance(500);
        bucket.take(50).expect("time goes on from where the clock was put");
        wall.advance(7 * 86_400_000);
        bucket.take(100).expect("a full bucket");
        assert!(bucket.take(1).is_err());
    }

    #[test]
    fn a_clock_that_wavers_earns_no_moment_twice() {
        let (wall, _, bucket) = bucket(1_000, 100);
        bucket.take(100).expect("a full bucket");
        for _ in 0..500 {
            wall.advance(1);
            bucket.rest();
            wall.advance(-1);
            bucket.rest();
        }
        assert_eq!(bucket.rest().clicks, 1, "one millisecond has passed");
        wall.advance(2);
        assert_eq!(bucket.rest().clicks, 2);
    }

    #[test]
    fn threads_that_count_at_once_earn_no_moment_twice() {
        /// A clock whose every reading is later.
        struct Ticking(AtomicI64);

        impl Clock for Ticking {
            fn now(&self) -> UtcMillis {
                let now = self.0.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
                UtcMillis::clamped(now)
            }
        }

        let wall = Arc::new(Ticking(AtomicI64::new(0)));
        let clock = TokenClock::new(wall.clone(), 7);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..20_000).for_each(|_| {
                        GovernorClock::now(&clock);
                    });
                });
            }
        });
        let earned = GovernorClock::now(&clock).as_u64() - PARTS;
        let elapsed_ms = wall.0.load(Ordering::SeqCst) - 1;
        assert_eq!(earned, 7 * elapsed_ms as u64);
    }

    #[test]
    fn a_full_bucket_is_as_good_as_new() {
        let (wall, _, bucket) = bucket(100, 100);
        assert!(bucket.is_full());
        bucket.take(1).expect("a full bucket");
        assert!(!bucket.is_full());
        wall.advance(10);
        assert!(bucket.is_full());
    }

    #[test]
    fn whatever_comes_a_key_takes_no_more_than_was_earned_and_a_burst() {
        let (wall, _, bucket) = bucket(1_000, 700);
        let (mut taken, mut random) = (0u64, 0x2545_f491_4f6c_dd1d_u64);
        for step in 1..=20_000u64 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            wall.advance((random % 7) as i64);
            let clicks = (random >> 8) as u32 % 900;
            if bucket.take(clicks).is_ok() {
                taken += u64::from(clicks);
            }
            let elapsed_ms = wall.0.load(Ordering::SeqCst) - 1_736_942_400_000;
            assert!(taken <= elapsed_ms as u64 + 700 + 900, "step {step}: {taken} in {elapsed_ms} ms");
        }
        let elapsed_ms = wall.0.load(Ordering::SeqCst) - 1_736_942_400_000;
        assert!(taken > elapsed_ms as u64 / 2, "and the limit is used: {taken} in {elapsed_ms} ms");
    }
}
