//! The folder a recompute process spills to: its own, and gone when it ends.
//!
//! Guarantee: a process that was killed leaves nothing for good. Each process holds a lock on its folder; whoever makes
//! one first removes those whose lock is free, for their owners are dead.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs};

/// Names begin with this, so that nothing else in the folder is touched.
const PREFIX: &str = "twice-recompute-";
/// Attempts to make a folder: another process may remove it between its making and its lock.
const ATTEMPTS: u32 = 8;

/// One part in so many of the disk stays free: the node's log is on it too, and refuses clicks below its reserve, which
/// is as much unless it is set otherwise.
const KEPT_PARTS: u64 = 20;
/// What may be spilled to a disk that is fuller than that.
const BYTES_MIN: u64 = 64 << 20;

/// Returns how many bytes may be spilled to `folder`, by what its disk has free now.
pub fn bytes_max(folder: &Path) -> u64 {
    // The folder may not be made yet.
    let disk = folder.ancestors().find_map(|folder| statvfs(folder).ok());
    disk.map_or(BYTES_MIN, |disk| {
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        bytes_above_reserve(bytes(disk.f_bavail), bytes(disk.f_blocks))
    })
}

fn bytes_above_reserve(free: u64, size: u64) -> u64 {
    free.saturating_sub(size / KEPT_PARTS).max(BYTES_MIN)
}

/// A folder of this process alone; removed with everything in it when dropped.
#[derive(Debug)]
pub struct SpillFolder {
    path: PathBuf,
    /// Holds the lock while it is open.
    _lock: File,
}

impl SpillFolder {
    /// Removes what dead processes left in `root`, and makes a folder in it.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn make(root: &Path) -> std::io::Result<Self> {
        sweep(root);
        for attempt in 0..ATTEMPTS {
            let path = root.join(format!("{PREFIX}{}-{attempt}", std::process::id()));
            std::fs::create_dir_all(&path)?;
            let Ok(lock) = File::open(&path) else { continue };
            // Where another process swept it meanwhile, the path is gone or the lock is taken.
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && path.is_dir() {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(std::io::Error::other("the spill folder vanished while it was made"))
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SpillFolder {
    fn drop(&mut self) {
        // What cannot be removed now is swept later.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders that killed processes left in `root`; returns how many there were.
pub fn sweep(root: &Path) -> usize {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let removed = ours.filter(|entry| {
        // Its lock is held until it is gone, so that nobody takes the folder as its own meanwhile.
        let dead = lock_of_dead(&entry.path());
        dead.is_some_and(|_lock| std::fs::remove_dir_all(entry.path()).is_ok())
    });
    removed.count()
}

/// Takes the folder's lock; `None` where its owner lives.
fn lock_of_dead(path: &Path) -> Option<File> {
    let folder = File::open(path).ok()?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive).ok().map(|()| folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_spilled_leaves_the_reserve() {
        let gibibytes = |number: u64| number << 30;
        assert_eq!(bytes_above_reserve(gibibytes(30), gibibytes(100)), gibibytes(25));
        assert_eq!(bytes_above_reserve(gibibytes(4), gibibytes(100)), BYTES_MIN);
        let root = tempfile::tempdir().expect("folder");
        assert!(bytes_max(&root.path().join("not/made/yet")) >= BYTES_MIN);
    }

    #[test]
    fn folders_of_the_dead_are_swept_and_those_of_the_living_stay() {
        let root = tempfile::tempdir().expect("folder");
        let dead = root.path().join(format!("{PREFIX}1-0"));
        std::fs::create_dir_all(dead.join("datafusion-x")).expect("folder");
        std::fs::write(dead.join("datafusion-x/spilled"), b"rows").expect("file");
        let other = root.path().join("somebody-elses");
        std::fs::create_dir(&other).expect("folder");

        let living = SpillFolder::make(root.path()).expect("made");
        assert!(!dead.exists() && other.exists());
        assert_eq!(sweep(root.path()), 0);
        assert!(living.path().is_dir());

        let path = living.path().to_path_buf();
        std::fs::write(path.join("spilled"), b"rows").expect("file");
        drop(living);
        assert!(!path.exists() && other.exists());
    }
}
