//! What the run tells: a line a second on stderr, and the table at the end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::Shared;
use crate::console::{print, tell};

/// Latencies above this are recorded as this.
const LATENCY_MICROS_MAX: u64 = 3_600_000_000;

/// Counters of a run; every connection adds to them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) sent: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) given_up: AtomicU64,
    pub(super) retries: AtomicU64,
    /// Answers 429.
    pub(super) limited: AtomicU64,
    /// Bad clicks refused with the code of their fault.
    pub(super) refused_as_due: AtomicU64,
    /// Bad clicks and bodies answered with anything else.
    pub(super) wrong_refusals: AtomicU64,
    pub(super) bad_bodies: AtomicU64,
    pub(super) verdicts: AtomicU64,
    latencies: Mutex<Latencies>,
    problem: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Latencies {
    acknowledged: u64,
    all: Histogram<u64>,
    this_second: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3).expect("constant bounds are in order");
        Self { acknowledged: 0, all: histogram(), this_second: histogram() }
    }
}

impl Counters {
    fn latencies(&self) -> MutexGuard<'_, Latencies> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records `clicks` acknowledged `latency` after they were due.
    pub(super) fn record(&self, latency: Duration, clicks: u64) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).clamp(1, LATENCY_MICROS_MAX);
        let mut latencies = self.latencies();
        latencies.acknowledged += clicks;
        latencies.all.saturating_record_n(micros, clicks);
        latencies.this_second.saturating_record_n(micros, clicks);
    }

    /// Keeps the newest problem for the next progress line.
    pub(super) fn note_problem(&self, problem: &str) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem.to_owned());
    }
}

/// Writes a progress line every second until aborted.
pub(super) async fn progress(shared: Arc<Shared>) {
    let counters = &shared.counters;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await; // the first comes at once
    let mut acknowledged_before = 0;
    let mut at_before = shared.started.elapsed();
    loop {
        ticks.tick().await;
        let at = shared.started.elapsed();
        let (acknowledged, p99) = {
            let mut latencies = counters.latencies();
            let p99 = latencies.this_second.value_at_quantile(0.99);
            latencies.this_second.reset();
            (latencies.acknowledged, p99)
        };
        let seconds = (at - at_before).as_secs_f64().max(0.001);
        let rate = (acknowledged - acknowledged_before) as f64 / seconds;
        let mut text = format!(
            "{:>4} s  sent {}  acknowledged {acknowledged}  {rate:.0}/s  p99 {}",
            at.as_secs(),
            counters.sent.load(Ordering::Relaxed),
            milliseconds(p99),
        );
        let (rejected, retries) =
            (counters.rejected.load(Ordering::Relaxed), counters.retries.load(Ordering::Relaxed));
        if rejected + retries > 0 {
            text.push_str(&format!("  rejected {rejected}  retries {retries}"));
        }
        let limited = counters.limited.load(Ordering::Relaxed);
        if limited > 0 {
            text.push_str(&format!("  429s {limited}"));
        }
        let problem = counters.problem.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(problem) = problem {
            text.push_str(&format!("  ({problem})"));
        }
        tell(&text);
        (acknowledged_before, at_before) = (acknowledged, at);
    }
}

/// The totals of a run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
    pub(super) rejected: u64,
    pub(super) given_up: u64,
    pub(super) wrong_refusals: u64,
    retries: u64,
    limited: u64,
    refused_as_due: u64,
    bad_bodies: u64,
    verdicts: u64,
    /// Copies that an earlier life of this process settled.
    earlier: u64,
    seconds: f64,
    latencies: Histogram<u64>,
}

impl Report {
    /// Takes the totals as they stand now.
    pub(super) fn of(shared: &Shared) -> Self {
        let counters = &shared.counters;
        let latencies = counters.latencies();
        Self {
            sent: counters.sent.load(Ordering::Relaxed),
            acknowledged: latencies.acknowledged,
            rejected: counters.rejected.load(Ordering::Relaxed),
            given_up: counters.given_up.load(Ordering::Relaxed),
            retries: counters.retries.load(Ordering::Relaxed),
            wrong_refusals: counters.wrong_refusals.load(Ordering::Relaxed),
            limited: counters.limited.load(Ordering::Relaxed),
            refused_as_due: counters.refused_as_due.load(Ordering::Relaxed),
            bad_bodies: counters.bad_bodies.load(Ordering::Relaxed),
            verdicts: counters.verdicts.load(Ordering::Relaxed),
            earlier: shared.earlier.settled.len() as u64,
            seconds: shared.started.elapsed().as_secs_f64(),
            latencies: latencies.all.clone(),
        }
    }

    /// Writes the table to stdout.
    pub(super) fn print(&self) {
        print(&self.table());
    }

    fn table(&self) -> String {
        let quantile = |quantile| milliseconds(self.latencies.value_at_quantile(quantile));
        let rows = [
            ("sent", self.sent.to_string()),
            ("acknowledged", self.acknowledged.to_string()),
            ("acknowledged/s", format!("{:.0}", self.acknowledged as f64 / self.seconds.max(0.001))),
            ("seconds", format!("{:.1}", self.seconds)),
            ("latency p50", quantile(0.5)),
            ("latency p90", quantile(0.9)),
            ("latency p99", quantile(0.99)),
            ("latency p99.9", quantile(0.999)),
            ("latency max", milliseconds(self.latencies.max())),
            ("retries", self.retries.to_string()),
            ("rejected", self.rejected.to_string()),
            ("given up", self.given_up.to_string()),
        ];
        // What most runs have nothing of is said only where there is some.
        let special = [
            ("429s", self.limited),
            ("refused as due", self.refused_as_due),
            ("bad bodies", self.bad_bodies),
            ("wrong refusals", self.wrong_refusals),
            ("verdicts", self.verdicts),
            ("settled before", self.earlier),
        ];
        let special = special.into_iter().filter(|(_, count)| *count > 0);
        let special = special.map(|(name, count)| (name, count.to_string()));
        rows.into_iter().chain(special).map(|(name, value)| format!("{name:<16}{value:>14}\n")).collect()
    }
}

fn milliseconds(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1_000.0)
}
