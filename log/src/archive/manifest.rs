//! Manifests: the commit of the archive, one JSON object an offset range, each naming the one before by its hash.

use serde::{Deserialize, Serialize};

use crate::event::{Generation, Hour, LogOffset, PartitionId, Sha256Hex, Topic, UtcMillis};

/// What a data file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    Clicks,
    Verdicts,
    /// Records that did not decode.
    Quarantine,
}

/// One data file that a manifest commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub path: String,
    /// Bucket the file was put into: the primary one, or the secondary while the primary was down.
    pub bucket: String,
    /// Event hour of clicks, arrival hour of verdicts; `None` for quarantine.
    pub hour: Option<Hour>,
    pub kind: FileKind,
    pub rows: u64,
    pub bytes: u64,
    pub sha256: Sha256Hex,
}

/// Commits the records `first` to `last` of one partition. Its key carries `first` alone, so that two writers meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub topic: Topic,
    pub generation: Generation,
    pub partition: PartitionId,
    pub partition_count: u32,
    pub hash_name: String,
    pub first: LogOffset,
    /// Inclusive.
    pub last: LogOffset,
    /// SHA-256 of the previous manifest's bytes; `None` for a generation's first.
    pub previous_sha256: Option<Sha256Hex>,
    /// Highest min(event time, arrival time) through `last`; `None` while no click was seen (always, for verdicts).
    pub highest_time: Option<UtcMillis>,
    pub files: Vec<FileEntry>,
}

/// A manifest with the hash of its stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredManifest {
    pub manifest: Manifest,
    pub sha256: Sha256Hex,
}
