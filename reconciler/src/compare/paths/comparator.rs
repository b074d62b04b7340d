//! Counts recorded runs by both paths and puts what was measured together.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use twice_log::archive::{Archive, BillingPath, FileEntry, RunInputs, StoredRunInputs, layout};
use twice_log::{Clock, Hour, UtcMillis};
use twice_store::{BillingCounts, BillingStore, Cost, Replay, ReplayProgress};

use super::conclusion;
use super::differences::Differences;
use super::figures::{
    Authoritative, AuthoritativeHour, Comparison, Counted, FORMAT, Figure, Freshness, HourInputs,
    LinesOfCode, PathCost, Recovery, Sides, Storage, Stored, StoredHour, StreamRecovery, Versions,
};
use super::money::{Prices, money};
use super::runs::{self, HourRuns};
use super::timing;
use crate::config::ReconcilerConfig;
use crate::error::{Error, Result};
use crate::recompute::{ArchiveLocation, Recompute, RecomputeRequest, ResourceLimits, Task};
use crate::schedule::ReconcilerDeps;

/// Hours of one comparison at most: the rows of both paths are in memory together, in the node.
pub const HOURS_MAX: i64 = 24 * 7;

/// How far a comparison is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompareProgress {
    /// Which path is counting.
    pub path: BillingPath,
    /// Hours of lambda, copies of kappa.
    pub done: u64,
    pub total: u64,
}

/// Takes progress. A receiver that went away is no error.
pub type CompareProgressSender = mpsc::UnboundedSender<CompareProgress>;

/// What the process around knows, beside what a comparison measures itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Surroundings {
    pub freshness: Figure<Freshness>,
    pub recovery: Figure<StreamRecovery>,
    pub log: Figure<Stored>,
    pub stream_state: Figure<Stored>,
    pub billing: Figure<Stored>,
    pub lines_of_code: LinesOfCode,
    pub version: String,
}

/// Looks around when a comparison ends.
#[async_trait]
pub trait SurroundingsSource: Send + Sync + 'static {
    /// Returns what is known now. What is not known says why.
    async fn look(&self) -> Surroundings;
}

/// What a comparison works with. Cheap to clone.
#[derive(Clone)]
pub struct ComparatorParts {
    pub clock: Arc<dyn Clock>,
    pub archive: Archive,
    /// Where the processes open the same archive.
    pub archive_location: ArchiveLocation,
    pub billing: Arc<dyn BillingStore>,
    pub recompute: Arc<dyn Recompute>,
    pub replay: Arc<dyn Replay>,
    /// What one recompute may use.
    pub limits: ResourceLimits,
    /// Memory limit of the replay's process, to show beside its peak.
    pub replay_memory_bytes_max: Option<u64>,
    pub surroundings: Arc<dyn SurroundingsSource>,
}

impl ComparatorParts {
    /// Takes what the reconciler works with.
    pub fn of(
        deps: &ReconcilerDeps,
        config: &ReconcilerConfig,
        replay_memory_bytes_max: Option<u64>,
        surroundings: Arc<dyn SurroundingsSource>,
    ) -> Self {
        Self {
            clock: deps.clock.clone(),
            archive: deps.archive.clone(),
            archive_location: deps.archive_location.clone(),
            billing: deps.billing.clone(),
            recompute: deps.recompute.clone(),
            replay: deps.replay.clone(),
            limits: config.limits(),
            replay_memory_bytes_max,
            surroundings,
        }
    }
}

/// Compares the two paths. Cheap to clone.
#[derive(Clone)]
pub struct Comparator {
    parts: ComparatorParts,
}

/// The runs of the range.
struct Found {
    lambda: Vec<StoredRunInputs>,
    unbilled: Vec<Hour>,
    stored: Vec<StoredHour>,
    commits: Sides<Vec<AuthoritativeHour>>,
}

/// What one path counted.
struct Counting {
    /// In order of the runs.
    rows: Vec<Vec<BillingCounts>>,
    cost: Cost,
    copies_read: u64,
    slices: u64,
    processes: u64,
}

