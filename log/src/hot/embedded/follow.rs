//! Follows a partition that another process may be writing: nothing is locked or changed, no end is cut.
//!
//! An incomplete newest frame is left for the next look: its writer is at work on it, or died and will cut it. A whole
//! one may not be synced yet, so it is synced from here before anyone reads it; the contract of the log holds for
//! readers too.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::partition::{Partition, SegmentView};
use super::recover::{open_earlier, segment_ids};
use super::scan::{self, Check, Tail, Walk, Window};
use super::segment::SegmentId;
use crate::error::{Error, Result};
use crate::event::LogOffset;
use crate::fs::{File, FileSystem};

/// How often a look starts again because the writer trimmed segments under it.
const LOOKS_MAX: u32 = 5;

/// How far a reader has followed a partition.
pub(super) struct Follower {
    directory: PathBuf,
    /// The last segment seen and the walk through it; `None` until there is one.
    place: Mutex<Option<(SegmentId, Walk)>>,
}

impl Follower {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, place: Mutex::new(None) }
    }

    /// Publishes in `partition` what was written since the last look. Blocks on the disk.
    ///
    /// # Errors
    /// `Damage` naming file and position; `Io`.
    pub(super) fn look(&self, fs: &dyn FileSystem, partition: &Partition) -> Result<()> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 1..LOOKS_MAX {
            match self.look_once(fs, partition, &mut place) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => *place = None,
                outcome => return outcome,
            }
        }
        self.look_once(fs, partition, &mut place)
    }

    fn look_once(
        &self,
        fs: &dyn FileSystem,
        partition: &Partition,
        place: &mut Option<(SegmentId, Walk)>,
    ) -> Result<()> {
        if let Some((id, walk)) = place {
            let path = id.path(&self.directory);
            let file = fs.open(&path, false).map_err(Error::io("open", &path))?;
            walk_and_publish(file.as_ref(), &path, id, walk, partition)?;
        }
        // Listed after the walk: a segment that a later one follows is complete, and is walked once more.
        let ids = segment_ids(fs, partition.key, &self.directory)?;
        let Some((last, earlier)) = ids.split_last() else { return Ok(()) };
        let earliest = earlier.first().unwrap_or(last).base;
        if let Some((id, walk)) = place
            && id == last
        {
            partition.grow(earliest, Vec::new(), walk.end);
            return Ok(());
        }
        let known = place.as_ref().map_or(earliest, |(id, _)| id.base);
        let unknown: Vec<SegmentId> = earlier.iter().filter(|id| id.base >= known).copied().collect();
        let mut grown = open_earlier(fs, &self.directory, &unknown, last.base)?;
        let walk = scan::walk_from_start(last);
        let path = last.path(&self.directory);
        grown.push(SegmentView::new(*last, path.clone(), walk.index.clone(), walk.position));
        partition.grow(earliest, grown, last.base);
        let (id, walk) = place.insert((*last, walk));
        let file = fs.open(&path, false).map_err(Error::io("open", &path))?;
        walk_and_publish(file.as_ref(), &path, id, walk, partition)
    }
}

fn walk_and_publish(
    file: &dyn File,
    path: &Path,
    id: &SegmentId,
    walk: &mut Walk,
    partition: &Partition,
) -> Result<()> {
    let before = walk.position;
    let mut window = Window::small(file, path)?;
    scan::check_header(&mut window, id)?.map_err(|reason| Error::damage(path, 0, reason))?;
    scan::walk_on(&mut window, id, walk, Check::Whole, None)?;
    if walk.position > before {
        file.sync_data().map_err(Error::io("sync", path))?;
        let view = SegmentView::new(*id, path.to_path_buf(), walk.index.clone(), walk.position);
        partition.grow(LogOffset(0), vec![view], walk.end);
    }
    check_tail(file, path, id, walk)
}

/// Tells damage before a whole frame, which would hold a reader up for ever, from a frame being written.
fn check_tail(file: &dyn File, path: &Path, id: &SegmentId, walk: &Walk) -> Result<()> {
    if !scan::begins_with_bytes(&mut Window::small(file, path)?, walk.position)? {
        return Ok(());
    }
    if let Tail::FrameAt(at) = scan::tail_from(&mut Window::new(file, path)?, id, walk.position, walk.end)? {
        // The frame here may have become whole since it was looked at; then the one found follows it rightly, and the
        // next look takes both.
        if let Some(reason) = scan::missing_frame(&mut Window::small(file, path)?, id, walk)? {
            let reason = format!("{reason}; a whole frame stands after it, at byte {at}");
            return Err(Error::damage(path, walk.position, reason));
        }
    }
    Ok(())
}
