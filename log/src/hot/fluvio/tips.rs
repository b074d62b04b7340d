//! How far each partition is known to reach, and whoever waits for it to reach further.
//!
//! Guarantee: an end never goes down unseen. A leader that lags behind for a moment is waited for; one that gives an
//! offset a second time, or stays behind, has lost records, and from then on everything on that partition is refused:
//! a new record under an old offset would be taken for one already counted.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::cluster::{Slot, unavailable};
use crate::error::{Error, Result};
use crate::event::{LogOffset, PartitionId, Topic};

/// How long a leader may be behind what is known: a new one learns from its followers what is committed.
pub(super) const BEHIND_LIMIT: Duration = Duration::from_secs(15);

/// What is known of one partition's end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tip {
    /// Exclusive; `None` until the first answer.
    end: Option<LogOffset>,
    /// The end that was found below the one known.
    lost_at: Option<LogOffset>,
}

struct Partition {
    tip: watch::Sender<Tip>,
    waiting: AtomicU32,
    behind_since: Mutex<Option<Instant>>,
}

/// The known ends of all partitions of a log.
pub(super) struct Tips {
    partitions: u32,
    slots: Vec<Partition>,
    /// Wakes the poll when the first waiter comes.
    pub(super) someone_waits: Notify,
    behind_limit: Duration,
}

/// One who waits; the poll asks for the partition while there is any.
pub(super) struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Tips {
    pub(super) fn new(partitions: u32) -> Arc<Self> {
        Self::with_limit(partitions, BEHIND_LIMIT)
    }

    pub(super) fn with_limit(partitions: u32, behind_limit: Duration) -> Arc<Self> {
        let slot = |_| Partition {
            tip: watch::Sender::new(Tip::default()),
            waiting: AtomicU32::new(0),
            behind_since: Mutex::default(),
        };
        let slots = (0..Topic::ALL.len() * partitions as usize).map(slot).collect();
        Arc::new(Self { partitions, slots, someone_waits: Notify::new(), behind_limit })
    }

    /// Returns the index of a partition among those of all topics.
    ///
    /// # Errors
    /// `Config` if there is no such partition.
    pub(super) fn index(&self, slot: Slot) -> Result<usize> {
        let Slot { topic, partition } = slot;
        if partition.0 >= self.partitions {
            let count = self.partitions;
            return Err(Error::Config {
                reason: format!("partition {partition} does not exist; the log has {count}, from 0 on"),
            });
        }
        let topic = Topic::ALL.iter().position(|other| *other == topic).unwrap_or_default(); // all are in ALL
        Ok(topic * self.partitions as usize + partition.0 as usize)
    }

    /// Returns all partitions, in the order of their indices.
    pub(super) fn all(&self) -> impl Iterator<Item = Slot> + use<> {
        let partitions = self.partitions;
        let slot = |topic, number| Slot { topic, partition: PartitionId(number) };
        Topic::ALL.into_iter().flat_map(move |topic| (0..partitions).map(move |number| slot(topic, number)))
    }

    fn partition(&self, slot: Slot) -> Result<&Partition> {
        Ok(&self.slots[self.index(slot)?])
    }

    /// Returns the end as known now. Whoever compares an answer with it reads it before the request leaves.
    ///
    /// # Errors
    /// `WentBackwards` once the partition did.
    pub(super) fn known(&self, slot: Slot) -> Result<Option<LogOffset>> {
        end_of(slot, *self.partition(slot)?.tip.borrow())
    }

    /// Takes in the acknowledgement of records from `first` up to `end`; `known` was read before they were sent.
    ///
    /// # Errors
    /// `WentBackwards` if an offset was given again.
    pub(super) fn appended(
        &self,
        slot: Slot,
        known: Option<LogOffset>,
        first: LogOffset,
        end: LogOffset,
    ) -> Result<()> {
        if known.is_some_and(|known| first < known) {
            return Err(self.lost(slot, first)?);
        }
        self.raise(slot, end)
    }

    /// Takes in the end a leader told; `known` was read before it was asked.
    ///
    /// # Errors
    /// `Unavailable` while it may only be lagging, `WentBackwards` after that.
    pub(super) fn told(&self, slot: Slot, known: Option<LogOffset>, end: LogOffset) -> Result<()> {
        let partition = self.partition(slot)?;
        let mut behind_since = partition.behind_since.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none_or(|known| end >= known) {
            *behind_since = None;
            self.raise(slot, end)?;
            return self.known(slot).map(|_| ());
        }
        let since = *behind_since.get_or_insert_with(Instant::now);
        drop(behind_since);
        if since.elapsed() >= self.behind_limit {
            return Err(self.lost(slot, end)?);
        }
        let known = known.unwrap_or(end);
        Err(unavailable(
            format!("read {slot}"),
            format!("its server ends at {end}, before {known} that was seen"),
        ))
    }

    /// Notes that records below `end` exist.
    pub(super) fn raise(&self, slot: Slot, end: LogOffset) -> Result<()> {
        self.partition(slot)?.tip.send_if_modified(|tip| {
            let rises = tip.end.is_none_or(|known| end > known);
            if rises {
                tip.end = Some(end);
            }
            rises
        });
        Ok(())
    }

    fn lost(&self, slot: Slot, end: LogOffset) -> Result<Error> {
        let partition = self.partition(slot)?;
        partition.tip.send_modify(|tip| {
            tip.lost_at.get_or_insert(end);
        });
        let error = went_backwards(slot, *partition.tip.borrow());
        tracing::error!(topic = %slot.topic, partition = %slot.partition, %error, "the log went backwards");
        Ok(error)
    }

    /// Waits until records up to and including `offset` exist.
    ///
    /// # Errors
    /// `WentBackwards`; `Stopped` if the log is dropped.
    pub(super) async fn wait_for(&self, slot: Slot, offset: LogOffset) -> Result<()> {
        let partition = self.partition(slot)?;
        let mut tip = partition.tip.subscribe();
        let _waiting = self.waiting(partition);
        loop {
            let now = *tip.borrow_and_update();
            if end_of(slot, now)?.is_some_and(|end| end > offset) {
                return Ok(());
            }
            tip.changed().await.map_err(|_| Error::Stopped)?;
        }
    }

    fn waiting<'a>(&self, partition: &'a Partition) -> Waiting<'a> {
        partition.waiting.fetch_add(1, Ordering::AcqRel);
        self.someone_waits.notify_one();
        Waiting(&partition.waiting)
    }

    /// Returns the partitions that someone waits for.
    pub(super) fn waited_for(&self) -> Vec<Slot> {
        let waits = |partition: &Partition| partition.waiting.load(Ordering::Acquire) > 0;
        self.all().zip(&self.slots).filter(|(_, partition)| waits(partition)).map(|(slot, _)| slot).collect()
    }
}

fn end_of(slot: Slot, tip: Tip) -> Result<Option<LogOffset>> {
    if tip.lost_at.is_some() { Err(went_backwards(slot, tip)) } else { Ok(tip.end) }
}

fn went_backwards(slot: Slot, tip: Tip) -> Error {
    let Slot { topic, partition } = slot;
    let (known, end) = (tip.end.unwrap_or(LogOffset(0)), tip.lost_at.unwrap_or(LogOffset(0)));
    Error::WentBackwards { topic, partition, known: LogOffset((known.0 - 1).max(0)), end }
}
