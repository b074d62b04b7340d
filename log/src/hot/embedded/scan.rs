//! Walks the frames of a segment, and tells a torn tail from damage.
//!
//! Why that can be told: a group commit writes at most one frame in each partition and syncs it before the next group
//! is written, and a segment is created only when all before it is synced. So of a partition at most the newest
//! frame can be incomplete, and only in the last segment. Bytes that are no frame are therefore
//! - *damage* in any segment but the last, up to the base offset of the next one;
//! - *damage* in the last segment where any whole frame stands later in it: that one was written after these bytes
//!   were synced;
//! - the *torn tail* otherwise: nobody was told that it is stored, and it may be cut.
//!
//! A whole frame within a torn frame's records could feign damage. The seed in its CRC and the range of its base
//! offset (no record takes less than one byte) keep records that happen to hold a frame from doing so.
//! The newest frame rotting after it was synced looks like a torn tail: no log without a second copy can tell them.

use std::path::Path;

use super::frame::{FRAME_HEADER_BYTES, FrameHeader};
use super::index::SparseIndex;
use super::segment::{SEGMENT_HEADER_BYTES, SegmentId};
use crate::error::{Error, Result};
use crate::event::LogOffset;
use crate::fs::{File, read_full_at};

const WINDOW_BYTES: usize = 1024 * 1024;
const SMALL_WINDOW_BYTES: usize = 32 * 1024;
const BLOCK_BYTES: usize = 4096;

const OUT_OF_ORDER: &str = "the frame's offset does not follow the one before";

/// Part of a file in memory, moved on as it is read.
pub(super) struct Window<'a> {
    file: &'a dyn File,
    path: &'a Path,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
    bytes_min: usize,
}

impl<'a> Window<'a> {
    /// Returns a window for walking through a whole file.
    pub(super) fn new(file: &'a dyn File, path: &'a Path) -> Result<Self> {
        let length = file.len().map_err(Error::io("read the length of", path))?;
        Ok(Self { file, path, length, start: 0, bytes: Vec::new(), bytes_min: WINDOW_BYTES })
    }

    /// Returns a window for a look at a file's tail.
    pub(super) fn small(file: &'a dyn File, path: &'a Path) -> Result<Self> {
        Ok(Self { bytes_min: SMALL_WINDOW_BYTES, ..Self::new(file, path)? })
    }

    /// Returns the `count` bytes at `position`, fewer at the end of the file.
    fn at(&mut self, position: u64, count: usize) -> Result<&[u8]> {
        let count = count.min(usize::try_from(self.length.saturating_sub(position)).unwrap_or(usize::MAX));
        let inside =
            position >= self.start && position + count as u64 <= self.start + self.bytes.len() as u64;
        if !inside {
            let left = usize::try_from(self.length - position.min(self.length)).unwrap_or(usize::MAX);
            self.bytes.resize(count.max(self.bytes_min).min(left), 0);
            self.start = position;
            let read = read_full_at(self.file, &mut self.bytes, position);
            let read = read.map_err(Error::io("read", self.path))?;
            self.bytes.truncate(read);
        }
        let from = usize::try_from(position - self.start).unwrap_or(usize::MAX).min(self.bytes.len());
        Ok(&self.bytes[from..self.bytes.len().min(from + count)])
    }
}

/// How much of a frame a walk looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Its header: enough in a segment that a later one follows, whose frames are checked when they are read.
    Header,
    /// Its CRC as well.
    Whole,
}

/// A frame's place in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FramePlace {
    pub at: u64,
    pub bytes: usize,
}

/// The frames that a walk found, and where and why it ended.
#[derive(Debug)]
pub(super) struct Walk {
    pub index: SparseIndex,
    /// Offset after the last frame.
    pub end: LogOffset,
    /// Position after the last frame.
    pub position: u64,
    pub last_frame: Option<FramePlace>,
    /// Why no frame begins at `position`.
    pub stopped: &'static str,
}

