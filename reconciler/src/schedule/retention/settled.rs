//! What was billed of an hour that is never counted again, put if absent as `settled/{hour}.json` before anything its runs
//! read is deleted.
//!
//! Guarantee: it holds what each committed run of the hour counted, and a row stands in it only with the digest that the
//! run's result names, a difference only with the number billed: a billing store that was changed settles nothing. A
//! rebuild takes rows and differences from here where files are gone, and the store checks each digest again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use twice_log::archive::{Archive, BillingPath, PutOutcome, RunOutcome, StoredRunResult, layout};
use twice_log::event::Sha256Hex;
use twice_log::{Hour, UtcMillis};
use twice_store::{BillingCounts, BillingStore, Divergence, row_digest};

use crate::error::{Error, Result};

const PATHS: [BillingPath; 2] = [BillingPath::Lambda, BillingPath::Kappa];

/// One settled hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledHour {
    pub hour: Hour,
    pub settled_at: UtcMillis,
    /// The committed runs of both paths, by path and number.
    pub runs: Vec<SettledRun>,
}

/// What one committed run wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledRun {
    pub path: BillingPath,
    pub seq: u32,
    /// Hash of the run's result in the archive, which names the digest of each row.
    pub result_sha256: Sha256Hex,
    /// Counts of the versions it wrote.
    pub rows: Vec<BillingCounts>,
    pub divergence: Vec<Divergence>,
}

impl SettledHour {
    /// Returns what a run wrote; `None` for a run that wrote nothing.
    pub fn run(&self, path: BillingPath, seq: u32) -> Option<&SettledRun> {
        self.runs.iter().find(|run| (run.path, run.seq) == (path, seq))
    }

    /// Returns everything a run counted: what it wrote, and the rows of runs before it that it left as they were, since a
    /// restatement writes versions of the campaigns alone that it changes.
    pub(crate) fn counted(&self, run: &SettledRun) -> Vec<BillingCounts> {
        let until = |other: &&SettledRun| other.path == run.path && other.seq <= run.seq;
        let mut runs: Vec<&SettledRun> = self.runs.iter().filter(until).collect();
        runs.sort_by_key(|run| run.seq);
        let rows = runs.into_iter().flat_map(|run| &run.rows);
        let newest: BTreeMap<_, _> = rows.map(|row| (&row.campaign_id, row)).collect();
        newest.into_values().cloned().collect()
    }

    /// Reads what is settled of an hour.
    ///
    /// # Errors
    /// `ArchiveDamage` if the object is none of this hour; `Log` if the archive does not answer.
    pub async fn read(archive: &Archive, hour: Hour) -> Result<Option<Self>> {
        let path = layout::settled_path(hour);
        archive.get(&path).await?.map(|bytes| decode(path, hour, &bytes)).transpose()
    }

    /// Says how it differs from the results in the archive; `None` where it is exactly what they say.
    pub fn fault(&self, results: &[StoredRunResult]) -> Option<String> {
        let committed: BTreeMap<(BillingPath, u32), &StoredRunResult> =
            results.iter().map(|stored| ((stored.result.path, stored.result.seq), stored)).collect();
        for run in &self.runs {
            let name = format!("run {} {}", run.path, run.seq);
            let Some(stored) = committed.get(&(run.path, run.seq)) else {
                return Some(format!("holds {name}, which has committed nothing"));
            };
            if stored.sha256 != run.result_sha256 {
                return Some(format!("holds {name} with another result than the archive's"));
            }
            let mut digests: BTreeMap<_, _> =
                run.rows.iter().map(|row| (&row.campaign_id, row_digest(self.hour, row))).collect();
            for row in &stored.result.rows {
                if digests.remove(&row.campaign_id).as_ref() != Some(&row.digest) {
                    return Some(format!("has another row of {} in {name} than its result", row.campaign_id));
                }
            }
            if let Some(campaign) = digests.into_keys().next() {
                return Some(format!("has a row of {campaign} in {name}, and its result has none"));
            }
            if let Some(fault) = self.fault_of_divergence(run) {
                return Some(format!("{fault} in {name}"));
            }
        }
        let absent = committed.keys().find(|(path, seq)| self.run(*path, *seq).is_none());
        absent.map(|(path, seq)| format!("leaves out run {path} {seq}"))
    }