impl Comparator {
    /// Nothing is read before [`Comparator::compare`].
    pub fn new(parts: ComparatorParts) -> Self {
        Self { parts }
    }

    /// Counts every hour of `[from, to)` that has an ended lambda run by both paths, compares, and keeps the result in
    /// the archive.
    ///
    /// # Errors
    /// `Config` for a range that is empty or too long, `NotReconciled` if no hour of it was billed, and whatever
    /// keeps a path from counting.
    pub async fn compare(
        &self,
        from: Hour,
        to: Hour,
        prices: Prices,
        progress: Option<CompareProgressSender>,
    ) -> Result<Comparison> {
        let hours = to.since_epoch() - from.since_epoch();
        if !(1..=HOURS_MAX).contains(&hours) {
            let reason = format!("{from} to {to} are {hours} hours; compare 1 to {HOURS_MAX} of them");
            return Err(Error::Config { reason });
        }
        prices.check()?;
        let found = self.find(from, to).await?;
        if found.lambda.is_empty() {
            return Err(Error::NotReconciled { hour: from });
        }
        let lambda = self.count_by_lambda(&found.lambda, progress.as_ref()).await?;
        let kappa = self.count_by_kappa(&found.lambda, progress.as_ref()).await?;
        let around = self.parts.surroundings.look().await;
        let created_at = self.parts.clock.now();
        let comparison =
            self.put_together((created_at, from, to), prices, found, (&lambda, &kappa), around).rounded()?;
        super::kept::keep(&self.parts.archive, &comparison).await?;
        Ok(comparison)
    }

    async fn find(&self, from: Hour, to: Hour) -> Result<Found> {
        let archive = &self.parts.archive;
        let mut found =
            Found { lambda: Vec::new(), unbilled: Vec::new(), stored: Vec::new(), commits: Sides::default() };
        for number in 0..to.since_epoch() - from.since_epoch() {
            let hour = from.plus(number);
            let kappa = runs::find(archive, BillingPath::Kappa, hour).await?;
            let Some(HourRuns { newest, first_commit }) =
                runs::find(archive, BillingPath::Lambda, hour).await?
            else {
                found.unbilled.push(hour);
                continue;
            };
            found.commits.lambda.extend(first_commit);
            if let Some(kappa) = kappa {
                let billing = self.parts.billing.as_ref();
                let stored = runs::stored_hour(billing, &newest.inputs, &kappa.newest.inputs).await?;
                found.stored.push(stored);
                found.commits.kappa.extend(kappa.first_commit);
            }
            found.lambda.push(newest);
        }
        Ok(found)
    }

    async fn count_by_lambda(
        &self,
        runs: &[StoredRunInputs],
        progress: Option<&CompareProgressSender>,
    ) -> Result<Counting> {
        let mut counting =
            Counting { rows: Vec::new(), cost: Cost::default(), copies_read: 0, slices: 0, processes: 0 };
        let total = runs.len() as u64;
        let tell = |done: u64| tell(progress, CompareProgress { path: BillingPath::Lambda, done, total });
        tell(0);
        for (index, run) in runs.iter().enumerate() {
            let RunInputs { path, hour, seq, .. } = run.inputs;
            let request = RecomputeRequest {
                archive: self.parts.archive_location.clone(),
                inputs_path: layout::run_inputs_path(path, hour, seq),
                inputs_sha256: run.sha256.clone(),
                limits: self.parts.limits.clone(),
                task: Task::Bill,
                aggregates_dir: None,
            };
            let recomputed = self.parts.recompute.recompute(request).await?;
            let summary = recomputed.summary;
            counting.rows.push(recomputed.rows);
            counting.copies_read += summary.copies;
            counting.slices += u64::from(summary.slices);
            counting.processes += 1;
            counting.cost = one_after_the_other(counting.cost, summary.cost);
            tell(index as u64 + 1);
        }
        Ok(counting)
    }

