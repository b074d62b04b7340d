//! The runs of the hour, first to newest: their records in the archive, and what the billing store holds of them.
//!
//! Guarantee: every run of both paths is examined, whatever was wrong with one before it; each row version of the store
//! is either one that a result in the archive names, with the same digest, or a finding. Memory: the rows of one run,
//! and the newest version of each row.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::time::sleep;
use twice_log::archive::layout::{self, RunObject};
use twice_log::archive::{
    Archive, BillingPath, BillingStatus, ResultRow, RunInputs, RunKey, RunOutcome, RunResult,
};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Hour};
use twice_store::{BillingRow, BillingStore, CommittedRun, HourMarks, Reconciliation, UtcMicros, row_digest};

use super::certificate::{Check, NewestRun};
use super::findings::Findings;
use super::marks::Commit;
use crate::error::Result;

/// Runs read at once.
const PAGE: u32 = 10_000;
/// How long the result of a run that is committed may take to be put.
const RESULT_GRACE: Duration = Duration::from_secs(2);

/// An object of a run, as it is stored.
#[derive(Debug, Clone)]
pub(super) struct Recorded<T> {
    pub value: T,
    pub sha256: Sha256Hex,
}

/// The newest version of a row, by the results in the archive.
#[derive(Debug, Clone)]
pub(super) struct NewestVersion {
    pub version: u32,
    pub status: BillingStatus,
    pub digest: Sha256Hex,
}

/// What the archive says of one path's runs of the hour.
#[derive(Debug, Default)]
pub(super) struct PathHistory {
    /// Inputs of the newest run that ended and was not abandoned, and the hash of its result, where it has one.
    pub newest: Option<(Recorded<RunInputs>, Option<Sha256Hex>)>,
    pub newest_run: Option<NewestRun>,
    /// Mode named by the newest result, with its moment.
    pub mode: Option<(UtcMicros, BillingPath)>,
    pub versions: BTreeMap<CampaignId, NewestVersion>,
    /// The runs that wrote versions, by number.
    pub commits: Vec<Commit>,
    /// Numbers of the runs that the store has, and whose rows were compared.
    pub in_store: BTreeSet<u32>,
    pub runs: u64,
}

/// Examines the hour's runs.
pub(super) struct Historian<'a> {
    pub archive: &'a Archive,
    pub billing: &'a dyn BillingStore,
    pub marks: &'a HourMarks,
    pub hour: Hour,
}

