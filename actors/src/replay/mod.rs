//! Kappa: counts recorded runs of hours by replaying the archive through the stream's `CampaignState`.
//!
//! Guarantee: rows depend on the recorded inputs alone, not on threads, memory, slices or kills; in memory that does not
//! grow with the range. Words: *run* = the recorded inputs of one hour, of either path; *lane* = partitions whose copies
//! must be counted one after the other; *range* = the files of one manifest, read together so that a campaign's copies
//! come in offset order; *slice* = campaigns, or a share of their ids, counted in one pass over the files.
//! Flow: `inputs` joins what the runs read; `slices` cuts it by the files' footers; `pass` counts one slice, lane beside
//! lane; `scratch` keeps finished slices for a replay that was killed; `count` goes through them; `child` does it in a
//! process of its own, started by `process`.

pub mod child;
mod count;
mod files;
mod inputs;
mod pass;
mod process;
mod rows;
mod scratch;
mod slices;
#[cfg(test)]
mod tests;
mod verdicts;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use process::{InProcessReplay, ProcessReplay, ReplayConfig};

/// What one replay may use of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayLimits {
    pub threads: usize,
    /// Peak resident memory of the process that counts.
    pub memory_bytes_max: u64,
    /// Whether each file's SHA-256 is compared with its manifest's before it is read.
    pub verify_files: bool,
    /// Copies counted at once; `None`: as many as fit the memory. Decides slices, never a count.
    pub copies_per_slice_max: Option<u64>,
    /// Where finished slices are kept until the replay is done; without it a killed replay starts anew.
    pub scratch_dir: Option<PathBuf>,
}
