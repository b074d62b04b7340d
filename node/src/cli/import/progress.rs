//! How far a file got, remembered across runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use twice_log::event::Sha256Hex;

/// The count of rows acknowledged from the start of one file by one node.
///
/// It is only a saving of work: were it lost, the rows would be sent again and counted as duplicates.
#[derive(Debug)]
pub struct Progress {
    path: PathBuf,
    rows: u64,
}

impl Progress {
    /// Opens the memory of the file with this hash, at the node with this address.
    pub fn open(folder: &Path, sha256: &Sha256Hex, node: &str) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}; try --state-dir", folder.display()))?;
        let node = Sha256Hex::of(node.as_bytes());
        let path = folder.join(format!("{sha256}-{}.rows", node.prefix()));
        let rows = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(_) => 0,
        };
        Ok(Self { path, rows })
    }

    /// Returns the number of rows acknowledged so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Remembers `rows` more.
    pub fn advance(&mut self, rows: u64) -> Result<()> {
        self.rows += rows;
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, self.rows.to_string())
            .and_then(|()| fs::rename(&temporary, &self.path))
            .with_context(|| format!("cannot write {}; try --state-dir", self.path.display()))
    }
}

/// Returns the folder used where none is given: below the user's state folder.
pub fn default_folder() -> Result<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let base = state.or_else(home).context("neither XDG_STATE_HOME nor HOME is set; give --state-dir")?;
    Ok(base.join("count-twice/imports"))
}
