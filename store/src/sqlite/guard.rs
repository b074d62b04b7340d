//! The bound on what the API waits for the database: a deadline and a circuit breaker, for reads and writes apart.
//!
//! Guarantee: whoever asks a bounded store learns within the limit that it cannot begin. Once a transaction has begun it
//! waits for no lock: in WAL mode a read keeps its state and a write its lock. What it may still wait for is the disk.
//! Words: *patient* = without bounds, as the batch path is: it would only try again.

use std::time::{Duration, Instant};

use twice_log::breaker::{Breaker, BreakerConfig, BreakerState};

use crate::error::{Error, Result};

/// Bounds shared by the clones of one bounded store.
#[derive(Debug)]
pub(super) struct Guard {
    limit: Duration,
    reads: Breaker,
    writes: Breaker,
}

/// Which of the two is about to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Guard {
    pub fn new(limit: Duration) -> Self {
        let breaker = || Breaker::new(BreakerConfig::default());
        Self { limit, reads: breaker(), writes: breaker() }
    }

    /// Does what begins a transaction, within the limit, unless it lately failed.
    ///
    /// # Errors
    /// `Unanswered`; and those of `begin`.
    pub async fn begin<T>(&self, access: Access, begin: impl Future<Output = Result<T>>) -> Result<T> {
        let breaker = match access {
            Access::Read => &self.reads,
            Access::Write => &self.writes,
        };
        if !breaker.allow(Instant::now()) {
            return Err(unanswered("it is not asked, as it lately did not answer".to_owned()));
        }
        match tokio::time::timeout(self.limit, begin).await {
            Ok(Ok(begun)) => {
                breaker.succeeded();
                Ok(begun)
            }
            Ok(Err(error)) => {
                breaker.failed(Instant::now());
                Err(error)
            }
            Err(_) => {
                breaker.failed(Instant::now());
                Err(unanswered(format!("it did not begin within {} ms", self.limit.as_millis())))
            }
        }
    }

    /// Waits for the writer's turn, within the limit.
    ///
    /// # Errors
    /// `Unanswered`.
    pub async fn turn<T>(&self, turn: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout(self.limit, turn).await.map_err(|_| {
            self.writes.failed(Instant::now());
            unanswered(format!("another write took longer than {} ms", self.limit.as_millis()))
        })
    }

    /// Returns whether the newest read and the newest write failed to begin.
    pub fn troubled(&self) -> (bool, bool) {
        (self.reads.is_troubled(), self.writes.is_troubled())
    }

    /// Returns what the breakers do with the next call.
    pub fn states(&self) -> [(&'static str, BreakerState); 2] {
        let now = Instant::now();
        [("billing-reads", self.reads.state(now)), ("billing-writes", self.writes.state(now))]
    }
}

fn unanswered(reason: String) -> Error {
    Error::Unanswered { store: "the billing store", reason }
}
