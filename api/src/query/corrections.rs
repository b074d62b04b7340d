//! `GET /v1/billing/corrections`: what changed bills after their first version, as JSON, CSV or Parquet.

use actix_web::{HttpRequest, HttpResponse, get, web};
use serde::{Deserialize, Serialize};
use twice_log::archive::BillingPath;
use twice_log::{CampaignId, Currency, Hour};
use twice_store::{Correction, CorrectionsQuery, Page, Scope};
use utoipa::{IntoParams, ToSchema};

use super::clicks::read_as_of;
use super::table::{Column, TableRow, Value, column, respond};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::operations::read_limit;
use crate::problem::Problem;
use crate::server::ApiState;

/// Which corrections are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CorrectionsParams {
    /// First event hour, such as `2025-01-15T12`, or day, such as `2025-01-15`; default the earliest.
    from: Option<String>,
    /// Event hour or day before which to end; default the latest.
    to: Option<String>,
    #[param(value_type = Option<String>)]
    campaign: Option<CampaignId>,
    /// Committed after this moment, RFC 3339, to the microsecond: what came since an invoice.
    since: Option<String>,
    /// Committed by this past moment: the same answer for ever.
    as_of: Option<String>,
    /// Also versions that changed no count, as the nightly close writes them; default false.
    include_unchanged: Option<bool>,
    /// Rows a page, 1 to 10 000; default 1 000.
    limit: Option<u32>,
    cursor: Option<String>,
}

/// A version that changed the bill in force, against the version before it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CorrectionJson {
    #[schema(value_type = String)]
    campaign_id: CampaignId,
    #[schema(value_type = String, example = "2025-01-15T12")]
    hour_bucket: Hour,
    #[schema(value_type = String, example = "lambda")]
    path: BillingPath,
    version: u32,
    /// Path of the version before: another than `path` after a change of mode; null where the bill had no such row.
    #[schema(value_type = Option<String>, example = "lambda")]
    previous_path: Option<BillingPath>,
    /// The version before; null where the bill had no row of the campaign, which counts as zeros.
    previous_version: Option<u32>,
    #[schema(example = "final")]
    status: &'static str,
    #[schema(example = "late_clicks")]
    reason: &'static str,
    run_id: String,
    /// When the version was committed, to the microsecond: what `since` and `as_of` compare with.
    #[schema(format = "date-time")]
    reconciled_at: String,
    /// New count minus old one, in clicks; so are the others.
    delta_gross: i64,
    delta_duplicates: i64,
    delta_conflicts: i64,
    delta_invalid_givt: i64,
    delta_invalid_sivt: i64,
    delta_billable: i64,
    delta_unpriced: i64,
    /// To debit where positive, to credit where negative, in millionths of the currency's unit.
    delta_amount_micros: i64,
    #[schema(value_type = Option<String>, example = "USD")]
    currency: Option<Currency>,
}

impl From<Correction> for CorrectionJson {
    fn from(row: Correction) -> Self {
        Self {
            campaign_id: row.campaign_id,
            hour_bucket: row.hour,
            path: row.path,
            version: row.version,
            previous_path: row.before.map(|before| before.path),
            previous_version: row.before.map(|before| before.version),
            status: row.status.name(),
            reason: row.reason.name(),
            run_id: row.run_id,
            reconciled_at: row.committed_at.to_string(),
            delta_gross: row.delta.gross,
            delta_duplicates: row.delta.duplicates,
            delta_conflicts: row.delta.conflicts,
            delta_invalid_givt: row.delta.invalid_givt,
            delta_invalid_sivt: row.delta.invalid_sivt,
            delta_billable: row.delta.billable,
            delta_unpriced: row.delta.unpriced,
            delta_amount_micros: row.delta.amount_micros,
            currency: row.currency,
        }
    }
}

impl TableRow for Correction {
    const NAME: &'static str = "corrections";

