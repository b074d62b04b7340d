//! The sweeps of the root actor: by the clock and on request, never beside a run.
//!
//! Guarantee: a sweep's record is put when every hour it touched was run again; a sweep that failed or was killed begins
//! anew from the record before. Flow: wanted -> look (in place of a run) -> touched hours queue up -> record.

use std::collections::VecDeque;
use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::oneshot;
use twice_log::UtcMillis;

use super::messages::SweepNow;
use super::progress::{ProgressEvent, ProgressSender, SweepReport};
use super::queue::Wanted;
use super::reconciler_actor::{ReconcilerActor, collect, ms};
use super::sweep::{SweepLook, Touched, due_at};
use crate::error::{Error, Result, describe};
use crate::metrics;

/// Pause after a sweep that failed, milliseconds.
const PAUSE_MS: i64 = 600_000;

/// A sweep that is to begin.
struct Asked {
    progress: Option<ProgressSender>,
    /// `None`: the schedule asks.
    reply: Option<oneshot::Sender<Result<SweepReport>>>,
}

/// Where the sweeps are.
#[derive(Default)]
pub struct Sweeps {
    asked: VecDeque<Asked>,
    is_looking: bool,
    /// Whether one of the schedule's is asked for or under way.
    is_scheduled: bool,
    /// When the schedule looks again; `None`: at once, the archive says whether it is time.
    next_at: Option<UtcMillis>,
}

impl Sweeps {
    /// Returns whether one looks for touched hours now: nothing else runs meanwhile.
    pub fn is_looking(&self) -> bool {
        self.is_looking
    }
}

impl ReconcilerActor {
    /// Asks for a sweep if it may be time for one.
    pub(super) fn want_sweep(&mut self) {
        let is_time = self.sweeps.next_at.is_none_or(|next| self.deps.clock.now() >= next);
        if self.config.nightly_close && is_time && !self.sweeps.is_scheduled {
            self.sweeps.is_scheduled = true;
            self.sweeps.asked.push_back(Asked { progress: None, reply: None });
        }
    }

    /// Begins the next sweep that is asked for; returns whether there was one.
    pub(super) fn start_sweep(&mut self, context: &mut Context<Self>) -> bool {
        let Some(asked) = self.sweeps.asked.pop_front() else { return false };
        self.sweeps.is_looking = true;
        let look = SweepLook {
            config: self.config.clone(),
            deps: self.deps.clone(),
            index: Arc::clone(&self.index),
            book: Arc::clone(&self.book),
            is_scheduled: asked.reply.is_none(),
        };
        let looked = look.look().into_actor(self).map(|found, actor, context| {
            actor.sweeps.is_looking = false;
            match found {
                Ok(Some(touched)) => actor.run_touched(touched, asked, context),
                Ok(None) => actor.sweep_ended(asked, Ok(SweepReport::default())),
                Err(error) => actor.sweep_ended(asked, Err(error)),
            }
            actor.start_next(context);
        });
        context.spawn(looked);
        true
    }

    fn run_touched(&mut self, touched: Touched, asked: Asked, context: &mut Context<Self>) {
        let Touched { hours, mut report, record } = touched;
        tracing::info!(hours = hours.len(), ?report, "swept for later events of billed hours");
        ::metrics::gauge!(metrics::VERDICTS_WITHOUT_CLICK).set(report.verdicts_without_click as f64);
        if let Some(progress) = &asked.progress {
            let _ = progress.send(ProgressEvent::Note { detail: summary(&report, hours.len()) });
        }
        let wanted = hours.into_iter().map(|hour| match asked.reply {
            Some(_) => Wanted::requested_restatement(hour),
            None => Wanted::restated(hour),
        });
        let answers = self.enqueue_watched(wanted, asked.progress.as_ref());
        let archive = self.deps.archive.clone();
        let ended = async move {
            report.hours = collect(answers).await?;
            if let Some(record) = record {
                archive.put_sweep(&record).await?;
            }
            Ok::<SweepReport, Error>(report)
        };
        context.spawn(ended.into_actor(self).map(|ended, actor, _| actor.sweep_ended(asked, ended)));
    }

    fn sweep_ended(&mut self, asked: Asked, ended: Result<SweepReport>) {
        let (interval, maturity) = (ms(self.config.sweep_interval_ms), ms(self.config.verdict_maturity_ms));
        let now = self.deps.clock.now();
        let outcome = if ended.is_ok() { "done" } else { "failed" };
        ::metrics::counter!(metrics::SWEEPS_TOTAL, "outcome" => outcome).increment(1);
        if let Err(error) = &ended {
            tracing::warn!(error = %describe(error), "sweep failed, it begins anew");
        }
        match (asked.reply, ended) {
            (None, Ok(_)) => {
                self.sweeps.is_scheduled = false;
                self.sweeps.next_at = Some(due_at(now, interval, maturity).plus_ms(interval));
            }
            (None, Err(_)) => {
                self.sweeps.is_scheduled = false;
                self.sweeps.next_at = Some(now.plus_ms(PAUSE_MS.min(interval)));
            }
            (Some(reply), ended) => {
                if let (Err(error), Some(progress)) = (&ended, &asked.progress) {
                    let _ = progress.send(ProgressEvent::Refused { detail: describe(error) });
                }
                // Whoever asked may be gone.
                let _ = reply.send(ended);
            }
        }
    }
}

fn summary(report: &SweepReport, hours: usize) -> String {
    let SweepReport {
        verdicts,
        verdicts_without_click,
        hours_with_clicks,
        hours_with_verdicts,
        hours_with_rates,
        ..
    } = report;
    format!(
        "{hours} hours to run again: {hours_with_clicks} with later clicks, {hours_with_verdicts} with later verdicts, \
         {hours_with_rates} with later rates; {verdicts} verdicts looked at, {verdicts_without_click} without a click \
         so far"
    )
}

impl Handler<SweepNow> for ReconcilerActor {
    type Result = ();

    fn handle(&mut self, request: SweepNow, context: &mut Self::Context) {
        let SweepNow { progress, reply } = request;
        self.sweeps.asked.push_front(Asked { progress, reply: Some(reply) });
        self.start_next(context);
    }
}
