//! Which recorded runs are compared: the newest ended one of each path and hour, and when the first was committed.

use twice_log::Hour;
use twice_log::archive::{Archive, BillingPath, RunInputs, RunOutcome, RunResult, StoredRunInputs};
use twice_store::{BillingCounts, BillingStore};

use super::differences::Differences;
use super::figures::{AuthoritativeHour, StoredHour};
use super::timing;
use crate::error::{Error, Result};
use crate::stored::newest_rows;

/// The runs of one hour by one path.
#[derive(Debug, Clone)]
pub(super) struct HourRuns {
    /// Of the newest run that ended with rows, new or identical.
    pub(super) newest: StoredRunInputs,
    /// `None` where the newest ended run says `identical` and no commit stands before it.
    pub(super) first_commit: Option<AuthoritativeHour>,
}

/// Finds the runs of an hour; `None` where none has ended.
pub(super) async fn find(archive: &Archive, path: BillingPath, hour: Hour) -> Result<Option<HourRuns>> {
    let results = archive.run_results(path, hour).await?;
    let ended = |result: &&RunResult| result.outcome != RunOutcome::Abandoned;
    let Some(newest) = results.iter().map(|stored| &stored.result).rev().find(ended) else {
        return Ok(None);
    };
    let inputs = archive.run_inputs(path, hour, newest.seq).await?;
    let newest = inputs.ok_or(Error::NotReconciled { hour })?;
    let commits = results.iter().filter_map(|stored| stored.result.committed_at.as_deref());
    let first_commit = commits.take(1).find_map(|at| timing::after_end(hour, at));
    Ok(Some(HourRuns { newest, first_commit }))
}

/// Returns the name of a run.
pub(super) fn run_id(inputs: &RunInputs) -> String {
    format!("{}/{}/{:06}", inputs.path, inputs.hour, inputs.seq)
}

/// Compares the newest stored rows of both paths.
pub(super) async fn stored_hour(
    billing: &dyn BillingStore,
    lambda: &RunInputs,
    kappa: &RunInputs,
) -> Result<StoredHour> {
    let hour = lambda.hour;
    let mut differences = Differences::default();
    let rows_of_lambda = stored_rows(billing, BillingPath::Lambda, hour).await?;
    let rows_of_kappa = stored_rows(billing, BillingPath::Kappa, hour).await?;
    differences.add_hour(hour, &rows_of_lambda, &rows_of_kappa);
    Ok(StoredHour {
        hour,
        lambda_run: run_id(lambda),
        kappa_run: run_id(kappa),
        same_inputs: count_the_same(lambda, kappa),
        differences,
    })
}

async fn stored_rows(
    billing: &dyn BillingStore,
    path: BillingPath,
    hour: Hour,
) -> Result<Vec<BillingCounts>> {
    let rows = newest_rows(billing, hour, path).await?;
    Ok(rows.into_iter().map(|row| row.counts).collect())
}

/// Returns whether two runs, of whatever path, count the same copies, verdicts and rates by the same horizon.
fn count_the_same(left: &RunInputs, right: &RunInputs) -> bool {
    let counted = |inputs: &RunInputs| {
        let RunInputs { cutoffs, click_files, verdict_files, rates, .. } = inputs.clone();
        (inputs.settings.horizon_hours, cutoffs, click_files, verdict_files, rates)
    };
    counted(left) == counted(right)
}
