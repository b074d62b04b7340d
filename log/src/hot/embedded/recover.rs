//! Opens a partition's segments for the writer, and mends what a crash left.
//!
//! What the writer finds whole in the last segment may still be in the page cache alone, because the process before
//! was killed between a write and its sync, or because its sync failed. So the newest frame is written once more and
//! synced before anyone may read it: else an archive could commit records that a power cut then takes back.

use std::path::Path;

use tracing::{info, warn};

use super::partition::{PartitionKey, SegmentView};
use super::scan::{self, Check, Tail, Walk, Window};
use super::segment::{ActiveSegment, SEGMENT_HEADER_BYTES, SegmentId, base_of};
use crate::error::{Error, Result};
use crate::event::LogOffset;
use crate::fs::{File, FileSystem, read_full_at};

/// A partition as found on disk.
pub(super) struct Recovered {
    pub segments: Vec<SegmentView>,
    /// Offset the next record gets.
    pub end: LogOffset,
}

impl Recovered {
    pub(super) fn empty() -> Self {
        Self { segments: Vec::new(), end: LogOffset(0) }
    }
}

/// Opens a partition for writing: cuts a torn tail, syncs what stays, and returns the segment to append to, if any.
///
/// # Errors
/// `Damage` naming file and position; `Io`.
pub(super) fn open_for_writing(
    fs: &dyn FileSystem,
    key: PartitionKey,
    directory: &Path,
    segment_bytes: u64,
) -> Result<(Recovered, Option<ActiveSegment>)> {
    let ids = segment_ids(fs, key, directory)?;
    let Some((last, earlier)) = ids.split_last() else {
        fs.sync_dir(directory).map_err(Error::io("sync", directory))?;
        return Ok((Recovered::empty(), None));
    };
    let mut segments = open_earlier(fs, directory, earlier, last.base)?;
    let (walk, active) = open_last(fs, directory, *last, segment_bytes)?;
    fs.sync_dir(directory).map_err(Error::io("sync", directory))?;
    segments.push(SegmentView::new(*last, active.path.clone(), walk.index, walk.position));
    Ok((Recovered { segments, end: walk.end }, Some(active)))
}

/// Lists the partition's segments in order.
pub(super) fn segment_ids(
    fs: &dyn FileSystem,
    key: PartitionKey,
    directory: &Path,
) -> Result<Vec<SegmentId>> {
    let paths = fs.list(directory).map_err(Error::io("list", directory))?;
    let mut ids = Vec::new();
    for path in paths {
        match base_of(&path) {
            Some(base) => ids.push(key.segment(base)),
            None => {
                warn!(path = %path.display(), "a file that is no segment lies among segments; it is left alone")
            }
        }
    }
    ids.sort_by_key(|id| id.base);
    Ok(ids)
}

/// Opens segments that others follow, up to offset `until`: each must hold every frame up to the next one's base.
pub(super) fn open_earlier(
    fs: &dyn FileSystem,
    directory: &Path,
    ids: &[SegmentId],
    until: LogOffset,
) -> Result<Vec<SegmentView>> {
    let ends = ids.iter().skip(1).map(|next| next.base).chain([until]);
    ids.iter()
        .zip(ends)
        .map(|(id, end)| {
            let path = id.path(directory);
            let file = fs.open(&path, false).map_err(Error::io("open", &path))?;
            let mut window = Window::new(file.as_ref(), &path)?;
            scan::check_header(&mut window, id)?.map_err(|reason| Error::damage(&path, 0, reason))?;
            let mut walk = scan::walk_from_start(id);
            scan::walk_on(&mut window, id, &mut walk, Check::Header, Some(end))?;
            if walk.end == end {
                return Ok(SegmentView::new(*id, path, walk.index, walk.position));
            }
            let reason = match walk.end > end {
                true => format!("the segment goes up to offset {}; the next one begins at {end}", walk.end),
                false => format!("{}; offset {} is missing before the next segment", walk.stopped, walk.end),
            };
            Err(Error::damage(&path, walk.position, reason))
        })
        .collect()
}

fn open_last(
    fs: &dyn FileSystem,
    directory: &Path,
    id: SegmentId,
    segment_bytes: u64,
) -> Result<(Walk, ActiveSegment)> {
    let path = id.path(directory);
    let file = fs.open(&path, true).map_err(Error::io("open", &path))?;
    let length = file.len().map_err(Error::io("read the length of", &path))?;
    let mut active =
        ActiveSegment { id, file: file.clone(), path, position: 0, capacity: length.max(segment_bytes) };
    let mut window = Window::new(file.as_ref(), &active.path)?;
    let mut walk = scan::walk_from_start(&id);
    let header = scan::check_header(&mut window, &id)?;
    if header.is_ok() {
        scan::walk_on(&mut window, &id, &mut walk, Check::Whole, None)?;
    }
    active.position = walk.position;
    let searched_from = if header.is_ok() { walk.position } else { 0 };
    let tail = scan::tail_from(&mut window, &id, searched_from, walk.end)?;
    match (header, tail) {
        (header, Tail::FrameAt(at)) => {
            let reason = header.err().unwrap_or(walk.stopped);
            let reason = format!("{reason}; a whole frame stands after it, at byte {at}");
            Err(Error::damage(&active.path, searched_from, reason))
        }
        (Err(reason), _) => {
            info!(path = %active.path.display(), reason, "a segment was not finished being created; it is made anew");
            file.set_len(0).map_err(Error::io("cut", &active.path))?;
            active.write_header()?;
            Ok((walk, active))
        }
        (Ok(()), tail) => {
            if let Tail::Torn { bytes } = tail {
                let (path, at) = (active.path.display(), walk.position);
                warn!(%path, at, bytes, reason = walk.stopped, "cutting an incomplete frame off the log's end");
                file.set_len(walk.position).map_err(Error::io("cut", &active.path))?;
            }
            file.preallocate(active.capacity).map_err(Error::io("preallocate", &active.path))?;
            write_newest_again(file.as_ref(), &active.path, &walk)?;
            Ok((walk, active))
        }
    }
}

/// Writes the newest frame, or the header where there is none, over itself, and syncs.
fn write_newest_again(file: &dyn File, path: &Path, walk: &Walk) -> Result<()> {
    let (at, count) = match walk.last_frame {
        Some(frame) => (frame.at, frame.bytes),
        None => (0, SEGMENT_HEADER_BYTES),
    };
    let mut bytes = vec![0; count];
    let read = read_full_at(file, &mut bytes, at).map_err(Error::io("read", path))?;
    if read != count {
        return Err(Error::damage(path, at, "the file became shorter while it was opened"));
    }
    file.write_all_at(&bytes, at).map_err(Error::io("write", path))?;
    file.sync_data().map_err(Error::io("sync", path))
}
