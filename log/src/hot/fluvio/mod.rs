//! The hot log on a Fluvio cluster.
//!
//! Guarantee (G-1): an append that resolved is in the log of the partition's leader, or, with replication, in those of
//! all replicas in sync. A lone server keeps it through its own death, not through power loss: Fluvio does not sync its
//! files on append. Reading passes over no record, whatever an answer leaves out.
//! Words: *SC* = the cluster's controller; *SPU* = a server that holds partitions; *batch* = the unit Fluvio stores.
//! Flow: append -> `append` (one task a partition) -> leader; `read` -> `read` (checked) <- leader; `tips` wakes readers.
//!
//! This speaks Fluvio's protocol through the crates below its client, not through the client's producer and consumer.
//! Its consumer drops the batch an answer was cut in and goes on behind it; its producer waits without end for a server
//! that is down, and sends later what its caller was told had failed. Topics and TLS are the client's.

mod append;
mod batch;
mod cluster;
mod config;
mod counters;
pub(crate) mod fuzzing;
mod poll;
mod read;
#[cfg(test)]
mod tests;
mod tips;
mod topics;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fluvio::Isolation;
use tokio::sync::{mpsc, oneshot};

pub use self::config::FluvioConfig;
pub use self::counters::FluvioCounters;

use self::append::{AppendRules, Appender, Budget, Part};
use self::cluster::{Cluster, Link, Slot, unavailable};
use self::read::{Found, FromLeader, Reader};
use self::tips::Tips;
use self::topics::{Shape, Wanted};
use super::{AppendRecord, ClickLog, OffsetBounds, ReadBatch};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Clock, Generation, LogOffset, PartitionId, Topic};

/// Largest record, as in the embedded log.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;
/// The only generation: a cluster's topics keep their partition count.
const GENERATION: Generation = Generation(0);

/// How long a noted end waits for the cluster, beyond what a leader may lag; and between two looks.
const NOTE_LIMIT: Duration = tips::BEHIND_LIMIT.saturating_add(Duration::from_secs(5));
const NOTE_PAUSE: Duration = Duration::from_millis(100);

type ReaderOfLeader = Reader<FromLeader>;

/// The [`ClickLog`] on a Fluvio cluster.
///
/// An append whose future is dropped may still be stored.
pub struct FluvioLog {
    parts: Arc<Parts>,
    partitions: u32,
    budget: Arc<Budget>,
    /// By index of the partition; empty where the log is open for reading alone.
    appenders: Vec<mpsc::UnboundedSender<Part>>,
    /// Threads of its own: requests end in order even where the caller's thread goes away. `None` once dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

/// What appending, reading and polling share.
struct Parts {
    cluster: Arc<Cluster>,
    tips: Arc<Tips>,
    /// By index of the partition.
    readers: Vec<ReaderOfLeader>,
    /// Of each partition, as its topic was created.
    copies: u32,
    counters: Arc<FluvioCounters>,
}

impl Parts {
    fn reader(&self, slot: Slot) -> Result<&ReaderOfLeader> {
        Ok(&self.readers[self.tips.index(slot)?])
    }
}

impl FluvioLog {
    /// Opens the log for writing and reading; topics that are absent are created with `partitions` partitions.
    ///
    /// # Errors
    /// `Config` that says what to do: a setting out of bounds, no cluster named, none that answers, a topic with
    /// another partition count.
    pub async fn open(config: &FluvioConfig, partitions: u32, clock: Arc<dyn Clock>) -> Result<Self> {
        let mut log = Self::connect(config, Wanted::Partitions(partitions)).await?;
        let rules = AppendRules {
            batch_bytes_max: config.batch_bytes_max as usize,
            linger: Duration::from_millis(config.linger_ms),
            isolation: isolation(log.parts.copies),
            request_timeout: Duration::from_millis(config.request_timeout_ms),
            append_timeout: Duration::from_millis(config.append_timeout_ms),
        };
        let tasks = log.tasks();
        for slot in log.parts.tips.all() {
            let (sender, queue) = mpsc::unbounded_channel(); // bounded by the budget
            log.appenders.push(sender);
            let appender = Appender {
                link: Link::new(log.parts.cluster.clone(), slot),
                rules,
                queue,
                tips: log.parts.tips.clone(),
                counters: log.parts.counters.clone(),
                clock: clock.clone(),
            };
            tasks.spawn(appender.run());
        }
        Ok(log)
    }

