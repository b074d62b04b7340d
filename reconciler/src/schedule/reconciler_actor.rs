//! The root of the batch path's actors: keeps the queue of hours and runs one HourActor at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures::StreamExt;
use tokio::sync::{Mutex, oneshot};
use twice_log::Hour;
use twice_log::archive::{BillingPath, ManifestIndex};

use super::due::{DueSettings, Sightings};
use super::handle::ReconcilerDeps;
use super::hour_actor::HourActor;
use super::messages::{CloseHour, GetStatus, ReconcileDue, ReconcileHour, StepBegun, Stop, Trigger};
use super::progress::{HourReport, ProgressEvent, ProgressSender, ReconcilerStatus, Step};
use super::queue::{Failures, Order, Queue, Waiter, Wanted};
use crate::config::ReconcilerConfig;
use crate::error::{Error, Result, describe};
use crate::metrics;

/// Messages are requests of people and the steps of one hour: a few at a time. More wait in their senders.
const MAILBOX_CAPACITY: usize = 64;
/// Runs looked up at once while looking for ones a crash left open.
const LOOKUPS_AT_ONCE: usize = 16;

/// Closes hours by the clock and on request, one at a time.
pub struct ReconcilerActor {
    config: ReconcilerConfig,
    deps: ReconcilerDeps,
    index: Arc<Mutex<ManifestIndex>>,
    sightings: Arc<Mutex<Sightings>>,
    queue: Queue,
    running: Option<Running>,
    failures: Failures,
    /// Whether a look for due hours is under way; one is enough.
    looking: bool,
    /// Whether the runs that a crash may have left open were looked up.
    open_runs_known: bool,
    newest_reconciled: Option<Hour>,
    schedule_error: Option<String>,
}

struct Running {
    order: Order,
    step: Option<Step>,
}

