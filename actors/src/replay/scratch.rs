//! Finished slices of a replay on disk, so that one that was killed goes on after its last.
//!
//! Guarantee: a slice is used again only for the same runs and the same slice, and only if its bytes are whole: it is
//! written aside, synced, and renamed. Whatever else lies there is counted anew.
//! Flow: `{folder}/{hash of the runs}/slice-NNNN.json`; the folder goes when the replay is done.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use twice_log::event::Sha256Hex;
use twice_store::Result;

use super::inputs::refused;
use super::pass::SliceCounts;
use super::slices::Slice;

/// Changes when what a slice holds, or means, changes: a newer build begins anew.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    format: u32,
    slice: Slice,
    counts: SliceCounts,
}

/// The folder of one replay; without one nothing is kept on disk.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: Option<PathBuf>,
    /// Where there is no folder.
    kept: Vec<(usize, SliceCounts)>,
}

impl Scratch {
    /// Opens the folder of the replay of `runs` below `parent`.
    ///
    /// # Errors
    /// `Replay` if it cannot be made.
    pub fn open(parent: Option<&Path>, runs: &Sha256Hex) -> Result<Self> {
        let folder = parent.map(|parent| parent.join(&runs.0));
        if let Some(folder) = &folder {
            fs::create_dir_all(folder).map_err(|error| failed("make", folder, &error))?;
        }
        Ok(Self { folder, kept: Vec::new() })
    }

    /// Returns what an earlier replay of the same runs counted of a slice.
    pub fn find(&self, index: usize, slice: &Slice) -> Option<SliceCounts> {
        let bytes = fs::read(self.path(index)?).ok()?;
        let kept: Kept = serde_json::from_slice(&bytes).ok()?;
        (kept.format == FORMAT && kept.slice == *slice).then_some(kept.counts)
    }

    /// Keeps a finished slice; durable when it returns.
    ///
    /// # Errors
    /// `Replay` if it cannot be written.
    pub fn keep(&mut self, index: usize, slice: &Slice, counts: SliceCounts) -> Result<()> {
        let Some(path) = self.path(index) else {
            self.kept.push((index, counts));
            return Ok(());
        };
        let kept = Kept { format: FORMAT, slice: slice.clone(), counts };
        write(&path, &kept).map_err(|error| failed("write", &path, &error))
    }

    /// Returns a slice that was found or kept.
    ///
    /// # Errors
    /// `Replay` if it is gone.
    pub fn read(&mut self, index: usize, slice: &Slice) -> Result<SliceCounts> {
        let counts = match self.kept.iter().position(|(kept, _)| *kept == index) {
            Some(place) => Some(self.kept.swap_remove(place).1),
            None => self.find(index, slice),
        };
        counts.ok_or_else(|| refused(format!("slice {index} of the replay was removed from its folder")))
    }

    /// Removes the folder: the replay is done. What cannot be removed costs space only.
    pub fn remove(self) {
        if let Some(folder) = &self.folder
            && let Err(error) = fs::remove_dir_all(folder)
        {
            tracing::warn!(folder = %folder.display(), %error, "slices of a finished replay stay");
        }
    }

    fn path(&self, index: usize) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("slice-{index:04}.json")))
    }
}

fn write(path: &Path, kept: &Kept) -> std::io::Result<()> {
    // Two replays of one hour may run at once; each writes a file of its own.
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = File::create(&aside)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn failed(action: &str, path: &Path, error: &std::io::Error) -> twice_store::Error {
    refused(format!("cannot {action} {}: {error}", path.display()))
}
