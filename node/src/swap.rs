//! Puts a database that was built beside the old one in its place.
//!
//! Guarantee: at any moment either the old database is in place, with its log of changes, or the new one is, or a note
//! says that a swap is under way, and then no node starts on the folder until the swap has ended. The old files are moved,
//! never deleted. Flow: note, old files aside, new file in place, note away; each step is repeated after a kill.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use twice_log::UtcMillis;
use twice_log::fs::FileSystem;

use crate::note::Note;

/// File in the data folder that says a swap is under way, and what the old database is to be called.
const NOTE: Note = Note("REBUILD");
/// SQLite's own files beside a database; left behind they would be taken for the new one's.
const BESIDE: [&str; 3] = ["", "-wal", "-shm"];

/// A database and the one to take its place.
pub struct Swap {
    fs: Arc<dyn FileSystem>,
    folder: PathBuf,
    name: String,
}

/// Refuses a folder whose database is being swapped.
///
/// # Errors
/// What to do.
pub fn refuse_unfinished(folder: &Path) -> Result<()> {
    if NOTE.read(folder)?.is_some() {
        bail!(
            "a rebuild of the billing store was killed while it put the new database in place; end it first: twice \
             rebuild billing --data-dir {}",
            folder.display()
        );
    }
    Ok(())
}

impl Swap {
    /// Swaps the file `name` of `folder`.
    pub fn of(fs: Arc<dyn FileSystem>, folder: &Path, name: &str) -> Self {
        Self { fs, folder: folder.to_path_buf(), name: name.to_owned() }
    }

    /// Returns where the database is.
    pub fn file(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// Returns where the new one is built.
    pub fn new_file(&self) -> PathBuf {
        self.folder.join(format!("{}.rebuilt", self.name))
    }

    /// Returns whether a swap was begun and not ended: the new file is whole then.
    ///
    /// # Errors
    /// If the note cannot be read.
    pub fn is_under_way(&self) -> Result<bool> {
        Ok(NOTE.read(&self.folder)?.is_some())
    }

    /// Moves the old files aside and the new one in their place; goes on with a swap that was begun. The new file MUST be
    /// whole and closed. Returns where the old database is, if there was one.
    ///
    /// # Errors
    /// If the folder cannot be written to; then the note stands, and a later call goes on.
    pub fn finish(&self, now: UtcMillis) -> Result<Option<PathBuf>> {
        let aside = match NOTE.read(&self.folder)? {
            Some(aside) => aside,
            None => {
                self.sync_file(&self.new_file())?;
                let aside = format!("{}.before-{}", self.name, now.epoch_ms());
                NOTE.write(self.fs.as_ref(), &self.folder, &aside)?;
                aside
            }
        };
        // Once the new file is in place, whatever bears the database's name is the new one's.
        if self.new_file().exists() {
            for suffix in BESIDE {
                let old = self.folder.join(format!("{}{suffix}", self.name));
                self.rename(&old, &self.folder.join(format!("{aside}{suffix}")))?;
            }
            self.sync()?;
            self.rename(&self.new_file(), &self.file())?;
            self.sync()?;
        }
        std::fs::remove_file(NOTE.path(&self.folder)).context("cannot remove the note of the swap")?;
        self.sync()?;
        let aside = self.folder.join(aside);
        Ok(aside.exists().then_some(aside))
    }

    /// Renames a file that may have been renamed already.
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        match std::fs::rename(from, to) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
            }
            _ => Ok(()),
        }
    }

    fn sync_file(&self, file: &Path) -> Result<()> {
        let synced = std::fs::File::open(file).and_then(|file| file.sync_all());
        synced.with_context(|| format!("cannot sync {}", file.display()))
    }

    fn sync(&self) -> Result<()> {
        let synced = self.fs.sync_dir(&self.folder);
        synced.with_context(|| format!("cannot sync {}", self.folder.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{read_to_string, rename, write};

    use twice_log::fs::RealFs;

    use super::*;

    fn swap(folder: &Path) -> Swap {
        Swap::of(Arc::new(RealFs), folder, "db")
    }

    /// A folder in which the old database has a log of changes, and the new one is whole.
    fn prepared() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [("db", "old"), ("db-wal", "old log"), ("db.rebuilt", "new")] {
            write(folder.path().join(name), text).expect("written");
        }
        folder
    }

    fn check_swapped(folder: &Path, aside: &str) {
        let read = |name: &str| read_to_string(folder.join(name)).expect("there");
        assert_eq!(
            (read("db"), read(aside), read(&format!("{aside}-wal"))),
            ("new".into(), "old".into(), "old log".into())
        );
        assert!(!folder.join("db-wal").exists(), "the new database would take it for its own");
        assert!(!swap(folder).is_under_way().expect("read"));
        refuse_unfinished(folder).expect("a node may start");
    }

    #[test]
    fn the_old_database_is_moved_aside_with_its_log_of_changes() {
        let folder = prepared();
        let aside = swap(folder.path()).finish(UtcMillis::clamped(7)).expect("swapped");
        assert_eq!(aside, Some(folder.path().join("db.before-7")));
        check_swapped(folder.path(), "db.before-7");
    }

    #[test]
    fn a_swap_that_was_killed_at_any_step_is_ended_and_no_node_starts_before() {
        let steps: [&[(&str, &str)]; 4] = [
            &[],
            &[("db", "db.before-7")],
            &[("db", "db.before-7"), ("db-wal", "db.before-7-wal")],
            &[("db", "db.before-7"), ("db-wal", "db.before-7-wal"), ("db.rebuilt", "db")],
        ];
        for done in steps {
            let folder = prepared();
            NOTE.write(&RealFs, folder.path(), "db.before-7").expect("noted");
            for (from, to) in done {
                rename(folder.path().join(from), folder.path().join(to)).expect("renamed");
            }
            let error = refuse_unfinished(folder.path()).expect_err("under way").to_string();
            assert!(error.contains("twice rebuild billing"), "{error}");
            assert!(swap(folder.path()).is_under_way().expect("read"));
            swap(folder.path()).finish(UtcMillis::clamped(9)).expect("ended");
            check_swapped(folder.path(), "db.before-7");
        }
    }

    #[test]
    fn a_database_that_was_not_there_is_put_in_place() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path().join("db.rebuilt"), "new").expect("written");
        assert_eq!(swap(folder.path()).finish(UtcMillis::clamped(7)).expect("swapped"), None);
        assert_eq!(read_to_string(folder.path().join("db")).expect("there"), "new");
    }
}
