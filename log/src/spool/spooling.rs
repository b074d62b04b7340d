//! What the gateway appends through: the log, under a deadline and a breaker, and the queues beside it.
//!
//! Guarantee: nothing above knows which log runs behind it, nor whether it answers. `Ok` means durable.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::config::SpoolConfig;
use super::entry::Entry;
use super::queue::{QueueConfig, QueueStatus, SpoolQueue, epochs};
use super::shares::Shares;
use crate::breaker::{Breaker, BreakerConfig, BreakerState};
use crate::error::{Error, Result};
use crate::event::{PartitionId, Topic, UtcMillis};
use crate::fs::FileSystem;
use crate::hot::{AppendRecord, ClickLog};

/// The queues: their names in messages, and their folders.
pub(super) const QUEUES: [(&str, &str); 2] = [(SPOOL.0, SPOOL.1), (SPILL.0, SPILL.1)];
const SPOOL: (&str, &str) = ("spool", "outage");
const SPILL: (&str, &str) = ("spill queue", "spill");

/// How long a refusal of both speaks against the node; nobody may send meanwhile, so nothing else ends it.
const REFUSAL_HOLDS: Duration = Duration::from_secs(5);

/// Where records are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// To the log, and to the spool where the log does not take them.
    Log,
    /// To the spool: the log must not be written to at present, as its disk is full.
    Spool,
    /// To the spill queue: over a limit, and yet to be kept. The owner, whose limit it is, may take up its share alone.
    Spill { owner: &'a str },
}

/// Where records are, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    Log,
    Spool,
    Spill,
}

/// Why an hour waits for a queue (G-3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub queue: &'static str,
    /// Records from before the moment asked for; `None` where the queue does not open, so that nobody knows.
    pub records: Option<u64>,
    pub oldest: Option<UtcMillis>,
    /// Records of damaged files that do not read.
    pub missing: u64,
}

/// The gateway's way to the log; see the module.
pub struct Spooling {
    pub(super) log: Arc<dyn ClickLog>,
    pub(super) breaker: Breaker,
    pub(super) config: SpoolConfig,
    pub(super) spool: Option<Arc<SpoolQueue>>,
    pub(super) spill: Option<Arc<SpoolQueue>>,
    pub(super) spill_paused: AtomicBool,
    pub(super) drain_paused: AtomicBool,
    apart: bool,
    /// Why the log did not take records the last time that it did not.
    last_failure: Mutex<Option<String>>,
    /// When neither the log nor the spool took records, and why the spool did not; ended by the next that are stored.
    refused: Mutex<Option<(Instant, String)>>,
    has_refused: AtomicBool,
    shares: Shares,
}

impl Spooling {
    /// Opens both queues below `folder`. One that does not open takes nothing until [`Spooling::drain`] has opened it. One
    /// that is turned off takes nothing either, and what it holds from before is drained all the same (G-1, G-3).
    ///
    /// # Errors
    /// `Config` if a setting is out of its bounds.
    pub async fn open(
        log: Arc<dyn ClickLog>,
        fs: Arc<dyn FileSystem>,
        folder: &Path,
        config: SpoolConfig,
    ) -> Result<Self> {
        config.validate()?;
        let queue = async |(name, part): (&'static str, &str), bytes_max| {
            let own = folder.join(part);
            // A folder that does not list may hold records: nobody may say that it holds none.
            if bytes_max == 0 && epochs(fs.as_ref(), &own).is_ok_and(|epochs| epochs.is_empty()) {
                return None;
            }
            let config = QueueConfig { name, bytes_max, segment_bytes: config.spool_segment_bytes };
            Some(Arc::new(SpoolQueue::open(fs.clone(), own, config).await))
        };
        let spool = queue(SPOOL, config.spool_bytes_max).await;
        let spill = queue(SPILL, config.spill_bytes_max).await;
        let shares = Shares::of(config.spill_bytes_max, config.spill_key_percent_max);
        Ok(Self { spool, spill, config, shares, ..Self::without_queues(log) })
    }

