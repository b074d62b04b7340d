//! How soon a click is visible: from its event, and from its arrival, to the windows that dashboards read.
//!
//! Guarantee: every click that arrived since the start and made a batch count is measured once, when its windows were
//! published; nothing is allocated a click. Words: *age* = time from a moment of the click to a moment of ours.
//! Flow: a batch's ages are tallied when it is read; they wait for the publish that shows it; then, grown by the time
//! they waited, they enter the node's totals. Clicks from before the start are left out: how long the process was down
//! is no property of the path.

use std::sync::{Mutex, PoisonError};

use twice_log::{Click, UtcMillis};

use crate::metrics::{FRESHNESS_ARRIVAL_SECONDS, FRESHNESS_EVENT_SECONDS};

/// Each power of two has so many buckets: an age is known to one part in thirty.
const BUCKETS_PER_OCTAVE: usize = 16;
const BUCKETS: usize = 28 * BUCKETS_PER_OCTAVE;
/// Longer ages, about 25 days, count as this.
const AGE_MS_MAX: i64 = (1 << 31) - 1;
/// Batches that wait for one publish are kept apart up to here; beyond, they are added up.
const BATCHES_WAITING_MAX: usize = 256;

/// Numbers of clicks by age.
#[derive(Debug, Clone)]
pub(crate) struct Ages([u64; BUCKETS]);

impl Default for Ages {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Ages {
    fn bucket(age_ms: i64) -> usize {
        let age = age_ms.clamp(0, AGE_MS_MAX) as usize;
        if age < BUCKETS_PER_OCTAVE {
            return age;
        }
        let octave = age.ilog2() as usize;
        (octave - 3) * BUCKETS_PER_OCTAVE + ((age >> (octave - 4)) % BUCKETS_PER_OCTAVE)
    }

    /// Returns the middle of a bucket.
    fn age_ms(bucket: usize) -> i64 {
        if bucket < BUCKETS_PER_OCTAVE {
            return bucket as i64;
        }
        let shift = bucket / BUCKETS_PER_OCTAVE - 1;
        let lowest = (BUCKETS_PER_OCTAVE + bucket % BUCKETS_PER_OCTAVE) << shift;
        (lowest + (1 << shift) / 2) as i64
    }

    fn add(&mut self, age_ms: i64, clicks: u64) {
        self.0[Self::bucket(age_ms)] += clicks;
    }

    /// Adds every click of `younger`, grown by `grown_ms`.
    fn add_grown(&mut self, younger: &Self, grown_ms: i64) {
        for (bucket, clicks) in younger.0.iter().enumerate().filter(|(_, clicks)| **clicks > 0) {
            self.add(Self::age_ms(bucket) + grown_ms.max(0), *clicks);
        }
    }

    fn clicks(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns the age below which the share of clicks lies, in seconds; `None` without a click.
    fn quantile_seconds(&self, share: f64) -> Option<f64> {
        let rank = (self.clicks() as f64 * share).ceil().max(1.0) as u64;
        let mut below = 0;
        let bucket = self.0.iter().position(|clicks| {
            below += clicks;
            below >= rank
        });
        bucket.map(|bucket| Self::age_ms(bucket) as f64 / 1000.0)
    }
}

/// Ages of the clicks of one batch when it was read.
#[derive(Debug, Clone)]
pub(crate) struct BatchAges {
    read_at: UtcMillis,
    /// Clicks that arrived before are not measured.
    since: UtcMillis,
    arrival: Ages,
    event: Ages,
}

impl BatchAges {
    /// Starts a tally of what is read at `read_at`.
    pub(crate) fn new(read_at: UtcMillis, since: UtcMillis) -> Self {
        Self { read_at, since, arrival: Ages::default(), event: Ages::default() }
    }

    /// Adds a click.
    pub(crate) fn add(&mut self, click: &Click) {
        if click.arrival_time >= self.since {
            self.arrival.add(self.read_at.epoch_ms() - click.arrival_time.epoch_ms(), 1);
            self.event.add(self.read_at.epoch_ms() - click.event_time.epoch_ms(), 1);
        }
    }

