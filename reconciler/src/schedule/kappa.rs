//! Kappa runs: counted by replay through the stream's code, compared with the recompute, committed like any other (G-4).
//!
//! Guarantee: a kappa run has the inputs of a lambda run, and its rows are compared with that run's, row for row (G-7).
//! It carries the same hash of rules: those texts and settings say what must be counted, whoever counts. Where kappa is
//! the bill, both paths count before either commits, so that its divergence has causes from its first commit on: those of
//! the recompute on the same inputs, its own billed numbers, and what is then left over as `unexplained`.
//! Words: *lambda side* = what the recompute says of the same inputs.

use std::collections::{BTreeMap, BTreeSet};

use twice_log::archive::{
    AggregateFile, AggregateSet, BillingPath, RunInputs, RunKey, RunOutcome, StoredRunInputs,
};
use twice_log::{CampaignId, Hour};
use twice_store::{BillingCounts, Divergence, Replayed, StreamState};

use super::hour_actor::HourWork;
use super::inputs::reads_the_same;
use super::progress::{HourReport, Step};
use crate::error::{Error, Result};
use crate::metrics;
use crate::recompute::Recomputed;

/// Rows of a campaign by both paths; `None`: no copy in the hour.
pub(super) type Difference = (CampaignId, Option<BillingCounts>, Option<BillingCounts>);

/// What the recompute says of the inputs of a kappa run.
#[derive(Debug, Default)]
pub(super) struct LambdaSide {
    pub rows: Vec<BillingCounts>,
    /// Empty where it is not known: the kappa run then commits none.
    pub divergence: Vec<Divergence>,
    /// Files of aggregates that sum to its rows.
    pub aggregates: Vec<AggregateFile>,
}

/// The lambda runs of an hour, as far as a replay asks.
#[derive(Debug)]
pub(super) struct LambdaRuns {
    /// The newest that ended and was not given up.
    pub newest: Option<StoredRunInputs>,
    /// One that was begun and has no result.
    pub open: Option<StoredRunInputs>,
    /// How many ended.
    pub ended: u32,
}

impl HourWork {
    /// Counts both paths over the same inputs, then commits kappa, whose rows are the bill, and lambda beside it.
    pub(super) async fn run_beside(
        &self,
        kappa: &StoredRunInputs,
        lambda: &StoredRunInputs,
    ) -> Result<HourReport> {
        let started_at = self.deps.clock.now();
        self.begin(kappa.inputs.hour, Step::Recomputing);
        let recomputed = self.recomputed(lambda).await?;
        let side = LambdaSide {
            rows: recomputed.rows.clone(),
            divergence: recomputed.divergence.clone(),
            aggregates: self.aggregates_of(&lambda.inputs).await?,
        };
        let rows = self.replayed_rows(kappa).await?;
        let (replayed, _) = self.beside_lambda(kappa, rows, &side).await?;
        let report = self.commit(kappa, started_at, &replayed).await?;
        self.commit(lambda, started_at, &recomputed).await?;
        Ok(report)
    }

    /// Counts a kappa run whose lambda run may be gone or ended: the recompute goes over the run's own inputs.
    pub(super) async fn replayed(&self, stored: &StoredRunInputs) -> Result<Recomputed> {
        let folder = self.spill_folder().await?;
        let recomputed = self.recompute_into(stored, &folder).await?;
        let mut side =
            LambdaSide { rows: recomputed.rows, divergence: recomputed.divergence, ..LambdaSide::default() };
        let rows = self.replayed_rows(stored).await?;
        if let Some(made) = &recomputed.aggregates
            && differences(&rows, &side.rows).is_empty()
        {
            self.put_aggregates(&stored.inputs, made).await?;
            side.aggregates = self.aggregates_of(&stored.inputs).await?;
        }
        Ok(self.beside_lambda(stored, rows, &side).await?.0)
    }

    async fn replayed_rows(&self, stored: &StoredRunInputs) -> Result<Vec<BillingCounts>> {
        let replayed = self.deps.replay.replay(std::slice::from_ref(stored), None).await?;
        measure(&replayed);
        let hour = replayed.hours.into_iter().next();
        hour.map(|hour| hour.rows).ok_or_else(|| Error::Contradiction {
            reason: format!("the replay of {} has no rows of it", stored.inputs.hour),
        })
    }