    /// Returns a way to the log alone: what the log does not take is refused.
    pub fn without_queues(log: Arc<dyn ClickLog>) -> Self {
        let breaker = Breaker::new(BreakerConfig::default());
        let (config, spill_paused) = (SpoolConfig::default(), AtomicBool::new(false));
        Self {
            log,
            breaker,
            config,
            spool: None,
            spill: None,
            spill_paused,
            drain_paused: AtomicBool::new(false),
            apart: false,
            last_failure: Mutex::default(),
            refused: Mutex::default(),
            has_refused: AtomicBool::new(false),
            shares: Shares::of(0, 100),
        }
    }

    /// Says that the queues lie on another disk than the log, so that they take records while the log's is full.
    #[must_use]
    pub fn on_another_disk(self, apart: bool) -> Self {
        Self { apart: apart && self.has_spool(), ..self }
    }

    /// Returns whether records may be spooled while the log's disk is full.
    pub fn is_apart(&self) -> bool {
        self.apart
    }

    /// Stores records durably, where `route` says.
    ///
    /// # Errors
    /// None of them may be taken for stored. `SpoolFull`: the log does not take them and the queue is full.
    pub async fn append(&self, topic: Topic, records: Vec<AppendRecord>, route: Route<'_>) -> Result<Stored> {
        match (route, taking(&self.spool), taking(&self.spill)) {
            (Route::Log, None, _) => self.log.append(topic, records).await.map(|()| Stored::Log),
            (Route::Log, Some(spool), _) => {
                let stored = self.append_or_spool(spool, topic, records).await;
                self.note_refusal(&stored);
                stored
            }
            (Route::Spool, Some(spool), _) => {
                spool.append(&entries(topic, records)).await.map(|()| Stored::Spool)
            }
            (Route::Spill { owner }, _, Some(spill)) => {
                let entries = entries(topic, records);
                let place = self.shares.take(owner, &entries, spill)?;
                let stored = spill.append(&entries).await;
                if let Err(Error::SpoolFull { .. } | Error::Busy { .. } | Error::Config { .. }) = &stored {
                    self.shares.give_back(owner, place);
                }
                stored.map(|()| Stored::Spill)
            }
            // A queue that is turned off has no room: certainly nothing was stored.
            (Route::Spill { .. }, ..) => Err(Error::SpoolFull { queue: SPILL.0, bytes: 0, bytes_max: 0 }),
            (Route::Spool, ..) => Err(Error::Stopped),
        }
    }

    /// Notes that nobody took records, or that somebody does again. Without a word of it a node that answers 503 to
    /// everything would look ready: a log that is busy is no log that failed.
    fn note_refusal(&self, stored: &Result<Stored>) {
        match stored {
            Err(Error::Config { .. }) => {}
            Err(error) => {
                *lock(&self.refused) = Some((Instant::now(), super::chain(error)));
                self.has_refused.store(true, Ordering::Relaxed);
            }
            Ok(_) if self.has_refused.load(Ordering::Relaxed) => {
                self.has_refused.store(false, Ordering::Relaxed);
                *lock(&self.refused) = None;
            }
            Ok(_) => {}
        }
    }

    async fn append_or_spool(
        &self,
        spool: &SpoolQueue,
        topic: Topic,
        records: Vec<AppendRecord>,
    ) -> Result<Stored> {
        if self.breaker.allow(Instant::now()) {
            let after = Duration::from_millis(self.config.spool_after_ms);
            match self.append_within(after, topic, records.clone()).await {
                Ok(()) => return Ok(Stored::Log),
                // No log and no queue ever takes these.
                Err(refused @ Error::Config { .. }) => return Err(refused),
                Err(error) => {
                    // The first ones are told; while the breaker is open nobody asks, and each probe is told again.
                    warn!(error = super::chain(&error), records = records.len(), %topic, "the log does not take records; they are spooled");
                }
            }
        }
        spool.append(&entries(topic, records)).await.map(|()| Stored::Spool)
    }

    /// Appends to the log and tells the breaker. A call that is given up at the deadline may store its records all the
    /// same.
    pub(super) async fn append_within(
        &self,
        after: Duration,
        topic: Topic,
        records: Vec<AppendRecord>,
    ) -> Result<()> {
        let appended = tokio::time::timeout(after, self.log.append(topic, records)).await;
        let appended = appended.unwrap_or(Err(Error::Slow { after_ms: after.as_millis() as u64 }));
        match &appended {
            Ok(()) | Err(Error::Config { .. }) => self.breaker.succeeded(),
            // The log is there, and may hang all the same: too much waits for it. It neither opens a breaker nor closes one.
            Err(Error::Busy { .. }) => {}
            Err(error) => {
                // Before it can open the breaker: an open one has a reason.
                *lock(&self.last_failure) = Some(super::chain(error));
                self.breaker.failed(Instant::now());
            }
        }
        appended
    }

