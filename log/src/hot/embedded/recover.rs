//! Opens a partition's segments for the writer, and mends what a crash left.
//!
//! What the writer finds whole in the last segment may still be in the page cache alone, because the process before
//! was killed between a write and its sync, or because its sync failed. So the newest frame is written once more and
//! synced before anyone may read it: else an archive could commit records that a power cut then takes back. For the
//! same reason a last segment without frames is made anew: the sync of its directory entry may have failed.

use std::path::Path;

use tracing::warn;

use super::partition::{PartitionKey, SegmentView};
use super::scan::{self, Check, FramePlace, Tail, Walk, Window};
use super::segment::{ActiveSegment, SegmentId, base_of, is_unfinished};
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
    remove_unfinished(fs, directory)?;
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

fn remove_unfinished(fs: &dyn FileSystem, directory: &Path) -> Result<()> {
    let paths = fs.list(directory).map_err(Error::io("list", directory))?;
    let mut unfinished = paths.iter().filter(|path| is_unfinished(path));
    unfinished.try_for_each(|path| fs.remove_file(path).map_err(Error::io("remove", path)))
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
    let mut window = Window::new(file.as_ref(), &path)?;
    scan::check_header(&mut window, &id)?.map_err(|reason| Error::damage(&path, 0, reason))?;
    let mut walk = scan::walk_from_start(&id);
    scan::walk_on(&mut window, &id, &mut walk, Check::Whole, None)?;
    let at = walk.position;
    match scan::tail_from(&mut window, &id, at, walk.end)? {
        Tail::Clean => {}
        Tail::Torn { bytes } => {
            warn!(path = %path.display(), at, bytes, reason = walk.stopped, "cutting an incomplete frame off the log's end");
            file.set_len(at).map_err(Error::io("cut", &path))?;
        }
        Tail::FrameAt(later) => {
            let reason = format!("{}; a whole frame stands after it, at byte {later}", walk.stopped);
            return Err(Error::damage(&path, at, reason));
        }
    }
    let Some(newest) = walk.last_frame else {
        let active = ActiveSegment::create(fs, directory, id, segment_bytes)?;
        return Ok((walk, active));
    };
    let capacity = file.len().map_err(Error::io("read the length of", &path))?.max(segment_bytes);
    file.preallocate(capacity).map_err(Error::io("preallocate", &path))?;
    write_again(file.as_ref(), &path, newest)?;
    Ok((walk, ActiveSegment { id, file, path, position: at, capacity }))
}

/// Writes a frame over itself and syncs.
fn write_again(file: &dyn File, path: &Path, frame: FramePlace) -> Result<()> {
    let mut bytes = vec![0; frame.bytes];
    let read = read_full_at(file, &mut bytes, frame.at).map_err(Error::io("read", path))?;
    if read != frame.bytes {
        return Err(Error::damage(path, frame.at, "the file became shorter while it was opened"));
    }
    file.write_all_at(&bytes, frame.at).map_err(Error::io("write", path))?;
    file.sync_data().map_err(Error::io("sync", path))
}
