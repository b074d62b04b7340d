//! Reading: every answer is checked offset by offset, and a hole is asked for again at the first missing one.
//!
//! Guarantee: the records returned are contiguous from the offset asked for; a record is never passed over. An answer
//! may end in the middle of a batch; that batch is fetched again from its start, with more room if it alone is larger.
//! Flow: read -> what is left of an earlier answer, else fetch -> check -> keep what the reader did not take.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use fluvio::Isolation;
use fluvio::dataplane::link::ErrorCode;
use fluvio::dataplane::record::RecordSet;
use fluvio::dataplane::record::{Batch, RawRecords};
use fluvio_spu_schema::fetch::{FetchPartition, FetchRequest, FetchableTopic};

use super::batch;
use super::cluster::{Link, Slot, unavailable};
use super::counters::FluvioCounters;
use crate::error::{Error, Result};
use crate::event::LogOffset;

/// How often a missing offset is asked for again, on a new connection each time, before the hole is an error.
const HOLE_ATTEMPTS_MAX: u32 = 5;
/// The most one batch can take: Fluvio's own limit of a request.
const FETCH_BYTES_LIMIT: u32 = 64 * 1024 * 1024;
/// Readers of one partition whose place is remembered: the stream, the archiver, and one who looks.
const CURSORS_MAX: usize = 3;

/// Where batches come from.
#[async_trait]
pub(super) trait Fetch: Send + Sync {
    /// Returns what lies at and behind `from`, cut at `bytes_max`.
    async fn fetch(&self, from: LogOffset, bytes_max: u32) -> Result<Fetched>;

    /// Connects anew before the next fetch.
    async fn reopen(&self);
}

/// One answer.
pub(super) struct Fetched {
    pub(super) batches: Vec<Batch<RawRecords>>,
    /// `None` where the server had no objection.
    pub(super) objection: Option<ErrorCode>,
}

/// Fetches from the leader of a partition.
pub(super) struct FromLeader {
    pub(super) link: Link,
    pub(super) isolation: Isolation,
}

#[async_trait]
impl Fetch for FromLeader {
    async fn fetch(&self, from: LogOffset, bytes_max: u32) -> Result<Fetched> {
        let Slot { topic, partition } = self.link.slot;
        let bytes_max = i32::try_from(bytes_max).unwrap_or(i32::MAX);
        let name = self.link.cluster.topic_name(topic);
        let fetch = FetchPartition {
            partition_index: partition.0,
            fetch_offset: from.0,
            max_bytes: bytes_max,
            ..Default::default()
        };
        let request = FetchRequest::<RecordSet<RawRecords>> {
            max_bytes: bytes_max,
            isolation_level: self.isolation,
            topics: vec![FetchableTopic { name: name.clone(), fetch_partitions: vec![fetch] }],
            ..Default::default()
        };
        let answer = self.link.call("read", request).await?;
        let Some(answer) = answer.find_partition(&name, partition.0) else {
            return Err(unavailable("read", "the answer is about another partition"));
        };
        match answer.error_code {
            ErrorCode::None => Ok(Fetched { batches: answer.records.batches, objection: None }),
            code @ (ErrorCode::Other(_) | ErrorCode::OffsetEvicted { .. } | ErrorCode::OffsetOutOfRange) => {
                Ok(Fetched { batches: Vec::new(), objection: Some(code) })
            }
            code => Err(self.link.refused("read", code).await),
        }
    }

    async fn reopen(&self) {
        self.link.reopen().await;
    }
}

/// What a read found.
#[derive(Debug)]
pub(super) enum Found {
    Records(Vec<(LogOffset, Bytes)>),
    /// Nothing is stored at the offset yet, says the server.
    End,
    /// The server objects to the offset.
    Refused(ErrorCode),
}

/// What one answer held.
enum Checked {
    Records(VecDeque<Bytes>),
    /// The first batch is cut: it needs more room.
    Cut,
    /// The first batch begins behind the offset asked for.
    Hole(LogOffset),
    Nothing,
}

/// Records read and not yet taken; the first has offset `next`.
struct Cursor {
    next: LogOffset,
    records: VecDeque<Bytes>,
}

/// Reads one partition.
pub(super) struct Reader<F> {
    pub(super) slot: Slot,
    pub(super) source: F,
    pub(super) fetch_bytes_max: u32,
    pub(super) counters: Arc<FluvioCounters>,
    cursors: Mutex<VecDeque<Cursor>>,
}