    fn columns() -> Vec<Column<Self>> {
        vec![
            column("campaign_id", Value::Foreign(|row| row.campaign_id.as_str())),
            column("hour_bucket", Value::Text(|row| Some(row.hour.to_string()))),
            column("path", Value::Text(|row| Some(row.path.to_string()))),
            column("version", Value::Integer(|row| Some(row.version.into()))),
            column("previous_path", Value::Text(|row| row.before.map(|before| before.path.to_string()))),
            column("previous_version", Value::Integer(|row| row.before.map(|before| before.version.into()))),
            column("status", Value::Text(|row| Some(row.status.name().to_owned()))),
            column("reason", Value::Text(|row| Some(row.reason.to_string()))),
            column("run_id", Value::Text(|row| Some(row.run_id.clone()))),
            column("reconciled_at", Value::Moment(|row| row.committed_at)),
            column("delta_gross", Value::Integer(|row| Some(row.delta.gross))),
            column("delta_duplicates", Value::Integer(|row| Some(row.delta.duplicates))),
            column("delta_conflicts", Value::Integer(|row| Some(row.delta.conflicts))),
            column("delta_invalid_givt", Value::Integer(|row| Some(row.delta.invalid_givt))),
            column("delta_invalid_sivt", Value::Integer(|row| Some(row.delta.invalid_sivt))),
            column("delta_billable", Value::Integer(|row| Some(row.delta.billable))),
            column("delta_unpriced", Value::Integer(|row| Some(row.delta.unpriced))),
            column("delta_amount_micros", Value::Integer(|row| Some(row.delta.amount_micros))),
            column("currency", Value::Text(|row| row.currency.map(|currency| currency.to_string()))),
        ]
    }
}

/// A page of corrections, in order of their commits.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CorrectionsPage {
    rows: Vec<CorrectionJson>,
    /// To be given as `cursor` for the next page; null at the end.
    next_cursor: Option<String>,
}

/// Lists corrections: the versions by which a bill in force changed, each with its difference.
///
/// `Accept: text/csv` and `application/vnd.apache.parquet` answer tables, the next page's cursor in `x-next-cursor`.
#[utoipa::path(
    params(CorrectionsParams),
    responses(
        (status = 200, description = "a page of corrections", content(
            (CorrectionsPage = "application/json"),
            (String = "text/csv"),
            (Vec<u8> = "application/vnd.apache.parquet"),
        )),
        (status = 422, description = "a time, limit or cursor does not read", body = Problem),
        (status = 503, description = "the billing store does not answer", body = Problem),
    ),
    tag = "query",
)]
#[get("/v1/billing/corrections")]
pub(crate) async fn get_corrections(
    state: web::Data<ApiState>,
    caller: Caller,
    params: web::Query<CorrectionsParams>,
    request: HttpRequest,
) -> Result<HttpResponse> {
    let params = params.into_inner();
    let since =
        params.since.map(|text| text.parse().map_err(|error| Error::unprocessable(format!("since {error}"))));
    let query = CorrectionsQuery {
        from: read_hour("from", params.from.as_deref())?.unwrap_or(Hour::from_since_epoch(i64::MIN)),
        to: read_hour("to", params.to.as_deref())?.unwrap_or(Hour::from_since_epoch(i64::MAX)),
        campaigns: caller.visible(Scope::Query, params.campaign)?,
        since: since.transpose()?,
        as_of: params.as_of.as_deref().map(read_as_of).transpose()?,
        include_unchanged: params.include_unchanged.unwrap_or(false),
        limit: read_limit(params.limit)?,
        cursor: params.cursor,
    };
    let turn = state.turns.list(state.config.retry_after_s).await?;
    let page = state.deps.billing.corrections(&query).await;
    drop(turn);
    let page = page.map_err(|error| Error::of_store("billing store", state.config.retry_after_s, error))?;
    respond(&request, page, |Page { rows, next_cursor }| CorrectionsPage {
        rows: rows.into_iter().map(CorrectionJson::from).collect(),
        next_cursor,
    })
    .await
}

/// Reads an hour, or the first hour of a day.
fn read_hour(name: &str, text: Option<&str>) -> Result<Option<Hour>> {
    let Some(text) = text else { return Ok(None) };
    // Ten characters: `2025-01-15`.
    let hour = if text.len() == 10 { format!("{text}T00").parse() } else { text.parse() };
    hour.map(Some).map_err(|_| {
        Error::unprocessable(format!("{name} is neither an hour (2025-01-15T12) nor a day (2025-01-15)"))
    })
}
