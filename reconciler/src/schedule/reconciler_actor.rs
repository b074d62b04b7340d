//! The root of the batch path's actors: keeps the queue of hours and runs one HourActor at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{Mutex, oneshot};
use twice_log::Hour;
use twice_log::archive::ManifestIndex;

use super::book::RunBook;
use super::due::{DueSettings, Sightings};
use super::handle::ReconcilerDeps;
use super::hour_actor::HourActor;
use super::look::{Found, Look};
use super::messages::{
    CloseHour, GetStatus, ReconcileDay, ReconcileDue, ReconcileHour, StepBegun, Stop, Trigger, Urgency,
};
use super::progress::{HourReport, ProgressEvent, ProgressSender, ReconcilerStatus, Step};
use super::queue::{Failures, Order, Queue, Waiter, Wanted};
use super::report::show_divergence;
use super::retention_actor::Retention;
use super::sweep_actor::Sweeps;
use crate::config::ReconcilerConfig;
use crate::error::{Error, Result, describe};
use crate::metrics;

/// Messages are requests of people and the steps of one hour: a few at a time. More wait in their senders.
const MAILBOX_CAPACITY: usize = 64;

/// Closes hours by the clock and on request, one at a time.
pub struct ReconcilerActor {
    pub(super) config: ReconcilerConfig,
    pub(super) deps: ReconcilerDeps,
    pub(super) index: Arc<Mutex<ManifestIndex>>,
    sightings: Arc<Mutex<Sightings>>,
    queue: Queue,
    running: Option<Running>,
    failures: Failures,
    /// Whether a look for due hours is under way; one is enough.
    looking: bool,
    /// Hours whose run ended during the look under way: what it found of them may be outdated.
    ended_meanwhile: BTreeSet<Hour>,
    /// Newest runs as the archive records them: what the nights go by.
    pub(super) book: Arc<Mutex<RunBook>>,
    pub(super) sweeps: Sweeps,
    pub(super) retention: Retention,
    newest_reconciled: Option<Hour>,
    schedule_error: Option<String>,
    held_up: Option<String>,
}

struct Running {
    order: Order,
    step: Option<Step>,
}

impl ReconcilerActor {
    /// Makes the actor; nothing runs before it is started. `replays` is held by whoever replays.
    pub fn new(config: ReconcilerConfig, deps: ReconcilerDeps, replays: Arc<Mutex<()>>) -> Self {
        let index = Arc::new(Mutex::new(ManifestIndex::new(deps.archive.clone())));
        Self {
            config,
            deps,
            index,
            sightings: Arc::default(),
            queue: Queue::default(),
            running: None,
            failures: Failures::default(),
            looking: false,
            ended_meanwhile: BTreeSet::new(),
            book: Arc::default(),
            sweeps: Sweeps::default(),
            retention: Retention::beside(replays),
            newest_reconciled: None,
            schedule_error: None,
            held_up: None,
        }
    }

    pub(super) fn look(&self) -> Look {
        Look {
            config: self.config.clone(),
            deps: self.deps.clone(),
            index: Arc::clone(&self.index),
            sightings: Arc::clone(&self.sightings),
            book: Arc::clone(&self.book),
            settings: DueSettings {
                close_delay_ms: ms(self.config.close_delay_ms),
                backfill_quiet_ms: ms(self.config.backfill_quiet_ms),
            },
            maturity_ms: ms(self.config.verdict_maturity_ms),
        }
    }

    fn tick(&mut self, context: &mut Context<Self>) {
        if self.looking {
            return;
        }
        self.looking = true;
        self.ended_meanwhile.clear();
        let look = self.look();
        let looked = async move { look.due().await }.into_actor(self).map(|due, actor, context| {
            actor.looking = false;
            match due {
                Ok(found) => {
                    actor.schedule_error = None;
                    actor.enqueue_due(&found);
                    actor.want_sweep();
                    actor.want_retention();
                    actor.start_next(context);
                }
                Err(error) => {
                    let detail = describe(&error);
                    tracing::warn!(error = %detail, "cannot look for hours to close");
                    actor.schedule_error = Some(detail);
                }
            }
        });
        context.spawn(looked);
    }

