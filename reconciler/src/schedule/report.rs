//! What a run did, in figures: for whoever waits for it, and for the alarms (DESIGN, section 8).

use std::collections::BTreeMap;

use twice_log::Currency;
use twice_log::archive::RunInputs;
use twice_store::{BillingCounts, CommittedRun, CorrectionsQuery, Divergence, UtcMicros};

use super::hour_actor::HourWork;
use super::progress::{BillChange, HourReport, MoneyDelta};
use super::run::run_id;
use crate::error::Result;
use crate::metrics;
use crate::stored;

/// Rows read at once.
const PAGE: u32 = 1000;
/// Changed rows that a report lists.
const CHANGES_LISTED: usize = 20;

impl HourWork {
    /// Reports a run that has just been committed.
    pub(super) async fn report(
        &self,
        inputs: &RunInputs,
        committed: &CommittedRun,
        rows: &[BillingCounts],
        divergence: &[Divergence],
    ) -> Result<HourReport> {
        let billed = rows.iter().map(|row| row.billable).sum();
        let change = self.change(inputs, committed).await?;
        Ok(report(inputs, committed, (rows.len() as u64, billed), divergence, change))
    }

    /// Reports a run that was committed before a crash, from what the store holds.
    pub(super) async fn report_of(&self, inputs: &RunInputs, committed: &CommittedRun) -> Result<HourReport> {
        let divergence = stored::divergence(self.deps.billing.as_ref(), inputs.hour).await?;
        let billed = divergence.iter().map(|row| row.billed).sum();
        let change = self.change(inputs, committed).await?;
        Ok(report(inputs, committed, (divergence.len() as u64, billed), &divergence, change))
    }

    /// Sums the corrections of one run: those committed at its moment, which no other run has (G-6).
    async fn change(&self, inputs: &RunInputs, committed: &CommittedRun) -> Result<BillChange> {
        let mut change = BillChange::default();
        let Some(committed_at) = committed.committed_at else { return Ok(change) };
        let mut money: BTreeMap<Option<Currency>, i64> = BTreeMap::new();
        let mut query = CorrectionsQuery {
            from: inputs.hour,
            to: inputs.hour.plus(1),
            campaigns: None,
            since: Some(UtcMicros(committed_at.0 - 1)),
            as_of: Some(committed_at),
            include_unchanged: false,
            limit: PAGE,
            cursor: None,
        };
        loop {
            let page = self.deps.billing.corrections(&query).await?;
            for correction in page.rows {
                change.rows += 1;
                change.billable += correction.delta.billable;
                let sum = money.entry(correction.currency).or_default();
                *sum = sum.saturating_add(correction.delta.amount_micros);
                if change.listed.len() < CHANGES_LISTED {
                    change.listed.push(correction);
                }
            }
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                break;
            }
        }
        let deltas = money.into_iter().filter(|(_, amount_micros)| *amount_micros != 0);
        change.money =
            deltas.map(|(currency, amount_micros)| MoneyDelta { currency, amount_micros }).collect();
        Ok(change)
    }
}

fn report(
    inputs: &RunInputs,
    committed: &CommittedRun,
    (rows, billed): (u64, u64),
    divergence: &[Divergence],
    change: BillChange,
) -> HourReport {
    let outcome = format!("{:?}", committed.outcome).to_lowercase();
    ::metrics::counter!(metrics::HOURS_RECONCILED_TOTAL, "outcome" => outcome).increment(1);
    let unexplained: Option<i64> =
        sum(divergence, |row| row.unexplained.map(i64::unsigned_abs)).and_then(|sum| i64::try_from(sum).ok());
    ::metrics::gauge!(metrics::UNEXPLAINED_CLICKS).set(unexplained.unwrap_or(0) as f64);
    HourReport {
        hour: inputs.hour,
        outcome: committed.outcome,
        status: inputs.status,
        run_id: run_id(inputs),
        rows,
        rows_written: committed.rows.len() as u64,
        billed,
        preliminary: sum(divergence, |row| row.preliminary),
        late: sum(divergence, |row| row.late),
        late_duplicate: sum(divergence, |row| row.late_duplicate),
        fraud: sum(divergence, |row| row.fraud),
        unexplained,
        announced: inputs.announced,
        memory_retries: 0,
        change,
    }
}

/// Sums what is known; `None` where it is known of no campaign.
fn sum(rows: &[Divergence], value: impl Fn(&Divergence) -> Option<u64>) -> Option<u64> {
    rows.iter().filter_map(value).reduce(|left, right| left + right)
}

/// Returns the share of clicks that preliminary and billed differ by, as the alarms judge it; fraud is no divergence, and
/// neither is lateness in an hour that an import announced.
fn ratio(report: &HourReport) -> f64 {
    let late = if report.announced { 0 } else { report.late.unwrap_or(0) };
    let unexplained = report.unexplained.map_or(0, i64::unsigned_abs);
    let differing = late + report.late_duplicate.unwrap_or(0) + unexplained;
    differing as f64 / report.billed.max(1) as f64
}

/// Shows the divergence of the newest hour by cause.
pub(super) fn show_divergence(report: &HourReport) {
    let causes = [
        ("late", report.late),
        ("late_duplicate", report.late_duplicate),
        ("fraud", report.fraud),
        ("unexplained", report.unexplained.map(i64::unsigned_abs)),
    ];
    for (cause, clicks) in causes {
        ::metrics::gauge!(metrics::DIVERGENCE_CLICKS, "cause" => cause).set(clicks.unwrap_or(0) as f64);
    }
    ::metrics::gauge!(metrics::DIVERGENCE_RATIO).set(ratio(report));
}

#[cfg(test)]
mod tests {
    use twice_log::archive::{BillingStatus, RunOutcome};

    use super::*;

    #[test]
    fn lateness_of_an_announced_hour_is_no_divergence_and_fraud_never_is() {
        let report = HourReport {
            hour: "2025-01-15T12".parse().expect("valid hour"),
            outcome: RunOutcome::Committed,
            status: BillingStatus::Reconciled,
            run_id: "lambda/2025-01-15T12/000001".to_owned(),
            rows: 1,
            rows_written: 1,
            billed: 200,
            preliminary: Some(197),
            late: Some(6),
            late_duplicate: Some(2),
            fraud: Some(3),
            unexplained: Some(-2),
            announced: false,
            memory_retries: 0,
            change: BillChange::default(),
        };
        assert_eq!(ratio(&report), 0.05);
        assert_eq!(ratio(&HourReport { announced: true, ..report.clone() }), 0.02);
        assert_eq!(ratio(&HourReport { billed: 0, late: None, ..report }), 4.0);
    }
}