    /// Opens the log for reading alone, with the partitions it has; creates nothing.
    ///
    /// # Errors
    /// As [`FluvioLog::open`]; `Config` too if there is no such topic.
    pub async fn open_reader(config: &FluvioConfig) -> Result<Self> {
        Self::connect(config, Wanted::Existing).await
    }

    async fn connect(config: &FluvioConfig, wanted: Wanted) -> Result<Self> {
        config.validate()?;
        let target = config.cluster()?; // before there is a runtime: dropping one in a task panics
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fluvio-log")
            .enable_all()
            .build()
            .map_err(|error| unavailable("start its threads", error))?;
        let cluster = Arc::new(Cluster::new(config, target, runtime.handle().clone()));
        let mut log = Self {
            parts: Arc::new(Parts {
                cluster: cluster.clone(),
                tips: Tips::new(0),
                readers: Vec::new(),
                copies: 0,
                counters: Arc::default(),
            }),
            partitions: 0,
            budget: Budget::new(config.waiting_bytes_max),
            appenders: Vec::new(),
            runtime: Some(runtime), // held from here on: its drop here panics in no task
        };
        let Shape { partitions, copies } = topics::prepare(&cluster, config, wanted).await?;
        log.partitions = partitions;
        let tips = Tips::new(log.partitions);
        let counters = log.parts.counters.clone();
        let reader = |slot| {
            let source = FromLeader { link: Link::new(cluster.clone(), slot), isolation: isolation(copies) };
            Reader::new(slot, source, config.fetch_bytes_max, counters.clone())
        };
        let readers = tips.all().map(reader).collect();
        log.parts =
            Arc::new(Parts { cluster: cluster.clone(), tips, readers, copies, counters: counters.clone() });
        log.tasks().spawn(poll::run(log.parts.clone(), Duration::from_millis(config.poll_ms)));
        Ok(log)
    }

    fn tasks(&self) -> tokio::runtime::Handle {
        self.parts.cluster.tasks()
    }

    /// Returns counts of what reading and appending met since the log was opened.
    pub fn counters(&self) -> Arc<FluvioCounters> {
        self.parts.counters.clone()
    }

    async fn out_of_range(&self, slot: Slot, offset: LogOffset, objection: &str) -> Result<ReadBatch> {
        let OffsetBounds { earliest, end } = poll::bounds(&self.parts, slot).await?;
        if offset == end {
            return Ok(ReadBatch::default());
        }
        let Slot { topic, partition } = slot;
        if (earliest..end).contains(&offset) {
            let source =
                format!("nothing came at {offset}, which lies within {earliest} and {end}: {objection}");
            return Err(unavailable(format!("read {slot}"), source));
        }
        Err(Error::OutOfRange { topic, partition, offset, earliest, end })
    }
}

/// With copies, a record counts when all in sync have it; alone, when the leader has it.
fn isolation(copies: u32) -> Isolation {
    if copies > 1 { Isolation::ReadCommitted } else { Isolation::ReadUncommitted }
}

#[async_trait]
impl ClickLog for FluvioLog {
    fn generation(&self) -> Generation {
        GENERATION
    }

    fn partitions(&self) -> u32 {
        self.partitions
    }

