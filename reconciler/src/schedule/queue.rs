//! Hours that wait to be closed, one order an hour, and the pauses after failures.
//!
//! A night's hours wait behind the hour that has just ended, so that they delay it by one run at most.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;
use twice_log::archive::BillingStatus;
use twice_log::{Hour, UtcMillis};

use super::messages::{Trigger, Urgency};
use super::progress::{HourFailure, HourReport, ProgressEvent, ProgressSender};
use crate::error::{Error, Result, describe};

/// Longest pause between two attempts, milliseconds.
const BACKOFF_MS_MAX: i64 = 600_000;

/// Who waits for an hour.
pub struct Waiter {
    pub progress: Option<ProgressSender>,
    pub reply: oneshot::Sender<Result<HourReport>>,
}

/// One hour to close, and everyone who asked for it.
pub struct Order {
    pub hour: Hour,
    pub trigger: Trigger,
    /// Status wanted.
    pub status: BillingStatus,
    pub urgency: Urgency,
    pub waiters: Vec<Waiter>,
}

impl Order {
    /// Tells everyone who watches. A watcher that went away is no error.
    pub fn tell(&self, event: &ProgressEvent) {
        for progress in self.waiters.iter().filter_map(|waiter| waiter.progress.as_ref()) {
            let _ = progress.send(event.clone());
        }
    }

    /// Hands out the end of the attempt: the report to each, the error to the first and its text to the others.
    pub fn end(self, result: Result<HourReport>) {
        let hour = self.hour;
        match result {
            Ok(report) => {
                self.tell(&ProgressEvent::Done(report.clone()));
                for waiter in self.waiters {
                    let _ = waiter.reply.send(Ok(report.clone()));
                }
            }
            Err(error) => {
                let detail = describe(&error);
                self.tell(&ProgressEvent::Failed { hour, detail: detail.clone() });
                let mut first = Some(error);
                for waiter in self.waiters {
                    let error =
                        first.take().unwrap_or_else(|| Error::Attempt { hour, detail: detail.clone() });
                    let _ = waiter.reply.send(Err(error));
                }
            }
        }
    }
}

/// What is wanted of one hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub hour: Hour,
    pub trigger: Trigger,
    pub status: BillingStatus,
    pub urgency: Urgency,
}

impl Wanted {
    /// One hour that somebody asked for.
    pub fn request(hour: Hour) -> Self {
        let (trigger, status) = (Trigger::Request, BillingStatus::Reconciled);
        Self { hour, trigger, status, urgency: Urgency::Request }
    }

    /// An hour that is due after its end.
    pub fn hourly(hour: Hour) -> Self {
        let (trigger, status) = (Trigger::Schedule, BillingStatus::Reconciled);
        Self { hour, trigger, status, urgency: Urgency::Hourly }
    }

    /// An hour of a day that closes.
    pub fn nightly(hour: Hour) -> Self {
        let (trigger, status) = (Trigger::Schedule, BillingStatus::Final);
        Self { hour, trigger, status, urgency: Urgency::Nightly }
    }

    /// An hour of a day that somebody asked to close.
    pub fn requested_night(hour: Hour) -> Self {
        let (trigger, status) = (Trigger::Request, BillingStatus::Final);
        Self { hour, trigger, status, urgency: Urgency::RequestedDay }
    }

    /// The same, where somebody waits for it.
    pub fn requested_restatement(hour: Hour) -> Self {
        Self { urgency: Urgency::RequestedDay, ..Self::restated(hour) }
    }

    /// A billed hour that later events touch: the offsets present must be in, its status is its own.
    pub fn restated(hour: Hour) -> Self {
        let (trigger, status) = (Trigger::Request, BillingStatus::Reconciled);
        Self { hour, trigger, status, urgency: Urgency::Nightly }
    }
}

/// The hours that wait, by urgency, and in the order they came where that is equal.
#[derive(Default)]
pub struct Queue(VecDeque<Order>);

impl Queue {
    /// Adds an order, or joins the one that waits for the same hour: one run serves both.
    pub fn push(&mut self, wanted: Wanted, waiter: Option<Waiter>) {
        let Wanted { hour, trigger, status, urgency } = wanted;
        if let Some(index) = self.0.iter().position(|order| order.hour == hour) {
            let is_raised = urgency < self.0[index].urgency;
            let order = &mut self.0[index];
            order.waiters.extend(waiter);
            order.status = order.status.max(status);
            order.trigger = order.trigger.max(trigger);
            order.urgency = order.urgency.min(urgency);
            // Who joins an order does not move it, unless in a greater hurry.
            if is_raised && let Some(order) = self.0.remove(index) {
                self.insert(order);
            }
        } else {
            self.insert(Order { hour, trigger, status, urgency, waiters: waiter.into_iter().collect() });
        }
    }

    fn insert(&mut self, order: Order) {
        let place = self.0.iter().take_while(|other| other.urgency <= order.urgency).count();
        self.0.insert(place, order);
    }

    /// Returns in what hurry the next order is.
    pub fn next_urgency(&self) -> Option<Urgency> {
        self.0.front().map(|order| order.urgency)
    }

    /// Takes the next order.
    pub fn pop(&mut self) -> Option<Order> {
        self.0.pop_front()
    }

    /// Returns the hours that wait, in their order.
    pub fn hours(&self) -> Vec<Hour> {
        self.0.iter().map(|order| order.hour).collect()
    }
}

