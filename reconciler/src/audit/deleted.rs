//! Files that retention deleted: what their tombstones say, against manifests, inputs and what was settled before.
//!
//! Guarantee: a file that is gone passes only if a tombstone names it exactly as its manifest does, and the hour's bill was
//! settled as the results say. A tombstone that names anything else is a finding; a file that is gone without one stays what
//! it always was. What this proves is less than a recount: that the records agree, not that they count to the bill.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use twice_log::archive::{
    Archive, BillingPath, FileEntry, Grave, RunInputs, StoredTombstone, TombstoneKey, layout,
};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Hour, UtcMillis};
use twice_store::{BillingRow, row_digest};

use super::AuditDeps;
use super::certificate::{CertifiedRow, Check};
use super::chains::{Chains, reason_of};
use super::findings::Findings;
use super::history::{NewestVersion, name_of};
use crate::error::Result;
use crate::schedule::retention::settled::{SettledHour, committed_results};

/// One tombstone of files the audited run had read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedFiles {
    pub tombstone: String,
    pub tombstone_sha256: Sha256Hex,
    pub deleted_at: UtcMillis,
    pub files: u64,
    pub rows: u64,
    pub bytes: u64,
}

/// The tombstones of the hours a run reads.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    tombstones: Vec<StoredTombstone>,
}

