//! Appending: one task a partition gathers calls while the request before them is under way, and tries again.
//!
//! Guarantee: records of one call go into one request, which the server stores under one lock: they are contiguous. A
//! call resolves with `Ok` when the server acknowledged all of it. Fluvio has no idempotent producer, so a request sent
//! again after an answer was lost stores its records twice; identity dedup (CR-1) absorbs that.
//! Flow: append -> budget -> queue of the partition -> group -> request -> acknowledgement -> tip, callers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fluvio::Isolation;
use fluvio::dataplane::link::ErrorCode;
use fluvio::dataplane::record::{Batch, RawRecords, RecordSet};
use fluvio_spu_schema::produce::{DefaultPartitionRequest, DefaultProduceRequest, DefaultTopicRequest};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::batch;
use super::cluster::{Link, unavailable};
use super::counters::FluvioCounters;
use super::tips::Tips;
use crate::error::{Error, Result};
use crate::event::{Clock, LogOffset};

/// Records of one call in one partition.
pub(super) struct Part {
    pub(super) records: Vec<Bytes>,
    pub(super) bytes: usize,
    /// When it was asked for: its time runs from here, also while it waits in the queue.
    pub(super) since: Instant,
    pub(super) outcome: oneshot::Sender<Result<()>>,
    /// Gives the bytes back to the budget when the part is done with.
    pub(super) _room: Room,
}

/// Bytes that wait for the cluster, over all partitions.
#[derive(Debug)]
pub(super) struct Budget {
    bytes_max: u64,
    waiting: AtomicU64,
}

/// Room taken of the budget.
pub(super) struct Room {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Room {
    /// Returns a room of `bytes` cut off this one.
    pub(super) fn split(&mut self, bytes: u64) -> Room {
        self.bytes -= bytes;
        Room { budget: self.budget.clone(), bytes }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Budget {
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes_max, waiting: AtomicU64::new(0) })
    }

    /// # Errors
    /// `Busy` if the bytes do not fit.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<Room> {
        let before = self.waiting.fetch_add(bytes, Ordering::AcqRel);
        let room = Room { budget: self.clone(), bytes };
        if before + bytes > self.bytes_max {
            return Err(Error::Busy { waiting_bytes: before }); // dropping the room gives it back
        }
        Ok(room)
    }
}

/// How groups are formed and how long they are tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct AppendRules {
    pub(super) batch_bytes_max: usize,
    pub(super) linger: Duration,
    pub(super) isolation: Isolation,
    pub(super) request_timeout: Duration,
    pub(super) append_timeout: Duration,
}