impl ReconcilerActor {
    /// Makes the actor; nothing runs before it is started.
    pub fn new(config: ReconcilerConfig, deps: ReconcilerDeps) -> Self {
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
            open_runs_known: false,
            newest_reconciled: None,
            schedule_error: None,
        }
    }

    fn look(&self) -> Look {
        Look {
            deps: self.deps.clone(),
            index: Arc::clone(&self.index),
            sightings: Arc::clone(&self.sightings),
            settings: DueSettings {
                close_delay_ms: ms(self.config.close_delay_ms),
                backfill_quiet_ms: ms(self.config.backfill_quiet_ms),
            },
            open_runs: !self.open_runs_known,
        }
    }

    fn tick(&mut self, context: &mut Context<Self>) {
        if self.looking {
            return;
        }
        self.looking = true;
        let look = self.look();
        let looked = look.due().into_actor(self).map(|due, actor, context| {
            actor.looking = false;
            match due {
                Ok(hours) => {
                    actor.schedule_error = None;
                    actor.open_runs_known = true;
                    actor.enqueue_due(&hours);
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

    fn enqueue_due(&mut self, hours: &[Hour]) {
        let now = self.deps.clock.now();
        let running = self.running.as_ref().map(|running| running.order.hour);
        for hour in hours.iter().filter(|hour| Some(**hour) != running && self.failures.may_try(**hour, now))
        {
            self.queue.push(Wanted::hourly(*hour), None);
        }
        ::metrics::gauge!(metrics::HOURS_WAITING).set(self.queue.hours().len() as f64);
    }

    fn start_next(&mut self, context: &mut Context<Self>) {
        if self.running.is_some() {
            return;
        }
        let Some(order) = self.queue.pop() else { return };
        let close = CloseHour { hour: order.hour, trigger: order.trigger, status: order.status };
        self.running = Some(Running { order, step: None });
        let steps = context.address().recipient();
        let hour_actor =
            HourActor::new(self.config.clone(), self.deps.clone(), Arc::clone(&self.index), steps).start();
        let closed = async move {
            // The address lives in this future: dropping it ends the HourActor, and its child process.
            let closed = hour_actor.send(close).await;
            closed.unwrap_or(Err(Error::Stopped))
        };
        context.spawn(closed.into_actor(self).map(Self::ended));
    }

    fn ended(result: Result<HourReport>, actor: &mut Self, context: &mut Context<Self>) {
        let Some(Running { order, .. }) = actor.running.take() else { return };
        let hour = order.hour;
        match &result {
            Ok(report) => {
                tracing::info!(%hour, run = %report.run_id, rows = report.rows, "hour closed");
                actor.failures.closed(hour);
                actor.newest_reconciled = actor.newest_reconciled.max(Some(hour));
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

fn ms(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// One look for hours to close.
struct Look {
    deps: ReconcilerDeps,
    index: Arc<Mutex<ManifestIndex>>,
    sightings: Arc<Mutex<Sightings>>,
    settings: DueSettings,
    open_runs: bool,
}

impl Look {
    /// Returns the hours due now, oldest first.
    async fn due(self) -> Result<Vec<Hour>> {
        let grown = {
            let mut index = self.index.lock().await;
            index.refresh().await?;
            index.click_hours().clone()
        };
        let mut due = BTreeSet::new();
        if let (Some((first, _)), Some((last, _))) = (grown.first_key_value(), grown.last_key_value()) {
            let billed =
                self.deps.billing.billed_hours(Some(BillingPath::Lambda), *first, last.plus(1)).await?;
            let billed: BTreeSet<Hour> = billed.into_iter().collect();
            let now = self.deps.clock.now();
            due.extend(self.sightings.lock().await.due(&grown, &billed, now, self.settings));
        }
        if self.open_runs {
            due.extend(self.hours_of_open_runs().await?);
        }
        Ok(due.into_iter().collect())
    }

    /// Finds hours whose newest run has no result: a crash came between inputs and result (G-4).
    async fn hours_of_open_runs(&self) -> Result<Vec<Hour>> {
        let archive = &self.deps.archive;
        let hours = archive.run_hours(BillingPath::Lambda).await?;
        let mut lookups = futures::stream::iter(hours)
            .map(|hour| async move { (hour, archive.latest_run(BillingPath::Lambda, hour).await) })
            .buffered(LOOKUPS_AT_ONCE);
        let mut open = Vec::new();
        while let Some((hour, run)) = lookups.next().await {
            if run?.is_some_and(|run| run.result.is_none()) {
                open.push(hour);
            }
        }
        Ok(open)
    }
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
        let waiter = Waiter { progress: request.progress, reply: request.reply };
        self.queue.push(Wanted::request(request.hour), Some(waiter));
        self.start_next(context);
    }
}

impl Handler<ReconcileDue> for ReconcilerActor {
    type Result = ();

    fn handle(&mut self, request: ReconcileDue, context: &mut Self::Context) {
        let ReconcileDue { progress, reply } = request;
        let looked = self.look().due().into_actor(self).map(move |due, actor, context| match due {
            Ok(hours) => {
                let answers = actor.enqueue_watched(&hours, progress.as_ref());
                actor.start_next(context);
                context.spawn(collect(answers, reply).into_actor(actor));
            }
            Err(error) => {
                // Whoever asked is gone: nobody is left to tell.
                let _ = reply.send(Err(error));
            }
        });
        context.spawn(looked);
    }
}

impl ReconcilerActor {
    fn enqueue_watched(
        &mut self,
        hours: &[Hour],
        progress: Option<&ProgressSender>,
    ) -> Vec<oneshot::Receiver<Result<HourReport>>> {
        let watch = |hour: &Hour| {
            let (reply, answer) = oneshot::channel();
            let waiter = Waiter { progress: progress.cloned(), reply };
            match &mut self.running {
                // A run under way is watched, not repeated.
                Some(running) if running.order.hour == *hour => running.order.waiters.push(waiter),
                _ => self.queue.push(Wanted::hourly(*hour), Some(waiter)),
            }
            answer
        };
        hours.iter().map(watch).collect()
    }
}

async fn collect(
    answers: Vec<oneshot::Receiver<Result<HourReport>>>,
    reply: oneshot::Sender<Result<Vec<HourReport>>>,
) {
    let mut reports = Vec::new();
    let mut failed = None;
    for answer in answers {
        match answer.await.unwrap_or(Err(Error::Stopped)) {
            Ok(report) => reports.push(report),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let _ = reply.send(failed.map_or(Ok(reports), Err));
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
