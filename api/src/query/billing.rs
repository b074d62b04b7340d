//! `GET /v1/billing`: invoice rows, as JSON, CSV or Parquet.

use actix_web::{HttpRequest, HttpResponse, get, web};
use serde::{Deserialize, Serialize};
use twice_log::archive::BillingPath;
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Currency, Hour};
use twice_store::{BillingQuery, BillingRow, Page, Scope};
use utoipa::{IntoParams, ToSchema};

use super::clicks::read_as_of;
use super::table::{Column, TableRow, Value, column, respond};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::operations::read_limit;
use crate::problem::Problem;
use crate::server::ApiState;

/// Which invoice rows are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct BillingParams {
    /// One UTC hour, such as `2025-01-15T12`. Either this or `day`.
    #[param(value_type = Option<String>)]
    hour: Option<Hour>,
    /// One UTC day, such as `2025-01-15`.
    day: Option<String>,
    #[param(value_type = Option<String>)]
    campaign: Option<CampaignId>,
    /// `lambda` or `kappa`; default the path in force of each hour.
    #[param(value_type = Option<String>)]
    path: Option<BillingPath>,
    /// One version of each row; default the newest.
    version: Option<u32>,
    /// A past moment, RFC 3339, to the microsecond: the bill as it stood then.
    as_of: Option<String>,
    /// Rows a page, 1 to 10 000; default 1 000.
    limit: Option<u32>,
    cursor: Option<String>,
}

/// One invoice row.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BillingRowJson {
    #[schema(value_type = String)]
    campaign_id: CampaignId,
    #[schema(value_type = String, example = "2025-01-15T12")]
    hour_bucket: Hour,
    #[schema(value_type = String, example = "lambda")]
    path: BillingPath,
    version: u32,
    #[schema(example = "reconciled")]
    status: &'static str,
    gross: u64,
    duplicates: u64,
    conflicts: u64,
    invalid_givt: u64,
    invalid_sivt: u64,
    billable: u64,
    unpriced: u64,
    amount_micros: i64,
    #[schema(value_type = Option<String>, example = "USD")]
    currency: Option<Currency>,
    #[schema(value_type = String)]
    digest: Sha256Hex,
    run_id: String,
    /// Why this version exists.
    #[schema(example = "late_clicks")]
    reason: &'static str,
    /// When the version was committed, to the microsecond: what `as_of` compares with.
    #[schema(format = "date-time")]
    reconciled_at: String,
}

impl From<BillingRow> for BillingRowJson {
    fn from(row: BillingRow) -> Self {
        Self {
            campaign_id: row.counts.campaign_id,
            hour_bucket: row.hour,
            path: row.path,
            version: row.version,
            status: row.status.name(),
            gross: row.counts.gross,
            duplicates: row.counts.duplicates,
            conflicts: row.counts.conflicts,
            invalid_givt: row.counts.invalid_givt,
            invalid_sivt: row.counts.invalid_sivt,
            billable: row.counts.billable,
            unpriced: row.counts.unpriced,
            amount_micros: row.counts.amount_micros,
            currency: row.counts.currency,
            digest: row.digest,
            run_id: row.run_id,
            reason: row.reason.name(),
            reconciled_at: row.committed_at.to_string(),
        }
    }
}

impl TableRow for BillingRow {
    const NAME: &'static str = "billing";

