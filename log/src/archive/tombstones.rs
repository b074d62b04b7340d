//! Tombstones: what was deleted under retention, put before anything is removed, outside the chains of manifests.
//!
//! Guarantee: a data file is removed only when a tombstone that names it, with the SHA-256 and rows its manifest says, is
//! durable. So a file that is missing is either named by a tombstone or lost, and the two are never taken for each other.
//! Words: *hour* = event hour of clicks, arrival hour of verdicts, the hour a quarantined file's manifest was put in;
//! *removed marker* = says that every file of a tombstone is gone, so that no later night looks for them.
//! Flow: put tombstone -> remove its files, each of which may be gone already -> put marker. A death anywhere leaves a
//! tombstone without marker: the next pass goes on. What arrives for an hour later gets a tombstone of the next number.

use std::collections::BTreeMap;
use std::fmt;

use object_store::{ObjectMeta, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use super::store::{is_absent, object_path, store_error};
use super::{Archive, Bucket, FileEntry, FileKind, layout};
use crate::error::{Error, Result};
use crate::event::{Hour, Sha256Hex, Topic, UtcMillis};

/// What kind of files a tombstone is of; its folder below `tombstones/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grave {
    AdClicks,
    FraudVerdicts,
    QuarantineAdClicks,
    QuarantineFraudVerdicts,
}

impl Grave {
    /// Every kind.
    pub const ALL: [Grave; 4] =
        [Grave::AdClicks, Grave::FraudVerdicts, Grave::QuarantineAdClicks, Grave::QuarantineFraudVerdicts];

    /// Returns the kind of a file that a manifest of `topic` commits.
    pub fn of(kind: FileKind, topic: Topic) -> Self {
        match (kind, topic) {
            (FileKind::Clicks, _) => Grave::AdClicks,
            (FileKind::Verdicts, _) => Grave::FraudVerdicts,
            (FileKind::Quarantine, Topic::AdClicks) => Grave::QuarantineAdClicks,
            // Decisions are not archived, so no file is theirs.
            (FileKind::Quarantine, Topic::FraudVerdicts | Topic::BudgetDecisions) => {
                Grave::QuarantineFraudVerdicts
            }
        }
    }

    /// Returns whether it holds records that did not decode.
    pub fn is_quarantine(self) -> bool {
        matches!(self, Grave::QuarantineAdClicks | Grave::QuarantineFraudVerdicts)
    }

    /// Returns the name of the folder.
    pub fn name(self) -> &'static str {
        match self {
            Grave::AdClicks => Topic::AdClicks.name(),
            Grave::FraudVerdicts => Topic::FraudVerdicts.name(),
            Grave::QuarantineAdClicks => "quarantine-ad-clicks",
            Grave::QuarantineFraudVerdicts => "quarantine-fraud-verdicts",
        }
    }
}

impl fmt::Display for Grave {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Which tombstone: an hour has one for each time files of it were deleted, numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TombstoneKey {
    pub grave: Grave,
    pub hour: Hour,
    pub number: u32,
}

/// Files deleted together, put if absent as `tombstones/{grave}/{hour}.json`, from the second on `{hour}.{number}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    pub grave: Grave,
    pub hour: Hour,
    pub number: u32,
    pub reason: String,
    /// Retention that was in force, milliseconds.
    pub retention_ms: u64,
    pub deleted_at: UtcMillis,
    /// Whether the files hold records that no bill of their hour has counted, and now never will.
    pub never_billed: bool,
    /// Sums over `files`.
    pub rows: u64,
    pub bytes: u64,
    /// As their manifests say.
    pub files: Vec<FileEntry>,
}

impl Tombstone {
    /// Returns which one it is.
    pub fn key(&self) -> TombstoneKey {
        TombstoneKey { grave: self.grave, hour: self.hour, number: self.number }
    }
}

/// A tombstone with the hash of its stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTombstone {
    pub tombstone: Tombstone,
    pub sha256: Sha256Hex,
}

/// That every file of a tombstone is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Removed {
    removed_at: UtcMillis,
    files: u64,
}

/// The tombstones there are, by key: whether all their files are known to be gone.
pub type TombstoneKeys = BTreeMap<TombstoneKey, bool>;

/// Returns whether an object is what consoles and file managers leave behind, such as a folder's empty marker or a hidden
/// file: none of ours is empty or hidden, so that it stands for nothing that was deleted, and no bill waits for it.
pub fn is_stray(object: &ObjectMeta) -> bool {
    object.size == 0 || object.location.filename().is_some_and(|name| name.starts_with('.'))
}

impl Archive {
    /// Lists the tombstones of one kind, or of all for `None`. Lists keys and reads nothing.
    ///
    /// # Errors
    /// `ArchiveDamage` if an object among them is none.
    pub async fn tombstone_keys(&self, grave: Option<Grave>) -> Result<TombstoneKeys> {
        let folder = grave.map_or(layout::TOMBSTONES_FOLDER.to_owned(), layout::tombstone_folder);
        let mut keys = TombstoneKeys::new();
        for object in self.list(&folder, None).await? {
            let path = object.location.to_string();
            let Some((key, is_marker)) = layout::parse_tombstone_path(&path) else {
                if is_stray(&object) {
                    continue;
                }
                return Err(Error::ArchiveDamage { path, reason: "is no tombstone's path".to_owned() });
            };
            *keys.entry(key).or_default() |= is_marker;
        }
        Ok(keys)
    }