    async fn append(&self, topic: Topic, records: Vec<AppendRecord>) -> Result<()> {
        if self.appenders.is_empty() {
            return Err(Error::Config { reason: "the log is open for reading alone".to_owned() });
        }
        let mut parts: Vec<(usize, Vec<bytes::Bytes>, usize)> = Vec::new();
        for AppendRecord { partition, bytes } in records {
            let slot = Slot { topic, partition };
            self.parts.tips.known(slot)?; // there is such a partition, and it lost nothing
            if bytes.len() > RECORD_BYTES_MAX {
                let (bytes, max) = (bytes.len(), RECORD_BYTES_MAX);
                return Err(Error::Config {
                    reason: format!("a record of {bytes} bytes is too large; at most {max} are stored"),
                });
            }
            let (index, stored) = (self.parts.tips.index(slot)?, batch::stored_bytes_max(&bytes));
            match parts.iter_mut().find(|(other, ..)| *other == index) {
                Some((_, records, total)) => {
                    records.push(bytes);
                    *total += stored;
                }
                None => parts.push((index, vec![bytes], stored)),
            }
        }
        let total: usize = parts.iter().map(|(.., bytes)| bytes).sum();
        // One decision for the whole call: either all of it waits, or nothing was stored.
        let mut room = self.budget.take(total as u64)?;
        let since = tokio::time::Instant::now();
        let mut outcomes = Vec::with_capacity(parts.len());
        for (index, records, bytes) in parts {
            let (outcome, resolved) = oneshot::channel();
            let part = Part { records, bytes, since, outcome, _room: room.split(bytes as u64) };
            self.appenders[index].send(part).map_err(|_| Error::Stopped)?;
            outcomes.push(resolved);
        }
        let mut all = Ok(());
        for outcome in outcomes {
            all = all.and(outcome.await.unwrap_or(Err(Error::Stopped)));
        }
        all
    }

    async fn read(
        &self,
        topic: Topic,
        partition: PartitionId,
        from: LogOffset,
        bytes_max: usize,
    ) -> Result<ReadBatch> {
        let slot = Slot { topic, partition };
        let known = self.parts.tips.known(slot)?;
        if from.0 < 0 {
            return self.out_of_range(slot, from, "negative").await;
        }
        match self.parts.reader(slot)?.read(from, bytes_max).await? {
            Found::Records(records) => {
                if let Some((last, _)) = records.last() {
                    self.parts.tips.raise(slot, last.next())?;
                }
                Ok(ReadBatch { records })
            }
            // Whether it is the end, and of which log, is for the ends to say.
            Found::End if known == Some(from) => Ok(ReadBatch::default()),
            Found::End => self.out_of_range(slot, from, "no objection").await,
            Found::Refused(code) => self.out_of_range(slot, from, &code.to_string()).await,
        }
    }

    async fn wait_for(&self, topic: Topic, partition: PartitionId, offset: LogOffset) -> Result<()> {
        self.parts.tips.wait_for(Slot { topic, partition }, offset).await
    }

    async fn bounds(&self, topic: Topic, partition: PartitionId) -> Result<OffsetBounds> {
        poll::bounds(&self.parts, Slot { topic, partition }).await
    }

    /// Waits for a leader that may only lag; one that stays behind, or gives an offset again, is refused for good.
    async fn note_end(&self, topic: Topic, partition: PartitionId, end: LogOffset) -> Result<()> {
        let slot = Slot { topic, partition };
        self.parts.tips.raise(slot, end)?; // from here on an append that is stored below it is found out
        let begun = tokio::time::Instant::now();
        loop {
            match poll::bounds(&self.parts, slot).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() != ErrorKind::Retry => return Err(error),
                Err(error) if begun.elapsed() >= NOTE_LIMIT => {
                    tracing::warn!(%topic, %partition, %end, %error, "whether the log reaches this far is not known yet");
                    return Ok(());
                }
                Err(_) => tokio::time::sleep(NOTE_PAUSE).await,
            }
        }
    }

    /// Does nothing: Fluvio drops records by the age and size its topics are created with.
    async fn trim(&self, topic: Topic, partition: PartitionId, _before: LogOffset) -> Result<()> {
        self.parts.tips.index(Slot { topic, partition }).map(|_| ())
    }
}

impl Drop for FluvioLog {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
