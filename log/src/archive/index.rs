//! What the manifests say as a whole: how far each partition is archived, and which files hold which hour.
//!
//! Guarantee (G-3): every chain was read from its beginning and checked, link by link; an answer never rests on a
//! chain with a hole. A refresh reads only what came since.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::layout::{self, ChainKey};
use super::{Archive, Cutoff, FileEntry, FileKind, StoredManifest};
use crate::error::{Error, Result};
use crate::event::{Hour, LogOffset, Topic, UtcMillis};

/// The manifests of every chain, kept by a long-lived process and refreshed before it decides.
#[derive(Debug)]
pub struct ManifestIndex {
    archive: Archive,
    chains: BTreeMap<ChainKey, Vec<StoredManifest>>,
    /// When each of these was put.
    put_at: BTreeMap<ChainKey, Vec<UtcMillis>>,
    click_hours: BTreeMap<Hour, UtcMillis>,
}

impl ManifestIndex {
    /// Starts empty; call [`ManifestIndex::refresh`] before asking.
    pub fn new(archive: Archive) -> Self {
        Self { archive, chains: BTreeMap::new(), put_at: BTreeMap::new(), click_hours: BTreeMap::new() }
    }

    /// Returns the archive it indexes.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Reads the manifests that came since the last refresh and returns how many they were.
    ///
    /// # Errors
    /// `ArchiveDamage` at a hole or a broken link; what was read and checked before it stays.
    pub async fn refresh(&mut self) -> Result<usize> {
        let mut added = 0;
        for chain in self.archive.chains().await? {
            let anchor = self.chains.get(&chain).and_then(|manifests| manifests.last());
            let found = self.archive.manifests_after(chain, anchor).await?;
            added += found.len();
            for (manifest, put_at) in found {
                self.take(chain, manifest, put_at);
            }
        }
        Ok(added)
    }

    fn take(&mut self, chain: ChainKey, manifest: StoredManifest, put_at: UtcMillis) {
        for file in manifest.manifest.files.iter().filter(|file| file.kind == FileKind::Clicks) {
            if let Some(hour) = file.hour {
                let newest = self.click_hours.entry(hour).or_insert(put_at);
                *newest = put_at.max(*newest);
            }
        }
        self.chains.entry(chain).or_default().push(manifest);
        self.put_at.entry(chain).or_default().push(put_at);
    }

    /// Returns every chain with manifests, in order of topic, generation and partition.
    pub fn chains(&self) -> impl Iterator<Item = ChainKey> + '_ {
        self.chains.keys().copied()
    }

    /// Returns a chain's manifests in order; empty if nothing of it is archived.
    pub fn manifests(&self, chain: ChainKey) -> &[StoredManifest] {
        self.chains.get(&chain).map_or(&[], Vec::as_slice)
    }

    /// Iterates over a chain's manifests in order, each with when it was put.
    pub fn manifests_put(&self, chain: ChainKey) -> impl Iterator<Item = (&StoredManifest, UtcMillis)> + '_ {
        let put_at = self.put_at.get(&chain).map_or(&[][..], Vec::as_slice);
        self.manifests(chain).iter().zip(put_at.iter().copied())
    }

    /// Returns the first offset of the chain that is not archived: 0 where nothing is.
    pub fn covered_end(&self, chain: ChainKey) -> LogOffset {
        self.manifests(chain).last().map_or(LogOffset(0), StoredManifest::end)
    }

    /// Returns the first manifest that reaches `end`, or `None` if none does yet, or if `end` is 0.
    pub fn head(&self, chain: ChainKey, end: LogOffset) -> Option<&StoredManifest> {
        if end.0 <= 0 {
            return None;
        }
        let manifests = self.manifests(chain);
        manifests.get(manifests.partition_point(|manifest| manifest.end() < end))
    }

    /// Returns the cutoff at `end` with its head manifest's hash, or `None` while manifests do not reach it.
    pub fn cutoff(&self, chain: ChainKey, end: LogOffset) -> Option<Cutoff> {
        let head = self.head(chain, end);
        if end.0 > 0 && head.is_none() {
            return None;
        }
        Some(Cutoff {
            topic: chain.topic,
            generation: chain.generation,
            partition: chain.partition,
            end,
            head_manifest_sha256: head.map(|head| head.sha256.clone()),
        })
    }

    /// Returns the files of `kind` for `hours` that hold positions below `cutoffs`, in manifest order.
    ///
    /// Order: generation, partition, first offset, then as the manifest lists them. A file may hold positions above
    /// its cutoff too; the reader removes those. A partition without a cutoff has no files.
    ///
    /// # Errors
    /// `ArchiveDamage` if manifests do not cover a cutoff, or its head is another manifest than the one recorded.
    pub fn files_for_hours(
        &self,
        kind: FileKind,
        hours: RangeInclusive<Hour>,
        cutoffs: &[Cutoff],
    ) -> Result<Vec<FileEntry>> {
        let topic = match kind {
            FileKind::Clicks => Topic::AdClicks,
            FileKind::Verdicts => Topic::FraudVerdicts,
            // Quarantine belongs to both topics and to no hour.
            FileKind::Quarantine => return Ok(Vec::new()),
        };
        let mut cutoffs: Vec<&Cutoff> = cutoffs.iter().filter(|cutoff| cutoff.topic == topic).collect();
        cutoffs.sort_unstable_by_key(|cutoff| cutoff.chain());
        let mut files = Vec::new();
        for cutoff in cutoffs {
            self.check_cutoff(cutoff)?;
            let manifests = self.manifests(cutoff.chain());
            let below = manifests.iter().take_while(|manifest| manifest.manifest.first < cutoff.end);
            files.extend(
                below
                    .flat_map(|manifest| &manifest.manifest.files)
                    .filter(|file| file.kind == kind && file.hour.is_some_and(|hour| hours.contains(&hour)))
                    .cloned(),
            );
        }
        Ok(files)
    }

    fn check_cutoff(&self, cutoff: &Cutoff) -> Result<()> {
        let chain = cutoff.chain();
        match self.cutoff(chain, cutoff.end) {
            Some(found) if found.head_manifest_sha256 == cutoff.head_manifest_sha256 => Ok(()),
            Some(_) => Err(Error::ArchiveDamage {
                path: layout::manifest_folder(chain),
                reason: format!("the manifest that reaches cutoff {} is not the one recorded", cutoff.end),
            }),
            None => Err(Error::ArchiveDamage {
                path: layout::manifest_folder(chain),
                reason: format!(
                    "covers offsets below {} only, the cutoff is {}",
                    self.covered_end(chain),
                    cutoff.end
                ),
            }),
        }
    }

    /// Returns each event hour with clicks, and when its newest manifest was put: when it last grew.
    pub fn click_hours(&self) -> &BTreeMap<Hour, UtcMillis> {
        &self.click_hours
    }
}

impl Cutoff {
    /// Returns the chain the cutoff is of.
    pub fn chain(&self) -> ChainKey {
        ChainKey { topic: self.topic, generation: self.generation, partition: self.partition }
    }
}