impl Historian<'_> {
    /// Examines all runs of a path.
    ///
    /// # Errors
    /// `Log` or `Store` if archive or store do not answer.
    pub async fn examine(
        &self,
        path: BillingPath,
        stored: &BTreeMap<String, Reconciliation>,
        findings: &mut Findings,
    ) -> Result<PathHistory> {
        let mut history = PathHistory::default();
        let numbers = self.numbers(path, findings).await?;
        let last = numbers.iter().next_back().copied().unwrap_or(0);
        let mut before: Option<UtcMicros> = None;
        for seq in 1..=last {
            self.examine_run((path, seq, last), stored, &mut before, &mut history, findings).await?;
        }
        for (run_id, run) in stored.iter().filter(|(_, run)| run.path == path && run.seq > last) {
            let inputs = layout::run_inputs_path(path, self.hour, run.seq);
            let reason = format!("is missing: the billing store holds run {run_id}, which began with it");
            findings.add(Check::Records, inputs, reason);
        }
        self.find_strangers(path, &history.in_store, findings).await?;
        history.runs = numbers.len() as u64;
        Ok(history)
    }

    /// Lists the numbers that have inputs or a result.
    async fn numbers(&self, path: BillingPath, findings: &mut Findings) -> Result<BTreeSet<u32>> {
        let mut numbers = BTreeSet::new();
        for object in self.archive.list(&layout::run_folder(path, self.hour), None).await? {
            let key = object.location.to_string();
            match layout::parse_run_path(&key) {
                Some((_, _, seq, RunObject::Inputs | RunObject::Result)) => {
                    numbers.insert(seq);
                }
                None => findings.add(Check::Records, key, "lies among the runs and is none"),
            }
        }
        Ok(numbers)
    }

    async fn examine_run(
        &self,
        (path, seq, last): (BillingPath, u32, u32),
        stored: &BTreeMap<String, Reconciliation>,
        before: &mut Option<UtcMicros>,
        history: &mut PathHistory,
        findings: &mut Findings,
    ) -> Result<()> {
        let run_id = RunKey { path, hour: self.hour, seq }.to_string();
        let inputs_path = layout::run_inputs_path(path, self.hour, seq);
        let result_path = layout::run_result_path(path, self.hour, seq);
        let inputs: Option<Recorded<RunInputs>> = self.read(&inputs_path, findings).await?;
        let committed = self.billing.committed_run(&run_id).await?;
        let mut result: Option<Recorded<RunResult>> = self.read(&result_path, findings).await?;
        if result.is_none() && committed.is_some() && seq == last {
            // A node puts the result right after its commit.
            sleep(RESULT_GRACE).await;
            result = self.read(&result_path, findings).await?;
        }
        if inputs.is_none() {
            self.note_missing(&inputs_path, "no run can do without it", findings).await?;
        }
        if let Some(inputs) = &inputs {
            self.check_inputs(&inputs_path, seq, path, inputs, stored.get(&run_id), findings);
        }
        match &result {
            Some(result) => {
                let recorded = inputs.as_ref().map(|inputs| &inputs.sha256);
                check_result(&result_path, (path, self.hour, seq), &result.value, recorded, findings);
                self.check_aggregates(&result_path, &result.value, findings).await?;
                compare_run(&result_path, &run_id, &result.value, committed.as_ref(), before, findings);
                compare_rows(&result_path, self.hour, &result.value, committed.as_ref(), findings);
                take_versions(&result_path, &result.value, &mut history.versions, findings);
            }
            // The newest run may be under way: nothing of it is committed.
            None if seq == last && committed.is_none() => {
                findings.notice(Check::Records, &inputs_path, "belongs to a run that has not ended");
            }
            None => self.note_missing(&result_path, "the run ended, or a later one began", findings).await?,
        }
        if committed.is_some() {
            history.in_store.insert(seq);
        }
        history.commits.extend(commit_of(&run_id, result.as_ref(), committed.as_ref()));
        let outcome = result.as_ref().map(|result| result.value.outcome);
        let ended = outcome.or(committed.map(|committed| committed.outcome));
        if let (Some(outcome), Some(inputs)) = (ended.filter(|end| *end != RunOutcome::Abandoned), inputs) {
            history.newest_run = Some(NewestRun { path, run_id, outcome });
            history.newest = Some((inputs, result.as_ref().map(|result| result.sha256.clone())));
        }
        if let Some(result) = result.filter(|result| result.value.outcome == RunOutcome::Committed) {
            let moment = result.value.committed_at.and_then(|text| text.parse().ok());
            history.mode = moment.map(|moment| (moment, result.value.mode)).or(history.mode);
        }
        Ok(())
    }

    /// Reads an object; `None` where it is missing or, which is a finding, does not read.
    async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        findings: &mut Findings,
    ) -> Result<Option<Recorded<T>>> {
        let Some(bytes): Option<Bytes> = self.archive.get(path).await? else { return Ok(None) };
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(Recorded { value, sha256: Sha256Hex::of(&bytes) })),
            Err(error) => {
                findings.add(Check::Records, path, format!("is not the JSON it must be: {error}"));
                Ok(None)
            }
        }
    }

    /// Notes an object that could not be read as missing, unless it is there and only did not read.
    async fn note_missing(&self, path: &str, why: &str, findings: &mut Findings) -> Result<()> {
        if self.archive.get(path).await?.is_none() {
            findings.add(Check::Records, path, format!("is missing: {why}"));
        }
        Ok(())
    }

    fn check_inputs(
        &self,
        object: &str,
        seq: u32,
        path: BillingPath,
        inputs: &Recorded<RunInputs>,
        stored: Option<&Reconciliation>,
        findings: &mut Findings,
    ) {
        let value = &inputs.value;
        if (value.path, value.hour, value.seq) != (path, self.hour, seq) {
            findings.add(Check::Records, object, "are the inputs of another run than their path says");
        }
        if let Some(stored) = stored.filter(|stored| stored.inputs_sha256 != inputs.sha256) {
            let reason = format!(
                "were changed: they have SHA-256 {}, the billing store recorded {}",
                inputs.sha256, stored.inputs_sha256
            );
            findings.add(Check::Records, object, reason);
        }
    }

    /// Compares the result's list of aggregates with the one put before the commit.
    async fn check_aggregates(
        &self,
        object: &str,
        result: &RunResult,
        findings: &mut Findings,
    ) -> Result<()> {
        let key = RunKey { path: result.path, hour: result.hour, seq: result.seq };
        let listed = match self.archive.aggregate_set(key).await {
            Ok(set) => set.map(|set| set.files).unwrap_or_default(),
            Err(error) if error.kind() == twice_log::ErrorKind::Damage => {
                let reason = super::chains::reason_of(&error);
                findings.add(Check::Records, layout::aggregate_set_path(key), reason);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if listed != result.aggregates {
            let list = layout::aggregate_set_path(key);
            findings.add(Check::Records, object, format!("names other files of aggregates than {list}"));
        }
        Ok(())
    }
}

/// Returns the store's runs of an hour, by run id.
///
/// # Errors
/// `Store` if the store does not answer.
pub(super) async fn stored_runs(
    billing: &dyn BillingStore,
    hour: Hour,
) -> Result<BTreeMap<String, Reconciliation>> {
    let mut runs = BTreeMap::new();
    let mut cursor = None;
    loop {
        let page = billing.reconciliations(PAGE, cursor).await?;
        let of_hour = page.rows.into_iter().filter(|run| run.hour == hour);
        runs.extend(of_hour.map(|run| (run.run_id.clone(), run)));
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(runs);
        }
    }
}

