//! Starts replays, for the API.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::{Semaphore, mpsc};
use twice_api::ports as api;
use twice_reconciler::{ReconcilerHandle, ReplayEvent, ReplayOrder};

/// Replays one range at a time.
pub struct ReplayStarts {
    reconciler: ReconcilerHandle,
    turn: Arc<Semaphore>,
}

impl ReplayStarts {
    pub fn new(reconciler: ReconcilerHandle) -> Self {
        Self { reconciler, turn: Arc::new(Semaphore::new(1)) }
    }
}

#[async_trait]
impl api::ReplayControl for ReplayStarts {
    async fn start(
        &self,
        request: api::ReplayRequest,
    ) -> Result<BoxStream<'static, api::ReplayEvent>, api::PortError> {
        let Ok(turn) = self.turn.clone().try_acquire_owned() else {
            let reason = "another replay is under way; wait for its end".to_owned();
            return Err(api::PortError::Conflict { reason });
        };
        let order = ReplayOrder { from: request.from, to: request.to, mode_change: request.restate };
        let (sender, receiver) = mpsc::unbounded_channel();
        let reconciler = self.reconciler.clone();
        // A task of its own: a client that goes away must not stop what it started.
        self.reconciler.spawn(async move {
            reconciler.replay(order, sender).await;
            drop(turn);
        });
        let next = async |mut receiver: mpsc::UnboundedReceiver<ReplayEvent>| {
            receiver.recv().await.map(|progress| (event(progress), receiver))
        };
        Ok(stream::unfold(receiver, next).chain(stream::iter([api::ReplayEvent::Ended])).boxed())
    }
}

fn event(event: ReplayEvent) -> api::ReplayEvent {
    match event {
        ReplayEvent::Progress(progress) => api::ReplayEvent::Progress {
            copies_done: progress.copies_done,
            copies_total: progress.copies_total,
            slices_done: progress.slices_done,
            slices_total: progress.slices_total,
        },
        ReplayEvent::Done(report) => api::ReplayEvent::Done {
            hour: report.hour,
            outcome: report.outcome,
            run_id: report.run_id,
            rows: report.rows,
            rows_written: report.rows_written,
            differing: report.differing,
        },
        ReplayEvent::Failed { hour, detail } => api::ReplayEvent::Failed { hour, detail },
    }
}
