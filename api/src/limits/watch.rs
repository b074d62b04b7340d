//! What happens every second: the limits follow the headroom, and the version in its canary is judged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metrics::gauge;
use tokio::time::{MissedTickBehavior, interval, timeout};
use twice_log::UtcMillis;
use twice_log::spool::Spooling;
use twice_store::{LimitEnd, LimitOutcome};

use super::adapt::{Headroom, Signal};
use super::canary::{Verdict, Watched, judge};
use super::plan::Canary;
use super::{RateLimits, SIGNALS};
use crate::metrics as names;
use crate::ports::StreamStatus;

/// Longest wait for the stream path's report; without one, its lag limits nobody.
const REPORT_TIMEOUT: Duration = Duration::from_millis(500);
/// Name of the spill queue in its status.
const SPILL: &str = "spill queue";
/// How long spilled clicks wait for room. After that they are drained at their bounded rate whatever is short: an hour does
/// not close while a click from before it is held, and what never gets room would hold up every bill.
const SPILL_WAIT_MS_MAX: i64 = 60_000;
/// Turns between reads of what is stored: so late does another gateway's change take effect here.
const RELOAD_TURNS: u64 = 10;
/// Turns between looks for buckets that may be forgotten.
const FORGET_TURNS: u64 = 60;
/// Turns the ratio of refused requests is of: a minute of the usual ones.
const RATIO_TURNS: usize = 60;

