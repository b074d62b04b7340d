//! A circuit breaker: stops asking something that is down, and finds out cheaply when it is back.
//!
//! Guarantee: pure. It neither calls, waits nor reads a clock; the caller passes the moment (`Instant`: a wall clock that
//! jumps must not keep a breaker open). Any number of tasks may share one.
//! Words: *closed* = calls go through; *open* = calls are refused until a pause is over; *half open* = one call, the
//! probe, goes through and decides. A probe that is never reported (its task was dropped) is replaced after the pause.
//! Flow: `allow`, call, then `succeeded` or `failed`. Only failures that say something about the other side are reported:
//! a refused request is a success.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When a breaker opens and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures in a row that open it; at least 1.
    pub failures_max: u32,
    /// How long it stays open at first. Doubled by each probe that fails.
    pub pause: Duration,
    /// The longest it stays open between two probes.
    pub pause_max: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures_max: 3, pause: Duration::from_millis(500), pause_max: Duration::from_secs(10) }
    }
}

/// What a breaker does with the next call. Its number is what the metric shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    Closed = 0,
    HalfOpen = 1,
    Open = 2,
}

/// A circuit breaker for one other side.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, pause: Duration },
    HalfOpen { probe_until: Instant, pause: Duration },
}

impl Breaker {
    /// Makes a closed breaker.
    pub fn new(config: BreakerConfig) -> Self {
        Self { config, state: Mutex::new(State::Closed { failures: 0 }) }
    }

    /// Returns whether a call may go out now; of those that ask while it is half open, one may.
    #[must_use]
    pub fn allow(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let (due, pause) = match *state {
            State::Closed { .. } => return true,
            State::Open { until, pause } => (until, pause),
            State::HalfOpen { probe_until, pause } => (probe_until, pause),
        };
        let is_probe = now >= due;
        if is_probe {
            *state = State::HalfOpen { probe_until: now + pause, pause };
        }
        is_probe
    }

    /// Notes a call that the other side answered; closes the breaker.
    pub fn succeeded(&self) {
        *self.lock() = State::Closed { failures: 0 };
    }

    /// Notes a call that failed or was not answered in time.
    pub fn failed(&self, now: Instant) {
        let BreakerConfig { failures_max, pause: pause_min, pause_max } = self.config;
        let mut state = self.lock();
        *state = match *state {
            State::Closed { failures } if failures.saturating_add(1) < failures_max => {
                State::Closed { failures: failures + 1 }
            }
            State::Closed { .. } => State::Open { until: now + pause_min, pause: pause_min },
            State::HalfOpen { pause, .. } => {
                let pause = pause.saturating_mul(2).min(pause_max).max(pause_min);
                State::Open { until: now + pause, pause }
            }
            // A call that went out before it opened: nothing new.
            open @ State::Open { .. } => open,
        };
    }

    /// Returns whether the newest call that was reported failed: also before that opens it.
    pub fn is_troubled(&self) -> bool {
        !matches!(*self.lock(), State::Closed { failures: 0 })
    }

    /// Returns how long a caller had better wait; zero unless it is open.
    pub fn wait(&self, now: Instant) -> Duration {
        match *self.lock() {
            State::Open { until, .. } => until.saturating_duration_since(now),
            State::Closed { .. } | State::HalfOpen { .. } => Duration::ZERO,
        }
    }

    /// Returns what it does with the next call.
    pub fn state(&self, now: Instant) -> BreakerState {
        match *self.lock() {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { until, .. } if now < until => BreakerState::Open,
            State::Open { .. } | State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and any value of it is a valid state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: BreakerConfig = BreakerConfig {
        failures_max: 2,
        pause: Duration::from_millis(100),
        pause_max: Duration::from_millis(300),
    };

    struct Site {
        breaker: Breaker,
        begun: Instant,
    }

    impl Site {
        fn new() -> Self {
            Self { breaker: Breaker::new(CONFIG), begun: Instant::now() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.begun + Duration::from_millis(ms)
        }

        fn opened() -> Self {
            let site = Self::new();
            site.breaker.failed(site.at(0));
            site.breaker.failed(site.at(0));
            assert_eq!(site.breaker.state(site.at(0)), BreakerState::Open);
            site
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not_count_on() {
        let site = Site::new();
        for _ in 0..5 {
            site.breaker.failed(site.at(0));
            site.breaker.succeeded();
        }
        assert!(site.breaker.allow(site.at(0)));
        site.breaker.failed(site.at(0));
        assert!(site.breaker.allow(site.at(0)), "one failure is none");
        assert!(site.breaker.is_troubled(), "and is known");
        site.breaker.failed(site.at(0));
        assert!(!site.breaker.allow(site.at(99)));
        assert_eq!(site.breaker.wait(site.at(40)), Duration::from_millis(60));
    }

    #[test]
    fn after_the_pause_one_probe_goes_out_and_its_success_closes() {
        let site = Site::opened();
        assert!(site.breaker.allow(site.at(100)));
        assert!(!site.breaker.allow(site.at(100)), "the second has to wait for the probe");
        assert_eq!(site.breaker.state(site.at(100)), BreakerState::HalfOpen);
        site.breaker.succeeded();
        assert!(site.breaker.allow(site.at(101)) && site.breaker.allow(site.at(101)));
        assert_eq!(site.breaker.state(site.at(101)), BreakerState::Closed);
    }

    #[test]
    fn each_failed_probe_doubles_the_pause_up_to_its_bound() {
        let site = Site::opened();
        let mut now = 100;
        for pause in [200, 300, 300] {
            assert!(site.breaker.allow(site.at(now)));
            site.breaker.failed(site.at(now));
            assert!(!site.breaker.allow(site.at(now + pause - 1)));
            now += pause;
        }
        assert!(site.breaker.allow(site.at(now)));
    }

    #[test]
    fn a_probe_that_is_never_reported_is_replaced() {
        let site = Site::opened();
        assert!(site.breaker.allow(site.at(100)));
        assert!(!site.breaker.allow(site.at(199)));
        assert!(site.breaker.allow(site.at(200)));
    }

    #[test]
    fn late_failures_of_calls_from_before_it_opened_prolong_nothing() {
        let site = Site::opened();
        site.breaker.failed(site.at(90));
        assert!(site.breaker.allow(site.at(100)));
    }
}