fn check_result(
    object: &str,
    run: (BillingPath, Hour, u32),
    result: &RunResult,
    inputs: Option<&Sha256Hex>,
    findings: &mut Findings,
) {
    if (result.path, result.hour, result.seq) != run {
        findings.add(Check::Records, object, "is the result of another run than its path says");
    }
    if let Some(inputs) = inputs.filter(|inputs| **inputs != result.inputs_sha256) {
        let reason = format!(
            "names inputs with SHA-256 {}, and the run's inputs have {inputs}: one of the two was changed",
            result.inputs_sha256
        );
        findings.add(Check::Records, object, reason);
    }
    if (result.outcome == RunOutcome::Committed) != result.committed_at.is_some() {
        findings.add(
            Check::Records,
            object,
            "has a moment of commit and an outcome that contradict each other",
        );
    }
}

/// Compares what a result says of its run with what the store holds of it, and its moment with the run's before.
fn compare_run(
    object: &str,
    run_id: &str,
    result: &RunResult,
    committed: Option<&CommittedRun>,
    before: &mut Option<UtcMicros>,
    findings: &mut Findings,
) {
    let moment: Option<UtcMicros> = result.committed_at.as_deref().and_then(|text| text.parse().ok());
    if let (Some(before), Some(moment)) = (*before, moment)
        && moment <= before
    {
        let reason = format!("was committed at {moment}, and a run with a lower number at {before}");
        findings.add(Check::Records, object, reason);
    }
    *before = moment.or(*before);
    let store = |reason: String, findings: &mut Findings| {
        findings.add(Check::Store, format!("run {run_id}"), reason);
    };
    match (result.outcome, committed) {
        (RunOutcome::Abandoned, Some(_)) => {
            store("is in the billing store, and its result says abandoned".to_owned(), findings);
        }
        (RunOutcome::Abandoned, None) => {}
        (_, None) => store(format!("is not in the billing store, and {object} says it ended"), findings),
        (_, Some(committed)) => {
            let of_store =
                (committed.outcome, committed.committed_at.map(|at| at.to_string()), committed.mode);
            let of_result = (result.outcome, result.committed_at.clone(), result.mode);
            // An identical run fixed no mode; the store tells the one in force when it was recorded.
            let same = (&of_store.0, &of_store.1) == (&of_result.0, &of_result.1)
                && (of_store.2 == of_result.2 || result.outcome == RunOutcome::Identical);
            if !same {
                let text = |(outcome, at, mode): &(RunOutcome, Option<String>, BillingPath)| {
                    let at = at.as_deref().unwrap_or("no moment");
                    format!("{outcome:?} at {at} in mode {mode}").to_lowercase()
                };
                let (of_store, of_result) = (text(&of_store), text(&of_result));
                store(format!("is {of_store} in the billing store, {of_result} in {object}"), findings);
            }
        }
    }
}