impl Deleted {
    /// Reads the tombstones of the hours whose files the run names, and compares them with the manifests.
    ///
    /// # Errors
    /// `Log` if the archive does not answer.
    pub async fn read(
        archive: &Archive,
        inputs: &RunInputs,
        chains: &Chains,
        findings: &mut Findings,
    ) -> Result<Self> {
        let mut deleted = Self::default();
        let kinds = [(Grave::AdClicks, &inputs.click_files), (Grave::FraudVerdicts, &inputs.verdict_files)];
        let committed = chains.entries();
        for (grave, files) in kinds {
            let hours: BTreeSet<Hour> = files.iter().filter_map(|file| file.hour).collect();
            let keys = match archive.tombstone_keys(Some(grave)).await {
                Ok(keys) => keys,
                Err(error) if error.kind() == twice_log::ErrorKind::Damage => {
                    findings.add(Check::Deleted, layout::tombstone_folder(grave), reason_of(&error));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for key in keys.into_keys().filter(|key| hours.contains(&key.hour)) {
                deleted.take(archive, key, &committed, findings).await?;
            }
        }
        Ok(deleted)
    }

    async fn take(
        &mut self,
        archive: &Archive,
        key: TombstoneKey,
        committed: &BTreeMap<&str, &FileEntry>,
        findings: &mut Findings,
    ) -> Result<()> {
        let path = layout::tombstone_path(key);
        let stored = match archive.tombstone(key).await {
            Ok(Some(stored)) => stored,
            Ok(None) => {
                findings.add(
                    Check::Deleted,
                    path,
                    "is missing, and a marker says that its files were removed",
                );
                return Ok(());
            }
            Err(error) if error.kind() == twice_log::ErrorKind::Damage => {
                findings.add(Check::Deleted, path, reason_of(&error));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for file in &stored.tombstone.files {
            match committed.get(file.path.as_str()) {
                Some(entry) if *entry == file => {}
                Some(entry) => {
                    let reason = format!(
                        "names {} with {} rows and SHA-256 {}; its manifest says {} rows and {}",
                        file.path, file.rows, file.sha256, entry.rows, entry.sha256
                    );
                    findings.add(Check::Deleted, &path, reason);
                }
                None => findings.add(
                    Check::Deleted,
                    &path,
                    format!("names {}, which no manifest commits for its hour", file.path),
                ),
            }
        }
        self.tombstones.push(stored);
        Ok(())
    }

    /// Returns whether a tombstone names the file exactly as the run's inputs do.
    pub fn names(&self, file: &FileEntry) -> bool {
        self.tombstones.iter().any(|stored| stored.tombstone.files.contains(file))
    }

    /// Returns the tombstones of the files that are gone, as the certificate lists them.
    pub fn listed(&self, gone: &BTreeSet<String>) -> Vec<DeletedFiles> {
        let is_of = |stored: &&StoredTombstone| {
            stored.tombstone.files.iter().any(|file| gone.contains(file.path.as_str()))
        };
        let listed = self.tombstones.iter().filter(is_of).map(|stored| DeletedFiles {
            tombstone: layout::tombstone_path(stored.tombstone.key()),
            tombstone_sha256: stored.sha256.clone(),
            deleted_at: stored.tombstone.deleted_at,
            files: stored.tombstone.files.len() as u64,
            rows: stored.tombstone.rows,
            bytes: stored.tombstone.bytes,
        });
        listed.collect()
    }
}

/// Examines what can be examined of an hour that nobody can count again, and returns the rows as they are recorded.
///
/// # Errors
/// `Log` or `Store` if archive or store do not answer.
pub(super) async fn attest(
    deps: &AuditDeps,
    (hour, path): (Hour, BillingPath),
    listed: &[DeletedFiles],
    (versions, stored): (&BTreeMap<CampaignId, NewestVersion>, &BTreeMap<CampaignId, BillingRow>),
    findings: &mut Findings,
) -> Result<Vec<CertifiedRow>> {
    findings.not_counted(statement(listed));
    check_settled(&deps.archive, hour, findings).await?;
    let rows = rows_as_recorded((hour, path), versions, stored, findings);
    let billing = deps.billing.as_ref();
    super::divergence::check_divergence(billing, (hour, path), None, stored, findings).await?;
    Ok(rows)
}

/// Says in the certificate's line what was deleted when, and what that leaves to prove.
fn statement(listed: &[DeletedFiles]) -> String {
    let days = || listed.iter().map(|deleted| deleted.deleted_at.to_string().chars().take(10).collect());
    let (first, last): (Option<String>, Option<String>) = (days().min(), days().max());
    let when = match (first, last) {
        (Some(first), Some(last)) if first != last => format!("from {first} to {last}"),
        (first, _) => format!("on {}", first.unwrap_or_default()),
    };
    format!(
        "raw records were deleted under retention {when}; a recount is not possible; the files' digests are those recorded \
         at billing, and the bill is the one settled before"
    )
}

/// Checks what was settled of the hour before anything was deleted.
///
/// # Errors
/// `Log` if the archive does not answer.
async fn check_settled(archive: &Archive, hour: Hour, findings: &mut Findings) -> Result<()> {
    let path = layout::settled_path(hour);
    let settled = match SettledHour::read(archive, hour).await {
        Ok(Some(settled)) => settled,
        Ok(None) => {
            findings.add(Check::Deleted, path, "is missing: without it nobody can say what was counted");
            return Ok(());
        }
        Err(crate::error::Error::ArchiveDamage { path, reason }) => {
            findings.add(Check::Deleted, path, reason);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    match committed_results(archive, hour).await {
        Ok(Some(results)) => {
            if let Some(fault) = settled.fault(&results) {
                findings.add(Check::Deleted, path, fault);
            }
        }
        Ok(None) => findings.add(Check::Deleted, path, "was put, and a run of the hour has no end"),
        // The records' own check says what is wrong with them.
        Err(error) if error.kind() == crate::error::ErrorKind::Damage => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Compares the rows of the store with the digests of the results, where they cannot be counted again.
fn rows_as_recorded(
    (hour, path): (Hour, BillingPath),
    versions: &BTreeMap<CampaignId, NewestVersion>,
    stored: &BTreeMap<CampaignId, BillingRow>,
    findings: &mut Findings,
) -> Vec<CertifiedRow> {
    let mut rows = Vec::new();
    for (campaign, row) in stored {
        if !findings.covers(campaign) {
            continue;
        }
        let digest = row_digest(hour, &row.counts);
        let version = versions.get(campaign);
        if version.is_none_or(|version| version.digest != digest || version.version != row.version) {
            let reason = "is not the newest version that the results in the archive name, digest by digest";
            findings.add(Check::Deleted, name_of(row), reason);
        }
        let version = version.map(|version| version.version);
        rows.push(CertifiedRow { counts: row.counts.clone(), digest, version });
    }
    let absent = versions.keys().filter(|campaign| !stored.contains_key(*campaign));
    for campaign in absent.filter(|campaign| findings.covers(campaign)).collect::<Vec<_>>() {
        let reason = "is in the results of the archive and not in the billing store";
        findings.add(Check::Deleted, format!("row {campaign} {hour} {path}"), reason);
    }
    rows
}
