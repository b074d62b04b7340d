//! Stored columns as the types of this crate. A value that does not fit is damage, never a guess.

use std::str::FromStr;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use twice_log::archive::{BillingPath, BillingStatus, RunOutcome};
use twice_log::event::Sha256Hex;
use twice_log::{Hour, UtcMillis};

use crate::billing::{BillingCounts, BillingRow, Divergence, Reconciliation, StreamState, UtcMicros};
use crate::error::{Error, Result};

pub(super) fn damage(column: &str, reason: impl std::fmt::Display) -> Error {
    Error::Damage { what: format!("column {column}"), reason: reason.to_string() }
}

pub(super) fn text<'row>(row: &'row SqliteRow, column: &str) -> Result<&'row str> {
    row.try_get(column).map_err(|error| damage(column, error))
}

pub(super) fn integer(row: &SqliteRow, column: &str) -> Result<i64> {
    row.try_get(column).map_err(|error| damage(column, error))
}

pub(super) fn integer_or_null(row: &SqliteRow, column: &str) -> Result<Option<i64>> {
    row.try_get(column).map_err(|error| damage(column, error))
}

pub(super) fn parsed<T: FromStr>(row: &SqliteRow, column: &str) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    text(row, column)?.parse().map_err(|error| damage(column, error))
}

pub(super) fn parsed_or_null<T: FromStr>(row: &SqliteRow, column: &str) -> Result<Option<T>>
where
    T::Err: std::fmt::Display,
{
    let text: Option<&str> = row.try_get(column).map_err(|error| damage(column, error))?;
    text.map(str::parse).transpose().map_err(|error| damage(column, error))
}

/// A number that is never negative and fits `T`.
pub(super) fn number<T: TryFrom<i64>>(row: &SqliteRow, column: &str) -> Result<T> {
    T::try_from(integer(row, column)?).map_err(|_| damage(column, "is out of range"))
}

fn number_or_null(row: &SqliteRow, column: &str) -> Result<Option<u64>> {
    let value = integer_or_null(row, column)?;
    value.map(u64::try_from).transpose().map_err(|_| damage(column, "is out of range"))
}

pub(super) fn millis(row: &SqliteRow, column: &str) -> Result<UtcMillis> {
    UtcMillis::new(integer(row, column)?).map_err(|error| damage(column, error))
}

pub(super) fn hour(row: &SqliteRow) -> Result<Hour> {
    integer(row, "hour").map(Hour::from_since_epoch)
}

pub(super) fn committed_at(row: &SqliteRow) -> Result<UtcMicros> {
    integer(row, "committed_at_us").map(UtcMicros)
}

pub(super) fn path(row: &SqliteRow) -> Result<BillingPath> {
    BillingPath::from_name(text(row, "path")?).ok_or_else(|| damage("path", "is no path"))
}

pub(super) fn status(row: &SqliteRow) -> Result<BillingStatus> {
    status_from_name(text(row, "status")?)
}

pub(super) fn status_from_name(name: &str) -> Result<BillingStatus> {
    [BillingStatus::Reconciled, BillingStatus::Final]
        .into_iter()
        .find(|status| status.name() == name)
        .ok_or_else(|| damage("status", "is no status"))
}

pub(super) fn outcome(row: &SqliteRow) -> Result<RunOutcome> {
    [RunOutcome::Committed, RunOutcome::Identical]
        .into_iter()
        .find(|outcome| text(row, "outcome").is_ok_and(|name| name == outcome_name(*outcome)))
        .ok_or_else(|| damage("outcome", "is no outcome of a commit"))
}

pub(super) fn outcome_name(outcome: RunOutcome) -> &'static str {
    match outcome {
        RunOutcome::Committed => "committed",
        RunOutcome::Identical => "identical",
        RunOutcome::Abandoned => "abandoned",
    }
}

pub(super) fn stream_name(stream: StreamState) -> &'static str {
    match stream {
        StreamState::Complete => "complete",
        StreamState::Incomplete => "incomplete",
        StreamState::Unsealed => "unsealed",
    }
}

fn stream(row: &SqliteRow) -> Result<StreamState> {
    [StreamState::Complete, StreamState::Incomplete, StreamState::Unsealed]
        .into_iter()
        .find(|stream| text(row, "stream").is_ok_and(|name| name == stream_name(*stream)))
        .ok_or_else(|| damage("stream", "is no state of the stream"))
}

pub(super) fn billing_counts(row: &SqliteRow) -> Result<BillingCounts> {
    Ok(BillingCounts {
        campaign_id: parsed(row, "campaign_id")?,
        gross: number(row, "gross")?,
        duplicates: number(row, "duplicates")?,
        conflicts: number(row, "conflicts")?,
        invalid_givt: number(row, "invalid_givt")?,
        invalid_sivt: number(row, "invalid_sivt")?,
        billable: number(row, "billable")?,
        unpriced: number(row, "unpriced")?,
        amount_micros: integer(row, "amount_micros")?,
        currency: parsed_or_null(row, "currency")?,
    })
}

pub(super) fn billing_row(row: &SqliteRow) -> Result<BillingRow> {
    Ok(BillingRow {
        hour: hour(row)?,
        path: path(row)?,
        version: number(row, "version")?,
        status: status(row)?,
        counts: billing_counts(row)?,
        digest: Sha256Hex(text(row, "digest")?.to_owned()),
        run_id: text(row, "run_id")?.to_owned(),
        reason: parsed(row, "reason")?,
        committed_at: committed_at(row)?,
    })
}

pub(super) fn divergence(row: &SqliteRow) -> Result<Divergence> {
    Ok(Divergence {
        campaign_id: parsed(row, "campaign_id")?,
        stream: stream(row)?,
        preliminary: number_or_null(row, "preliminary")?,
        billed: number(row, "billed")?,
        late: number_or_null(row, "late")?,
        late_duplicate: number_or_null(row, "late_duplicate")?,
        fraud: number_or_null(row, "fraud")?,
        unexplained: integer_or_null(row, "unexplained")?,
    })
}

pub(super) fn reconciliation(row: &SqliteRow) -> Result<Reconciliation> {
    Ok(Reconciliation {
        run_id: text(row, "run_id")?.to_owned(),
        path: path(row)?,
        hour: hour(row)?,
        seq: number(row, "seq")?,
        status: status(row)?,
        outcome: outcome(row)?,
        rows_written: number(row, "rows_written")?,
        started_at: millis(row, "started_at_ms")?,
        committed_at: committed_at(row)?,
        inputs_sha256: Sha256Hex(text(row, "inputs_sha256")?.to_owned()),
    })
}
