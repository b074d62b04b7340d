//! Brings held records into the log, in the order in which they came, at a bounded rate.
//!
//! Guarantee: a record is given up only after the log acknowledged it. A crash in between appends it once more (CR-1).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::entry::Entry;
use super::queue::{SpoolQueue, UnderWay};
use super::spooling::Spooling;
use crate::error::{Error, Result};
use crate::event::{PartitionId, Topic};
use crate::hot::AppendRecord;

/// How often an empty queue is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often a queue that does not open is tried.
const MEND_EVERY: Duration = Duration::from_secs(2);
/// Records appended in one call: small, so that a call that fails repeats little.
const CHUNK_BYTES: usize = 256 * 1024;
/// Longer than for a request: nobody waits for the answer, and giving up means storing the chunk twice.
const APPEND_WITHIN: Duration = Duration::from_secs(15);

/// Pause after a chunk that failed, doubled by each that fails after it: each may store records twice.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// When a queue is drained again after failures.
#[derive(Default)]
struct Pace {
    failures: u32,
    until: Option<Instant>,
}

impl Pace {
    fn is_pause(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    fn failed(&mut self) {
        let pause = PAUSE.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(Instant::now() + pause);
    }
}

impl Spooling {
    /// Drains both queues and opens those that broke, until the task is dropped.
    pub async fn drain(self: Arc<Self>) {
        // A queue that broke is opened while the other one drains, however long that lasts.
        tokio::join!(self.drain_queues(), self.mend_queues());
    }

    async fn mend_queues(&self) {
        let mut every = tokio::time::interval(MEND_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            for queue in self.queues() {
                queue.mend().await;
            }
        }
    }

    async fn drain_queues(&self) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut spool_pace, mut spill_pace) = (Pace::default(), Pace::default());
        loop {
            every.tick().await;
            if let Some(spool) = &self.spool {
                self.drain_queue(spool, self.config.spool_drain_rate, &mut spool_pace, || true).await;
            }
            // Over a limit comes after what was within it.
            let may_spill = || {
                !self.spill_paused.load(Ordering::Relaxed)
                    && self.spool.as_ref().is_none_or(|spool| spool.is_empty())
            };
            if let Some(spill) = &self.spill {
                self.drain_queue(spill, self.config.spill_drain_rate, &mut spill_pace, may_spill).await;
            }
        }
    }

    /// Drains one queue until it is empty, the log does not take more, or `may` says no.
    async fn drain_queue(
        &self,
        queue: &SpoolQueue,
        records_per_s: u32,
        pace: &mut Pace,
        may: impl Fn() -> bool,
    ) {
        let mut drained = 0;
        let may = || may() && !self.drain_paused.load(Ordering::Relaxed) && queue.is_open();
        while may() && !queue.is_empty() && !pace.is_pause() {
            match self.drain_chunk(queue).await {
                Ok(0) => break,
                Ok(records) => {
                    *pace = Pace::default();
                    drained += records;
                    let pause = Duration::from_secs_f64(records as f64 / f64::from(records_per_s));
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    warn!(error = super::chain(&error), "held records stay where they are for now");
                    pace.failed();
                }
            }
        }
        if drained > 0 && queue.is_empty() {
            info!(queue = queue.status().name, records = drained, "the queue is drained");
        }
    }

    /// Appends the oldest records of a queue to the log and gives them up; returns how many: none where there are none, or
    /// where the log is not to be asked yet. What the log has of them is not appended again while the rest waits.
    ///
    /// # Errors
    /// Those of the queue and of the log: the records are still held.
    pub async fn drain_chunk(&self, queue: &SpoolQueue) -> Result<usize> {
        if !self.breaker.wait(Instant::now()).is_zero() {
            return Ok(0);
        }
        let mut under_way = queue.under_way.lock().await;
        let begun = under_way.take().filter(|begun| queue.is_current(&begun.peeked));
        let UnderWay { peeked, rest } = match begun {
            Some(begun) => begun,
            None => {
                let peeked = queue.peek(CHUNK_BYTES).await?;
                let rest = by_place(&peeked.entries);
                UnderWay { peeked, rest }
            }
        };
        // Only now: a probe of the log that is not used is one that a sender does not get.
        if rest.is_empty() || !self.breaker.allow(Instant::now()) {
            *under_way = (!rest.is_empty()).then_some(UnderWay { peeked, rest });
            return Ok(0);
        }
        let appends = rest.into_iter().map(|(topic, records)| async move {
            let appended = self.append_within(APPEND_WITHIN, topic, records.clone()).await;
            appended.map_err(|failure| ((topic, records), failure))
        });
        let failed: Vec<_> =
            futures::future::join_all(appends).await.into_iter().filter_map(Result::err).collect();
        let (rest, mut failures): (Vec<_>, Vec<Error>) = failed.into_iter().unzip();
        if let Some(failure) = failures.pop() {
            *under_way = Some(UnderWay { peeked, rest });
            return Err(failure);
        }
        let records = peeked.entries.len();
        queue.advance(peeked).await?;
        Ok(records)
    }
}

/// Sorts records by where they go: what one place does not take holds up no other.
fn by_place(entries: &[Entry]) -> Vec<(Topic, Vec<AppendRecord>)> {
    let mut places: BTreeMap<(&str, PartitionId), (Topic, Vec<AppendRecord>)> = BTreeMap::new();
    for Entry { topic, partition, bytes, .. } in entries {
        let place = places.entry((topic.name(), *partition)).or_insert((*topic, Vec::new()));
        place.1.push(AppendRecord { partition: *partition, bytes: bytes.clone() });
    }
    places.into_values().collect()
}
