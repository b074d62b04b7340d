//! A durable, bounded queue of records that are to be appended to the log.
//!
//! Guarantee: an append that resolved survives power loss and is given up only by [`SpoolQueue::advance`]; appends of many
//! threads share a sync. What a crash left is taken up again from the last durable position: a record may be drained
//! twice, never zero times.
//! On disk: `{folder}/{epoch:06}/`, each an embedded log of one partition (`hot::embedded`: its frames, its group commit,
//! its torn tails) and the file `DRAINED`. There is one epoch until damage is found: then the whole records of the
//! damaged one are stored anew in the next, and the damaged files stay beside it, for a human, with a note `SALVAGED` of
//! how many records do not read. Hours wait for those until the folder is removed or struck off (G-3).
//! Words: *broken* = a write or sync failed, or the folder does not open; [`SpoolQueue::mend`] opens it again.

mod open;
mod segments;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info, warn};

pub use self::open::strike_off;
pub(super) use self::open::{epoch_folder, epochs, salvage_epoch, salvaged};
pub use self::segments::SegmentCopy;

use self::open::Opened;
use super::entry::Entry;
use super::holdings::Holdings;
use super::{chain, position};
use crate::error::{Error, Result};
use crate::event::{LogOffset, PartitionId, Topic, UtcMillis};
use crate::fs::FileSystem;
use crate::hot::embedded::EmbeddedLog;
use crate::hot::{AppendRecord, ClickLog};

/// The one topic and partition of a queue's log.
const TOPIC: Topic = Topic::AdClicks;
const PARTITION: PartitionId = PartitionId(0);

/// How large a queue may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueConfig {
    /// Its name in messages and metrics.
    pub name: &'static str,
    /// Bytes of records held at most; the disk may hold two segments more.
    pub bytes_max: u64,
    /// Size of a segment file.
    pub segment_bytes: u64,
}

/// A queue; see the module. Methods may be called at once from many tasks, `peek` and `advance` from one alone.
pub struct SpoolQueue {
    fs: Arc<dyn FileSystem>,
    folder: PathBuf,
    config: QueueConfig,
    state: Mutex<State>,
    /// One opening at a time.
    mending: tokio::sync::Mutex<()>,
    /// Bytes of records given up since the process began.
    given_up: AtomicU64,
    /// What of the oldest records the log does not have yet, while it has others of them.
    pub(super) under_way: tokio::sync::Mutex<Option<UnderWay>>,
}

struct State {
    active: Option<Arc<Active>>,
    /// What broke: what it held and where it stood still holds, with what was under way. `None`: nobody knows.
    last: Option<Arc<Active>>,
    trouble: Option<String>,
    /// Records in damaged epochs that do not read.
    missing: u64,
    /// An epoch that broke and still has its lock.
    retired: Option<Arc<Active>>,
    closed: bool,
}

/// An open epoch.
struct Active {
    log: EmbeddedLog,
    folder: PathBuf,
    /// Offset of the first record that is not drained.
    position: AtomicI64,
    holdings: Mutex<Holdings>,
}

/// The oldest records of a queue.
pub struct Peeked {
    pub entries: Vec<Entry>,
    active: Arc<Active>,
    end: LogOffset,
}

/// Oldest records of which the log has some.
pub(super) struct UnderWay {
    pub peeked: Peeked,
    /// Those it does not have, by where they go.
    pub rest: Vec<(Topic, Vec<AppendRecord>)>,
}

/// How a queue is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStatus {
    pub name: &'static str,
    pub records: u64,
    pub bytes: u64,
    pub bytes_max: u64,
    /// When the oldest record arrived.
    pub oldest: Option<UtcMillis>,
    /// Records of damaged files that do not read; whoever looks after the node decides about them.
    pub missing: u64,
    /// Why it takes nothing at present, where that is so.
    pub trouble: Option<String>,
}

impl QueueStatus {
    /// Returns whether it can take next to nothing more.
    pub fn is_full(&self) -> bool {
        self.bytes.saturating_mul(100) >= self.bytes_max.saturating_mul(99)
    }
}

