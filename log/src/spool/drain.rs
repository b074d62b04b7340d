//! Brings held records into the log, in the order in which they came, at a bounded rate.
//!
//! Guarantee: a record is given up only after the log acknowledged it. A crash in between appends it once more (CR-1).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::entry::Entry;
use super::queue::SpoolQueue;
use super::spooling::Spooling;
use crate::error::Result;
use crate::event::Topic;
use crate::hot::AppendRecord;

/// How often an empty queue is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often a queue that does not open is tried.
const MEND_EVERY: Duration = Duration::from_secs(2);
/// Records appended in one call: small, so that a call that fails repeats little.
const CHUNK_BYTES: usize = 256 * 1024;
/// Longer than for a request: nobody waits for the answer, and giving up means storing the chunk twice.
const APPEND_WITHIN: Duration = Duration::from_secs(15);

impl Spooling {
    /// Drains both queues and opens those that broke, until the task is dropped.
    pub async fn drain(self: Arc<Self>) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut mended = Instant::now();
        loop {
            every.tick().await;
            if mended.elapsed() >= MEND_EVERY {
                mended = Instant::now();
                for queue in self.queues() {
                    queue.mend().await;
                }
            }
            if let Some(spool) = &self.spool {
                self.drain_queue(spool, self.config.spool_drain_rate, || true).await;
            }
            // Over a limit comes after what was within it.
            let may_spill = || {
                !self.spill_paused.load(Ordering::Relaxed)
                    && self.spool.as_ref().is_none_or(|spool| spool.is_empty())
            };
            if let Some(spill) = &self.spill {
                self.drain_queue(spill, self.config.spill_drain_rate, may_spill).await;
            }
        }
    }

    /// Drains one queue until it is empty, the log does not take more, or `may` says no.
    async fn drain_queue(&self, queue: &SpoolQueue, records_per_s: u32, may: impl Fn() -> bool) {
        let mut drained = 0;
        let may = || may() && !self.drain_paused.load(Ordering::Relaxed);
        while may() && !queue.is_empty() && self.breaker.allow(Instant::now()) {
            match self.drain_chunk(queue).await {
                Ok(0) => break,
                Ok(records) => {
                    drained += records;
                    let pause = Duration::from_secs_f64(records as f64 / f64::from(records_per_s));
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    warn!(error = super::chain(&error), "held records stay where they are for now");
                    break;
                }
            }
        }
        if drained > 0 && queue.is_empty() {
            info!(queue = queue.status().name, records = drained, "the queue is drained");
        }
    }

    /// Appends the oldest records of a queue to the log and gives them up; returns how many.
    ///
    /// # Errors
    /// Those of the queue and of the log: the records are still held.
    pub async fn drain_chunk(&self, queue: &SpoolQueue) -> Result<usize> {
        let peeked = queue.peek(CHUNK_BYTES).await?;
        let records = peeked.entries.len();
        if records == 0 {
            return Ok(0);
        }
        for (topic, records) in by_topic(&peeked.entries) {
            self.append_within(APPEND_WITHIN, topic, records).await?;
        }
        queue.advance(peeked).await?;
        Ok(records)
    }
}

fn by_topic(entries: &[Entry]) -> Vec<(Topic, Vec<AppendRecord>)> {
    let of = |topic| {
        let own = entries.iter().filter(move |entry| entry.topic == topic);
        own.map(|entry| AppendRecord { partition: entry.partition, bytes: entry.bytes.clone() })
            .collect::<Vec<_>>()
    };
    Topic::ALL
        .into_iter()
        .map(|topic| (topic, of(topic)))
        .filter(|(_, records)| !records.is_empty())
        .collect()
}
