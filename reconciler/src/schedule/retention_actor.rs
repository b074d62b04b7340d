//! Retention of the root actor: by the clock and on request, in place of a run and never beside one.
//!
//! Guarantee: nothing is counted while files are deleted. A pass does a part of what is due and then lets go: an hour that
//! has ended goes before the rest. What a pass that failed or died left is done by the next one.

use std::collections::VecDeque;
use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::{Mutex, oneshot};
use twice_log::UtcMillis;

use super::messages::RetainNow;
use super::queue::is_time;
use super::reconciler_actor::{ReconcilerActor, ms};
use super::retention::{RetentionReport, RetentionScope, RetentionWork, due_at};
use crate::error::{Result, describe};
use crate::metrics;

/// Pause after a pass that failed, milliseconds.
const PAUSE_MS: i64 = 600_000;

/// Passes asked for, until all that is due is done.
struct Asked {
    scope: RetentionScope,
    dry_run: bool,
    so_far: RetentionReport,
    /// `None`: the schedule asks.
    reply: Option<oneshot::Sender<Result<RetentionReport>>>,
}

/// Where retention is.
#[derive(Default)]
pub struct Retention {
    asked: VecDeque<Asked>,
    is_running: bool,
    /// Whether one of the schedule's is asked for or under way.
    is_scheduled: bool,
    /// When the schedule looks again; `None`: at once.
    next_at: Option<UtcMillis>,
    /// Held by whoever replays.
    replays: Arc<Mutex<()>>,
}

impl Retention {
    /// Makes what never deletes while somebody holds `replays`.
    pub fn beside(replays: Arc<Mutex<()>>) -> Self {
        Self { replays, ..Self::default() }
    }

    /// Returns whether a pass is under way: nothing else runs meanwhile.
    pub fn is_running(&self) -> bool {
        self.is_running
    }
}

impl ReconcilerActor {
    /// Asks for a pass if it may be time for one.
    pub(super) fn want_retention(&mut self) {
        let (now, interval) = (self.deps.clock.now(), ms(self.config.retention_interval_ms));
        let is_due = self.retention.next_at.is_none_or(|next| is_time(next, now, interval));
        if is_due && !self.retention.is_scheduled {
            self.retention.is_scheduled = true;
            self.retention.asked.push_back(Asked {
                scope: RetentionScope::Due,
                dry_run: false,
                so_far: RetentionReport::default(),
                reply: None,
            });
        }
    }

    /// Begins the next pass that is asked for; returns whether there was one.
    pub(super) fn start_retention(&mut self, context: &mut Context<Self>) -> bool {
        let Some(asked) = self.retention.asked.pop_front() else { return false };
        self.retention.is_running = true;
        let work = RetentionWork {
            config: self.config.clone(),
            deps: self.deps.clone(),
            index: Arc::clone(&self.index),
            book: Arc::clone(&self.book),
            replays: Arc::clone(&self.retention.replays),
        };
        let passed = async move { (work.pass(asked.scope, asked.dry_run).await, asked) };
        context.spawn(passed.into_actor(self).map(|(ended, asked), actor, context| {
            actor.retention.is_running = false;
            actor.retention_ended(asked, ended);
            actor.start_next(context);
        }));
        true
    }

    fn retention_ended(&mut self, mut asked: Asked, ended: Result<RetentionReport>) {
        let ended = match ended {
            Ok(report) if report.more => {
                asked.so_far.add(report);
                return self.retention.asked.push_back(asked);
            }
            Ok(report) => {
                let mut whole = std::mem::take(&mut asked.so_far);
                whole.dry_run = report.dry_run;
                whole.add(report);
                Ok(whole)
            }
            Err(error) => {
                tracing::warn!(error = %describe(&error), "retention failed, what it left is done by the next pass");
                ::metrics::counter!(metrics::RETENTION_FAILED_TOTAL).increment(1);
                Err(error)
            }
        };
        if let Some(reply) = asked.reply {
            // Whoever asked may be gone.
            let _ = reply.send(ended);
            return;
        }
        let (now, interval) = (self.deps.clock.now(), ms(self.config.retention_interval_ms));
        self.retention.is_scheduled = false;
        self.retention.next_at = Some(match &ended {
            Ok(_) => due_at(now, interval).plus_ms(interval),
            Err(_) => now.plus_ms(PAUSE_MS.min(interval)),
        });
        if let Ok(report) = ended {
            for kept in &report.kept {
                tracing::warn!(hour = %kept.hour, grave = %kept.grave, reason = kept.reason, "an expired hour stays");
            }
        }
    }
}

impl Handler<RetainNow> for ReconcilerActor {
    type Result = ();

    fn handle(&mut self, request: RetainNow, context: &mut Self::Context) {
        let RetainNow { scope, dry_run, reply } = request;
        let so_far = RetentionReport::default();
        self.retention.asked.push_front(Asked { scope, dry_run, so_far, reply: Some(reply) });
        self.start_next(context);
    }
}