impl SpoolQueue {
    /// Opens the queue in `folder`, creating it where there is none. A folder that does not open makes a broken queue:
    /// [`SpoolQueue::mend`] tries again.
    pub async fn open(fs: Arc<dyn FileSystem>, folder: PathBuf, config: QueueConfig) -> Self {
        let state =
            State { active: None, last: None, trouble: None, missing: 0, retired: None, closed: false };
        let (state, mending) = (Mutex::new(state), tokio::sync::Mutex::new(()));
        let (given_up, under_way) = (AtomicU64::new(0), tokio::sync::Mutex::default());
        let queue = Self { fs, folder, config, state, mending, given_up, under_way };
        queue.mend().await;
        queue
    }

    /// Opens a broken queue again; returns whether it is open.
    pub async fn mend(&self) -> bool {
        let _one_at_a_time = self.mending.lock().await;
        let (retired, reached) = {
            let mut state = self.lock();
            if state.closed || state.active.is_some() {
                return !state.closed;
            }
            // The log has what was drained, whether or not that could be noted.
            let reached = state.last.as_ref().map(|last| (last.folder.clone(), last.position()));
            (state.retired.take(), reached)
        };
        if let Some(retired) = retired {
            // Gives its lock back; waits for its commit thread, which may wait for the disk.
            let _ = tokio::task::spawn_blocking(move || retired.log.close()).await;
        }
        match open::open(self.fs.clone(), &self.folder, self.config.segment_bytes, reached).await {
            Ok(Opened { active, missing }) => {
                let records = active.holdings().records;
                if records > 0 {
                    info!(
                        queue = self.config.name,
                        records, "the queue holds records that are to be appended to the log"
                    );
                }
                let mut state = self.lock();
                (state.trouble, state.last, state.missing) = (None, None, missing);
                if state.closed {
                    return false;
                }
                state.active = Some(Arc::new(active));
                true
            }
            Err(failure) => {
                let detail = chain(&failure);
                let mut state = self.lock();
                if state.trouble.as_ref() != Some(&detail) {
                    error!(
                        queue = self.config.name,
                        error = detail,
                        "the queue does not open; it takes nothing"
                    );
                }
                state.trouble = Some(detail);
                false
            }
        }
    }

    /// Stores entries; resolves once all are durable.
    ///
    /// # Errors
    /// `SpoolFull`, `Busy`: certainly nothing was stored. `Stopped` and others: some may be.
    pub async fn append(&self, entries: &[Entry]) -> Result<()> {
        let active = self.active()?;
        let records: Vec<AppendRecord> = entries
            .iter()
            .map(|entry| AppendRecord { partition: PARTITION, bytes: entry.encode() })
            .collect();
        let bytes: u64 = entries.iter().map(Entry::stored_bytes).sum();
        {
            let mut holdings = active.holdings();
            let (held, bytes_max) = (holdings.bytes, self.config.bytes_max);
            if held + bytes > bytes_max {
                return Err(Error::SpoolFull { queue: self.config.name, bytes: held, bytes_max });
            }
            // Counted before it can be stored. The log takes it in the first poll of the append below or refuses it
            // there, so a caller that goes away leaves no count of what is not.
            holdings.add(entries);
        }
        let stored = active.log.append(TOPIC, records).await;
        match &stored {
            Err(Error::Busy { .. } | Error::Config { .. }) => active.holdings().remove(entries),
            Err(failure) => self.broke(&active, failure),
            Ok(()) => {}
        }
        stored
    }

    /// Returns the oldest records, about `bytes_max` bytes of them; none where it is empty.
    ///
    /// # Errors
    /// `Damage`, after which `mend` salvages; `Stopped`; `Io`.
    pub async fn peek(&self, bytes_max: usize) -> Result<Peeked> {
        let active = self.active()?;
        let from = active.position();
        match open::read(&active.log, from, bytes_max).await {
            Ok((entries, end)) => Ok(Peeked { entries, active, end }),
            Err(failure) => {
                if let Error::Damage { .. } = failure {
                    self.retire(&active, &failure).await;
                } else {
                    self.broke(&active, &failure);
                }
                Err(failure)
            }
        }
    }

