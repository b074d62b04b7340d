//! The chain of manifests of one partition: contiguous offsets, each manifest naming the one before by its hash.
//!
//! Guarantee (G-3): what is returned begins where it must, has no hole, and hashes link. Anything else is
//! `ArchiveDamage` with the object's path; a manifest is never skipped.

use bytes::Bytes;
use futures::StreamExt;

use super::layout::{self, ChainKey};
use super::store::decode_json;
use super::{Archive, Manifest, StoredManifest};
use crate::error::{Error, Result};
use crate::event::{Generation, LogOffset, PartitionId, Sha256Hex, Topic, UtcMillis};

/// Offsets lie below 2^48: generation and offset of a position share one 64-bit number in the billing SQL.
pub const OFFSET_END_MAX: i64 = 1 << 48;

/// Manifests read at once: hides the round trips of a remote store and holds few objects in memory.
const READS_AT_ONCE: usize = 16;

impl StoredManifest {
    /// Reads and checks the bytes of the manifest at `path`.
    ///
    /// # Errors
    /// `ArchiveDamage` if the bytes are no manifest, contradict their path, or their rows do not add up.
    pub fn decode(path: &str, bytes: &[u8]) -> Result<Self> {
        let damage = |reason: String| Error::ArchiveDamage { path: path.to_owned(), reason };
        let manifest: Manifest = decode_json(path, bytes)?;
        let (chain, first) =
            layout::parse_manifest_path(path).ok_or_else(|| damage("is no manifest's path".to_owned()))?;
        if manifest.chain() != chain || manifest.first != first {
            return Err(damage("names another topic, generation, partition or first offset".to_owned()));
        }
        manifest.check_rows().map_err(damage)?;
        Ok(Self { manifest, sha256: Sha256Hex::of(bytes) })
    }

    /// Returns the first offset that this manifest does not cover.
    pub fn end(&self) -> LogOffset {
        self.manifest.last.next()
    }
}

impl Manifest {
    /// Returns the chain this manifest belongs to.
    pub fn chain(&self) -> ChainKey {
        ChainKey { topic: self.topic, generation: self.generation, partition: self.partition }
    }

    /// Checks that offsets are in range and that the files' rows sum to `last - first + 1`.
    pub(super) fn check_rows(&self) -> std::result::Result<(), String> {
        let (first, last) = (self.first.0, self.last.0);
        if first < 0 || last < first || last >= OFFSET_END_MAX {
            return Err(format!("offsets {first} to {last} are not a range"));
        }
        let expected = (last - first + 1) as u64; // positive: checked above
        let rows = self.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.rows));
        match rows {
            Some(rows) if rows == expected => Ok(()),
            _ => Err(format!("files hold {rows:?} rows, offsets {first} to {last} are {expected}")),
        }
    }
}

/// Checks that `next` follows `previous` (`None`: begins its generation at offset 0).
pub(super) fn check_link(path: &str, previous: Option<&StoredManifest>, next: &StoredManifest) -> Result<()> {
    let expected_first = previous.map_or(LogOffset(0), StoredManifest::end);
    let expected_hash = previous.map(|previous| &previous.sha256);
    let reason = if next.manifest.first > expected_first {
        let missing = layout::manifest_path(next.manifest.chain(), expected_first);
        format!(
            "begins at offset {}, and {missing}, which should come before it, is missing",
            next.manifest.first
        )
    } else if next.manifest.first < expected_first {
        format!("begins at offset {}, the chain goes on at {expected_first}", next.manifest.first)
    } else if next.manifest.previous_sha256.as_ref() != expected_hash {
        "does not name the manifest before it by its hash".to_owned()
    } else if previous.is_some_and(|previous| {
        previous.manifest.partition_count != next.manifest.partition_count
            || previous.manifest.hash_name != next.manifest.hash_name
    }) {
        "changes the partition count or hash within a generation".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::ArchiveDamage { path: path.to_owned(), reason })
}

impl Archive {
    /// Returns the newest manifest of a chain, or `None` if nothing of it is archived. Lists keys and reads one object.
    ///
    /// # Errors
    /// `ArchiveDamage` if that manifest is wrong in itself; the chain below it is not read.
    pub async fn head(&self, chain: ChainKey) -> Result<Option<StoredManifest>> {
        let keys = self.manifest_keys(chain, None).await?;
        match keys.last() {
            Some((path, _)) => Ok(Some(self.manifest_at(path).await?)),
            None => Ok(None),
        }
    }

