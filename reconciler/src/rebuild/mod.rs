//! Writes the billing store again from the archive: each ended run counted again from its recorded inputs, and written as
//! its result says (G-4).
//!
//! Guarantee: what is written is what the result records, digest by digest: a run that counts to something else, or an
//! object that is missing, stops the rebuild and is named. Killed anywhere it goes on: runs that stand are not counted
//! again. Words: *run* = one ended computation; *order* = committed runs by their moment, then identical ones, which
//! wrote nothing.
//! Memory: the list of runs, and the rows of one.

use std::sync::Arc;

use tokio::sync::mpsc;
use twice_log::archive::{
    Archive, BillingPath, Rate, RunInputs, RunKey, RunOutcome, RunResult, StoredRunInputs, layout,
};
use twice_store::{BillingStore, NewBillingRow, Replay, RestoredRun, RunCommit, UtcMicros};

use crate::error::{Error, Result};
use crate::recompute::{ArchiveLocation, Recompute, RecomputeRequest, Recomputed, ResourceLimits, Task};
use crate::schedule::retention::settled::SettledHour;
use crate::schedule::{divergence_of, put_result, run_id};

const PATHS: [BillingPath; 2] = [BillingPath::Lambda, BillingPath::Kappa];

/// What a rebuild works with.
#[derive(Clone)]
pub struct RebuildDeps {
    pub archive: Archive,
    pub archive_location: ArchiveLocation,
    pub recompute: Arc<dyn Recompute>,
    pub replay: Arc<dyn Replay>,
    pub limits: ResourceLimits,
}

/// How far a rebuild is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebuildProgress {
    pub run: RunKey,
    /// Runs that stand, this one included, and runs in all.
    pub done: u64,
    pub total: u64,
}

/// What a rebuild did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebuilt {
    pub runs: u64,
    /// Of these, written now, counted again or as settled; the others stood already.
    pub counted: u64,
    /// Runs whose inputs were recorded and that have no end: a node goes on with them.
    pub open: u64,
    pub versions: u64,
}

/// One ended run, by its place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ended {
    /// `None` sorts last: identical runs come after all committed ones.
    order: (bool, UtcMicros),
    run: RunKey,
}

/// Returns the rates recorded in the inputs of every run, each once: what the campaign store held of them.
///
/// # Errors
/// `Log` if an object is missing or does not read.
pub async fn recorded_rates(archive: &Archive) -> Result<Vec<Rate>> {
    let mut rates = std::collections::BTreeSet::new();
    for path in PATHS {
        for hour in archive.run_hours(path).await? {
            // A later run of an hour holds every rate of the ones before.
            let Some(run) = archive.latest_run(path, hour).await? else { continue };
            rates.extend(run.inputs.inputs.rates);
        }
    }
    Ok(rates.into_iter().collect())
}

/// Puts the results of runs that `old` has committed and that died before they put them: without, the archive does not say
/// that these versions were published, and a rebuild would lose them. Returns how many they were.
///
/// # Errors
/// Those of the archive and of the old store.
pub async fn put_results_of(archive: &Archive, old: &dyn BillingStore) -> Result<u64> {
    let mut put = 0;
    for path in PATHS {
        for hour in archive.run_hours(path).await? {
            let latest = archive.latest_run(path, hour).await?.filter(|run| run.result.is_none());
            let Some(open) = latest.map(|run| run.inputs) else { continue };
            if let Some(committed) = old.committed_run(&run_id(&open.inputs)).await? {
                put_result(archive, &open, &committed).await?;
                put += 1;
            }
        }
    }
    Ok(put)
}

/// Writes every ended run of the archive into `store`, in order.
///
/// # Errors
/// The first object or run that is not what was recorded, by name; what was written until then stays and is gone on from.
pub async fn rebuild(
    deps: &RebuildDeps,
    store: &dyn BillingStore,
    progress: Option<mpsc::UnboundedSender<RebuildProgress>>,
) -> Result<Rebuilt> {
    let (runs, open) = ended_runs(&deps.archive).await?;
    let mut rebuilt = Rebuilt { runs: runs.len() as u64, open, ..Rebuilt::default() };
    for (index, Ended { run, .. }) in runs.iter().enumerate() {
        let result = result_of(&deps.archive, *run).await?;
        rebuilt.versions += result.rows.len() as u64;
        if store.committed_run(&run.to_string()).await?.is_none() {
            store.restore_run(restored(deps, *run, result).await?).await?;
            rebuilt.counted += 1;
        }
        if let Some(progress) = &progress {
            // Who went away needs none.
            let _ = progress.send(RebuildProgress { run: *run, done: index as u64 + 1, total: rebuilt.runs });
        }
    }
    Ok(rebuilt)
}

