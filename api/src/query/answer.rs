//! Answers to questions about clicks, as JSON has them.

use serde::Serialize;
use twice_log::{AdId, CampaignId, Currency, UtcMillis};
use twice_store::BillingCounts;
use utoipa::ToSchema;

use super::range::{Granularity, QueryPath};

/// How settled a row is, weakest first: a sum has the label of its weakest part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RowStatus {
    /// No run has billed it, and the stream was not asked.
    Unbilled,
    /// The stream's number.
    Preliminary,
    /// The hourly run's.
    Reconciled,
    /// The nightly close's: what is invoiced.
    Final,
}

/// CR-5's columns, of billed rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct BillingColumns {
    pub gross: u64,
    pub duplicates: u64,
    pub conflicts: u64,
    pub invalid_givt: u64,
    pub invalid_sivt: u64,
    pub billable: u64,
    pub unpriced: u64,
    pub amount_micros: i64,
    #[schema(value_type = Option<String>, example = "USD")]
    pub currency: Option<Currency>,
    /// Version of the billed row; null for a sum, and where the campaign has no row in a billed hour.
    pub version: Option<u32>,
}

impl BillingColumns {
    pub fn of(counts: &BillingCounts, version: Option<u32>) -> Self {
        Self {
            gross: counts.gross,
            duplicates: counts.duplicates,
            conflicts: counts.conflicts,
            invalid_givt: counts.invalid_givt,
            invalid_sivt: counts.invalid_sivt,
            billable: counts.billable,
            unpriced: counts.unpriced,
            amount_micros: counts.amount_micros,
            currency: counts.currency,
            version,
        }
    }

    /// Adds the columns of another hour of the same campaign, whose currency never changes (CR-6).
    pub fn plus(self, other: &Self) -> Self {
        Self {
            gross: self.gross.saturating_add(other.gross),
            duplicates: self.duplicates.saturating_add(other.duplicates),
            conflicts: self.conflicts.saturating_add(other.conflicts),
            invalid_givt: self.invalid_givt.saturating_add(other.invalid_givt),
            invalid_sivt: self.invalid_sivt.saturating_add(other.invalid_sivt),
            billable: self.billable.saturating_add(other.billable),
            unpriced: self.unpriced.saturating_add(other.unpriced),
            amount_micros: self.amount_micros.saturating_add(other.amount_micros),
            currency: self.currency.or(other.currency),
            version: None,
        }
    }
}

/// One minute, hour or day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct ClicksRow {
    #[schema(value_type = String, format = "date-time")]
    pub window_start: UtcMillis,
    #[schema(value_type = String, format = "date-time")]
    pub window_end: UtcMillis,
    /// `billable` of a billed row, the stream's count of a preliminary one; null where it is not known.
    pub clicks: Option<u64>,
    /// Distinct users: of billable clicks in a billed row, of the clicks it counted in the stream's. Exact up to 128, above
    /// that within 1.6 % (one standard error). Null where they are not known.
    pub unique_users: Option<u64>,
    pub status: RowStatus,
    /// There where every part of the row is billed.
    #[serde(flatten)]
    pub billing: Option<BillingColumns>,
}

/// Something the reader of an answer must know about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Notice {
    pub code: NoticeCode,
    pub detail: String,
}

/// Kinds of notices. The codes are public and do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NoticeCode {
    /// The billing store does not answer: preliminary numbers only.
    BillingUnavailable,
    /// The real-time store does not answer: billed hours only.
    StreamUnavailable,
    /// The campaign's partition is not running: preliminary numbers stand still.
    StreamBehind,
    /// A billed hour is answered with the stream's numbers, as there are no aggregates of it.
    BilledFromStream,
    /// Billed hours have no aggregates: no minutes, no ads and no unique users are known of them.
    AggregatesMissing,
    /// Aggregates of billed hours do not read, or do not sum to the bill.
    AggregatesUnavailable,
    /// The range has more billed hours than one question reads aggregates of.
    AggregatesNotRead,
    /// The stream's windows of an hour are gone, which happens after it is billed.
    WindowsGone,
}

/// Answer to a question about clicks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct ClicksAnswer {
    #[schema(value_type = String)]
    pub campaign_id: CampaignId,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ad_id: Option<AdId>,
    pub granularity: Granularity,
    pub path: QueryPath,
    /// The moment whose state the answer shows; null for now.
    pub as_of: Option<String>,
    /// Clicks that arrived before this moment are in the preliminary numbers; null where that is not known.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub fresh_to: Option<UtcMillis>,
    pub rows: Vec<ClicksRow>,
    pub notices: Vec<Notice>,
}