/// Compares the rows of a result with the store's rows of that run.
fn compare_rows(
    object: &str,
    hour: Hour,
    result: &RunResult,
    committed: Option<&CommittedRun>,
    findings: &mut Findings,
) {
    let Some(committed) = committed else { return };
    let mut stored: BTreeMap<(&CampaignId, u32), &BillingRow> =
        committed.rows.iter().map(|row| ((&row.counts.campaign_id, row.version), row)).collect();
    for row in &result.rows {
        let key = (&row.campaign_id, row.version);
        // The row itself, or one of the campaign under another version.
        let other = || stored.range((&row.campaign_id, 0)..=(&row.campaign_id, u32::MAX)).next();
        let key = if stored.contains_key(&key) { Some(key) } else { other().map(|(key, _)| *key) };
        let found = key.and_then(|key| stored.remove(&key));
        if !findings.covers(&row.campaign_id) {
            continue;
        }
        match found {
            None => {
                let name = format!("row {} {hour} {} version {}", row.campaign_id, result.path, row.version);
                findings.add(
                    Check::Store,
                    name,
                    format!("is not in the billing store, and {object} names it"),
                );
            }
            Some(found) => compare_row(object, row, (found, committed.committed_at), findings),
        }
    }
    for row in stored.into_values() {
        if findings.covers(&row.counts.campaign_id) {
            findings.add(Check::Store, name_of(row), format!("is in the billing store, and not in {object}"));
        }
    }
}

fn compare_row(
    object: &str,
    row: &ResultRow,
    (stored, moment): (&BillingRow, Option<UtcMicros>),
    findings: &mut Findings,
) {
    let name = name_of(stored);
    let counted = row_digest(stored.hour, &stored.counts);
    if counted != stored.digest {
        let reason = format!(
            "was edited: its counts have the digest {counted}, it carries {}, and {object} says {}",
            stored.digest, row.digest
        );
        findings.add(Check::Store, &name, reason);
    } else if stored.digest != row.digest {
        let reason = format!(
            "differs: it has the digest {} in the billing store, {} in {object}",
            stored.digest, row.digest
        );
        findings.add(Check::Store, &name, reason);
    }
    // Every answer as of a moment is decided by the row's own, not by its run's.
    if let Some(moment) = moment.filter(|moment| *moment != stored.committed_at) {
        let reason = format!("was committed at {}, and its run at {moment}", stored.committed_at);
        findings.add(Check::Store, &name, reason);
    }
    let of_store = (stored.version, stored.status, stored.reason.name());
    let of_result = (row.version, row.status, row.reason.as_str());
    if of_store != of_result {
        let text = |(version, status, reason): (u32, BillingStatus, &str)| {
            format!("version {version}, {}, reason {reason}", status.name())
        };
        let reason = format!("is {} in the billing store, {} in {object}", text(of_store), text(of_result));
        findings.add(Check::Store, &name, reason);
    }
}

/// Returns the run as one that wrote versions, by its result; by the store where that is missing, which is a finding.
fn commit_of(
    run_id: &str,
    result: Option<&Recorded<RunResult>>,
    committed: Option<&CommittedRun>,
) -> Option<Commit> {
    let in_store = committed.and_then(|run| Some((run.committed_at?, run.mode)));
    let (moment, mode) = match result.map(|result| &result.value) {
        Some(result) => (result.committed_at.as_deref()?.parse().ok()?, result.mode),
        None => in_store?,
    };
    Some(Commit { moment, run_id: run_id.to_owned(), mode })
}

/// Takes a result's rows as the newest versions, which must follow those before.
fn take_versions(
    object: &str,
    result: &RunResult,
    versions: &mut BTreeMap<CampaignId, NewestVersion>,
    findings: &mut Findings,
) {
    for row in &result.rows {
        let before = versions.get(&row.campaign_id);
        let (expected, status) = before.map_or((1, row.status), |before| (before.version + 1, before.status));
        if findings.covers(&row.campaign_id) && (row.version != expected || row.status < status) {
            let reason = format!(
                "writes version {} ({}) of {}; after the runs before it comes version {expected} ({} or higher)",
                row.version,
                row.status.name(),
                row.campaign_id,
                status.name()
            );
            findings.add(Check::Records, object, reason);
        }
        let newest = NewestVersion { version: row.version, status: row.status, digest: row.digest.clone() };
        versions.insert(row.campaign_id.clone(), newest);
    }
}

/// Names a row of the store in findings.
pub(super) fn name_of(row: &BillingRow) -> String {
    format!("row {} {} {} version {}", row.counts.campaign_id, row.hour, row.path, row.version)
}