    fn enqueue_due(&mut self, found: &Found) {
        let now = self.deps.clock.now();
        let running = self.running.as_ref().map(|running| running.order.hour);
        let nights = found.nights.iter().filter(|_| self.config.nightly_close);
        let wanted =
            found.due.iter().copied().map(Wanted::hourly).chain(nights.copied().map(Wanted::nightly));
        let mut held_up = Vec::new();
        for wanted in wanted {
            if let Err(held) = self.deps.check_held(&self.config, wanted.hour, wanted.status) {
                held_up.push((wanted.hour, held));
                continue;
            }
            let is_known = Some(wanted.hour) == running || self.ended_meanwhile.contains(&wanted.hour);
            if !is_known && self.failures.may_try(wanted.hour, now) {
                self.queue.push(wanted, None);
            }
        }
        self.note_held_up(&held_up);
        ::metrics::gauge!(metrics::HOURS_WAITING).set(self.queue.hours().len() as f64);
    }

    /// Keeps for the status which hour waits for what; the log is told when that begins and ends.
    fn note_held_up(&mut self, held_up: &[(Hour, Error)]) {
        ::metrics::gauge!(metrics::HOURS_HELD_UP).set(held_up.len() as f64);
        let first = held_up.first().map(|(hour, held)| format!("hour {hour} is {}", describe(held)));
        match (&self.held_up, &first) {
            (None, Some(held_up)) => tracing::warn!("{held_up}"),
            (Some(_), None) => tracing::info!("what hours waited for has reached the log"),
            _ => {}
        }
        self.held_up = first;
    }

    pub(super) fn start_next(&mut self, context: &mut Context<Self>) {
        if self.running.is_some() || self.sweeps.is_looking() || self.retention.is_running() {
            return;
        }
        if self.queue.next_urgency().is_none_or(|urgency| urgency > Urgency::Hourly)
            && (self.start_sweep(context) || self.start_retention(context))
        {
            return;
        }
        let Some(order) = self.queue.pop() else { return };
        let order_hour = order.hour;
        let close = CloseHour { hour: order.hour, trigger: order.trigger, status: order.status };
        self.running = Some(Running { order, step: None });
        let steps = context.address().recipient();
        let hour_actor =
            HourActor::new(self.config.clone(), self.deps.clone(), Arc::clone(&self.index), steps).start();
        let (book, hour) = (Arc::clone(&self.book), order_hour);
        let closed = async move {
            // The address lives in this future: dropping it ends the HourActor, and its child process.
            let closed = hour_actor.send(close).await;
            book.lock().await.tried(hour);
            closed.unwrap_or(Err(Error::Stopped))
        };
        context.spawn(closed.into_actor(self).map(Self::ended));
    }

    fn ended(result: Result<HourReport>, actor: &mut Self, context: &mut Context<Self>) {
        let Some(Running { order, .. }) = actor.running.take() else { return };
        let hour = order.hour;
        actor.ended_meanwhile.insert(hour);
        match &result {
            Ok(report) => {
                tracing::info!(%hour, run = %report.run_id, rows = report.rows, "hour closed");
                actor.failures.closed(hour);
                if Some(hour) >= actor.newest_reconciled {
                    actor.newest_reconciled = Some(hour);
                    show_divergence(report);
                }
            }
            Err(error) => {
                tracing::warn!(%hour, error = %describe(error), "closing the hour failed");
                ::metrics::counter!(metrics::ATTEMPTS_FAILED_TOTAL).increment(1);
                if order.trigger == Trigger::Schedule || !matches!(error, Error::HourNotOver { .. }) {
                    let (now, pause) = (actor.deps.clock.now(), ms(actor.config.backoff_ms_min));
                    actor.failures.failed(hour, error, now, pause, actor.config.attempts_max);
                }
            }
        }
        order.end(result);
        actor.start_next(context);
    }
}

pub(super) fn ms(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Actor for ReconcilerActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX_CAPACITY);
        metrics::describe();
        if self.config.schedule {
            self.tick(context);
            context.run_interval(Duration::from_millis(self.config.tick_ms), Self::tick);
        }
    }
}

impl Handler<ReconcileHour> for ReconcilerActor {
    type Result = ();

    fn handle(&mut self, request: ReconcileHour, context: &mut Self::Context) {
        if let (Some(progress), Some(held)) = (&request.progress, self.deps.held_now()) {
            let detail = format!("this bill is made at the offsets present; not in it: {held}");
            let _ = progress.send(ProgressEvent::Note { detail });
        }
        let waiter = Waiter { progress: request.progress, reply: request.reply };
        self.queue.push(Wanted::request(request.hour), Some(waiter));
        self.start_next(context);
    }
}

impl Handler<ReconcileDue> for ReconcilerActor {
    type Result = ();