/// Checks the segment's header; the error within is the reason why it is wrong.
pub(super) fn check_header(window: &mut Window<'_>, id: &SegmentId) -> Result<Result<(), &'static str>> {
    Ok(id.check_header(window.at(0, SEGMENT_HEADER_BYTES)?))
}

/// Walks frames on from where `walk` stands, until one is missing or incomplete, or offset `until` is reached.
///
/// # Errors
/// `Io`. Bytes that are no frame are no error here: they end the walk.
pub(super) fn walk_on(
    window: &mut Window<'_>,
    id: &SegmentId,
    walk: &mut Walk,
    check: Check,
    until: Option<LogOffset>,
) -> Result<()> {
    let seed = id.seed();
    while until.is_none_or(|until| walk.end < until) {
        let header = match frame_at(window, walk.position, seed, check)? {
            Ok(header) if header.base == walk.end => header,
            not_next => {
                walk.stopped = not_next.err().unwrap_or(OUT_OF_ORDER);
                return Ok(());
            }
        };
        walk.index.add(walk.end, walk.position);
        walk.last_frame = Some(FramePlace { at: walk.position, bytes: header.frame_bytes() });
        walk.position += header.frame_bytes() as u64;
        walk.end = header.end();
    }
    Ok(())
}

/// Returns a walk that stands before the first frame of `id`.
pub(super) fn walk_from_start(id: &SegmentId) -> Walk {
    Walk {
        index: SparseIndex::default(),
        end: id.base,
        position: SEGMENT_HEADER_BYTES as u64,
        last_frame: None,
        stopped: "no frame begins here",
    }
}

fn frame_at(
    window: &mut Window<'_>,
    position: u64,
    seed: u32,
    check: Check,
) -> Result<Result<FrameHeader, &'static str>> {
    let length = window.length;
    let Ok(bytes) = window.at(position, FRAME_HEADER_BYTES)?.try_into() else {
        return Ok(Err("the file ends inside a frame's header"));
    };
    let header = match FrameHeader::decode(bytes) {
        Ok(header) => header,
        Err(reason) => return Ok(Err(reason)),
    };
    if position + header.frame_bytes() as u64 > length {
        return Ok(Err("the file ends inside a frame"));
    }
    if check == Check::Whole && !header.matches(window.at(position, header.frame_bytes())?, seed) {
        return Ok(Err("the frame's checksum is wrong"));
    }
    Ok(Ok(header))
}

/// Returns why no whole frame stands where `walk` does; `None` if one does.
pub(super) fn missing_frame(
    window: &mut Window<'_>,
    id: &SegmentId,
    walk: &Walk,
) -> Result<Option<&'static str>> {
    Ok(match frame_at(window, walk.position, id.seed(), Check::Whole)? {
        Ok(header) if header.base == walk.end => None,
        Ok(_) => Some(OUT_OF_ORDER),
        Err(reason) => Some(reason),
    })
}

/// Returns whether anything but zeros stands where the header of the next frame would.
pub(super) fn begins_with_bytes(window: &mut Window<'_>, position: u64) -> Result<bool> {
    Ok(window.at(position, FRAME_HEADER_BYTES)?.iter().any(|byte| *byte != 0))
}

/// What stands after the last whole frame of a last segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// Zeros.
    Clean,
    /// Bytes of a frame that was never acknowledged, this many.
    Torn { bytes: u64 },
    /// A whole frame stands at this position: what lies before it is damage.
    FrameAt(u64),
}

/// Looks through everything from `position` on. `expected` is the offset that the next frame would begin with.
pub(super) fn tail_from(
    window: &mut Window<'_>,
    id: &SegmentId,
    position: u64,
    expected: LogOffset,
) -> Result<Tail> {
    let seed = id.seed();
    let mut last_used = position;
    let mut block = position;
    while block < window.length {
        let bytes = window.at(block, BLOCK_BYTES)?;
        let count = bytes.len();
        if count == 0 {
            break; // the file became shorter meanwhile
        }
        if bytes == &[0; BLOCK_BYTES][..count] {
            block += count as u64;
            continue;
        }
        if let Some(used) = bytes.iter().rposition(|byte| *byte != 0) {
            last_used = block + used as u64 + 1;
        }
        // A magic may begin up to three bytes before this block; those before `position` were walked already.
        for at in block.saturating_sub(3).max(position)..block + count as u64 {
            let possible = expected.0..=expected.0.saturating_add_unsigned(at - position);
            if frame_at(window, at, seed, Check::Header)?
                .is_ok_and(|header| possible.contains(&header.base.0))
                && frame_at(window, at, seed, Check::Whole)?.is_ok()
            {
                return Ok(Tail::FrameAt(at));
            }
        }
        block += count as u64;
    }
    Ok(if last_used == position { Tail::Clean } else { Tail::Torn { bytes: last_used - position } })
}
