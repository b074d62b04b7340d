//! The commit loop: one thread for all topics and partitions.
//!
//! Flow: take what waits -> write one frame a partition -> sync each file -> publish the new ends -> resolve the
//! appends. The next group gathers while this one syncs; no timer holds a lone append back. After a failed write or
//! sync nothing is known of the disk, so the log stops for ever in this process.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::error;

use super::frame::encode_frame;
use super::partition::{Partition, PublishedFrame};
use super::queue::{FrameParts, Queue};
use super::segment::ActiveSegment;
use super::sync::SyncThreads;
use crate::error::{Error, Result};
use crate::event::LogOffset;
use crate::fail::{FailPoint, FailPoints};
use crate::fs::FileSystem;

/// What the loop alone knows of a partition.
pub(super) struct Writer {
    pub directory: PathBuf,
    /// `None` until the first record.
    pub active: Option<ActiveSegment>,
    /// Offset of the next record.
    pub next: LogOffset,
}

/// The state of the commit thread.
pub(super) struct Committer {
    pub fs: Arc<dyn FileSystem>,
    pub queue: Arc<Queue>,
    /// By slot, as `partitions`.
    pub writers: Vec<Writer>,
    pub partitions: Arc<Vec<Partition>>,
    pub segment_bytes: u64,
    pub fail_points: FailPoints,
    pub sync_threads: SyncThreads,
}

impl Committer {
    /// Commits groups until the queue is closed and empty, or a write fails.
    pub(super) fn run(mut self) {
        while let Some(group) = self.queue.take_group() {
            match self.commit(&group) {
                Ok(()) => self.queue.group_stored(group),
                Err(error) => {
                    let cause: &dyn std::error::Error = &error;
                    error!(error = cause, "the log stopped: restart the node once the disk is healthy");
                    self.queue.stop(group, &Arc::new(io::Error::other(error)));
                    return;
                }
            }
        }
    }

    fn commit(&mut self, group: &[FrameParts]) -> Result<()> {
        let frames = group.iter().map(|parts| self.write(parts)).collect::<Result<Vec<_>>>()?;
        self.fail_points.pass(FailPoint::LogWritten);
        self.sync(group)?;
        self.fail_points.pass(FailPoint::LogSynced);
        for (FrameParts { slot, .. }, frame) in group.iter().zip(frames) {
            if let Some(active) = &self.writers[*slot].active {
                self.partitions[*slot].publish(frame, &active.path);
            }
        }
        Ok(())
    }

    fn sync(&self, group: &[FrameParts]) -> Result<()> {
        let active: Vec<&ActiveSegment> =
            group.iter().filter_map(|parts| self.writers[parts.slot].active.as_ref()).collect();
        let files: Vec<_> = active.iter().map(|active| active.file.clone()).collect();
        let synced = self.sync_threads.sync_all(&files);
        synced.map_err(|(index, error)| Error::io("sync", &active[index].path)(error))
    }

    /// Writes the parts as one frame, into a new segment where the active one is full.
    fn write(&mut self, parts: &FrameParts) -> Result<PublishedFrame> {
        let writer = &mut self.writers[parts.slot];
        let payload_bytes = parts.payload_bytes();
        let active = match writer.active.take() {
            Some(active) if active.fits(payload_bytes) => active,
            _ => {
                let id = self.partitions[parts.slot].key.segment(writer.next);
                ActiveSegment::create(self.fs.as_ref(), &writer.directory, id, self.segment_bytes)?
            }
        };
        let active = writer.active.insert(active);
        let (base, records) = (writer.next, parts.records());
        let payloads = parts.parts.iter().map(|part| part.payload.as_slice());
        let bytes = encode_frame(payloads, payload_bytes, records, base, active.id.seed());
        let at = active.position;
        active.file.write_all_at(&bytes, at).map_err(Error::io("write", &active.path))?;
        active.position += bytes.len() as u64;
        let end = LogOffset(base.0 + i64::from(records));
        writer.next = end;
        Ok(PublishedFrame { segment: active.id, at, base, end, records, bytes })
    }
}

impl Drop for Committer {
    /// Whatever ends the thread, even a panic, no append may wait for it any more.
    fn drop(&mut self) {
        self.queue.stop(Vec::new(), &Arc::new(io::Error::other("the commit loop ended")));
        self.partitions.iter().for_each(Partition::stop);
    }
}