    /// Compares a kappa run's rows with the lambda side, and returns what it commits and how many rows differ.
    pub(super) async fn beside_lambda(
        &self,
        stored: &StoredRunInputs,
        rows: Vec<BillingCounts>,
        side: &LambdaSide,
    ) -> Result<(Recomputed, u64)> {
        let RunInputs { path, hour, seq, .. } = stored.inputs;
        let different = differences(&rows, &side.rows);
        report_differences(hour, &different);
        if different.is_empty() && !side.aggregates.is_empty() {
            // Equal rows have equal sums: the files that the recompute made answer for this run as well.
            let set = AggregateSet { path, hour, seq, files: side.aggregates.clone() };
            self.deps.archive.put_aggregate_set(&set).await?;
        }
        let divergence = divergence_of(&rows, &side.divergence);
        Ok((Recomputed { rows, divergence, ..Recomputed::default() }, different.len() as u64))
    }

    /// Returns the lambda runs of an hour.
    pub(super) async fn lambda_runs(&self, hour: Hour) -> Result<LambdaRuns> {
        let archive = &self.deps.archive;
        let results = archive.run_results(BillingPath::Lambda, hour).await?;
        let ended = results.iter().rev().find(|stored| stored.result.outcome != RunOutcome::Abandoned);
        let newest = match ended.map(|stored| stored.result.seq) {
            Some(seq) => archive.run_inputs(BillingPath::Lambda, hour, seq).await?,
            None => None,
        };
        let latest = archive.latest_run(BillingPath::Lambda, hour).await?;
        let open = latest.filter(|run| run.result.is_none()).map(|run| run.inputs);
        Ok(LambdaRuns { newest, open, ended: results.last().map_or(0, |last| last.result.seq) })
    }