    /// Pauses the draining of the spill queue, or lets it go on: whoever knows when there is room says so.
    pub fn pause_spill(&self, pause: bool) {
        self.spill_paused.store(pause, Ordering::Relaxed);
    }

    /// Pauses all draining, or lets it go on: while the log's disk is full, nothing more is to be written to it.
    pub fn pause_drain(&self, pause: bool) {
        self.drain_paused.store(pause, Ordering::Relaxed);
    }

    /// Returns whether records may be spooled at all.
    pub fn has_spool(&self) -> bool {
        taking(&self.spool).is_some()
    }

    /// Returns why nothing is acknowledged at present: the log takes nothing and the spool neither.
    pub fn refusal(&self) -> Option<String> {
        let spool = taking(&self.spool)?.status();
        let log = self.log_state();
        let refused = || {
            let refused = lock(&self.refused);
            let (_, reason) = refused.as_ref().filter(|(at, _)| at.elapsed() < REFUSAL_HOLDS)?;
            Some(format!("neither the log nor the spool takes anything: {reason}"))
        };
        match &spool.trouble {
            _ if log == BreakerState::Closed => refused(),
            // With nothing to drain it is senders alone who ask the log again: once it may be asked, they must come.
            Some(_) if log == BreakerState::HalfOpen => refused(),
            Some(trouble) => Some(format!("the log does not answer and the spool takes nothing: {trouble}")),
            None if spool.is_full() => Some(format!(
                "the log does not answer and the spool is full: {} of {} bytes; mend the log, or raise spool_bytes_max",
                spool.bytes, spool.bytes_max
            )),
            None => refused(),
        }
    }

    /// Returns why the log takes nothing at present; `None` while it does.
    pub fn log_failure(&self) -> Option<String> {
        match self.log_state() {
            BreakerState::Closed => None,
            BreakerState::HalfOpen | BreakerState::Open => lock(&self.last_failure).clone(),
        }
    }

    /// Returns whether the log is asked at present.
    pub fn log_state(&self) -> BreakerState {
        self.breaker.state(Instant::now())
    }

    /// Returns how the queues are, those that are turned on or hold records from before.
    pub fn status(&self) -> Vec<QueueStatus> {
        self.queues().map(|queue| queue.status()).collect()
    }

    /// Returns what the queues hold from before `instant`: as long as there is any, no hour that ended before it closes.
    pub fn held_before(&self, instant: UtcMillis) -> Vec<Held> {
        let held = self.queues().filter_map(|queue| {
            let (status, records) = (queue.status(), queue.held_before(instant));
            let blocks = records != Some(0) || status.missing > 0;
            blocks.then_some(Held {
                queue: status.name,
                records,
                oldest: status.oldest,
                missing: status.missing,
            })
        });
        held.collect()
    }

    /// Returns when the oldest click of a partition arrived that is acknowledged and not in the log yet.
    pub fn oldest_click(&self, partition: PartitionId) -> Option<UtcMillis> {
        self.queues().filter_map(|queue| queue.oldest_click(partition)).min()
    }

    /// Returns the queues that are turned on or may hold records from before, the spool first.
    pub fn queues(&self) -> impl Iterator<Item = &Arc<SpoolQueue>> {
        self.spool.iter().chain(&self.spill)
    }

    /// Refuses appends to the queues from now on and writes what waits. What they hold stays on disk for the next start.
    pub fn close(&self) {
        self.queues().for_each(|queue| queue.close());
    }
}

/// Returns a queue unless it is turned off.
fn taking(queue: &Option<Arc<SpoolQueue>>) -> Option<&Arc<SpoolQueue>> {
    queue.as_ref().filter(|queue| queue.bytes_max() > 0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entries(topic: Topic, records: Vec<AppendRecord>) -> Vec<Entry> {
    records.into_iter().map(|AppendRecord { partition, bytes }| Entry::new(topic, partition, bytes)).collect()
}
