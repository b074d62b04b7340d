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
use super::queue::{QueueConfig, QueueStatus, SpoolQueue};
use crate::breaker::{Breaker, BreakerConfig, BreakerState};
use crate::error::{Error, Result};
use crate::event::{Topic, UtcMillis};
use crate::fs::FileSystem;
use crate::hot::{AppendRecord, ClickLog};

/// The queues: their names in messages, and their folders.
pub(super) const QUEUES: [(&str, &str); 2] = [(SPOOL.0, SPOOL.1), (SPILL.0, SPILL.1)];
const SPOOL: (&str, &str) = ("spool", "outage");
const SPILL: (&str, &str) = ("spill queue", "spill");

/// Where records are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To the log, and to the spool where the log does not take them.
    Log,
    /// To the spool: the log must not be written to at present, as its disk is full.
    Spool,
    /// To the spill queue: over a limit, and yet to be kept.
    Spill,
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
    /// Why the log did not take records the last time it was asked, where it did not.
    last_failure: Mutex<Option<String>>,
}

impl Spooling {
    /// Opens both queues below `folder`. One that does not open takes nothing until [`Spooling::drain`] has opened it.
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
            if bytes_max == 0 {
                return None;
            }
            let config = QueueConfig { name, bytes_max, segment_bytes: config.spool_segment_bytes };
            Some(Arc::new(SpoolQueue::open(fs.clone(), folder.join(part), config).await))
        };
        let spool = queue(SPOOL, config.spool_bytes_max).await;
        let spill = queue(SPILL, config.spill_bytes_max).await;
        Ok(Self { spool, spill, config, ..Self::without_queues(log) })
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
        }
    }

    /// Says that the queues lie on another disk than the log, so that they take records while the log's is full.
    #[must_use]
    pub fn on_another_disk(self, apart: bool) -> Self {
        Self { apart: apart && self.spool.is_some(), ..self }
    }

    /// Returns whether records may be spooled while the log's disk is full.
    pub fn is_apart(&self) -> bool {
        self.apart
    }

    /// Stores records durably, where `route` says.
    ///
    /// # Errors
    /// None of them may be taken for stored. `SpoolFull`: the log does not take them and the queue is full.
    pub async fn append(&self, topic: Topic, records: Vec<AppendRecord>, route: Route) -> Result<Stored> {
        match (route, &self.spool, &self.spill) {
            (Route::Log, None, _) => self.log.append(topic, records).await.map(|()| Stored::Log),
            (Route::Log, Some(spool), _) => self.append_or_spool(spool, topic, records).await,
            (Route::Spool, Some(spool), _) => {
                spool.append(&entries(topic, records)).await.map(|()| Stored::Spool)
            }
            (Route::Spill, _, Some(spill)) => {
                spill.append(&entries(topic, records)).await.map(|()| Stored::Spill)
            }
            // A queue that is turned off has no room: certainly nothing was stored.
            (Route::Spill, ..) => Err(Error::SpoolFull { queue: SPILL.0, bytes: 0, bytes_max: 0 }),
            (Route::Spool, ..) => Err(Error::Stopped),
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
            // Busy and Config are answers: the log is there.
            Ok(()) | Err(Error::Busy { .. } | Error::Config { .. }) => {
                self.breaker.succeeded();
                *self.failure() = None;
            }
            Err(error) => {
                self.breaker.failed(Instant::now());
                *self.failure() = Some(super::chain(error));
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
        self.spool.is_some()
    }

    /// Returns why nothing is acknowledged at present: the log takes nothing and the spool neither.
    pub fn refusal(&self) -> Option<String> {
        let spool = self.spool.as_ref()?.status();
        if self.log_state() == BreakerState::Closed {
            return None;
        }
        match &spool.trouble {
            Some(trouble) => Some(format!("the log does not answer and the spool takes nothing: {trouble}")),
            None if spool.is_full() => Some(format!(
                "the log does not answer and the spool is full: {} of {} bytes; mend the log, or raise spool_bytes_max",
                spool.bytes, spool.bytes_max
            )),
            None => None,
        }
    }

    /// Returns why the log takes nothing at present; `None` while it does.
    pub fn log_failure(&self) -> Option<String> {
        match self.log_state() {
            BreakerState::Closed => None,
            BreakerState::HalfOpen | BreakerState::Open => self.failure().clone(),
        }
    }

    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the log is asked at present.
    pub fn log_state(&self) -> BreakerState {
        self.breaker.state(Instant::now())
    }

    /// Returns how the queues are, those that are turned on.
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

    /// Returns the queues that are turned on, the spool first.
    pub fn queues(&self) -> impl Iterator<Item = &Arc<SpoolQueue>> {
        self.spool.iter().chain(&self.spill)
    }

    /// Refuses appends to the queues from now on and writes what waits. What they hold stays on disk for the next start.
    pub fn close(&self) {
        self.queues().for_each(|queue| queue.close());
    }
}

fn entries(topic: Topic, records: Vec<AppendRecord>) -> Vec<Entry> {
    records.into_iter().map(|AppendRecord { partition, bytes }| Entry::new(topic, partition, bytes)).collect()
}