/// Returns whether it is time for what waits until `next`, never longer than `wait_ms_max`: a clock that went back since
/// must not stop it for as long as the clock was ahead.
pub fn is_time(next: UtcMillis, now: UtcMillis, wait_ms_max: i64) -> bool {
    next <= now || next > now.plus_ms(wait_ms_max)
}

/// What failed, and when it is tried again.
#[derive(Debug, Default)]
pub struct Failures(BTreeMap<Hour, HourFailure>);

impl Failures {
    /// Records a failed attempt; after `attempts_max` of them the hour waits for a request or a restart. An archive that
    /// does not answer, or is behind, is waited for without end: its outage is no fault of the hour's.
    pub fn failed(
        &mut self,
        hour: Hour,
        error: &Error,
        now: UtcMillis,
        backoff_ms_min: i64,
        attempts_max: u32,
    ) {
        let attempts = self.0.get(&hour).map_or(0, |failure| failure.attempts).saturating_add(1);
        let doubled = backoff_ms_min.saturating_mul(1_i64 << (attempts - 1).min(32)).min(BACKOFF_MS_MAX);
        let is_outage = match error {
            Error::Log(error) => error.kind() == twice_log::ErrorKind::Retry,
            error => {
                matches!(error, Error::Archive { .. } | Error::ArchiveBehind { .. } | Error::HeldUp { .. })
            }
        };
        let next_attempt_at = (is_outage || attempts < attempts_max).then(|| now.plus_ms(doubled));
        let failure = HourFailure { hour, attempts, last_error: describe(error), next_attempt_at };
        self.0.insert(hour, failure);
    }

    /// Forgets the failures of an hour that was closed.
    pub fn closed(&mut self, hour: Hour) {
        self.0.remove(&hour);
    }

    /// Returns whether the schedule may try the hour now.
    pub fn may_try(&self, hour: Hour, now: UtcMillis) -> bool {
        let Some(failure) = self.0.get(&hour) else { return true };
        failure.next_attempt_at.is_some_and(|next| is_time(next, now, BACKOFF_MS_MAX))
    }

    /// Returns every failure, by hour.
    pub fn list(&self) -> Vec<HourFailure> {
        self.0.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(number: i64) -> Hour {
        Hour::from_since_epoch(number)
    }

    #[test]
    fn requests_go_before_the_schedule_and_an_hour_waits_once() {
        let mut queue = Queue::default();
        for number in 1..=3 {
            queue.push(Wanted::hourly(hour(number)), None);
        }
        queue.push(Wanted::request(hour(9)), None);
        queue.push(Wanted::request(hour(2)), None);
        queue.push(Wanted::hourly(hour(9)), None);
        assert_eq!(queue.hours(), [hour(9), hour(2), hour(1), hour(3)]);
    }

    #[test]
    fn the_fresh_hour_goes_before_a_night_and_one_run_serves_both_wishes() {
        let mut queue = Queue::default();
        for number in 1..=3 {
            queue.push(Wanted::nightly(hour(number)), None);
        }
        queue.push(Wanted::hourly(hour(30)), None);
        queue.push(Wanted::hourly(hour(2)), None);
        queue.push(Wanted::restated(hour(3)), None);
        assert_eq!(queue.hours(), [hour(30), hour(2), hour(1), hour(3)]);
        let orders: Vec<_> =
            std::iter::from_fn(|| queue.pop()).map(|order| (order.status, order.trigger)).collect();
        use BillingStatus::{Final, Reconciled};
        let expected = [
            (Reconciled, Trigger::Schedule),
            (Final, Trigger::Schedule),
            (Final, Trigger::Schedule),
            (Final, Trigger::Request),
        ];
        assert_eq!(orders, expected);
    }

    #[test]
    fn an_outage_of_the_archive_never_uses_up_the_attempts() {
        let mut failures = Failures::default();
        let error = || {
            let source = object_store::Error::Generic { store: "S3", source: "down".into() };
            Error::Archive { action: "get", path: "seals".to_owned(), source }
        };
        (0..20).for_each(|_| failures.failed(hour(1), &error(), UtcMillis::clamped(0), 2_000, 4));
        assert!(failures.list()[0].next_attempt_at.is_some());
    }

    #[test]
    fn a_clock_that_goes_back_lengthens_no_pause() {
        let mut failures = Failures::default();
        let (now, day_ms) = (UtcMillis::clamped(10_000_000_000), 86_400_000);
        failures.failed(hour(1), &Error::Stopped, now, 2_000, 4);
        assert!(!failures.may_try(hour(1), now) && failures.may_try(hour(1), now.plus_ms(2_000)));
        assert!(failures.may_try(hour(1), now.plus_ms(-day_ms)), "an hour does not wait for a day");
    }

    #[test]
    fn pauses_double_and_end_after_the_last_attempt() {
        let mut failures = Failures::default();
        let now = UtcMillis::clamped(0);
        let pauses: Vec<Option<i64>> = (0..4)
            .map(|_| {
                failures.failed(hour(1), &Error::Stopped, now, 2_000, 4);
                failures.list()[0].next_attempt_at.map(UtcMillis::epoch_ms)
            })
            .collect();
        assert_eq!(pauses, [Some(2_000), Some(4_000), Some(8_000), None]);
        assert!(!failures.may_try(hour(1), UtcMillis::clamped(i64::MAX)));
        assert!(failures.may_try(hour(2), now));
    }
}