    /// Gives up what was peeked, once the log has it; removes segments that are wholly given up. A position that cannot be
    /// noted stops nothing: on a full disk removing segments is what makes room for the next note. Until then a restart
    /// drains again what is left of them.
    ///
    /// # Errors
    /// `Io`: the segments cannot be removed; the queue is broken.
    pub async fn advance(&self, peeked: Peeked) -> Result<()> {
        let Peeked { entries, active, end } = peeked;
        let (fs, folder) = (self.fs.clone(), active.folder.clone());
        let noted = open::blocking(move || position::write(fs.as_ref(), &folder, end)).await;
        if let Err(failure) = noted {
            warn!(queue = self.config.name, error = chain(&failure), "what is drained cannot be noted");
        }
        active.position.store(end.0, Ordering::Release);
        active.holdings().remove(&entries);
        let bytes: u64 = entries.iter().map(Entry::stored_bytes).sum();
        self.given_up.fetch_add(bytes, Ordering::AcqRel);
        let trimmed = active.log.trim(TOPIC, PARTITION, end).await;
        if let Err(failure) = &trimmed {
            self.broke(&active, failure);
        }
        trimmed
    }

    /// Returns whether these records still are the oldest of the queue as it is open now.
    pub(super) fn is_current(&self, peeked: &Peeked) -> bool {
        self.lock().active.as_ref().is_some_and(|active| Arc::ptr_eq(active, &peeked.active))
    }

    /// Returns whether it is open.
    pub(super) fn is_open(&self) -> bool {
        self.lock().active.is_some()
    }

    /// Returns how large it may become; 0 if it is turned off.
    pub(super) fn bytes_max(&self) -> u64 {
        self.config.bytes_max
    }

    /// Returns the bytes of records given up since the process began.
    pub(super) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Acquire)
    }

    /// Returns how it is.
    pub fn status(&self) -> QueueStatus {
        let state = self.lock();
        let (records, bytes, oldest) =
            state.held(|held| (held.records, held.bytes, held.oldest())).unwrap_or_default();
        QueueStatus {
            name: self.config.name,
            records,
            bytes,
            bytes_max: self.config.bytes_max,
            oldest,
            missing: state.missing,
            trouble: state.trouble.clone(),
        }
    }

    /// Returns how many records from before `instant` it holds; `None` if that cannot be known: it never opened.
    pub fn held_before(&self, instant: UtcMillis) -> Option<u64> {
        self.lock().held(|held| held.before(instant))
    }

    /// Returns when the oldest click it holds of a partition arrived.
    pub fn oldest_click(&self, partition: PartitionId) -> Option<UtcMillis> {
        self.lock().held(|held| held.oldest_click(partition)).flatten()
    }

    /// Returns whether it holds nothing, as far as is known.
    pub fn is_empty(&self) -> bool {
        self.lock().held(|held| held.records).unwrap_or(0) == 0
    }

    /// Refuses appends from now on and writes what waits. Blocks on the disk.
    pub fn close(&self) {
        let active = {
            let mut state = self.lock();
            state.closed = true;
            [state.active.take(), state.retired.take()]
        };
        active.iter().flatten().for_each(|active| active.log.close());
    }

    fn active(&self) -> Result<Arc<Active>> {
        self.lock().active.clone().ok_or(Error::Stopped)
    }

    /// Takes an epoch out of use that failed: nothing is known of it until it is opened again.
    fn broke(&self, active: &Arc<Active>, failure: &Error) {
        let detail = chain(failure);
        let mut state = self.lock();
        if state.active.as_ref().is_some_and(|current| Arc::ptr_eq(current, active)) {
            error!(queue = self.config.name, error = detail, "the queue broke; it is opened again");
            state.last = Some(active.clone());
            state.trouble = Some(detail);
            state.retired = state.active.take();
        }
    }

    /// Takes a damaged epoch out of use for good.
    async fn retire(&self, active: &Arc<Active>, failure: &Error) {
        let (fs, folder) = (self.fs.clone(), active.folder.clone());
        // In memory: it answers though the files do not.
        let end = active.log.bounds(TOPIC, PARTITION).await.map_or(active.position(), |bounds| bounds.end);
        let noted = open::blocking(move || open::note_damage(fs.as_ref(), &folder, end)).await;
        if let Err(unnoted) = noted {
            error!(queue = self.config.name, error = chain(&unnoted), "the damage cannot be noted");
        }
        self.broke(active, failure);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn held<T>(&self, look: impl FnOnce(&Holdings) -> T) -> Option<T> {
        match &self.active {
            Some(active) => Some(look(&active.holdings())),
            None => self.last.as_ref().map(|last| look(&last.holdings())),
        }
    }
}

impl Active {
    fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn position(&self) -> LogOffset {
        LogOffset(self.position.load(Ordering::Acquire))
    }
}

impl Drop for SpoolQueue {
    fn drop(&mut self) {
        self.close();
    }
}