impl<F: Fetch> Reader<F> {
    pub(super) fn new(slot: Slot, source: F, fetch_bytes_max: u32, counters: Arc<FluvioCounters>) -> Self {
        Self { slot, source, fetch_bytes_max, counters, cursors: Mutex::default() }
    }

    /// Reads records from `from` on until about `bytes_max`, at least one if there is one.
    ///
    /// # Errors
    /// `Unavailable`; `Damage` where bytes are wrong; `Hole` if an offset stays missing.
    pub(super) async fn read(&self, from: LogOffset, bytes_max: usize) -> Result<Found> {
        let mut records = match self.take_cursor(from) {
            Some(records) => records,
            None => match self.fetch(from).await? {
                Ok(records) => records,
                Err(found) => return Ok(found),
            },
        };
        let (mut next, mut bytes, mut taken) = (from, 0, Vec::new());
        while let Some(record) = records.pop_front() {
            bytes += record.len();
            taken.push((next, record));
            next = next.next();
            if bytes >= bytes_max {
                break;
            }
        }
        if !records.is_empty() {
            self.keep_cursor(Cursor { next, records });
        }
        Ok(Found::Records(taken))
    }

    async fn fetch(&self, from: LogOffset) -> Result<Result<VecDeque<Bytes>, Found>> {
        let (mut holes, mut bytes_max) = (0, self.fetch_bytes_max);
        loop {
            let fetched = self.source.fetch(from, bytes_max).await?;
            self.counters.fetched();
            match self.check(from, fetched.batches)? {
                Checked::Records(records) => {
                    if holes > 0 {
                        self.counters.hole_repaired();
                    }
                    return Ok(Ok(records));
                }
                Checked::Cut if bytes_max < FETCH_BYTES_LIMIT => {
                    bytes_max = bytes_max.saturating_mul(4).min(FETCH_BYTES_LIMIT);
                }
                Checked::Cut => {
                    let place = self.slot;
                    let source = format!("a batch of more than {FETCH_BYTES_LIMIT} bytes");
                    return Err(unavailable(format!("read {place} at {from}"), source));
                }
                Checked::Hole(read) => {
                    holes += 1;
                    let Slot { topic, partition } = self.slot;
                    tracing::warn!(%topic, %partition, expected = %from, %read, "hole in the log, reopening");
                    if holes >= HOLE_ATTEMPTS_MAX {
                        return Err(Error::Hole { topic, partition, expected: from, read });
                    }
                    self.source.reopen().await;
                }
                Checked::Nothing => return Ok(Err(fetched.objection.map_or(Found::End, Found::Refused))),
            }
        }
    }

    /// Takes the contiguous records from `from` on, up to the first cut, changed or missing batch.
    fn check(&self, from: LogOffset, batches: Vec<Batch<RawRecords>>) -> Result<Checked> {
        let (mut expected, mut records) = (from, VecDeque::new());
        for batch in batches {
            let (first, last) = (LogOffset(batch.get_base_offset()), LogOffset(batch.get_last_offset()));
            if last < expected {
                continue; // the answer begins at an index entry at or before the offset
            }
            if first > expected {
                self.counters.hole_found();
                if records.is_empty() {
                    return Ok(Checked::Hole(first));
                }
                break;
            }
            if !batch::is_whole(&batch) {
                self.counters.batch_cut();
                if records.is_empty() {
                    return Ok(Checked::Cut);
                }
                break;
            }
            match batch::records_of(&batch) {
                Ok(found) => {
                    let before = (expected.0 - first.0) as usize; // at most the batch's records
                    records.extend(found.into_iter().skip(before));
                    expected = last.next();
                }
                Err(_) if !records.is_empty() => break, // the next read begins here and says so
                Err(reason) => {
                    let Slot { topic, partition } = self.slot;
                    let path = format!("fluvio:{topic}/{partition}").into();
                    return Err(Error::Damage { path, at: first.0 as u64, reason });
                }
            }
        }
        Ok(if records.is_empty() { Checked::Nothing } else { Checked::Records(records) })
    }

    fn take_cursor(&self, from: LogOffset) -> Option<VecDeque<Bytes>> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let index = cursors.iter().position(|cursor| cursor.next == from)?;
        cursors.remove(index).map(|cursor| cursor.records)
    }

    fn keep_cursor(&self, cursor: Cursor) {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        cursors.push_back(cursor);
        if cursors.len() > CURSORS_MAX {
            cursors.pop_front(); // of a reader that went elsewhere
        }
    }
}
