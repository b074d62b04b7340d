//! The memory one recompute may take: how much is counted at once, and what happens where that was too much.
//!
//! Guarantee: the peak resident memory of a recompute process stays below its limit, whatever the hour holds. Three
//! things keep it so. Slices are as large as the memory left allows, by a measured figure a row. The engine's operators
//! reserve from a pool of that size. And as not every operator reserves what it takes, the process's resident memory is
//! looked at all the while: at the limit the slice in work is given up, and counted again in halves.
//! Words: *limit* = the setting, bytes of resident memory; *headroom* = the part of it that is never planned with.

use std::time::Duration;

use futures::future::BoxFuture;
use twice_store::cost::rss_bytes;

use super::{CampaignRange, ResourceLimits};
use crate::error::{Error, Result};

/// Memory one row may need while its identity is grouped: a hash table's entry and 72 bytes of columns, of which
/// thirteen sixteenths are used, and the statement's later steps. Measured, then rounded up.
const BYTES_PER_ROW: u64 = 150;
/// Memory of each stream of rows: pages of a row group being read, and batches on their way.
const STREAM_BYTES: u64 = 24 << 20;
/// Memory that does not depend on rows: footers kept, plans, buffers of the allocator.
const ENGINE_BYTES: u64 = 64 << 20;
/// Footers of data files that are kept between the scans of one recompute; part of [`ENGINE_BYTES`].
pub const FOOTER_CACHE_BYTES: usize = 16 << 20;
/// One part in so many of the limit is headroom: what can be allocated between two looks.
const HEADROOM_PARTS: u64 = 16;
/// Least bytes for rows: below, nothing could be counted.
const ROWS_BYTES_MIN: u64 = 8 << 20;
/// How often the resident memory is looked at. Two threads fill about 20 MiB meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Looks within which a slice that was given up should have freed its memory.
const LOOKS_TO_SETTLE: u32 = 200;

/// Times a range is cut in half after the memory did not suffice: estimates may be wrong, counts may not.
const HALVINGS_MAX: u32 = 4;

/// Least memory a process that takes the place of a killed one is given: below, it would only read.
const RETRY_BYTES_MIN: u64 = 256 << 20;

impl ResourceLimits {
    /// Returns the limits of a process that takes the place of one that died within these for want of memory: half of
    /// it, and at most half as many rows at once. No limit changes a count.
    pub(super) fn smaller(&self) -> Self {
        let half = (self.memory_bytes_max / 2).max(RETRY_BYTES_MIN.min(self.memory_bytes_max));
        let smaller = Self { memory_bytes_max: half, ..self.clone() };
        let rows_of = |limits: &Self| {
            let bound = MemoryBound::of_share(limits);
            bound.slice_size(bound.pool_bytes()).rows
        };
        let rows_before = self.rows_per_slice_max.unwrap_or_else(|| rows_of(self));
        let rows = rows_of(&smaller).min(rows_before / 2).max(1);
        Self { rows_per_slice_max: Some(rows), ..smaller }
    }
}

/// Whose memory the limit bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The whole process: it does nothing but recompute.
    Process,
    /// What the recompute takes, by its own account: others work in the same process.
    Share,
}

/// How much is counted at once, and in how many streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceSize {
    pub rows: u64,
    /// Streams each operator works in: at least one a thread.
    pub streams: usize,
}

/// The memory limit of one recompute.
#[derive(Debug, Clone, Copy)]
pub struct MemoryBound {
    limit: u64,
    threads: usize,
    scope: Scope,
}

impl MemoryBound {
    /// Bounds the resident memory of this process, which does nothing else.
    pub fn of_process(limits: &ResourceLimits) -> Self {
        Self { limit: limits.memory_bytes_max, threads: limits.threads.max(1), scope: Scope::Process }
    }

    /// Bounds what the recompute takes in a process that does other things as well.
    pub fn of_share(limits: &ResourceLimits) -> Self {
        Self { scope: Scope::Share, ..Self::of_process(limits) }
    }

    /// Returns the limit, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the bytes that operators may reserve, beside what the process holds now.
    pub fn pool_bytes(&self) -> u64 {
        let held = match self.scope {
            Scope::Process => rss_bytes(),
            Scope::Share => 0,
        };
        // Twice the threads is the most streams there are.
        let streams = 2 * self.threads as u64 * STREAM_BYTES;
        self.most().saturating_sub(held + ENGINE_BYTES + streams).max(ROWS_BYTES_MIN)
    }

    /// Returns whether nothing is left for rows: fewer at once would not help.
    pub fn is_used_up(&self) -> bool {
        self.scope == Scope::Process && rss_bytes() + ROWS_BYTES_MIN > self.most()
    }

