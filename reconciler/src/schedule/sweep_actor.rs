//! The sweeps of the root actor: by the clock and on request, never beside a run.
//!
//! Guarantee: a sweep's record is put when the run of every hour it touched has ended; hours whose run failed are owed by
//! it, so that they do not keep the others' work from counting. A sweep whose look failed, or that was killed, begins anew
//! from the record before. Flow: wanted -> look (in place of a run) -> touched hours queue up -> record.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::oneshot;
use twice_log::UtcMillis;

use super::messages::SweepNow;
use super::progress::{ProgressEvent, ProgressSender, SweepReport};
use super::queue::{Wanted, is_time};
use super::reconciler_actor::{ReconcilerActor, ms};
use super::sweep::{SweepLook, Touched, due_at};
use crate::error::{Error, Result, describe};
use crate::metrics;

/// Pause after a sweep that failed, milliseconds; doubled with each failure in a row, up to the interval of sweeps: an hour
/// that cannot be run must not have all be looked through for ever.
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
    /// Of the schedule's, since one went well.
    failures_in_a_row: u32,
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
        let (now, interval) = (self.deps.clock.now(), ms(self.config.sweep_interval_ms));
        let is_due = self.sweeps.next_at.is_none_or(|next| is_time(next, now, interval));
        if self.config.nightly_close && is_due && !self.sweeps.is_scheduled {
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
        let (hours, mut report) = (touched.hours.clone(), touched.report.clone());
        tracing::info!(hours = hours.len(), ?report, "swept for later events of billed hours");
        ::metrics::gauge!(metrics::VERDICTS_WITHOUT_CLICK).set(report.verdicts_without_click as f64);
        if let Some(progress) = &asked.progress {
            let _ = progress.send(ProgressEvent::Note { detail: summary(&report, hours.len()) });
        }
        tell_refused(&touched, asked.progress.as_ref());
        let wanted = hours.iter().map(|hour| match asked.reply {
            Some(_) => Wanted::requested_restatement(*hour),
            None => Wanted::restated(*hour),
        });
        let answers = self.enqueue_watched(wanted, asked.progress.as_ref());
        let archive = self.deps.archive.clone();
        let ended = async move {
            let (mut owed, mut failed) = (BTreeSet::new(), None);
            for (hour, answer) in hours.into_iter().zip(answers) {
                match answer.await.unwrap_or(Err(Error::Stopped)) {
                    Ok(done) => report.hours.push(done),
                    Err(error) => {
                        owed.insert(hour);
                        failed = failed.or(Some(error));
                    }
                }
            }
            if let Some(record) = touched.record(&owed) {
                archive.put_sweep(&record).await?;
            }
            failed.map_or(Ok::<SweepReport, Error>(report), Err)
        };
        context.spawn(ended.into_actor(self).map(|ended, actor, _| actor.sweep_ended(asked, ended)));
    }

    fn sweep_ended(&mut self, asked: Asked, ended: Result<SweepReport>) {
        let (interval, maturity) = (ms(self.config.sweep_interval_ms), ms(self.config.verdict_maturity_ms));
        let now = self.deps.clock.now();
        let outcome = if ended.is_ok() { "done" } else { "failed" };
        ::metrics::counter!(metrics::SWEEPS_TOTAL, "outcome" => outcome).increment(1);
        if let Err(error) = &ended {
            tracing::warn!(error = %describe(error), "sweep failed, what it left is tried again");
        }
        match (asked.reply, ended) {
            (None, Ok(_)) => {
                self.sweeps.is_scheduled = false;
                self.sweeps.failures_in_a_row = 0;
                self.sweeps.next_at = Some(due_at(now, interval, maturity).plus_ms(interval));
            }
            (None, Err(_)) => {
                self.sweeps.is_scheduled = false;
                self.sweeps.next_at = Some(now.plus_ms(pause_ms(self.sweeps.failures_in_a_row, interval)));
                self.sweeps.failures_in_a_row = self.sweeps.failures_in_a_row.saturating_add(1);
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

/// Returns how long the schedule waits after a failure with so many before it in a row.
fn pause_ms(failures_before: u32, interval_ms: i64) -> i64 {
    PAUSE_MS.saturating_mul(1_i64 << failures_before.min(32)).min(interval_ms)
}

/// Says which hours have events that came too late for any bill. Never silent: each is warned of until its events are gone.
fn tell_refused(touched: &Touched, progress: Option<&ProgressSender>) {
    let refused_ever = touched.record.as_ref().map_or(0, |record| record.refused.len());
    ::metrics::gauge!(metrics::RESTATEMENTS_REFUSED_HOURS).set(refused_ever as f64);
    for (hour, why) in &touched.refused {
        tracing::warn!(%hour, why, "later clicks, verdicts or rates of a billed hour are in no bill");
        if let Some(progress) = progress {
            let detail = format!(
                "{hour} has later clicks, verdicts or rates, and can no longer be counted: {why}; its bill stands"
            );
            let _ = progress.send(ProgressEvent::Note { detail });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_after_failed_sweeps_double_up_to_the_interval() {
        let day = 86_400_000;
        let pauses: Vec<i64> = (0..3).map(|failures| pause_ms(failures, day) / 60_000).collect();
        assert_eq!(pauses, [10, 20, 40]);
        assert_eq!((pause_ms(8, day), pause_ms(u32::MAX, day)), (day, day));
    }
}
