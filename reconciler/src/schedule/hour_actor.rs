//! Closes one hour: a thin shell around the steps, so that a dropped attempt ends with it.

use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::Mutex;
use twice_log::Hour;
use twice_log::archive::ManifestIndex;

use super::handle::ReconcilerDeps;
use super::messages::{CloseHour, StepBegun};
use super::progress::{HourReport, Step};
use crate::config::ReconcilerConfig;
use crate::error::Result;

/// Runs the steps of one attempt at one hour; its parent makes a new one for each.
pub struct HourActor {
    work: HourWork,
}

/// What the steps work with.
#[derive(Clone)]
pub(super) struct HourWork {
    pub(super) config: ReconcilerConfig,
    pub(super) deps: ReconcilerDeps,
    pub(super) index: Arc<Mutex<ManifestIndex>>,
    /// `None`: nobody listens.
    steps: Option<Recipient<StepBegun>>,
}

impl HourWork {
    /// Makes what works on hours beside the schedule; its steps are told to nobody.
    pub(super) fn beside_the_schedule(
        config: ReconcilerConfig,
        deps: ReconcilerDeps,
        index: Arc<Mutex<ManifestIndex>>,
    ) -> Self {
        Self { config, deps, index, steps: None }
    }

    /// Says which step begins. A parent too busy to hear it misses a line of progress and nothing else.
    pub(super) fn begin(&self, hour: Hour, step: Step) {
        tracing::debug!(%hour, ?step, "step begins");
        if let Some(steps) = &self.steps {
            let _ = steps.try_send(StepBegun { hour, step });
        }
    }
}

impl HourActor {
    /// Makes the actor of one attempt.
    pub fn new(
        config: ReconcilerConfig,
        deps: ReconcilerDeps,
        index: Arc<Mutex<ManifestIndex>>,
        steps: Recipient<StepBegun>,
    ) -> Self {
        Self { work: HourWork { config, deps, index, steps: Some(steps) } }
    }
}

impl Actor for HourActor {
    type Context = Context<Self>;
}

impl Handler<CloseHour> for HourActor {
    type Result = ResponseFuture<Result<HourReport>>;

    fn handle(&mut self, order: CloseHour, _context: &mut Self::Context) -> Self::Result {
        let work = self.work.clone();
        Box::pin(async move { work.close(&order).await })
    }
}