    fn add_older(&mut self, older: &Self) {
        let grown_ms = self.read_at.epoch_ms() - older.read_at.epoch_ms();
        self.arrival.add_grown(&older.arrival, grown_ms);
        self.event.add_grown(&older.event, grown_ms);
    }
}

/// Batches of one partition that are applied and not shown yet.
#[derive(Debug, Default)]
pub(crate) struct AgesWaiting {
    /// In the windows of the publish under way, or of one that failed.
    taken: Vec<Box<BatchAges>>,
    next: Vec<Box<BatchAges>>,
}

impl AgesWaiting {
    /// Takes a batch that was applied.
    pub(crate) fn push(&mut self, ages: Box<BatchAges>) {
        self.next.push(ages);
        if self.next.len() > BATCHES_WAITING_MAX {
            self.next = sum(std::mem::take(&mut self.next));
        }
    }

    /// Notes that the windows of all that waits were taken to be published.
    pub(crate) fn take(&mut self) {
        self.taken.append(&mut self.next);
        if self.taken.len() > BATCHES_WAITING_MAX {
            self.taken = sum(std::mem::take(&mut self.taken));
        }
    }
}

/// Adds batches up into the newest of them.
fn sum(mut batches: Vec<Box<BatchAges>>) -> Vec<Box<BatchAges>> {
    let Some(mut newest) = batches.pop() else { return batches };
    batches.iter().for_each(|older| newest.add_older(older));
    vec![newest]
}

#[derive(Debug, Default)]
struct Totals {
    arrival: Ages,
    event: Ages,
}

/// What the node has measured since its start. Shared by its partitions.
#[derive(Debug)]
pub(crate) struct FreshnessMeter {
    since: UtcMillis,
    totals: Mutex<Box<Totals>>,
}

impl FreshnessMeter {
    /// Starts empty: clicks count that arrive from `since` on.
    pub(crate) fn new(since: UtcMillis) -> Self {
        Self { since, totals: Mutex::default() }
    }

    /// Returns a tally for a batch read at `read_at`.
    pub(crate) fn batch(&self, read_at: UtcMillis) -> Box<BatchAges> {
        Box::new(BatchAges::new(read_at, self.since))
    }

    /// Counts the batches whose windows were taken as visible at `now`.
    pub(crate) fn shown(&self, waiting: &mut AgesWaiting, now: UtcMillis) {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        for batch in waiting.taken.drain(..) {
            let waited_ms = now.epoch_ms() - batch.read_at.epoch_ms();
            totals.arrival.add_grown(&batch.arrival, waited_ms);
            totals.event.add_grown(&batch.event, waited_ms);
        }
    }

