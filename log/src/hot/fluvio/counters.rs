//! What reading and appending met: counters that tests read and metrics show.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one log since it was opened.
#[derive(Debug, Default)]
pub struct FluvioCounters {
    fetches: AtomicU64,
    batches_cut: AtomicU64,
    holes: AtomicU64,
    holes_repaired: AtomicU64,
    append_retries: AtomicU64,
}

impl FluvioCounters {
    /// Answers to fetches.
    pub fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::Relaxed)
    }

    /// Answers that ended inside a batch. The published client goes on behind such a batch, and loses its records.
    pub fn batches_cut(&self) -> u64 {
        self.batches_cut.load(Ordering::Relaxed)
    }

    /// Answers that left out an offset.
    pub fn holes(&self) -> u64 {
        self.holes.load(Ordering::Relaxed)
    }

    /// Reads that were complete after they had met a hole.
    pub fn holes_repaired(&self) -> u64 {
        self.holes_repaired.load(Ordering::Relaxed)
    }

    /// Requests to store records that were sent again.
    pub fn append_retries(&self) -> u64 {
        self.append_retries.load(Ordering::Relaxed)
    }

    pub(super) fn fetched(&self) {
        self.fetches.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn batch_cut(&self) {
        self.batches_cut.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn hole_found(&self) {
        self.holes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn hole_repaired(&self) {
        self.holes_repaired.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn append_retried(&self) {
        self.append_retries.fetch_add(1, Ordering::Relaxed);
    }
}
