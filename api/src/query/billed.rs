//! What the bill says of an hour or of a minute of it. Pure.
//!
//! Hours of a campaign are its billing rows. Minutes and ads are the aggregates of the run that wrote the row, whose sum
//! the row is; users, at any width, are merged from their sketches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use twice_log::archive::BillingStatus;
use twice_log::{AdId, Hour, UtcMillis};
use twice_store::{AggregateCounts, AggregateRow, BillingCounts, BillingRow, UserSketch};

use super::answer::RowStatus;
use super::merge::Part;

/// What is billed of the range.
#[derive(Debug, Clone, Default)]
pub(super) struct Billed {
    /// Hours with a committed run.
    pub hours: BTreeSet<Hour>,
    /// The campaign's rows. May name an hour that is not in `hours`, where a run committed between the two reads.
    pub rows: BTreeMap<Hour, BillingRow>,
    /// The campaign's aggregates, at the level the question needs, of the hours in `rows` that have them.
    pub aggregates: BTreeMap<Hour, Arc<Vec<AggregateRow>>>,
}

/// What the bill says of a span.
pub(super) enum Found {
    Part(Part),
    /// It is billed, and what is asked of it is not known.
    NoDetail(RowStatus),
    NotBilled,
}

/// Looks up an hour, or a minute.
pub(super) fn find(
    billed: &Billed,
    ad: Option<&AdId>,
    from: UtcMillis,
    to: UtcMillis,
    zero: &BillingCounts,
) -> Found {
    let hour = from.hour();
    let is_hour = from == hour.start() && to == hour.end();
    let Some(row) = billed.rows.get(&hour) else {
        let empty = || Part::billed(zero, None, RowStatus::Reconciled, Some(UserSketch::default()));
        return if billed.hours.contains(&hour) { Found::Part(empty()) } else { Found::NotBilled };
    };
    let status = match row.status {
        BillingStatus::Reconciled => RowStatus::Reconciled,
        BillingStatus::Final => RowStatus::Final,
    };
    let detail = billed.aggregates.get(&hour).map(|rows| sum(rows, ad, from, to));
    let part = |counts: &BillingCounts, users| Part::billed(counts, Some(row.version), status, users);
    match detail {
        _ if is_hour && ad.is_none() => Found::Part(part(&row.counts, detail.map(|(_, users)| users))),
        Some((counts, users)) => Found::Part(part(&with_counts(zero, row, &counts), Some(users))),
        None => Found::NoDetail(status),
    }
}

/// Sums the rows of a span, and of an ad where one is asked about.
fn sum(
    rows: &[AggregateRow],
    ad: Option<&AdId>,
    from: UtcMillis,
    to: UtcMillis,
) -> (AggregateCounts, UserSketch) {
    let mut counts = AggregateCounts::default();
    let mut users = UserSketch::default();
    let asked = |row: &&AggregateRow| {
        (from..to).contains(&row.window_start) && ad.is_none_or(|ad| row.ad_id.as_ref() == Some(ad))
    };
    for row in rows.iter().filter(asked) {
        counts.add(&row.counts);
        users.merge(&row.users);
    }
    (counts, users)
}

fn with_counts(zero: &BillingCounts, row: &BillingRow, counts: &AggregateCounts) -> BillingCounts {
    let AggregateCounts {
        gross,
        duplicates,
        conflicts,
        invalid_givt,
        invalid_sivt,
        billable,
        unpriced,
        amount_micros,
    } = *counts;
    BillingCounts {
        campaign_id: zero.campaign_id.clone(),
        gross,
        duplicates,
        conflicts,
        invalid_givt,
        invalid_sivt,
        billable,
        unpriced,
        amount_micros,
        currency: row.counts.currency,
    }
}
