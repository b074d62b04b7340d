//! What readers share of one partition: its segments, its end, and its newest frames in memory.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::watch;

use super::frame::{FRAME_HEADER_BYTES, Records};
use super::index::SparseIndex;
use super::recover::Recovered;
use super::segment::SegmentId;
use crate::error::{Error, Result};
use crate::event::{Generation, LogOffset, PartitionId, Topic};
use crate::hot::{OffsetBounds, ReadBatch};

/// Which partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartitionKey {
    pub topic: Topic,
    pub generation: Generation,
    pub partition: PartitionId,
}

impl PartitionKey {
    pub(super) fn segment(self, base: LogOffset) -> SegmentId {
        SegmentId { topic: self.topic, generation: self.generation, partition: self.partition, base }
    }

    /// Returns the partition's directory below the log's.
    pub(super) fn directory(self, log: &Path) -> PathBuf {
        let partition = self.partition.to_string();
        log.join(self.topic.name()).join(self.generation.to_string()).join(partition)
    }

    pub(super) fn out_of_range(self, offset: LogOffset, bounds: OffsetBounds) -> Error {
        let OffsetBounds { earliest, end } = bounds;
        Error::OutOfRange { topic: self.topic, partition: self.partition, offset, earliest, end }
    }
}

/// A segment as readers see it: nothing at or after `position` is theirs to read.
#[derive(Debug, Clone)]
pub(super) struct SegmentView {
    pub id: SegmentId,
    pub path: PathBuf,
    pub index: SparseIndex,
    /// Position after the last published frame.
    pub position: u64,
}

impl SegmentView {
    pub(super) fn new(id: SegmentId, path: PathBuf, index: SparseIndex, position: u64) -> Self {
        Self { id, path, index, position }
    }
}

/// A frame that became durable.
pub(super) struct PublishedFrame {
    pub segment: SegmentId,
    pub at: u64,
    pub base: LogOffset,
    pub end: LogOffset,
    pub records: u32,
    /// Header and payload.
    pub bytes: Bytes,
}

/// What tells waiting readers of the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tip {
    pub end: LogOffset,
    /// The log stopped: the end will not move any more.
    pub stopped: bool,
}

/// A published part of a segment's file to read.
#[derive(Debug)]
pub(super) struct FileRange {
    pub id: SegmentId,
    pub path: PathBuf,
    /// Offset and position of a frame at or before the offset looked for.
    pub base: LogOffset,
    pub at: u64,
    /// Position that must not be passed.
    pub until: u64,
}

/// Where the records from an offset on are.
#[derive(Debug)]
pub(super) enum Located {
    /// There are none yet.
    AtEnd,
    /// They were in memory.
    Read(ReadBatch),
    InFile(FileRange),
}

#[derive(Default)]
struct View {
    segments: Vec<SegmentView>,
    cached: VecDeque<PublishedFrame>,
    cached_bytes: u64,
}

/// One partition. The end moves while the view is locked, so that whoever sees it finds the records below it.
pub(super) struct Partition {
    pub key: PartitionKey,
    cache_bytes_max: u64,
    view: RwLock<View>,
    tip: watch::Sender<Tip>,
}

impl Partition {
    pub(super) fn new(key: PartitionKey, recovered: Recovered, cache_bytes_max: u64) -> Self {
        let tip = Tip { end: recovered.end, stopped: false };
        let view = View { segments: recovered.segments, ..View::default() };
        Self { key, cache_bytes_max, view: RwLock::new(view), tip: watch::Sender::new(tip) }
    }