/// Lists the ended runs of both paths in order, and counts those without an end.
async fn ended_runs(archive: &Archive) -> Result<(Vec<Ended>, u64)> {
    let (mut ended, mut open) = (Vec::new(), 0);
    for path in PATHS {
        for hour in archive.run_hours(path).await? {
            let results = archive.run_results(path, hour).await?;
            let begun = archive.latest_run(path, hour).await?.map_or(0, |run| run.inputs.inputs.seq);
            open += u64::from(begun).saturating_sub(results.len() as u64);
            for stored in results {
                let result = stored.result;
                let run = RunKey { path, hour, seq: result.seq };
                let order = match result.outcome {
                    RunOutcome::Abandoned => continue,
                    RunOutcome::Committed => (false, moment_of(run, &result)?),
                    RunOutcome::Identical => (true, created_at(archive, run).await?),
                };
                ended.push(Ended { order, run });
            }
        }
    }
    ended.sort_unstable();
    Ok((ended, open))
}

fn moment_of(run: RunKey, result: &RunResult) -> Result<UtcMicros> {
    let damage = |reason: String| Error::ArchiveDamage {
        path: layout::run_result_path(run.path, run.hour, run.seq),
        reason,
    };
    let text =
        result.committed_at.as_deref().ok_or_else(|| damage("is committed at no moment".to_owned()))?;
    text.parse().map_err(|error| damage(format!("committed_at {error}")))
}

async fn created_at(archive: &Archive, run: RunKey) -> Result<UtcMicros> {
    Ok(UtcMicros::from_millis(inputs_of(archive, run).await?.inputs.created_at))
}

async fn inputs_of(archive: &Archive, run: RunKey) -> Result<StoredRunInputs> {
    let inputs = archive.run_inputs(run.path, run.hour, run.seq).await?;
    inputs.ok_or_else(|| missing(layout::run_inputs_path(run.path, run.hour, run.seq)))
}

async fn result_of(archive: &Archive, run: RunKey) -> Result<RunResult> {
    let result = archive.run_result(run.path, run.hour, run.seq).await?;
    let result = result.ok_or_else(|| missing(layout::run_result_path(run.path, run.hour, run.seq)))?;
    Ok(result.result)
}

fn missing(path: String) -> Error {
    Error::ArchiveDamage { path, reason: "is missing".to_owned() }
}

/// Counts a run again, or takes what is settled of it, and puts it together with its result; the store refuses them where
/// they disagree.
async fn restored(deps: &RebuildDeps, run: RunKey, result: RunResult) -> Result<RestoredRun> {
    let stored = inputs_of(&deps.archive, run).await?;
    if stored.sha256 != result.inputs_sha256 {
        let reason =
            format!("has SHA-256 {}, and the run's result names {}", stored.sha256, result.inputs_sha256);
        let path = layout::run_inputs_path(run.path, run.hour, run.seq);
        return Err(Error::ArchiveDamage { path, reason });
    }
    let settled = SettledHour::read(&deps.archive, run.hour).await?;
    let Recomputed { rows, divergence, .. } = match settled {
        Some(settled) => settled_run(&settled, &result)?,
        None => count(deps, &stored).await?,
    };
    let RunInputs { path, hour, seq, status, cutoffs, created_at, mode_change, .. } = stored.inputs;
    let rows = rows.into_iter().map(|counts| NewBillingRow::new(hour, counts)).collect();
    let commit = RunCommit {
        path,
        hour,
        seq,
        run_id: run.to_string(),
        status,
        inputs_sha256: stored.sha256,
        cutoffs,
        // When the run began to count is in no archive; its inputs were recorded just before.
        started_at: created_at,
        mode_change,
        rows,
        divergence,
    };
    Ok(RestoredRun { commit, result })
}

/// Takes what a run counted from where retention has settled it: its files may be gone, and each digest is checked again.
fn settled_run(settled: &SettledHour, result: &RunResult) -> Result<Recomputed> {
    let run = settled.run(result.path, result.seq);
    if run.is_none() && result.outcome == RunOutcome::Committed {
        let path = layout::settled_path(settled.hour);
        let reason = format!("leaves out run {} {}, which was committed", result.path, result.seq);
        return Err(Error::ArchiveDamage { path, reason });
    }
    let counted = run.map(|run| (settled.counted(run), run.divergence.clone()));
    let (rows, divergence) = counted.unwrap_or_default();
    Ok(Recomputed { rows, divergence, ..Recomputed::default() })
}

/// Counts a run as the schedule did: its rows by its path, its differences from the stream by the recompute.
async fn count(deps: &RebuildDeps, stored: &StoredRunInputs) -> Result<Recomputed> {
    let RunInputs { path, hour, seq, .. } = stored.inputs;
    let request = RecomputeRequest {
        archive: deps.archive_location.clone(),
        inputs_path: layout::run_inputs_path(path, hour, seq),
        inputs_sha256: stored.sha256.clone(),
        limits: deps.limits.clone(),
        task: Task::Bill,
        aggregates_dir: None,
    };
    let recomputed = deps.recompute.recompute(request).await?;
    if path == BillingPath::Lambda {
        return Ok(recomputed);
    }
    let replayed = deps.replay.replay(std::slice::from_ref(stored), None).await?;
    let rows = replayed.hours.into_iter().find(|found| found.hour == hour).map(|found| found.rows);
    let rows = rows.unwrap_or_default();
    let divergence = divergence_of(&rows, &recomputed.divergence);
    Ok(Recomputed { rows, divergence, ..Recomputed::default() })
}