    async fn count_by_kappa(
        &self,
        runs: &[StoredRunInputs],
        progress: Option<&CompareProgressSender>,
    ) -> Result<Counting> {
        let (sender, mut receiver) = mpsc::unbounded_channel::<ReplayProgress>();
        let forward = async {
            while let Some(step) = receiver.recv().await {
                let (done, total) = (step.copies_done, step.copies_total);
                tell(progress, CompareProgress { path: BillingPath::Kappa, done, total });
            }
        };
        let (replayed, ()) = tokio::join!(self.parts.replay.replay(runs, Some(sender)), forward);
        let replayed = replayed?;
        let asked = runs.iter().map(|run| run.inputs.hour);
        if !replayed.hours.iter().map(|hour| hour.hour).eq(asked) {
            let reason = "the replay answered for other hours than it was asked".to_owned();
            return Err(Error::Contradiction { reason });
        }
        Ok(Counting {
            rows: replayed.hours.into_iter().map(|hour| hour.rows).collect(),
            cost: replayed.cost,
            copies_read: replayed.copies,
            slices: u64::from(replayed.slices),
            processes: 1,
        })
    }

    fn put_together(
        &self,
        (created_at, from, to): (UtcMillis, Hour, Hour),
        prices: Prices,
        found: Found,
        (lambda, kappa): (&Counting, &Counting),
        around: Surroundings,
    ) -> Comparison {
        let mut differences = Differences::default();
        for (index, run) in found.lambda.iter().enumerate() {
            let rows = |counting: &Counting| counting.rows.get(index).cloned().unwrap_or_default();
            differences.add_hour(run.inputs.hour, &rows(lambda), &rows(kappa));
        }
        let copies_of: Vec<u64> =
            lambda.rows.iter().map(|rows| rows.iter().map(|row| row.gross).sum()).collect();
        let counted = Counted {
            hours: found.lambda.len() as u64,
            hours_unbilled: found.unbilled,
            rows: lambda.rows.iter().map(|rows| rows.len() as u64).sum(),
            copies: copies_of.iter().sum(),
            billable: lambda.rows.iter().flatten().map(|row| row.billable).sum(),
        };
        let files = Files::of(&found.lambda);
        let costs = Sides {
            lambda: cost(lambda, counted.copies, files.given, Some(self.parts.limits.memory_bytes_max)),
            kappa: cost(kappa, counted.copies, files.distinct, self.parts.replay_memory_bytes_max),
        };
        let archive = files.stored();
        let inputs: Vec<HourInputs> =
            found.lambda.iter().zip(&copies_of).map(|(run, copies)| hour_inputs(run, *copies)).collect();
        let stored_equal = found.stored.iter().all(|hour| !hour.same_inputs || hour.differences.is_empty());
        let mut comparison = Comparison {
            format: FORMAT,
            id: layout::comparison_id(created_at, from, to),
            created_at,
            from,
            to,
            equal: differences.is_empty() && stored_equal,
            conclusion: String::new(),
            money: money(
                prices,
                &costs,
                counted.copies,
                archive.value.as_ref().and_then(|stored| stored.bytes_each),
            ),
            authoritative: Sides {
                lambda: authoritative(found.commits.lambda, &inputs, "lambda"),
                kappa: authoritative(found.commits.kappa, &inputs, "kappa"),
            },
            recovery: recovery(around.recovery, &costs),
            counted,
            inputs,
            differences,
            stored: found.stored,
            costs,
            freshness: around.freshness,
            storage: Storage {
                log: around.log,
                stream_state: around.stream_state,
                archive,
                billing: around.billing,
            },
            lines_of_code: around.lines_of_code,
            versions: versions(around.version),
        };
        comparison.conclusion = conclusion::conclude(&comparison);
        comparison
    }
}

fn tell(progress: Option<&CompareProgressSender>, step: CompareProgress) {
    if let Some(sender) = progress {
        let _ = sender.send(step); // whoever watched went away
    }
}

