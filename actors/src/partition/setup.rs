//! What every run of a partition starts from.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use twice_log::PartitionId;

use super::status::PartitionStatus;
use crate::campaign::StreamRules;
use crate::config::StreamConfig;
use crate::freshness::FreshnessMeter;
use crate::stream::StreamParts;

/// Settings, collaborators and counters of one partition. Cheap to clone.
#[derive(Clone)]
pub(crate) struct PartitionSetup {
    pub(crate) partition: PartitionId,
    pub(crate) parts: StreamParts,
    pub(crate) config: StreamConfig,
    pub(crate) rules: StreamRules,
    pub(crate) budget: Arc<DedupBudget>,
    /// Whose turn it is to hold rows of the archive: one partition's of the node.
    pub(crate) rebuild_turn: Arc<Semaphore>,
    pub(crate) status: Arc<Mutex<PartitionStatus>>,
    /// How soon clicks are visible, for the whole node.
    pub(crate) freshness: Arc<FreshnessMeter>,
}

impl PartitionSetup {
    /// Changes the status; never waits for more than another such change.
    pub(super) fn report(&self, change: impl FnOnce(&mut PartitionStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn retry_pause(&self) -> Duration {
        Duration::from_millis(self.config.retry_pause_ms)
    }

    /// Returns the partition as a metric label.
    pub(super) fn label(&self) -> String {
        self.partition.to_string()
    }
}

/// The node's memory for dedup sets, shared by its partitions.
#[derive(Debug)]
pub(crate) struct DedupBudget {
    bytes_max: u64,
    partitions: u64,
    used: AtomicU64,
}

impl DedupBudget {
    pub(crate) fn new(bytes_max: u64, partitions: u32) -> Self {
        Self { bytes_max, partitions: u64::from(partitions.max(1)), used: AtomicU64::new(0) }
    }

    /// Notes that a partition's sets went from `before` to `after` bytes.
    pub(super) fn change(&self, before: u64, after: u64) {
        // Wrapping: after - before may be negative, the sum never is.
        self.used.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Returns whether a partition that takes `own` bytes must drop entries: the node is over its budget, and the
    /// partition over its even share of it.
    pub(super) fn is_exceeded(&self, own: u64) -> bool {
        self.used.load(Ordering::Relaxed) > self.bytes_max && own > self.bytes_max / self.partitions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_partitions_over_their_share_give_way() {
        let budget = DedupBudget::new(100, 2);
        budget.change(0, 30);
        budget.change(0, 80);
        assert!(budget.is_exceeded(80));
        assert!(!budget.is_exceeded(30));
        budget.change(80, 60);
        assert!(!budget.is_exceeded(60));
    }
}