    fn columns() -> Vec<Column<Self>> {
        // A count fits 63 bits: the store checks it.
        vec![
            column("campaign_id", Value::Foreign(|row| row.counts.campaign_id.as_str())),
            column("hour_bucket", Value::Text(|row| Some(row.hour.to_string()))),
            column("path", Value::Text(|row| Some(row.path.to_string()))),
            column("version", Value::Integer(|row| Some(row.version.into()))),
            column("status", Value::Text(|row| Some(row.status.name().to_owned()))),
            column("gross", Value::Integer(|row| Some(row.counts.gross as i64))),
            column("duplicates", Value::Integer(|row| Some(row.counts.duplicates as i64))),
            column("conflicts", Value::Integer(|row| Some(row.counts.conflicts as i64))),
            column("invalid_givt", Value::Integer(|row| Some(row.counts.invalid_givt as i64))),
            column("invalid_sivt", Value::Integer(|row| Some(row.counts.invalid_sivt as i64))),
            column("billable", Value::Integer(|row| Some(row.counts.billable as i64))),
            column("unpriced", Value::Integer(|row| Some(row.counts.unpriced as i64))),
            column("amount_micros", Value::Integer(|row| Some(row.counts.amount_micros))),
            column("currency", Value::Text(|row| row.counts.currency.map(|currency| currency.to_string()))),
            column("digest", Value::Text(|row| Some(row.digest.to_string()))),
            column("run_id", Value::Text(|row| Some(row.run_id.clone()))),
            column("reason", Value::Text(|row| Some(row.reason.to_string()))),
            column("reconciled_at", Value::Moment(|row| row.committed_at)),
        ]
    }
}

/// A page of invoice rows, ordered by hour, campaign, path and version.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BillingPage {
    rows: Vec<BillingRowJson>,
    /// To be given as `cursor` for the next page; null at the end.
    next_cursor: Option<String>,
}

/// Lists invoice rows.
///
/// `Accept: text/csv` and `application/vnd.apache.parquet` answer tables, the next page's cursor in `x-next-cursor`.
#[utoipa::path(
    params(BillingParams),
    responses(
        (status = 200, description = "a page of rows", content(
            (BillingPage = "application/json"),
            (String = "text/csv"),
            (Vec<u8> = "application/vnd.apache.parquet"),
        )),
        (status = 422, description = "a time, limit or cursor does not read", body = Problem),
        (status = 503, description = "the billing store does not answer", body = Problem),
    ),
    tag = "query",
)]
#[get("/v1/billing")]
pub(crate) async fn get_billing(
    state: web::Data<ApiState>,
    caller: Caller,
    params: web::Query<BillingParams>,
    request: HttpRequest,
) -> Result<HttpResponse> {
    let params = params.into_inner();
    let (from, to) = match (params.hour, &params.day) {
        (Some(hour), None) => (hour, hour.plus(1)),
        (None, Some(day)) => read_day(day)?,
        _ => return Err(Error::unprocessable("name either hour (2025-01-15T12) or day (2025-01-15)")),
    };
    let query = BillingQuery {
        from,
        to,
        campaigns: caller.visible(Scope::Query, params.campaign)?,
        path: params.path,
        version: params.version,
        as_of: params.as_of.as_deref().map(read_as_of).transpose()?,
        limit: read_limit(params.limit)?,
        cursor: params.cursor,
    };
    let turn = state.turns.list(state.config.retry_after_s).await?;
    let page = state.deps.billing.billing(&query).await;
    drop(turn);
    let page = page.map_err(|error| Error::of_store("billing store", state.config.retry_after_s, error))?;
    respond(&request, page, |Page { rows, next_cursor }| BillingPage {
        rows: rows.into_iter().map(BillingRowJson::from).collect(),
        next_cursor,
    })
    .await
}

fn read_day(day: &str) -> Result<(Hour, Hour)> {
    let first: Result<Hour, _> = format!("{day}T00").parse();
    // Ten characters: `2025-01-15`. Anything longer could carry hours of its own.
    match first {
        Ok(first) if day.len() == 10 => Ok((first, first.plus(24))),
        _ => Err(Error::unprocessable("day is not a UTC day such as 2025-01-15")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_24_hours_and_nothing_else() {
        let (from, to) = read_day("2025-01-15").expect("a day");
        assert_eq!((from.to_string(), to.to_string()), ("2025-01-15T00".into(), "2025-01-16T00".into()));
        assert!(read_day("2025-1-15").is_err() && read_day("2025-02-30").is_err());
    }
}