    pub(super) fn end(&self) -> LogOffset {
        self.tip.borrow().end
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Tip> {
        self.tip.subscribe()
    }

    /// Tells waiting readers that the end will not move any more.
    pub(super) fn stop(&self) {
        self.tip.send_modify(|tip| tip.stopped = true);
    }

    pub(super) fn bounds(&self) -> OffsetBounds {
        self.bounds_of(&self.read_view())
    }

    /// Publishes a frame that is durable.
    pub(super) fn publish(&self, frame: PublishedFrame, path: &Path) {
        let end = frame.end;
        let mut view = self.write_view();
        if view.segments.last().is_none_or(|last| last.id != frame.segment) {
            let index = SparseIndex::default();
            view.segments.push(SegmentView::new(frame.segment, path.to_path_buf(), index, 0));
        }
        if let Some(segment) = view.segments.last_mut() {
            segment.index.add(frame.base, frame.at);
            segment.position = frame.at + frame.bytes.len() as u64;
        }
        view.cached_bytes += frame.bytes.len() as u64;
        view.cached.push_back(frame);
        while view.cached_bytes > self.cache_bytes_max
            && let Some(oldest) = view.cached.pop_front()
        {
            view.cached_bytes -= oldest.bytes.len() as u64;
        }
        self.tip.send_modify(|tip| tip.end = end);
    }

    /// Puts `grown`, what a reader beside a writer found, in the place of the segments from its first on, and forgets
    /// those before `earliest`, which the writer trimmed.
    pub(super) fn grow(&self, earliest: LogOffset, grown: Vec<SegmentView>, end: LogOffset) {
        let mut view = self.write_view();
        let first = grown.first().map_or(LogOffset(i64::MAX), |first| first.id.base);
        view.segments.retain(|segment| segment.id.base >= earliest && segment.id.base < first);
        view.segments.extend(grown);
        self.tip.send_if_modified(|tip| std::mem::replace(&mut tip.end, end) != end);
    }

    /// Takes the segments whose records all lie below `before` out of the view, oldest first; never the last one.
    pub(super) fn take_before(&self, before: LogOffset) -> Vec<SegmentView> {
        let mut view = self.write_view();
        let count = view.segments.iter().skip(1).take_while(|next| next.id.base <= before).count();
        view.segments.drain(..count).collect()
    }

    /// Returns the segments in order, each with the base of the next one; `None` for the last.
    pub(super) fn segments(&self) -> Vec<(SegmentView, Option<LogOffset>)> {
        let view = self.read_view();
        let ends = view.segments.iter().skip(1).map(|next| Some(next.id.base)).chain([None]);
        view.segments.iter().cloned().zip(ends).collect()
    }

    /// Finds the records from `from` on.
    ///
    /// # Errors
    /// `OutOfRange`; `Damage` never in practice: frames in memory were encoded here.
    pub(super) fn locate(&self, from: LogOffset, bytes_max: usize) -> Result<Located> {
        let view = self.read_view();
        let bounds = self.bounds_of(&view);
        if from < bounds.earliest || from > bounds.end {
            return Err(self.key.out_of_range(from, bounds));
        }
        if from == bounds.end {
            return Ok(Located::AtEnd);
        }
        if view.cached.front().is_some_and(|first| first.base <= from) {
            return self.read_cached(&view, from, bounds.end, bytes_max).map(Located::Read);
        }
        let after = view.segments.partition_point(|segment| segment.id.base <= from);
        let segment = view.segments[..after].last();
        let place = segment.and_then(|segment| Some((segment, segment.index.lookup(from)?)));
        let Some((segment, (base, at))) = place else {
            return Err(self.key.out_of_range(from, bounds));
        };
        let (id, path, until) = (segment.id, segment.path.clone(), segment.position);
        Ok(Located::InFile(FileRange { id, path, base, at, until }))
    }

    fn read_cached(
        &self,
        view: &View,
        from: LogOffset,
        end: LogOffset,
        bytes_max: usize,
    ) -> Result<ReadBatch> {
        let first = view.cached.partition_point(|frame| frame.end <= from);
        let mut taker = Taker::new(from, bytes_max);
        for frame in view.cached.range(first..).take_while(|frame| frame.end <= end) {
            let payload = frame.bytes.slice(FRAME_HEADER_BYTES..);
            taker
                .take(frame.base, Records::new(payload, frame.records))
                .map_err(|reason| Error::damage(&frame.segment.path(Path::new("")), frame.at, reason))?;
            if taker.is_full() {
                break;
            }
        }
        Ok(taker.batch)
    }

    fn bounds_of(&self, view: &View) -> OffsetBounds {
        let end = self.end();
        OffsetBounds { earliest: view.segments.first().map_or(end, |first| first.id.base.min(end)), end }
    }

    fn read_view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_view(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes records from an offset on until about so many bytes are taken, one at least.
pub(super) struct Taker {
    from: LogOffset,
    bytes_left: usize,
    pub batch: ReadBatch,
}

impl Taker {
    pub(super) fn new(from: LogOffset, bytes_max: usize) -> Self {
        Self { from, bytes_left: bytes_max.max(1), batch: ReadBatch::default() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes_left == 0
    }

    /// Takes what is wanted of a frame's records; the error is the reason why they do not decode.
    pub(super) fn take(&mut self, base: LogOffset, records: Records) -> Result<(), &'static str> {
        let mut offset = base;
        for record in records {
            let record = record?;
            if self.is_full() {
                break;
            }
            if offset >= self.from {
                self.bytes_left = self.bytes_left.saturating_sub(record.len().max(1));
                self.batch.records.push((offset, record));
            }
            offset = offset.next();
        }
        Ok(())
    }
}
