//! Reads the aggregates a question needs, and says of which billed hours there are none.
//!
//! Guarantee: what is used sums to the billing row it belongs to, in every count; anything else is not shown. The run of
//! a row's own version is asked, so an answer `as_of` a moment is the same for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use tracing::warn;
use twice_log::archive::{AggregateLevel, RunKey};
use twice_log::{CampaignId, Hour};
use twice_store::{AggregateCounts, AggregateReader, AggregateRow, BillingRow};

use super::answer::{Notice, NoticeCode};

/// Hours read at once: on an object store each is a few requests that wait for the network.
const HOURS_AT_ONCE: usize = 24;

/// Aggregates of one campaign by hour, and the hours without.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub rows: BTreeMap<Hour, Arc<Vec<AggregateRow>>>,
    /// The run wrote none, or they are gone.
    absent: BTreeSet<Hour>,
    /// They did not read, or are not what was billed.
    failed: BTreeSet<Hour>,
    /// More hours than one question reads.
    beyond: BTreeSet<Hour>,
}

enum Read {
    Rows(Arc<Vec<AggregateRow>>),
    Absent,
    Failed,
}

/// Reads the aggregates of `bill`, the newest `hours_max` hours of it.
pub(super) async fn load(
    reader: &dyn AggregateReader,
    campaign: &CampaignId,
    level: AggregateLevel,
    bill: &BTreeMap<Hour, BillingRow>,
    hours_max: usize,
) -> Loaded {
    let mut loaded =
        Loaded { beyond: bill.keys().rev().skip(hours_max).copied().collect(), ..Loaded::default() };
    let mut reads = futures::stream::iter(bill.iter().rev().take(hours_max))
        .map(|(hour, row)| async move { (*hour, read(reader, campaign, level, row).await) })
        .buffer_unordered(HOURS_AT_ONCE);
    while let Some((hour, read)) = reads.next().await {
        match read {
            Read::Rows(rows) => {
                loaded.rows.insert(hour, rows);
            }
            Read::Absent => {
                loaded.absent.insert(hour);
            }
            Read::Failed => {
                loaded.failed.insert(hour);
            }
        }
    }
    loaded
}

async fn read(
    reader: &dyn AggregateReader,
    campaign: &CampaignId,
    level: AggregateLevel,
    row: &BillingRow,
) -> Read {
    let Ok(run) = row.run_id.parse::<RunKey>() else { return Read::Absent };
    match reader.read(run, level, campaign).await {
        Ok(None) => Read::Absent,
        Ok(Some(rows)) => {
            let mut sum = AggregateCounts::default();
            rows.iter().for_each(|row| sum.add(&row.counts));
            let billed = AggregateCounts::of(&row.counts);
            if sum == billed {
                return Read::Rows(rows);
            }
            warn!(%campaign, run = %row.run_id, ?sum, ?billed, "aggregates do not sum to the bill, not shown");
            Read::Failed
        }
        Err(error) => {
            let error = describe(&error);
            warn!(%campaign, run = %row.run_id, %error, "aggregates do not read");
            Read::Failed
        }
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", describe(cause)),
        None => error.to_string(),
    }
}

impl Loaded {
    /// Returns the billed hours of which nothing is known by ad and minute.
    pub fn gaps(&self) -> BTreeSet<Hour> {
        self.absent.iter().chain(&self.failed).chain(&self.beyond).copied().collect()
    }

    /// Says which hours have no aggregates, why, and with `consequence` what that does to the answer.
    pub fn notices(&self, consequence: &str) -> Vec<Notice> {
        let kinds = [
            (
                NoticeCode::AggregatesMissing,
                &self.absent,
                "have no aggregates: their runs wrote none, or they are gone from the archive",
            ),
            (NoticeCode::AggregatesUnavailable, &self.failed, "have aggregates that do not read"),
            (
                NoticeCode::AggregatesNotRead,
                &self.beyond,
                "are more than one question reads aggregates of; ask for a shorter range",
            ),
        ];
        let notice = |(code, hours, reason): (NoticeCode, &BTreeSet<Hour>, &str)| {
            let (first, last) = hours.first().zip(hours.last())?;
            let count = hours.len();
            let detail = format!("{count} billed hours from {first} through {last} {reason}; {consequence}");
            Some(Notice { code, detail })
        };
        kinds.into_iter().filter_map(notice).collect()
    }
}