/// Adds the cost of a process that ran after the others: times and bytes add, the highest peak stays.
fn one_after_the_other(before: Cost, next: Cost) -> Cost {
    Cost {
        wall_seconds: before.wall_seconds + next.wall_seconds,
        cpu_seconds: before.cpu_seconds + next.cpu_seconds,
        rss_peak_bytes: before.rss_peak_bytes.max(next.rss_peak_bytes),
        bytes_read: before.bytes_read + next.bytes_read,
        bytes_written: before.bytes_written + next.bytes_written,
    }
}

fn cost(counting: &Counting, copies: u64, files_read: u64, memory_limit_bytes: Option<u64>) -> PathCost {
    let Cost { wall_seconds, cpu_seconds, rss_peak_bytes, bytes_read, bytes_written } = counting.cost;
    PathCost {
        wall_seconds,
        cpu_seconds,
        rss_peak_bytes,
        memory_limit_bytes,
        bytes_read,
        bytes_written,
        clicks_per_second: (wall_seconds > 0.0 && copies > 0).then(|| copies as f64 / wall_seconds),
        copies_read: counting.copies_read,
        files_read,
        processes: counting.processes,
        slices: counting.slices,
    }
}

/// The files of several runs.
struct Files<'a> {
    /// As often as a run was given them.
    given: u64,
    distinct: u64,
    /// Click files of the hours themselves.
    of_hours: BTreeMap<&'a str, &'a FileEntry>,
}

impl<'a> Files<'a> {
    fn of(runs: &'a [StoredRunInputs]) -> Self {
        let files =
            || runs.iter().flat_map(|run| run.inputs.click_files.iter().chain(&run.inputs.verdict_files));
        let distinct: std::collections::BTreeSet<&str> = files().map(|file| file.path.as_str()).collect();
        let of_hours = runs.iter().flat_map(|run| {
            let hour = Some(run.inputs.hour);
            run.inputs.click_files.iter().filter(move |file| file.hour == hour)
        });
        Self {
            given: files().count() as u64,
            distinct: distinct.len() as u64,
            of_hours: of_hours.map(|file| (file.path.as_str(), file)).collect(),
        }
    }

    fn stored(&self) -> Figure<Stored> {
        let bytes = self.of_hours.values().map(|file| file.bytes).sum();
        let rows = self.of_hours.values().map(|file| file.rows).sum();
        Figure::measured(
            Stored::new(bytes, Some(rows), "click"),
            "click files of the hours, as their manifests say",
        )
    }
}

fn hour_inputs(run: &StoredRunInputs, copies: u64) -> HourInputs {
    let inputs = &run.inputs;
    HourInputs {
        hour: inputs.hour,
        run_id: runs::run_id(inputs),
        inputs_sha256: run.sha256.clone(),
        rules_sha256: inputs.rules_sha256.clone(),
        horizon_hours: inputs.settings.horizon_hours,
        click_files: inputs.click_files.len() as u64,
        verdict_files: inputs.verdict_files.len() as u64,
        copies,
    }
}

fn authoritative(commits: Vec<AuthoritativeHour>, inputs: &[HourInputs], path: &str) -> Authoritative {
    let copies: BTreeMap<Hour, u64> = inputs.iter().map(|hour| (hour.hour, hour.copies)).collect();
    let weighed = commits.into_iter().map(|commit| {
        let copies = copies.get(&commit.hour).copied().unwrap_or(0);
        (commit, copies)
    });
    timing::authoritative(weighed.collect(), path)
}

fn recovery(stream: Figure<StreamRecovery>, costs: &Sides<PathCost>) -> Recovery {
    let again = |cost: &PathCost| {
        let source =
            "a run that was killed is done again from its recorded inputs: the wall time measured here";
        Figure::measured(cost.wall_seconds, source)
    };
    Recovery { stream, lambda: again(&costs.lambda), kappa: again(&costs.kappa) }
}

fn versions(twice: String) -> Versions {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    Versions { twice, release_build: !cfg!(debug_assertions), cores }
}
