//! The file layer under the embedded log and the local archive: few calls, each with its durability stated.
//!
//! `RealFs` is the machine's. `ForgetfulFs` (tests) forgets everything that was not synced, directory entries included.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file. Methods take `&self`; one writer at a time is the caller's care.
pub trait File: Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`. Not durable until [`File::sync_data`].
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reserves and zero-extends the file to `length` bytes, so that later writes change no metadata.
    fn preallocate(&self, length: u64) -> io::Result<()>;
    /// Cuts or extends the file to `length` bytes.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Returns the length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Makes the file's bytes and length durable (fdatasync). MUST NOT be retried after a failure.
    fn sync_data(&self) -> io::Result<()>;
}

/// A directory tree. A created, renamed or removed entry is durable only after [`FileSystem::sync_dir`] of its parent.
pub trait FileSystem: Send + Sync + 'static {
    /// Creates a new file for reading and writing; fails if it exists.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file; read-only unless `writable`.
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>>;
    /// Creates a directory and its parents, and syncs each parent that gained an entry.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Gives a file a second name; fails with `AlreadyExists` if that is taken. The publish step of put-if-absent.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Lists the entries of a directory, in no order; empty if it does not exist.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}
