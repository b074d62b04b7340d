//! Copies that the log no longer holds, read from the archive in offset order, as batches like those of the log.
//!
//! Guarantee: every offset is covered once, in order; the copies carry the watermark they were archived with, which is
//! the one the stream saw. A data file that is missing or changed ends the run with an error that names it.
//! Memory: the rows of one manifest, bounded by the archiver's `archive_rows_max`; one partition at a time holds any.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use twice_log::archive::{FileEntry, FileKind, Manifest};
use twice_log::{ClickCopy, LogOffset, PartitionId, Watermark};

use super::history::{ArchivedRange, ClickHistory};
use super::reader::{BatchBuilder, DecodedBatch};
use crate::error::{Error, Result};
use crate::metrics::REBUILT_TOTAL;

/// Offsets a batch covers at most: about what one read of the log brings.
const BATCH_OFFSETS: i64 = 16_384;

/// Reads a range of the archive.
pub(super) struct ArchivedClicks {
    pub(super) history: Arc<dyn ClickHistory>,
    pub(super) partition: PartitionId,
    pub(super) range: ArchivedRange,
    /// One permit for all partitions of the node.
    pub(super) turn: Arc<Semaphore>,
    pub(super) retry_pause: Duration,
    pub(super) open: Option<OpenManifest>,
}

/// A manifest whose rows are in memory.
pub(super) struct OpenManifest {
    end: LogOffset,
    /// Those not handed over yet, the next one last.
    copies: Vec<ClickCopy>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl ArchivedClicks {
    /// Returns the copies from `first` on, after `watermark`; `None` once the rest is in the log.
    ///
    /// # Errors
    /// `HistoryDamaged` if the archive does not hold what its manifests say.
    pub(super) async fn next(
        &mut self,
        first: LogOffset,
        watermark: Watermark,
        skips: &HashSet<LogOffset>,
    ) -> Result<Option<DecodedBatch>> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => match self.range.manifests.pop_front() {
                Some(manifest) => self.read(&manifest, first).await?,
                None => return Ok(None),
            },
        };
        let end = LogOffset(first.0 + BATCH_OFFSETS).min(open.end);
        let mut builder = BatchBuilder::new(first, watermark);
        while let Some(copy) = open.copies.pop_if(|copy| copy.position.offset < end) {
            builder.advance(&copy.click);
            match skips.contains(&copy.position.offset) {
                true => builder.skip(copy.position.offset, copy.click.event_time),
                false => builder.push(copy),
            }
        }
        let batch = builder.finish(end);
        metrics::counter!(REBUILT_TOTAL).increment(batch.copies);
        if end < open.end {
            self.open = Some(open);
        }
        Ok(Some(batch))
    }

    /// Decoding a file takes longer than an arbiter may be blocked.
    async fn clicks(&self, entry: &FileEntry) -> Result<twice_log::Result<Vec<ClickCopy>>> {
        let (history, entry, runtime) = (self.history.clone(), entry.clone(), Handle::current());
        tokio::task::spawn_blocking(move || runtime.block_on(history.clicks(&entry)))
            .await
            .map_err(|_| Error::TaskDied { what: "reading the archive" })
    }

    async fn read(&self, manifest: &Manifest, from: LogOffset) -> Result<OpenManifest> {
        tracing::info!(partition = %self.partition, first = %manifest.first, last = %manifest.last,
            manifests_left = self.range.manifests.len(), "rebuilding from the archive");
        let turn = self.turn.clone().acquire_owned().await.ok(); // never closed
        let mut copies: Vec<ClickCopy> = Vec::new();
        for entry in manifest.files.iter().filter(|entry| entry.kind == FileKind::Clicks) {
            let read = loop {
                match self.clicks(entry).await? {
                    Ok(read) => break read,
                    Err(error) if error.kind() == twice_log::ErrorKind::Retry => {
                        tracing::warn!(partition = %self.partition, path = entry.path, %error,
                            "archive not read, trying again");
                        tokio::time::sleep(self.retry_pause).await;
                    }
                    Err(source) => {
                        return Err(Error::HistoryDamaged { partition: self.partition, source });
                    }
                }
            };
            copies.extend(read.into_iter().filter(|copy| copy.position.offset >= from));
        }
        // As many as a manifest has rows: not on the arbiter.
        let sort = move || {
            copies.sort_unstable_by_key(|copy| std::cmp::Reverse(copy.position.offset));
            copies
        };
        let copies = tokio::task::spawn_blocking(sort)
            .await
            .map_err(|_| Error::TaskDied { what: "sorting copies of the archive" })?;
        Ok(OpenManifest { end: manifest.last.next(), copies, _turn: turn })
    }
}
