//! Walks the manifests of every chain from the first one and keeps what the other checks ask of them.
//!
//! Guarantee: nothing stops the walk: each object under `manifests/` is read, and what is wrong with it is a finding with
//! its path. Memory: a few words a manifest, and the entries of the files of the hours asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use futures::StreamExt;
use twice_log::archive::{Archive, ChainKey, Cutoff, FileEntry, FileKind, StoredManifest, layout};
use twice_log::event::Sha256Hex;
use twice_log::{Generation, Hour, LogOffset, Topic};

use super::certificate::Check;
use super::findings::Findings;
use crate::error::Result;

/// Manifests read at once.
const READS_AT_ONCE: usize = 16;

/// The hours whose files a run may read.
#[derive(Debug, Clone)]
pub(super) struct ReadHours {
    pub clicks: RangeInclusive<Hour>,
    pub verdicts: RangeInclusive<Hour>,
}

impl ReadHours {
    fn hold(&self, file: &FileEntry) -> bool {
        let hours = match file.kind {
            FileKind::Clicks => &self.clicks,
            FileKind::Verdicts => &self.verdicts,
            FileKind::Quarantine => return false,
        };
        file.hour.is_some_and(|hour| hours.contains(&hour))
    }
}

/// One manifest of a chain.
#[derive(Debug)]
struct Link {
    first: LogOffset,
    end: LogOffset,
    sha256: Sha256Hex,
    /// Its files of the hours asked for.
    files: Vec<FileEntry>,
}

/// All chains.
#[derive(Debug, Default)]
pub(super) struct Chains {
    links: BTreeMap<ChainKey, Vec<Link>>,
    partition_counts: BTreeMap<(Topic, Generation), u32>,
    pub manifests: u64,
}

/// Reads every chain.
///
/// # Errors
/// `Log` if the archive does not answer; what it answers is never an error here.
pub(super) async fn walk(archive: &Archive, hours: &ReadHours, findings: &mut Findings) -> Result<Chains> {
    let mut keys: BTreeMap<ChainKey, Vec<String>> = BTreeMap::new();
    for object in archive.list("manifests", None).await? {
        let path = object.location.to_string();
        match layout::parse_manifest_path(&path) {
            Some((chain, _)) => keys.entry(chain).or_default().push(path),
            None => findings.add(Check::Chains, path, "lies among the manifests and is none"),
        }
    }
    let mut chains = Chains::default();
    for (chain, keys) in keys {
        chains.walk_one(archive, chain, keys, hours, findings).await?;
    }
    Ok(chains)
}

/// What the next manifest of a chain must be; unknown behind one that does not read.
enum Expected {
    First,
    After { path: String, end: LogOffset, sha256: Sha256Hex },
    Unknown,
}

impl Chains {
    async fn walk_one(
        &mut self,
        archive: &Archive,
        chain: ChainKey,
        keys: Vec<String>,
        hours: &ReadHours,
        findings: &mut Findings,
    ) -> Result<()> {
        let read = |path: String| async move { archive.get(&path).await.map(|bytes| (path, bytes)) };
        let mut reads = futures::stream::iter(keys).map(read).buffered(READS_AT_ONCE);
        let mut expected = Expected::First;
        while let Some(read) = reads.next().await {
            let (path, bytes) = read?;
            self.manifests += 1;
            let Some(bytes) = bytes else {
                findings.add(Check::Chains, path, "went away while it was read");
                expected = Expected::Unknown;
                continue;
            };
            let manifest = match StoredManifest::decode(&path, &bytes) {
                Ok(manifest) => manifest,
                Err(error) => {
                    findings.add(Check::Chains, path, reason_of(&error));
                    expected = Expected::Unknown;
                    continue;
                }
            };
            if !follows(&expected, chain, &path, &manifest, findings) {
                continue; // belongs to no chain: it commits nothing
            }
            self.check_partitions(chain, &path, &manifest, findings);
            expected =
                Expected::After { path: path.clone(), end: manifest.end(), sha256: manifest.sha256.clone() };
            self.links.entry(chain).or_default().push(Link {
                first: manifest.manifest.first,
                end: manifest.end(),
                sha256: manifest.sha256,
                files: manifest.manifest.files.into_iter().filter(|file| hours.hold(file)).collect(),
            });
        }
        Ok(())
    }

    /// Checks that a generation has one partition count, and the manifest's partition is below it.
    fn check_partitions(
        &mut self,
        chain: ChainKey,
        path: &str,
        manifest: &StoredManifest,
        findings: &mut Findings,
    ) {
        let found = manifest.manifest.partition_count;
        let known = *self.partition_counts.entry((chain.topic, chain.generation)).or_insert(found);
        if known != found || chain.partition.0 >= found {
            let reason = format!("says that its generation has {found} partitions, others say {known}");
            findings.add(Check::Chains, path, reason);
        }
    }

    /// Checks that each cutoff is covered, by the very manifest recorded, and that every partition has one. `who` names
    /// what recorded them.
    pub fn check_cutoffs(&self, who: &str, cutoffs: &[Cutoff], findings: &mut Findings) {
        for cutoff in cutoffs {
            self.check_cutoff(who, cutoff, findings);
        }
    }