    fn handle(&mut self, request: ReconcileDue, context: &mut Self::Context) {
        let ReconcileDue { progress, reply } = request;
        let look = self.look();
        let looked =
            async move { look.due().await }.into_actor(self).map(move |found, actor, context| match found {
                Ok(found) => {
                    let wanted = found.due.into_iter().map(Wanted::hourly);
                    actor.answer_all(wanted, progress.as_ref(), reply, context);
                }
                Err(error) => {
                    // Whoever asked is gone: nobody is left to tell.
                    let _ = reply.send(Err(error));
                }
            });
        context.spawn(looked);
    }
}

impl Handler<ReconcileDay> for ReconcilerActor {
    type Result = ();

    fn handle(&mut self, request: ReconcileDay, context: &mut Self::Context) {
        let ReconcileDay { day, progress, reply } = request;
        let matures = day.end().plus_ms(ms(self.config.verdict_maturity_ms));
        if (day.end()..matures).contains(&self.deps.clock.now())
            && let Some(progress) = &progress
        {
            let detail = format!("verdicts on {day} may still come until {matures}; they will restate it");
            let _ = progress.send(ProgressEvent::Note { detail });
        }
        let look = self.look();
        let looked = async move { look.day(day).await }.into_actor(self);
        let looked = looked.map(move |found, actor, context| match found {
            Ok(hours) => {
                let wanted = hours.into_iter().map(Wanted::requested_night);
                actor.answer_all(wanted, progress.as_ref(), reply, context);
            }
            Err(error) => {
                if let Some(progress) = &progress {
                    let _ = progress.send(ProgressEvent::Refused { detail: describe(&error) });
                }
                let _ = reply.send(Err(error));
            }
        });
        context.spawn(looked);
    }
}

impl ReconcilerActor {
    /// Queues hours and answers `reply` when the last of them has ended.
    fn answer_all(
        &mut self,
        wanted: impl Iterator<Item = Wanted>,
        progress: Option<&ProgressSender>,
        reply: oneshot::Sender<Result<Vec<HourReport>>>,
        context: &mut Context<Self>,
    ) {
        let answers = self.enqueue_watched(wanted, progress);
        self.start_next(context);
        let answered = async move {
            let _ = reply.send(collect(answers).await);
        };
        context.spawn(answered.into_actor(self));
    }

    /// Queues hours; the answers come as each has ended.
    pub(super) fn enqueue_watched(
        &mut self,
        wanted: impl Iterator<Item = Wanted>,
        progress: Option<&ProgressSender>,
    ) -> Vec<oneshot::Receiver<Result<HourReport>>> {
        let watch = |wanted: Wanted| {
            let (reply, answer) = oneshot::channel();
            let waiter = Waiter { progress: progress.cloned(), reply };
            match &mut self.running {
                // A run under way is watched, not repeated.
                Some(running) if wanted.urgency == Urgency::Hourly && running.order.hour == wanted.hour => {
                    running.order.waiters.push(waiter);
                }
                _ => self.queue.push(wanted, Some(waiter)),
            }
            answer
        };
        wanted.map(watch).collect()
    }
}

/// Waits for every answer; the first failure, if there is one, is the answer of all.
pub(super) async fn collect(answers: Vec<oneshot::Receiver<Result<HourReport>>>) -> Result<Vec<HourReport>> {
    let mut reports = Vec::new();
    let mut failed = None;
    for answer in answers {
        match answer.await.unwrap_or(Err(Error::Stopped)) {
            Ok(report) => reports.push(report),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(reports), Err)
}

impl Handler<StepBegun> for ReconcilerActor {
    type Result = ();

    fn handle(&mut self, notice: StepBegun, _context: &mut Self::Context) {
        if let Some(running) = self.running.as_mut().filter(|running| running.order.hour == notice.hour) {
            running.step = Some(notice.step);
            running.order.tell(&ProgressEvent::Step { hour: notice.hour, step: notice.step });
        }
    }
}

impl Handler<GetStatus> for ReconcilerActor {
    type Result = MessageResult<GetStatus>;

    fn handle(&mut self, _question: GetStatus, _context: &mut Self::Context) -> Self::Result {
        MessageResult(ReconcilerStatus {
            running: self.running.as_ref().map(|running| running.order.hour),
            step: self.running.as_ref().and_then(|running| running.step),
            waiting: self.queue.hours(),
            failures: self.failures.list(),
            newest_reconciled: self.newest_reconciled,
            schedule_error: self.schedule_error.clone(),
            held_up: self.held_up.clone(),
        })
    }
}

impl Handler<Stop> for ReconcilerActor {
    type Result = ();

    fn handle(&mut self, _order: Stop, context: &mut Self::Context) {
        context.stop();
        // The arbiter is this tree's own; its end drops what is left of it, HourActor and child process included.
        Arbiter::current().stop();
    }
}
