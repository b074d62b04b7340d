//! The actor of one partition: takes commands, and starts its run again from the checkpoint whenever that fails.
//!
//! Guarantee: a failed run leaves nothing behind but the last committed checkpoint; a copy that killed two runs is left
//! out of the third, said aloud, and its hours are marked incomplete.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use actix::{Actor, Context, Handler, ResponseFuture};
use futures::FutureExt;
use hashbrown::{HashMap, HashSet};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use twice_log::LogOffset;
use twice_log::archive::StoredSeal;

use super::messages::{Command, SealHour, StopPartition};
use super::recovery;
use super::runner::{Runner, Stopped};
use super::sealing::SealRequests;
use super::setup::PartitionSetup;
use super::status::PartitionPhase;
use crate::checkpoint::{CheckpointWriter, LoadedCheckpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::PARTITION_RESTARTS_TOTAL;

/// Messages the mailbox holds: a seal an hour and a stop come seldom, several hours at once after an outage.
const MAILBOX_CAPACITY: usize = 64;
/// Deaths by one copy after which it is left out.
const DEATHS_MAX: u32 = 2;
/// An error that an operator must cure is tried again this many pauses later.
const FATAL_PAUSES: u32 = 10;

/// Runs one partition on the arbiter it is started on, together with its campaigns.
pub struct PartitionActor {
    commands: mpsc::Sender<Command>,
    supervisor: Option<Supervisor>,
}

impl PartitionActor {
    /// Takes a partition with the checkpoint it goes on from.
    pub(crate) fn new(
        setup: PartitionSetup,
        writer: CheckpointWriter,
        loaded: Option<LoadedCheckpoint>,
    ) -> Self {
        let (commands, receiver) = mpsc::channel(MAILBOX_CAPACITY);
        let supervisor = Supervisor {
            setup,
            writer: Arc::new(Mutex::new(writer)),
            loaded: Some(loaded),
            commands: receiver,
            requests: SealRequests::default(),
            deaths: HashMap::new(),
            skips: Arc::default(),
            is_history_damaged: false,
        };
        Self { commands, supervisor: Some(supervisor) }
    }

    fn command<T: 'static>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> ResponseFuture<Result<T>> {
        let (reply, answer) = oneshot::channel();
        let command = command(reply);
        let commands = self.commands.clone();
        Box::pin(async move {
            commands.send(command).await.map_err(|_| Error::Stopped)?;
            answer.await.unwrap_or(Err(Error::Stopped))
        })
    }
}

impl Actor for PartitionActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX_CAPACITY);
        if let Some(supervisor) = self.supervisor.take() {
            actix::spawn(supervisor.supervise());
        }
    }
}

impl Handler<SealHour> for PartitionActor {
    type Result = ResponseFuture<Result<StoredSeal>>;

    fn handle(&mut self, message: SealHour, _context: &mut Self::Context) -> Self::Result {
        let SealHour { hour, at_or_after } = message;
        self.command(|reply| Command::Seal { hour, at_or_after, reply })
    }
}

impl Handler<StopPartition> for PartitionActor {
    type Result = ResponseFuture<Result<()>>;

    fn handle(&mut self, _message: StopPartition, _context: &mut Self::Context) -> Self::Result {
        self.command(|reply| Command::Stop { reply })
    }
}

/// Lets one run follow the other.
struct Supervisor {
    setup: PartitionSetup,
    /// Locked while a checkpoint is written: a new run loads only after the last write of the one before.
    writer: Arc<Mutex<CheckpointWriter>>,
    /// The checkpoint loaded at start, for the first run; later ones load themselves.
    loaded: Option<Option<LoadedCheckpoint>>,
    commands: mpsc::Receiver<Command>,
    requests: SealRequests,
    deaths: HashMap<LogOffset, u32>,
    skips: Arc<HashSet<LogOffset>>,
    /// The archive failed while state was rebuilt from it: the next run does without.
    is_history_damaged: bool,
}

impl Supervisor {
    async fn supervise(mut self) {
        loop {
            // A panic in the run itself is a bug; it costs a restart and not the partition.
            let ended = AssertUnwindSafe(self.run_once()).catch_unwind().await;
            let error = match ended.unwrap_or(Err(Error::TaskDied { what: "partition" })) {
                Ok(stopped) => {
                    self.setup.report(|status| status.phase = PartitionPhase::Stopped);
                    self.requests.stop();
                    let _ = stopped.reply.send(stopped.outcome);
                    return;
                }
                Err(Error::Stopped) => return,
                Err(error) => error,
            };
            self.note_failure(&error);
            if self.pause(error.kind()).await {
                self.setup.report(|status| status.phase = PartitionPhase::Stopped);
                self.requests.stop();
                return;
            }
            self.setup.report(|status| status.restarts += 1);
            metrics::counter!(PARTITION_RESTARTS_TOTAL).increment(1);
        }
    }

    async fn run_once(&mut self) -> Result<Stopped> {
        let loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => self.load().await?,
        };
        let reader = self.writer.lock().await.reader();
        let recovered = recovery::recover(&self.setup, loaded, reader, self.is_history_damaged).await?;
        let mut runner = Runner::new(self.setup.clone(), recovered, self.writer.clone(), self.skips.clone());
        runner.run(&mut self.commands, &mut self.requests).await
    }

    async fn load(&self) -> Result<Option<LoadedCheckpoint>> {
        let mut writer = self.writer.clone().lock_owned().await;
        let generation = self.setup.parts.log.generation();
        let load = move || match writer.load(generation) {
            Err(error) if error.kind() == ErrorKind::Damage => {
                // The folder serves other partitions too, so only this one's entries go.
                tracing::warn!(partition = %writer.partition(), %error,
                    "checkpoint is damaged: cleared, the partition rebuilds from the log");
                writer.clear().map(|()| None)
            }
            loaded => loaded,
        };
        tokio::task::spawn_blocking(load)
            .await
            .map_err(|_| Error::TaskDied { what: "loading a checkpoint" })?
    }

    fn note_failure(&mut self, error: &Error) {
        tracing::error!(partition = %self.setup.partition, error = %error.with_causes(), "partition failed, starting again");
        self.setup.report(|status| status.phase = PartitionPhase::Failed(error.with_causes()));
        self.is_history_damaged = matches!(error, Error::HistoryDamaged { .. });
        if let Error::CampaignDied { offset: Some(offset), .. } = error {
            let deaths = self.deaths.entry(*offset).or_insert(0);
            *deaths += 1;
            if *deaths >= DEATHS_MAX {
                Arc::make_mut(&mut self.skips).insert(*offset);
            }
        }
    }

    /// Waits before the next run, still taking commands; returns whether the partition was stopped meanwhile.
    async fn pause(&mut self, kind: ErrorKind) -> bool {
        let pauses = if kind == ErrorKind::Fatal { FATAL_PAUSES } else { 1 };
        let until = Instant::now() + self.setup.retry_pause() * pauses;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return false,
                command = self.commands.recv() => match command {
                    Some(Command::Seal { hour, at_or_after, reply }) => {
                        self.requests.ask(hour, at_or_after, reply);
                    }
                    Some(Command::Stop { reply }) => {
                        let _ = reply.send(Ok(())); // nothing in memory: the last checkpoint stands
                        return true;
                    }
                    None => return true,
                },
            }
        }
    }
}
