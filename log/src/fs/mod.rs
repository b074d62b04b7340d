//! The file layer under the embedded log and the local archive: few calls, each with its durability stated.
//!
//! [`RealFs`] is the machine's. [`ForgetfulFs`] (for tests of any crate) forgets everything that was not synced,
//! directory entries included: SIGKILL keeps the page cache, so only such a layer can show that a step was durable.

mod forgetful;
mod image;
mod real;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use forgetful::{ForgetfulFs, Unsynced};
pub use real::RealFs;

/// An open file. Methods take `&self`; one writer at a time is the caller's care.
pub trait File: Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`. Not durable until [`File::sync_data`].
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reserves and zero-extends the file to `length` bytes, so that later writes change no metadata. Never shortens.
    fn preallocate(&self, length: u64) -> io::Result<()>;
    /// Cuts or extends the file to `length` bytes.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Returns the length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Returns whether the file holds no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
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
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Lists the entries of a directory, in no order; empty if it does not exist.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// Reads until `buffer` is full or the file ends, and returns the bytes read.
///
/// # Errors
/// The file's own error; an interrupted read goes on.
pub fn read_full_at(file: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads a whole file.
///
/// # Errors
/// `NotFound` and other errors of the file system.
pub fn read_file(fs: &dyn FileSystem, path: &Path) -> io::Result<Vec<u8>> {
    let file = fs.open(path, false)?;
    let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    let read = read_full_at(file.as_ref(), &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Returns the missing directories of `path`, outermost first. `exists` tells whether a directory is there.
fn missing_directories(path: &Path, exists: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = path
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !exists(ancestor))
        .map(Path::to_path_buf)
        .collect();
    missing.reverse();
    missing
}

/// Returns the directory that holds `path`'s entry.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests;