impl RateLimits {
    /// Works until its task is dropped. What fails is logged and tried again at the next turn.
    pub(crate) async fn run(self: Arc<Self>, stream: Arc<dyn StreamStatus>, spooling: Arc<Spooling>) {
        let every = Duration::from_millis(self.config.limits_sample_ms.into());
        let mut turns = interval(every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ratio = Ratio::default();
        for turn in 0u64.. {
            turns.tick().await;
            let headroom = Headroom {
                acknowledge_ms: self.latency.read(),
                lag_records: lag_of(stream.as_ref()).await,
                spool_percent: spool_percent(&spooling),
            };
            let signal = self.adapt(&headroom);
            spooling.pause_spill(may_wait(signal, &spooling, self.clock.now()));
            if turn > 0 {
                self.judge(every).await;
            }
            if turn % RELOAD_TURNS == RELOAD_TURNS - 1 {
                self.reload().await;
            }
            if turn % FORGET_TURNS == FORGET_TURNS - 1 {
                self.plan().forget_full();
            }
            let totals = &self.totals;
            let limited = totals.limited.load(Ordering::Relaxed);
            let newest = (totals.requests.load(Ordering::Relaxed), limited);
            gauge!(names::LIMITS_LIMITED_RATIO).set(ratio.add(newest));
        }
    }

    /// Lets every limit follow the headroom.
    fn adapt(&self, headroom: &Headroom) -> Signal {
        let signal = Signal::of(headroom, &self.config.bounds());
        let place = SIGNALS.iter().position(|known| *known == signal).unwrap_or(0);
        let before = self.signal.swap(place as u8, Ordering::Relaxed); // there are four
        if usize::from(before) != place {
            tracing::info!(
                signal = signal.name(),
                acknowledge_ms = headroom.acknowledge_ms,
                lag_records = headroom.lag_records,
                spool_percent = headroom.spool_percent,
                "rate limits follow another signal"
            );
        }
        self.plan().step(signal);
        for short in Signal::SHORT {
            let is_it = f64::from(u8::from(short == signal));
            gauge!(names::LIMITS_SHORT, "signal" => short.name()).set(is_it);
        }
        gauge!(names::LIMITS_ACKNOWLEDGE_P99_SECONDS).set(f64::from(headroom.acknowledge_ms) / 1_000.0);
        signal
    }

    /// Ends the canary if its time or its figures say so: stored first, then it holds.
    async fn judge(&self, watched: Duration) {
        let plan = self.plan();
        let Some(canary) = &plan.canary else { return };
        let watched_ms = u64::try_from(watched.as_millis()).unwrap_or(u64::MAX);
        let watched_ms = canary.watched_ms.fetch_add(watched_ms, Ordering::Relaxed) + watched_ms;
        let Some(end) = self.end_of(canary, watched_ms) else { return };
        let _turn = self.changes.lock().await;
        let (version, outcome, detail) = (end.version, end.outcome.name(), end.detail.clone());
        match self.store.end_canary(end).await {
            Ok(state) => {
                self.follow(state);
                tracing::info!(version, outcome, detail, "a version of the rate limits has ended its canary");
            }
            Err(error) => {
                tracing::warn!(%error, version, "cannot store the end of a canary of the rate limits");
                // Somebody else may have ended it meanwhile.
                if let Ok(state) = self.store.limit_state().await {
                    self.follow(state);
                }
            }
        }
    }

    fn end_of(&self, canary: &Canary, watched_ms: u64) -> Option<LimitEnd> {
        let version = &canary.in_force.version;
        let now = self.clock.now();
        let elapsed_ms = now.epoch_ms() - version.created_at.epoch_ms();
        let figures = canary.figures();
        let verdict = judge(version.canary_ms, Watched { elapsed_ms, watched_ms }, &figures);
        let (outcome, detail) = match verdict {
            Verdict::Wait => return None,
            Verdict::Promote(detail) => (LimitOutcome::Promoted, detail),
            Verdict::RollBack(detail) => (LimitOutcome::RolledBack, detail),
        };
        let decided_by = String::new();
        Some(LimitEnd { version: version.version, outcome, at: now, decided_by, detail, figures })
    }

    /// Follows what another gateway stored, or what this one stored and did not live to follow.
    async fn reload(&self) {
        let _turn = self.changes.lock().await;
        match self.store.limit_state().await {
            Ok(state) => self.follow(state),
            Err(error) => tracing::warn!(%error, "cannot read the rate limits; those known go on"),
        }
    }
}

/// Returns the lag of the slowest partition.
async fn lag_of(stream: &dyn StreamStatus) -> u64 {
    match timeout(REPORT_TIMEOUT, stream.report()).await {
        Ok(Ok(report)) => report.partitions.iter().map(|partition| partition.lag).max().unwrap_or(0),
        // A stream path that is down loses nothing: the log keeps what it has not counted.
        Ok(Err(_)) | Err(_) => 0,
    }
}

/// Returns how full the spool for outages is. The spill queue does not count: it fills because limits are low, and to cut
/// them for it would fill it faster.
fn spool_percent(spooling: &Spooling) -> u32 {
    let spool = spooling.status().into_iter().find(|queue| queue.name != SPILL);
    spool.map_or(0, |spool| (spool.bytes.saturating_mul(100) / spool.bytes_max.max(1)).min(100) as u32)
}

/// Says whether spilled clicks wait on: while something is short, but no longer than the hour's close can afford.
fn may_wait(signal: Signal, spooling: &Spooling, now: UtcMillis) -> bool {
    if signal == Signal::Room {
        return false;
    }
    let oldest =
        spooling.status().into_iter().find(|queue| queue.name == SPILL).and_then(|spill| spill.oldest);
    oldest.is_some_and(|oldest| now.epoch_ms() - oldest.epoch_ms() < SPILL_WAIT_MS_MAX)
}

/// Share of requests refused in the last turns.
#[derive(Debug, Default)]
struct Ratio {
    /// (requests, refused) since the start, oldest first.
    seen: VecDeque<(u64, u64)>,
}

impl Ratio {
    fn add(&mut self, newest: (u64, u64)) -> f64 {
        self.seen.push_back(newest);
        if self.seen.len() > RATIO_TURNS + 1 {
            self.seen.pop_front();
        }
        let oldest = self.seen.front().copied().unwrap_or_default();
        let (requests, limited) = (newest.0.saturating_sub(oldest.0), newest.1.saturating_sub(oldest.1));
        if requests == 0 { 0.0 } else { limited as f64 / requests as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_the_last_minute() {
        let mut ratio = Ratio::default();
        assert_eq!(ratio.add((0, 0)), 0.0);
        assert_eq!(ratio.add((100, 10)), 0.1);
        let later = (0..60).map(|_| ratio.add((200, 10))).last();
        assert_eq!(later, Some(0.0), "the refusals are more than a minute ago");
    }
}
