//! The sled folder of all partitions' checkpoints: opened, checked against the log's layout, moved aside when damaged.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use twice_log::event::PARTITION_HASH_NAME;
use twice_log::fail::FailPoints;
use twice_log::{Generation, PartitionId};

use super::entry::{self, EntryTotals};
use super::write::{CheckpointWriter, failed};
use crate::error::{Error, Result};

const LAYOUT_KEY: &[u8] = b"layout";
const FORMAT_VERSION: u32 = 1;

/// The log a checkpoint folder belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointLayout {
    pub format_version: u32,
    pub generation: Generation,
    pub partitions: u32,
    pub hash_name: String,
}

impl CheckpointLayout {
    /// Returns the layout of this build for a log.
    pub fn new(generation: Generation, partitions: u32) -> Self {
        let hash_name = PARTITION_HASH_NAME.to_owned();
        Self { format_version: FORMAT_VERSION, generation, partitions, hash_name }
    }
}

/// The open folder. One handle a process: sled holds one lock for all trees.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    db: sled::Db,
    layout: CheckpointLayout,
    path: PathBuf,
    shared: Arc<()>,
}

impl CheckpointStore {
    /// Opens the folder, creating it if absent. A damaged one is moved aside with a warning and begun anew.
    ///
    /// # Errors
    /// `CheckpointFolder` if it is locked, not permitted or the disk is full; `Layout` if it belongs to another log.
    pub fn open(path: &Path, layout: CheckpointLayout, cache_bytes: u64) -> Result<Self> {
        match Self::try_open(path, &layout, cache_bytes) {
            Err(error @ Error::CheckpointDamage { .. }) => {
                move_aside(path, &error)?;
                Self::try_open(path, &layout, cache_bytes)
            }
            other => other,
        }
    }

    /// Closes this handle, moves the folder aside because of `reason`, and opens an empty one in its place.
    ///
    /// The caller has dropped every writer before: sled's lock goes with the last of them.
    pub fn replace_damaged(self, cache_bytes: u64, reason: &Error) -> Result<Self> {
        let Self { db, layout, path, shared } = self;
        debug_assert_eq!(Arc::strong_count(&shared), 1, "writers are dropped first");
        drop((db, shared));
        move_aside(&path, reason)?;
        Self::open(&path, layout, cache_bytes)
    }

    fn try_open(path: &Path, layout: &CheckpointLayout, cache_bytes: u64) -> Result<Self> {
        let owned = path.to_owned();
        // Flushes are explicit: nothing is durable before its time, and no timer runs on a thread of its own.
        let opened = catch_unwind(move || {
            sled::Config::new().path(owned).cache_capacity(cache_bytes).flush_every_ms(None).open()
        });
        let db = match opened {
            Err(_) => return Err(damage("sled panicked at open")),
            Ok(Err(error @ (sled::Error::Corruption { .. } | sled::Error::ReportableBug(_)))) => {
                return Err(damage(&format!("sled found damage at open: {error}")));
            }
            Ok(Err(sled::Error::Io(source))) => {
                return Err(Error::CheckpointFolder { path: path.to_owned(), source });
            }
            Ok(Err(sled::Error::Unsupported(reason))) => {
                let source = std::io::Error::new(std::io::ErrorKind::Unsupported, reason);
                return Err(Error::CheckpointFolder { path: path.to_owned(), source });
            }
            Ok(Err(source)) => return Err(failed("open", source)),
            Ok(Ok(db)) => db,
        };
        let store = Self { db, layout: layout.clone(), path: path.to_owned(), shared: Arc::new(()) };
        store.check_layout()?;
        Ok(store)
    }

    fn check_layout(&self) -> Result<()> {
        let Some(value) = self.db.get(LAYOUT_KEY).map_err(|source| failed("read the layout", source))? else {
            let payload = serde_json::to_vec(&self.layout)
                .map_err(|error| damage(&format!("the layout has no JSON form: {error}")))?;
            let (value, _) = entry::seal_value(LAYOUT_KEY, payload);
            self.db.insert(LAYOUT_KEY, value).map_err(|source| failed("write the layout", source))?;
            return self.db.flush().map(|_| ()).map_err(|source| failed("flush", source));
        };
        let (payload, _) =
            entry::open_value(LAYOUT_KEY, &value).ok_or_else(|| damage("the layout's checksum"))?;
        let found: CheckpointLayout = serde_json::from_slice(payload)
            .map_err(|error| damage(&format!("the layout does not read: {error}")))?;
        if found == self.layout {
            return Ok(());
        }
        Err(Error::Layout {
            path: self.path.clone(),
            found: describe(&found),
            expected: describe(&self.layout),
        })
    }

    /// Returns the writer of one partition, through which its last checkpoint is loaded too.
    ///
    /// # Errors
    /// `Checkpoint` if sled fails.
    pub fn partition(&self, partition: PartitionId, fail_points: FailPoints) -> Result<CheckpointWriter> {
        let name = format!("generation-{}-partition-{partition}", self.layout.generation);
        let tree = self.db.open_tree(name).map_err(|source| failed("open a partition", source))?;
        Ok(CheckpointWriter {
            db: self.db.clone(),
            tree,
            partition,
            fail_points,
            totals: EntryTotals::default(),
            committed: None,
            shed_keys: Vec::new(),
            _store: self.shared.clone(),
        })
    }
}

fn describe(layout: &CheckpointLayout) -> String {
    let CheckpointLayout { format_version, generation, partitions, hash_name } = layout;
    format!("generation {generation} with {partitions} partitions by {hash_name}, format {format_version}")
}

/// Damage of the folder as a whole; the partition named is of no meaning.
fn damage(reason: &str) -> Error {
    Error::CheckpointDamage { partition: PartitionId(0), reason: reason.to_owned() }
}

/// Renames the folder to the first free `{name}-damaged-{n}`: evidence is kept, and nothing waits for an operator.
fn move_aside(path: &Path, reason: &Error) -> Result<()> {
    let mut number = 1_u32;
    let aside = loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("-damaged-{number}"));
        let aside = PathBuf::from(name);
        if !aside.exists() {
            break aside;
        }
        number += 1;
    };
    tracing::warn!(folder = %path.display(), aside = %aside.display(), %reason,
        "checkpoints are damaged: folder moved aside, partitions rebuild from the log");
    std::fs::rename(path, &aside).map_err(|source| Error::CheckpointFolder { path: path.to_owned(), source })
}