/// Batches of one request. More wait longer for their acknowledgement, fewer are more round trips.
const REQUEST_BATCHES: usize = 8;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Stores what is queued for one partition.
pub(super) struct Appender {
    pub(super) link: Link,
    pub(super) rules: AppendRules,
    pub(super) queue: mpsc::UnboundedReceiver<Part>,
    pub(super) tips: Arc<Tips>,
    pub(super) counters: Arc<FluvioCounters>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Appender {
    /// Stores until the log is dropped and the queue is empty.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let mut group = self.gather(first).await;
            answer_late(&mut group, |part| self.is_late(part, Duration::ZERO), &waited_in_vain());
            // Of a caller that went away nobody was told anything.
            group.retain(|part| !part.outcome.is_closed());
            if group.is_empty() {
                continue;
            }
            let records = group.iter().flat_map(|part| &part.records);
            let batches = batch::batches_of(records, self.rules.batch_bytes_max, self.clock.now());
            let stored = self.store(batches, &mut group).await;
            if let Err(error) = &stored {
                let slot = self.link.slot;
                tracing::warn!(topic = %slot.topic, partition = %slot.partition, %error, "records not acknowledged");
            }
            for part in group {
                let _ = part.outcome.send(shared(&stored)); // whoever waited may have gone
            }
        }
    }

    /// Says whether the part's time is up after one more `pause`.
    fn is_late(&self, part: &Part, pause: Duration) -> bool {
        part.since.elapsed() + pause > self.rules.append_timeout
    }

    /// Takes what is queued behind `first`, up to the size of a request; lingers for more only while a batch is not full.
    async fn gather(&mut self, first: Part) -> Vec<Part> {
        let request_bytes_max = self.rules.batch_bytes_max * REQUEST_BATCHES;
        let deadline = Instant::now() + self.rules.linger;
        let mut bytes = first.bytes;
        let mut group = vec![first];
        while bytes < request_bytes_max {
            let next = match self.queue.try_recv() {
                Ok(next) => Some(next),
                Err(_) if bytes >= self.rules.batch_bytes_max || self.rules.linger.is_zero() => None,
                Err(_) => tokio::time::timeout_at(deadline, self.queue.recv()).await.ok().flatten(),
            };
            let Some(next) = next else { break };
            bytes += next.bytes;
            group.push(next);
        }
        group
    }

    /// Sends the batches until the leader acknowledges them or the time of every part is up. Those whose time is up before
    /// are answered and taken out of the group; their records may still be stored, as after any such answer.
    async fn store(&self, batches: Vec<Batch<RawRecords>>, group: &mut Vec<Part>) -> Result<()> {
        let slot = self.link.slot;
        let count: usize = batches.iter().map(Batch::records_len).sum();
        let partition =
            DefaultPartitionRequest { partition_index: slot.partition.0, records: RecordSet { batches } };
        let topic = DefaultTopicRequest {
            name: self.link.cluster.topic_name(slot.topic),
            partitions: vec![partition],
            ..Default::default()
        };
        let request = DefaultProduceRequest {
            isolation: self.rules.isolation,
            timeout: self.rules.request_timeout,
            topics: vec![topic],
            ..Default::default()
        };
        let mut pause = PAUSE_MIN;
        loop {
            let known = self.tips.known(slot)?;
            let error = match self.attempt(request.clone()).await {
                Ok(first) => {
                    return self.tips.appended(slot, known, first, LogOffset(first.0 + count as i64));
                }
                Err(error @ Error::Config { .. }) => return Err(error),
                Err(error) => error,
            };
            let source = Arc::new(std::io::Error::other(error));
            answer_late(group, |part| self.is_late(part, pause), &source);
            if group.is_empty() {
                return Err(Error::AppendUnknown { source });
            }
            tracing::info!(topic = %slot.topic, partition = %slot.partition, error = %source,
                "append failed, trying again");
            self.counters.append_retried();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Sends one request and returns the offset of its first record.
    async fn attempt(&self, request: DefaultProduceRequest) -> Result<LogOffset> {
        let answer = self.link.call("append", request).await?;
        let mut partitions = answer.responses.into_iter().flat_map(|topic| topic.partitions);
        let Some(partition) = partitions.next() else {
            return Err(unavailable("append", "the answer is about no partition"));
        };
        match partition.error_code {
            ErrorCode::None => Ok(LogOffset(partition.base_offset)),
            code @ (ErrorCode::MessageTooLarge
            | ErrorCode::CompressionError
            | ErrorCode::PermissionDenied) => {
                let name = self.link.cluster.topic_name(self.link.slot.topic);
                Err(Error::Config {
                    reason: format!("the Fluvio topic {name} refuses what is appended: {code}"),
                })
            }
            code => Err(self.link.refused("append to", code).await),
        }
    }
}

/// Answers the parts whose time is up: what became of their call is unknown, other partitions may have stored theirs.
fn answer_late(group: &mut Vec<Part>, is_late: impl Fn(&Part) -> bool, source: &Arc<std::io::Error>) {
    for part in group.extract_if(.., |part| is_late(part)) {
        let _ = part.outcome.send(Err(Error::AppendUnknown { source: source.clone() }));
    }
}

fn waited_in_vain() -> Arc<std::io::Error> {
    let reason = "its time was up before its turn came, behind appends that took as long";
    Arc::new(std::io::Error::new(std::io::ErrorKind::TimedOut, reason))
}

/// Returns the outcome of a group for one more of its calls.
fn shared(outcome: &Result<()>) -> Result<()> {
    let Err(error) = outcome else { return Ok(()) };
    Err(match error {
        Error::AppendUnknown { source } => Error::AppendUnknown { source: source.clone() },
        Error::Config { reason } => Error::Config { reason: reason.clone() },
        Error::WentBackwards { topic, partition, known, end } => {
            Error::WentBackwards { topic: *topic, partition: *partition, known: *known, end: *end }
        }
        other => Error::AppendUnknown { source: Arc::new(std::io::Error::other(other.to_string())) },
    })
}