    /// Puts a tombstone if its number is free; returns the one that stands, by which files are then removed.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails; `ArchiveDamage` if what stands is no tombstone of this key.
    pub async fn put_tombstone(&self, tombstone: &Tombstone) -> Result<StoredTombstone> {
        let path = layout::tombstone_path(tombstone.key());
        let (stored, sha256) = self.put_json(&path, tombstone).await?;
        checked(path, tombstone.key(), stored, sha256)
    }

    /// Returns a tombstone.
    ///
    /// # Errors
    /// `ArchiveDamage` if the object is not the tombstone its path says.
    pub async fn tombstone(&self, key: TombstoneKey) -> Result<Option<StoredTombstone>> {
        let path = layout::tombstone_path(key);
        let found = self.get_json(&path).await?;
        found.map(|(stored, sha256)| checked(path, key, stored, sha256)).transpose()
    }

    /// Returns the tombstones of one hour, by number.
    ///
    /// # Errors
    /// As [`Archive::tombstone`].
    pub async fn tombstones_of(&self, grave: Grave, hour: Hour) -> Result<Vec<StoredTombstone>> {
        let mut found = Vec::new();
        for number in 1.. {
            match self.tombstone(TombstoneKey { grave, hour, number }).await? {
                Some(stored) => found.push(stored),
                None => break,
            }
        }
        Ok(found)
    }

    /// Removes a data file that a stored tombstone names. Returns whether it was there.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails: the outcome is unknown, and removing it again is safe.
    pub async fn remove_buried(&self, tombstone: &StoredTombstone, entry: &FileEntry) -> Result<bool> {
        debug_assert!(tombstone.tombstone.files.contains(entry), "only what a tombstone names is removed");
        let path = object_path(&entry.path)?;
        match self.store_of(self.bucket_of(entry)).delete(&path).await {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(source) => Err(store_error("delete", &entry.path, source)),
        }
    }

    /// Notes that every file of a tombstone is gone.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails.
    pub async fn put_removed(&self, tombstone: &Tombstone, at: UtcMillis) -> Result<()> {
        let path = layout::tombstone_removed_path(tombstone.key());
        self.put_json(&path, &Removed { removed_at: at, files: tombstone.files.len() as u64 }).await?;
        Ok(())
    }

    /// Returns the size of a data file in its bucket, or `None` if it is not there.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails.
    pub async fn data_size(&self, entry: &FileEntry) -> Result<Option<u64>> {
        let path = object_path(&entry.path)?;
        match self.store_of(self.bucket_of(entry)).head(&path).await {
            Ok(found) => Ok(Some(found.size)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(source) => Err(store_error("head", &entry.path, source)),
        }
    }

    /// Removes what the gateways' copies of their spools hold from before `moment`; returns how many objects and bytes.
    /// Billing never reads them, and what is older than the archive's own retention was drained long ago.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails.
    pub async fn remove_spool_before(&self, moment: UtcMillis, dry_run: bool) -> Result<(u64, u64)> {
        let (mut objects, mut bytes) = (0, 0);
        for object in self.list(layout::SPOOL_FOLDER, None).await? {
            if object.last_modified.timestamp_millis() >= moment.epoch_ms() {
                continue;
            }
            objects += 1;
            bytes += object.size;
            if !dry_run {
                match self.store_of(Bucket::Primary).delete(&object.location).await {
                    Err(error) if !is_absent(&error) => {
                        return Err(store_error("delete", object.location.as_ref(), error));
                    }
                    _ => {}
                }
            }
        }
        Ok((objects, bytes))
    }

    /// Returns the error for a data file that is not there: deleted under retention, where a tombstone says exactly that,
    /// and otherwise damage.
    pub(super) async fn absent(&self, entry: &FileEntry) -> Error {
        let grave = match (entry.kind, entry.hour) {
            (FileKind::Clicks, Some(hour)) => Some((Grave::AdClicks, hour)),
            (FileKind::Verdicts, Some(hour)) => Some((Grave::FraudVerdicts, hour)),
            _ => None, // an hour's file is what counting reads
        };
        if let Some((grave, hour)) = grave {
            match self.tombstones_of(grave, hour).await {
                Ok(found) => {
                    let names = |stored: &&StoredTombstone| stored.tombstone.files.contains(entry);
                    if let Some(stored) = found.iter().find(names) {
                        return Error::Deleted {
                            path: entry.path.clone(),
                            tombstone: layout::tombstone_path(stored.tombstone.key()),
                            deleted_at: stored.tombstone.deleted_at,
                        };
                    }
                }
                Err(error) => return error,
            }
        }
        Error::ArchiveDamage { path: entry.path.clone(), reason: self.missing_reason(entry) }
    }
}

fn checked(
    path: String,
    key: TombstoneKey,
    tombstone: Tombstone,
    sha256: Sha256Hex,
) -> Result<StoredTombstone> {
    let sums = tombstone.files.iter().try_fold((0_u64, 0_u64), |(rows, bytes), file| {
        Some((rows.checked_add(file.rows)?, bytes.checked_add(file.bytes)?))
    });
    if tombstone.key() != key || sums != Some((tombstone.rows, tombstone.bytes)) {
        let reason = "is not the tombstone its path says, or its files do not sum to what it says";
        return Err(Error::ArchiveDamage { path, reason: reason.to_owned() });
    }
    Ok(StoredTombstone { tombstone, sha256 })
}
