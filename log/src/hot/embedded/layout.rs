//! What fixes a log for its life, in `layout.json`; and the lock against a second writer.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::event::{Generation, PARTITION_HASH_NAME};
use crate::fs::{FileSystem, read_file};

const FORMAT_VERSION: u32 = 1;
const LAYOUT_FILE: &str = "layout.json";
const LOCK_FILE: &str = "LOCK";

/// Which generation is written to, and what that generation fixes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    pub format_version: u32,
    pub generation: Generation,
    pub partitions: u32,
    pub hash_name: String,
}

impl Layout {
    /// Reads the layout; `None` where no log is.
    ///
    /// # Errors
    /// `Damage` if the file does not say what it must; `Config` if this build cannot read such a log.
    pub(super) fn read(fs: &dyn FileSystem, directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(LAYOUT_FILE);
        let bytes = match read_file(fs, &path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let layout: Layout =
            serde_json::from_slice(&bytes).map_err(|error| Error::damage(&path, 0, error.to_string()))?;
        if layout.partitions == 0 {
            return Err(Error::damage(&path, 0, "a log without partitions"));
        }
        if layout.format_version != FORMAT_VERSION || layout.hash_name != PARTITION_HASH_NAME {
            let (version, hash) = (layout.format_version, &layout.hash_name);
            let path = path.display();
            return Err(Error::Config {
                reason: format!(
                    "{path} names format {version} and hash {hash}, which this build cannot read"
                ),
            });
        }
        Ok(Some(layout))
    }

    /// Reads the layout and compares its partition count, or makes a new one durable.
    pub(super) fn read_or_create(
        fs: &dyn FileSystem,
        directory: &Path,
        partitions: u32,
        holds_segments: bool,
    ) -> Result<Self> {
        let path = directory.join(LAYOUT_FILE);
        match Self::read(fs, directory)? {
            Some(layout) if layout.partitions == partitions => Ok(layout),
            Some(layout) => Err(Error::Config {
                reason: format!(
                    "the log in {} has {} partitions and the settings ask for {partitions}; set partitions = {} \
                     (a log keeps its count for life), or give another directory to a new log",
                    directory.display(),
                    layout.partitions,
                    layout.partitions,
                ),
            }),
            None if holds_segments => {
                Err(Error::damage(&path, 0, "the file is missing beside existing segments"))
            }
            None => {
                let hash_name = PARTITION_HASH_NAME.to_owned();
                let layout =
                    Self { format_version: FORMAT_VERSION, generation: Generation(0), partitions, hash_name };
                layout.create(fs, directory, &path)?;
                Ok(layout)
            }
        }
    }

    fn create(&self, fs: &dyn FileSystem, directory: &Path, path: &Path) -> Result<()> {
        let unfinished = directory.join("layout.json.new");
        match fs.remove_file(&unfinished) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &unfinished)(error));
            }
            _ => {}
        }
        let bytes = serde_json::to_vec(self).map_err(|error| Error::damage(path, 0, error.to_string()))?;
        let file = fs.create_new(&unfinished).map_err(Error::io("create", &unfinished))?;
        file.write_all_at(&bytes, 0).map_err(Error::io("write", &unfinished))?;
        file.sync_data().map_err(Error::io("sync", &unfinished))?;
        fs.rename(&unfinished, path).map_err(Error::io("rename", &unfinished))?;
        fs.sync_dir(directory).map_err(Error::io("sync", directory))
    }
}

/// Held by the one writer of a log; given back when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub(super) struct WriterLock {
    _file: std::fs::File,
}

impl WriterLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// `Locked` if another writer has it, in this process or another.
    pub(super) fn take(directory: &Path) -> Result<Self> {
        let path: PathBuf = directory.join(LOCK_FILE);
        let mut options = std::fs::OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: directory.to_path_buf() }),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
        }
    }
}