    /// No digest names the differences, and a rebuild refuses those that explain another number than the billed one.
    fn fault_of_divergence(&self, run: &SettledRun) -> Option<String> {
        let counted = self.counted(run);
        let billed: BTreeMap<_, _> = counted.iter().map(|row| (&row.campaign_id, row.billable)).collect();
        let mut explained = BTreeSet::new();
        run.divergence.iter().find_map(|divergence| {
            let campaign = &divergence.campaign_id;
            let is_billed = divergence.billed == billed.get(campaign).copied().unwrap_or(0);
            let is_right = is_billed && divergence.is_balanced() && explained.insert(campaign);
            (!is_right).then(|| format!("explains another number of {campaign} than it billed"))
        })
    }
}

/// Returns the results of the hour's committed runs, both paths; `None` while a run has no end.
///
/// # Errors
/// Those of the archive.
pub(crate) async fn committed_results(archive: &Archive, hour: Hour) -> Result<Option<Vec<StoredRunResult>>> {
    let mut committed = Vec::new();
    for path in PATHS {
        if archive.latest_run(path, hour).await?.is_some_and(|run| run.result.is_none()) {
            return Ok(None);
        }
        let results = archive.run_results(path, hour).await?.into_iter();
        committed.extend(results.filter(|stored| stored.result.outcome == RunOutcome::Committed));
    }
    Ok(Some(committed))
}

/// Settles an hour, or checks what a pass before has put. Returns why it cannot be; `None` where it is settled.
///
/// # Errors
/// Those of archive and store.
pub(super) async fn settle(
    archive: &Archive,
    billing: &dyn BillingStore,
    hour: Hour,
    at: UtcMillis,
) -> Result<Option<String>> {
    let Some(results) = committed_results(archive, hour).await? else {
        return Ok(Some("has a run without an end".to_owned()));
    };
    if results.is_empty() {
        return Ok(Some("has no committed run in the archive".to_owned()));
    }
    let settled = gather(billing, hour, at, &results).await?;
    let path = layout::settled_path(hour);
    // Checked before it is put: what stands there stands for good.
    let standing = SettledHour::read(archive, hour).await?;
    let fault_of = |settled: &SettledHour| settled.fault(&results);
    if let Some(fault) = standing.as_ref().map_or_else(|| fault_of(&settled), fault_of) {
        let reason = match standing {
            Some(_) => format!("has a {path} that {fault}: restore it from a copy of the archive"),
            None => format!(
                "cannot be settled: what the billing store holds {fault}; see `twice audit --hour {hour}`"
            ),
        };
        return Ok(Some(reason));
    }
    if standing.is_none() {
        let bytes = serde_json::to_vec(&settled)
            .map_err(|source| Error::Json { what: "what is to be settled", source })?;
        if let PutOutcome::Exists(bytes) = archive.put_if_absent(&path, bytes.into()).await? {
            return Ok(fault_of(&decode(path, hour, &bytes)?));
        }
    }
    Ok(None)
}

async fn gather(
    billing: &dyn BillingStore,
    hour: Hour,
    settled_at: UtcMillis,
    results: &[StoredRunResult],
) -> Result<SettledHour> {
    let mut runs = Vec::new();
    for stored in results {
        let (path, seq) = (stored.result.path, stored.result.seq);
        let run_id = format!("{path}/{hour}/{seq:06}");
        let rows = billing.committed_run(&run_id).await?.map(|run| run.rows).unwrap_or_default();
        runs.push(SettledRun {
            path,
            seq,
            result_sha256: stored.sha256.clone(),
            rows: rows.into_iter().map(|row| row.counts).collect(),
            divergence: billing.run_divergence(&run_id).await?,
        });
    }
    Ok(SettledHour { hour, settled_at, runs })
}

fn decode(path: String, hour: Hour, bytes: &[u8]) -> Result<SettledHour> {
    let damage = |reason: String| Error::ArchiveDamage { path: path.clone(), reason };
    let settled: SettledHour = serde_json::from_slice(bytes)
        .map_err(|error| damage(format!("is not the JSON it must be: {error}")))?;
    if settled.hour == hour { Ok(settled) } else { Err(damage("is of another hour".to_owned())) }
}