    /// Returns the manifest that begins at `first`, or `None`.
    ///
    /// # Errors
    /// `ArchiveDamage` if it is wrong in itself.
    pub async fn manifest(&self, chain: ChainKey, first: LogOffset) -> Result<Option<StoredManifest>> {
        let path = layout::manifest_path(chain, first);
        self.get(&path).await?.map(|bytes: Bytes| StoredManifest::decode(&path, &bytes)).transpose()
    }

    /// Returns a chain's manifests in order, whole or from behind the one that begins at `after`, links checked.
    ///
    /// # Errors
    /// `ArchiveDamage` at a hole, a broken link, a wrong manifest, or if no manifest begins at `after`.
    pub async fn manifests(&self, chain: ChainKey, after: Option<LogOffset>) -> Result<Vec<StoredManifest>> {
        let anchor = match after {
            Some(first) => Some(self.manifest_at(&layout::manifest_path(chain, first)).await?),
            None => None,
        };
        let found = self.manifests_after(chain, anchor.as_ref()).await?;
        Ok(found.into_iter().map(|(manifest, _)| manifest).collect())
    }

    /// Returns the manifests behind `anchor` (`None`: all), links checked, each with the time it was put.
    pub(super) async fn manifests_after(
        &self,
        chain: ChainKey,
        anchor: Option<&StoredManifest>,
    ) -> Result<Vec<(StoredManifest, UtcMillis)>> {
        let keys = self.manifest_keys(chain, anchor.map(|anchor| anchor.manifest.first)).await?;
        let mut reads =
            futures::stream::iter(keys)
                .map(|(path, put_at)| async move {
                    Ok::<_, Error>((self.manifest_at(&path).await?, path, put_at))
                })
                .buffered(READS_AT_ONCE);
        let mut found: Vec<(StoredManifest, UtcMillis)> = Vec::new();
        while let Some(read) = reads.next().await {
            let (next, path, put_at) = read?;
            check_link(&path, found.last().map(|(manifest, _)| manifest).or(anchor), &next)?;
            found.push((next, put_at));
        }
        Ok(found)
    }

    /// Lists the keys of a chain's manifests in order, with the time each was put.
    async fn manifest_keys(
        &self,
        chain: ChainKey,
        after: Option<LogOffset>,
    ) -> Result<Vec<(String, UtcMillis)>> {
        let after = after.map(|first| layout::manifest_path(chain, first));
        let objects = self.list(&layout::manifest_folder(chain), after.as_deref()).await?;
        objects
            .into_iter()
            .map(|object| {
                let path = object.location.to_string();
                match layout::parse_manifest_path(&path) {
                    Some(_) => Ok((path, UtcMillis::clamped(object.last_modified.timestamp_millis()))),
                    // A stranger among manifests may be one that was renamed: a hole in disguise.
                    None => Err(Error::ArchiveDamage { path, reason: "is no manifest's path".to_owned() }),
                }
            })
            .collect()
    }

    async fn manifest_at(&self, path: &str) -> Result<StoredManifest> {
        match self.get(path).await? {
            Some(bytes) => StoredManifest::decode(path, &bytes),
            None => Err(Error::ArchiveDamage { path: path.to_owned(), reason: "is missing".to_owned() }),
        }
    }

    /// Lists every chain that has manifests, in order.
    ///
    /// # Errors
    /// `ArchiveDamage` if a folder below `manifests/` has a name that is none of ours.
    pub async fn chains(&self) -> Result<Vec<ChainKey>> {
        let mut chains = Vec::new();
        for topic in Topic::ARCHIVED {
            let topic_folder = format!("manifests/{topic}");
            for generation_name in self.list_folders(&topic_folder).await? {
                let generation_folder = format!("{topic_folder}/{generation_name}");
                for partition_name in self.list_folders(&generation_folder).await? {
                    let (Ok(generation), Ok(partition)) = (generation_name.parse(), partition_name.parse())
                    else {
                        return Err(Error::ArchiveDamage {
                            path: format!("{generation_folder}/{partition_name}"),
                            reason: "is no manifest's folder".to_owned(),
                        });
                    };
                    let (generation, partition) = (Generation(generation), PartitionId(partition));
                    chains.push(ChainKey { topic, generation, partition });
                }
            }
        }
        chains.sort_unstable();
        Ok(chains)
    }
}