    /// Returns the figures so far, and sets the gauges to them.
    pub(crate) fn report(&self) -> Freshness {
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let freshness = Freshness {
            since: self.since,
            clicks: totals.arrival.clicks(),
            arrival: Quantiles::of(&totals.arrival),
            event: Quantiles::of(&totals.event),
        };
        drop(totals);
        show(FRESHNESS_ARRIVAL_SECONDS, freshness.arrival);
        show(FRESHNESS_EVENT_SECONDS, freshness.event);
        freshness
    }
}

fn show(name: &'static str, quantiles: Option<Quantiles>) {
    if let Some(Quantiles { p50_seconds, p99_seconds }) = quantiles {
        metrics::gauge!(name, "quantile" => "0.5").set(p50_seconds);
        metrics::gauge!(name, "quantile" => "0.99").set(p99_seconds);
    }
}

/// The middle and the slow end of what was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    pub p50_seconds: f64,
    pub p99_seconds: f64,
}

impl Quantiles {
    fn of(ages: &Ages) -> Option<Self> {
        let (p50_seconds, p99_seconds) = (ages.quantile_seconds(0.5)?, ages.quantile_seconds(0.99)?);
        Some(Self { p50_seconds, p99_seconds })
    }
}

/// How soon clicks were visible since the start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Freshness {
    pub since: UtcMillis,
    /// Clicks measured.
    pub clicks: u64,
    /// From arrival at the gateway; `None` while nothing was measured.
    pub arrival: Option<Quantiles>,
    /// From the click's own time, which for clicks sent later is the sender's delay as well.
    pub event: Option<Quantiles>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Planned, clicks};

    fn at(epoch_ms: i64) -> UtcMillis {
        UtcMillis::clamped(epoch_ms)
    }

    fn click(event_time: UtcMillis, arrival_time: UtcMillis) -> Click {
        let plan = Planned { campaign: 0, identity: 0, ad: 0, user: 0, age_ms: 0, step_ms: 0 };
        Click { event_time, arrival_time, ..clicks(&[plan], 0).remove(0) }
    }

    proptest! {
        #[test]
        fn an_age_is_known_to_one_part_in_thirty(age in 0..AGE_MS_MAX) {
            let known = Ages::age_ms(Ages::bucket(age));
            prop_assert!((known - age).abs() * 30 <= age.max(1), "{age} became {known}");
        }

        #[test]
        fn a_quantile_lies_between_the_least_and_the_greatest(ages in prop::collection::vec(0..10_000_000_i64, 1..50)) {
            let mut tally = Ages::default();
            ages.iter().for_each(|age| tally.add(*age, 1));
            let middle = tally.quantile_seconds(0.5).expect("clicks") * 1000.0;
            let slow = tally.quantile_seconds(0.99).expect("clicks") * 1000.0;
            let (least, greatest) = (*ages.iter().min().expect("one"), *ages.iter().max().expect("one"));
            prop_assert!(middle <= slow && middle >= least as f64 * 0.96 && slow <= greatest as f64 * 1.04);
        }
    }

    #[test]
    fn ages_grow_by_the_time_until_they_are_shown() {
        let meter = FreshnessMeter::new(at(0));
        let mut waiting = AgesWaiting::default();
        let mut batch = meter.batch(at(10_000));
        batch.add(&click(at(4_000), at(9_000)));
        waiting.push(batch);
        meter.shown(&mut waiting, at(10_500));
        assert_eq!(meter.report().clicks, 0, "its windows were not taken yet");
        waiting.take();
        meter.shown(&mut waiting, at(11_000));
        let report = meter.report();
        let (arrival, event) = (report.arrival.expect("measured"), report.event.expect("measured"));
        assert_eq!(report.clicks, 1);
        assert!((arrival.p50_seconds - 2.0).abs() < 0.1, "{arrival:?}");
        assert!((event.p99_seconds - 7.0).abs() < 0.3, "{event:?}");
    }

    #[test]
    fn clicks_of_before_the_start_are_left_out() {
        let meter = FreshnessMeter::new(at(5_000));
        let mut waiting = AgesWaiting::default();
        let mut batch = meter.batch(at(10_000));
        batch.add(&click(at(4_000), at(4_999)));
        waiting.push(batch);
        waiting.take();
        meter.shown(&mut waiting, at(11_000));
        let report = meter.report();
        assert_eq!((report.clicks, report.arrival), (0, None));
    }

    #[test]
    fn what_waits_for_long_takes_bounded_memory_and_loses_no_click() {
        let meter = FreshnessMeter::new(at(0));
        let mut waiting = AgesWaiting::default();
        for number in 0..2_000 {
            let mut batch = meter.batch(at(10_000 + number));
            batch.add(&click(at(4_000), at(9_000)));
            waiting.push(batch);
            if number % 10 == 0 {
                waiting.take();
            }
        }
        assert!(waiting.taken.len() + waiting.next.len() <= 2 * BATCHES_WAITING_MAX);
        waiting.take();
        meter.shown(&mut waiting, at(20_000));
        assert_eq!(meter.report().clicks, 2_000);
    }
}