    fn check_cutoff(&self, who: &str, cutoff: &Cutoff, findings: &mut Findings) {
        let chain = cutoff.chain();
        let links = self.links(chain);
        let covered = links.last().map_or(LogOffset(0), |link| link.end);
        if cutoff.end.0 <= 0 {
            return;
        }
        let head = links.get(links.partition_point(|link| link.end < cutoff.end));
        let Some(head) = head.filter(|head| head.first < cutoff.end) else {
            let next = layout::manifest_path(chain, covered);
            let reason = format!(
                "is missing: the chain ends at offset {covered}, and {who} recorded the cutoff {}",
                cutoff.end
            );
            return findings.add(Check::Chains, next, reason);
        };
        if Some(&head.sha256) != cutoff.head_manifest_sha256.as_ref() {
            let recorded =
                cutoff.head_manifest_sha256.as_ref().map_or("none".to_owned(), ToString::to_string);
            let reason = format!(
                "is another manifest than the one that reached cutoff {}: it has SHA-256 {}, {who} recorded {recorded}",
                cutoff.end, head.sha256
            );
            findings.add(Check::Chains, layout::manifest_path(chain, head.first), reason);
        }
    }

    /// Checks that a run's cutoffs name every partition of the generations they are of.
    pub fn check_partitions_named(&self, object: &str, cutoffs: &[Cutoff], findings: &mut Findings) {
        let named: BTreeSet<ChainKey> = cutoffs.iter().map(Cutoff::chain).collect();
        let generations: BTreeSet<Generation> = named.iter().map(|chain| chain.generation).collect();
        for chain in self.links.keys().filter(|chain| generations.contains(&chain.generation)) {
            if !named.contains(chain) {
                let reason = format!(
                    "has no cutoff for {} partition {} of generation {}, which the archive holds",
                    chain.topic, chain.partition, chain.generation
                );
                findings.add(Check::FileLists, object, reason);
            }
        }
    }

    /// Returns the files of `kind` below `cutoffs`, in the order in which inputs list them.
    pub fn files_below(&self, kind: FileKind, cutoffs: &[Cutoff]) -> Vec<&FileEntry> {
        let topic = match kind {
            FileKind::Clicks => Topic::AdClicks,
            FileKind::Verdicts => Topic::FraudVerdicts,
            FileKind::Quarantine => return Vec::new(),
        };
        let mut cutoffs: Vec<&Cutoff> = cutoffs.iter().filter(|cutoff| cutoff.topic == topic).collect();
        cutoffs.sort_unstable_by_key(|cutoff| cutoff.chain());
        let below = cutoffs
            .into_iter()
            .flat_map(|cutoff| self.links(cutoff.chain()).iter().take_while(|link| link.first < cutoff.end));
        below.flat_map(|link| &link.files).filter(|file| file.kind == kind).collect()
    }

    /// Returns the paths of all files that manifests commit for the hours asked for.
    pub fn paths(&self) -> BTreeSet<&str> {
        let links = self.links.values().flatten();
        links.flat_map(|link| &link.files).map(|file| file.path.as_str()).collect()
    }

    /// Returns the files that manifests commit for the hours asked for, by path.
    pub fn entries(&self) -> BTreeMap<&str, &FileEntry> {
        let links = self.links.values().flatten();
        links.flat_map(|link| &link.files).map(|file| (file.path.as_str(), file)).collect()
    }

    fn links(&self, chain: ChainKey) -> &[Link] {
        self.links.get(&chain).map_or(&[], Vec::as_slice)
    }
}

/// Checks a manifest against what must come next; returns whether it goes on the chain.
fn follows(
    expected: &Expected,
    chain: ChainKey,
    path: &str,
    manifest: &StoredManifest,
    findings: &mut Findings,
) -> bool {
    let first = manifest.manifest.first;
    let (before, end, sha256) = match expected {
        Expected::Unknown => return true,
        Expected::First => (None, LogOffset(0), None),
        Expected::After { path, end, sha256 } => (Some(path), *end, Some(sha256)),
    };
    if first < end {
        let reason =
            format!("belongs to no chain: it begins at {first}, and manifests before it reach {end}");
        findings.add(Check::Chains, path, reason);
        return false;
    }
    if first > end {
        let missing = layout::manifest_path(chain, end);
        let reason = format!(
            "is missing: offsets {end} to {} are committed by no manifest",
            first.0.saturating_sub(1)
        );
        findings.add(Check::Chains, missing, reason);
    } else if manifest.manifest.previous_sha256.as_ref() != sha256 {
        let recorded =
            manifest.manifest.previous_sha256.as_ref().map_or("none".to_owned(), ToString::to_string);
        match (before, sha256) {
            (Some(before), Some(found)) => findings.add(
                Check::Chains,
                before,
                format!("was changed: it has SHA-256 {found}, and {path}, put after it, names {recorded}"),
            ),
            _ => findings.add(
                Check::Chains,
                path,
                format!("is the first of its generation and names a manifest before it, {recorded}"),
            ),
        }
    }
    true
}

/// Returns what an error says of its object, without the object's name.
pub(super) fn reason_of(error: &twice_log::Error) -> String {
    match error {
        twice_log::Error::ArchiveDamage { reason, .. } => reason.clone(),
        other => crate::error::describe(other),
    }
}