    /// Returns whether a kappa run has the inputs of a lambda run that another one, begun or ended, came after: what it
    /// counts is no longer what the hour should be billed by, nor what lambda's rows can be compared with.
    pub(super) async fn is_overtaken(&self, inputs: &RunInputs) -> Result<bool> {
        if inputs.path != BillingPath::Kappa {
            return Ok(false);
        }
        let LambdaRuns { newest, open, .. } = self.lambda_runs(inputs.hour).await?;
        let Some(newest) = open.or(newest).map(|run| run.inputs) else { return Ok(false) };
        if reads_the_files_of(inputs, &newest) {
            return Ok(false);
        }
        // A close that died after it had recorded kappa's inputs has none of lambda's yet: these equal no run's.
        for seq in (1..newest.seq).rev() {
            let older = self.deps.archive.run_inputs(BillingPath::Lambda, inputs.hour, seq).await?;
            if older.is_some_and(|older| reads_the_files_of(inputs, &older.inputs)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the files of aggregates of the lambda run with the inputs of a kappa run.
    pub(super) async fn lambda_aggregates(&self, hour: Hour, seq: u32) -> Result<Vec<AggregateFile>> {
        let key = RunKey { path: BillingPath::Lambda, hour, seq };
        let set = self.deps.archive.aggregate_set(key).await?;
        Ok(set.map(|set| set.files).unwrap_or_default())
    }
}

/// Returns whether two runs of any path read the same, whichever of them changes the mode.
fn reads_the_files_of(kappa: &RunInputs, lambda: &RunInputs) -> bool {
    reads_the_same(kappa, &RunInputs { mode_change: kappa.mode_change, ..lambda.clone() })
}

/// Returns the campaigns whose rows are not the same, in order. No row and a row of zeros say the same.
pub(super) fn differences(kappa: &[BillingCounts], lambda: &[BillingCounts]) -> Vec<Difference> {
    let by_campaign = |rows: &[BillingCounts]| -> BTreeMap<CampaignId, BillingCounts> {
        rows.iter().filter(|row| row.gross > 0).map(|row| (row.campaign_id.clone(), row.clone())).collect()
    };
    let (mut kappa, mut lambda) = (by_campaign(kappa), by_campaign(lambda));
    let campaigns: BTreeSet<CampaignId> = kappa.keys().chain(lambda.keys()).cloned().collect();
    let pairs = campaigns.into_iter().map(|campaign| {
        let (left, right) = (kappa.remove(&campaign), lambda.remove(&campaign));
        (campaign, left, right)
    });
    pairs.filter(|(_, kappa, lambda)| kappa != lambda).collect()
}

/// A difference is a bug in one of the paths (G-7): each row is named, with both sides.
fn report_differences(hour: Hour, differences: &[Difference]) {
    // A counter: the next hour that agrees must not take the alarm back.
    ::metrics::counter!(metrics::KAPPA_LAMBDA_DIFFERING_ROWS_TOTAL).increment(differences.len() as u64);
    for (campaign, kappa, lambda) in differences {
        tracing::error!(%hour, %campaign, ?kappa, ?lambda, "kappa and lambda differ on the same inputs (G-7)");
    }
}

/// Returns the divergence of rows counted by replay: preliminary and causes as the recompute found them, billed as
/// replayed, and what is then left over.
pub(crate) fn divergence_of(rows: &[BillingCounts], lambda: &[Divergence]) -> Vec<Divergence> {
    let mut billed: BTreeMap<&CampaignId, u64> =
        rows.iter().map(|row| (&row.campaign_id, row.billable)).collect();
    let mut divergence: Vec<Divergence> = lambda
        .iter()
        .map(|row| {
            let billed = billed.remove(&row.campaign_id).unwrap_or(0);
            let more = i64::try_from(i128::from(row.billed) - i128::from(billed)).unwrap_or(i64::MAX);
            let unexplained = row.unexplained.map(|unexplained| unexplained.saturating_add(more));
            Divergence { billed, unexplained, ..row.clone() }
        })
        .collect();
    let Some(stream) = lambda.first().map(|row| row.stream) else { return divergence };
    // Billed by replay alone: nothing explains it.
    let known = (stream != StreamState::Unsealed).then_some(0);
    let unknown_to_lambda = billed.into_iter().filter(|(_, billed)| *billed > 0);
    divergence.extend(unknown_to_lambda.map(|(campaign, billed)| Divergence {
        campaign_id: campaign.clone(),
        stream,
        preliminary: known,
        billed,
        late: known,
        late_duplicate: known,
        fraud: known,
        unexplained: (stream == StreamState::Complete).then(|| -i64::try_from(billed).unwrap_or(i64::MAX)),
    }));
    divergence.sort_by(|left, right| left.campaign_id.cmp(&right.campaign_id));
    divergence
}

pub(super) fn measure(replayed: &Replayed) {
    ::metrics::histogram!(metrics::REPLAY_SECONDS).record(replayed.cost.wall_seconds);
    ::metrics::gauge!(metrics::REPLAY_RSS_PEAK_BYTES).set(replayed.cost.rss_peak_bytes as f64);
    ::metrics::gauge!(metrics::REPLAY_ROWS).set(replayed.copies as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn campaign(name: &str) -> CampaignId {
        CampaignId::new(name).expect("valid")
    }

    fn row(name: &str, billable: u64) -> BillingCounts {
        BillingCounts { gross: billable, billable, ..BillingCounts::zero(campaign(name), None) }
    }

    fn explained(name: &str, billed: u64) -> Divergence {
        Divergence {
            campaign_id: campaign(name),
            stream: StreamState::Complete,
            preliminary: Some(billed + 3),
            billed,
            late: Some(1),
            late_duplicate: Some(4),
            fraud: Some(0),
            unexplained: Some(0),
        }
    }

    #[test]
    fn rows_differ_where_a_count_does_and_zeros_are_no_row() {
        let kappa = [row("a", 1), row("b", 2), row("c", 0), row("d", 4)];
        let lambda = [row("a", 1), row("b", 3), row("e", 5)];
        let names: Vec<String> =
            differences(&kappa, &lambda).into_iter().map(|(campaign, ..)| campaign.to_string()).collect();
        assert_eq!(names, ["b", "d", "e"]);
    }

    #[test]
    fn what_kappa_counts_differently_is_unexplained() {
        let rows = [row("a", 10), row("b", 7), row("c", 2)];
        let divergence = divergence_of(&rows, &[explained("a", 10), explained("b", 9), explained("x", 1)]);
        let unexplained: Vec<_> =
            divergence.iter().map(|row| (row.campaign_id.as_str(), row.billed, row.unexplained)).collect();
        let expected = [("a", 10, Some(0)), ("b", 7, Some(2)), ("c", 2, Some(-2)), ("x", 0, Some(1))];
        assert_eq!(unexplained, expected);
        assert!(divergence.iter().all(Divergence::is_balanced));
        assert!(divergence_of(&rows, &[]).is_empty());
    }
}
