//! The actor of one topic and partition: a mailbox around the worker, no decision of its own.

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use tokio::sync::{mpsc, oneshot, watch};
use twice_log::LogOffset;

use super::worker::{FlushRequest, Worker};
use crate::error::{Error, Result};

/// Messages the mailbox holds: a flush for each hour being closed, of which there are a few after an outage.
const MAILBOX_CAPACITY: usize = 64;

/// Writes at once; answers when manifests cover every record below `end`.
#[derive(Debug, Message)]
#[rtype(result = "Result<()>")]
pub struct FlushThrough {
    pub end: LogOffset,
}

/// Stops reading and ends; what was gathered is read again at the next start.
#[derive(Debug, Message)]
#[rtype(result = "Result<()>")]
pub struct StopArchiver;

/// Archives one partition of one topic.
pub struct ArchiverActor {
    worker: Option<Worker>,
    flushes: mpsc::Sender<FlushRequest>,
    /// Given up once the worker is started; its receiver's end says when the worker ended.
    flush_receiver: Option<mpsc::Receiver<FlushRequest>>,
    stop: watch::Sender<bool>,
}

impl ArchiverActor {
    pub(super) fn new(worker: Worker) -> Self {
        let (flushes, flush_receiver) = mpsc::channel(MAILBOX_CAPACITY);
        let (stop, _) = watch::channel(false);
        Self { worker: Some(worker), flushes, flush_receiver: Some(flush_receiver), stop }
    }
}

impl Actor for ArchiverActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX_CAPACITY);
        if let (Some(worker), Some(flushes)) = (self.worker.take(), self.flush_receiver.take()) {
            actix::spawn(worker.run(flushes, self.stop.subscribe()));
        }
    }
}

impl Handler<FlushThrough> for ArchiverActor {
    type Result = ResponseFuture<Result<()>>;

    fn handle(&mut self, message: FlushThrough, _context: &mut Self::Context) -> Self::Result {
        let flushes = self.flushes.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let request = FlushRequest { end: message.end, reply };
            flushes.send(request).await.map_err(|_| Error::Stopped)?;
            answer.await.map_err(|_| Error::Stopped)
        })
    }
}

impl Handler<StopArchiver> for ArchiverActor {
    type Result = ResponseFuture<Result<()>>;

    fn handle(&mut self, _message: StopArchiver, _context: &mut Self::Context) -> Self::Result {
        let flushes = self.flushes.clone();
        let told = self.stop.send(true);
        Box::pin(async move {
            told.map_err(|_| Error::Stopped)?;
            flushes.closed().await;
            Ok(())
        })
    }
}
