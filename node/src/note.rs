//! Notes in the data folder: one line each, of which log and which archive the folder belongs to.
//!
//! Guarantee: a note is whole or absent, and durable once written.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use twice_log::fs::FileSystem;

/// A note, by the name of its file.
pub struct Note(pub &'static str);

impl Note {
    /// Returns where the note is.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(self.0)
    }

    /// Returns what is noted; `None` where there is no note.
    ///
    /// # Errors
    /// If there is one that cannot be read.
    pub fn read(&self, folder: &Path) -> Result<Option<String>> {
        let path = self.path(folder);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes the note.
    ///
    /// # Errors
    /// If the folder cannot be written to; then there is no note.
    pub fn write(&self, fs: &dyn FileSystem, folder: &Path, text: &str) -> Result<()> {
        let path = self.path(folder);
        let beside = folder.join(format!("{}.new", self.0));
        let write = || {
            let mut file = File::create(&beside)?;
            writeln!(file, "{text}")?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)?;
            fs.sync_dir(folder)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use twice_log::fs::RealFs;

    use super::*;

    #[test]
    fn a_note_reads_back_and_is_replaced_as_a_whole() {
        let (folder, note) = (tempfile::tempdir().expect("a folder"), Note("LOG"));
        assert_eq!(note.read(folder.path()).expect("absent"), None);
        for text in ["embedded", "fluvio, topic prefix `a-`"] {
            note.write(&RealFs, folder.path(), text).expect("written");
            assert_eq!(note.read(folder.path()).expect("read").as_deref(), Some(text));
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "nothing is left beside it");
    }
}