    /// Returns the largest slices that fit into `pool_bytes`.
    ///
    /// A hash table doubles when it is seven eighths full, and its columns when they are full. So slices fill tables of
    /// a power of two by thirteen sixteenths: a few rows more would take twice the memory. One and a half times as
    /// many streams, where that fits, make steps of one half instead of two.
    pub fn slice_size(&self, pool_bytes: u64) -> SliceSize {
        let rows_max = (pool_bytes / BYTES_PER_ROW).max(1);
        let sizes = (self.threads..=2 * self.threads - 1).flat_map(|streams| {
            (10..40).map(move |power| SliceSize { rows: streams as u64 * (13 << power) / 16, streams })
        });
        let fitting = sizes.filter(|size| size.rows <= rows_max).max_by_key(|size| size.rows);
        fitting.unwrap_or(SliceSize { rows: rows_max, streams: self.threads })
    }

    /// Does `work` over a range within the memory limit; over twice as many slices where it did not suffice. Returns how
    /// many slices it took.
    ///
    /// # Errors
    /// `OutOfMemory` where even small slices do not fit, and those of `work`.
    pub async fn within<'w, T>(
        &self,
        range: &CampaignRange,
        work: impl Fn(CampaignRange) -> BoxFuture<'w, Result<T>> + Send,
    ) -> Result<(u32, T)> {
        let out_of_memory = || Error::OutOfMemory { limit_bytes: self.limit };
        let mut range = range.clone();
        for halvings in 0..=HALVINGS_MAX {
            let worked = tokio::select! {
                worked = work(range.clone()) => worked,
                () = self.exceeded() => Err(out_of_memory()),
            };
            match worked {
                Err(error) if is_out_of_memory(&error) => {
                    tracing::warn!(%error, halvings, "memory did not suffice, cutting smaller slices");
                    self.settle().await;
                    range = range.finer();
                }
                worked => return Ok((range.parts, worked?)),
            }
        }
        Err(out_of_memory())
    }

    /// Ends when the process holds more than the limit less the headroom; never, where others share the process.
    pub async fn exceeded(&self) {
        if self.scope == Scope::Share {
            std::future::pending::<()>().await;
        }
        let mut looks = tokio::time::interval(LOOK_EVERY);
        while rss_bytes() <= self.most() {
            looks.tick().await;
        }
    }

    /// Waits until the memory of a slice that was given up is free again, or for two seconds.
    pub async fn settle(&self) {
        if self.scope == Scope::Share {
            return;
        }
        let mut looks = tokio::time::interval(LOOK_EVERY);
        for _ in 0..LOOKS_TO_SETTLE {
            looks.tick().await;
            if rss_bytes() < self.limit / 2 {
                return;
            }
        }
    }

    fn most(&self) -> u64 {
        self.limit - self.limit / HEADROOM_PARTS
    }
}

pub(super) fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::OutOfMemory { .. } => true,
        Error::Engine { source, .. } => {
            matches!(source.find_root(), datafusion::error::DataFusionError::ResourcesExhausted(_))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(limit: u64, threads: usize) -> MemoryBound {
        MemoryBound { limit, threads, scope: Scope::Share }
    }

    #[test]
    fn slices_never_outgrow_the_pool_and_use_most_of_it() {
        for threads in [1, 2, 3, 8, 64] {
            for mebibytes in [64, 100, 256, 1000, 1024, 4096, 65_536] {
                let bound = bound(mebibytes << 20, threads);
                let pool = bound.pool_bytes();
                assert!(pool <= bound.limit());
                let size = bound.slice_size(pool);
                assert!(size.rows * BYTES_PER_ROW <= pool, "{threads} threads, {mebibytes} MiB: {size:?}");
                // One thread has no step between one power of two and the next.
                let least = if threads == 1 { pool / 2 } else { pool * 5 / 8 };
                assert!(size.rows * BYTES_PER_ROW + 150_000 >= least, "{threads}, {mebibytes}: {size:?}");
                assert!((threads..2 * threads.max(1)).contains(&size.streams));
            }
        }
    }

    #[test]
    fn each_process_after_a_killed_one_gets_half_and_never_nothing() {
        let mut limits = ResourceLimits {
            threads: 2,
            memory_bytes_max: 1 << 30,
            spill_dir: "spill".into(),
            verify_files: true,
            rows_per_slice_max: None,
        };
        let mut rows_before = u64::MAX;
        for memory in [512, 256, 256, 256] {
            limits = limits.smaller();
            let rows = limits.rows_per_slice_max.expect("rows are bounded");
            assert_eq!(limits.memory_bytes_max, memory << 20);
            assert!(rows <= rows_before / 2 && rows > 1_000, "{rows} after {rows_before}");
            rows_before = rows;
        }
        limits.rows_per_slice_max = Some(1);
        assert_eq!(limits.smaller().rows_per_slice_max, Some(1));
    }

    #[test]
    fn this_process_has_resident_memory_and_its_peak_is_no_less() {
        let now = rss_bytes();
        assert!(now > 0 && twice_store::cost::rss_peak_bytes() >= now);
    }
}
