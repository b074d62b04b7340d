//! `GET /v1/billing`: invoice rows, as JSON or CSV.

use actix_web::http::header::ACCEPT;
use actix_web::{HttpRequest, HttpResponse, get, web};
use serde::{Deserialize, Serialize};
use twice_log::archive::BillingPath;
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Currency, Hour};
use twice_store::{BillingQuery, BillingRow, Page};
use utoipa::{IntoParams, ToSchema};

use super::clicks::read_as_of;
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

/// A page of invoice rows, ordered by hour, campaign, path and version.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BillingPage {
    rows: Vec<BillingRowJson>,
    /// To be given as `cursor` for the next page; null at the end.
    next_cursor: Option<String>,
}

/// Lists invoice rows. `Accept: text/csv` answers CSV, the next page's cursor in the header `x-next-cursor`.
#[utoipa::path(
    params(BillingParams),
    responses(
        (status = 200, description = "a page of rows", content(
            (BillingPage = "application/json"), (String = "text/csv"),
        )),
        (status = 422, description = "a time, limit or cursor does not read", body = Problem),
        (status = 503, description = "the billing store does not answer", body = Problem),
    ),
    tag = "query",
)]
#[get("/v1/billing")]
pub(crate) async fn get_billing(
    state: web::Data<ApiState>,
    _caller: Caller,
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
        campaign: params.campaign,
        path: params.path,
        version: params.version,
        as_of: params.as_of.as_deref().map(read_as_of).transpose()?,
        limit: read_limit(params.limit)?,
        cursor: params.cursor,
    };
    let page = state.deps.billing.billing(&query).await;
    let page = page.map_err(|error| Error::of_store("billing store", state.config.retry_after_s, error))?;
    let Page { rows, next_cursor } = page;
    let page = BillingPage { rows: rows.into_iter().map(BillingRowJson::from).collect(), next_cursor };
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("text/csv") { csv_response(&page) } else { Ok(HttpResponse::Ok().json(page)) }
}

fn read_day(day: &str) -> Result<(Hour, Hour)> {
    let first: Result<Hour, _> = format!("{day}T00").parse();
    // Ten characters: `2025-01-15`. Anything longer could carry hours of its own.
    match first {
        Ok(first) if day.len() == 10 => Ok((first, first.plus(24))),
        _ => Err(Error::unprocessable("day is not a UTC day such as 2025-01-15")),
    }
}

fn csv_response(page: &BillingPage) -> Result<HttpResponse> {
    let body = write_csv(&page.rows)
        .map_err(|source| Error::Internal { what: "writing CSV", source: Some(Box::new(source)) })?;
    let mut response = HttpResponse::Ok();
    response.content_type("text/csv; charset=utf-8; header=present");
    response.insert_header(("content-disposition", "attachment; filename=\"billing.csv\""));
    if let Some(cursor) = &page.next_cursor {
        response.insert_header(("x-next-cursor", cursor.as_str()));
    }
    Ok(response.body(body))
}

fn write_csv(rows: &[BillingRowJson]) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record([
        "campaign_id",
        "hour_bucket",
        "path",
        "version",
        "status",
        "gross",
        "duplicates",
        "conflicts",
        "invalid_givt",
        "invalid_sivt",
        "billable",
        "unpriced",
        "amount_micros",
        "currency",
        "digest",
        "run_id",
        "reason",
        "reconciled_at",
    ])?;
    for row in rows {
        writer.write_record([
            inert(row.campaign_id.as_str()),
            row.hour_bucket.to_string(),
            row.path.name().to_owned(),
            row.version.to_string(),
            row.status.to_owned(),
            row.gross.to_string(),
            row.duplicates.to_string(),
            row.conflicts.to_string(),
            row.invalid_givt.to_string(),
            row.invalid_sivt.to_string(),
            row.billable.to_string(),
            row.unpriced.to_string(),
            row.amount_micros.to_string(),
            row.currency.as_ref().map(Currency::to_string).unwrap_or_default(),
            row.digest.to_string(),
            row.run_id.clone(),
            row.reason.to_owned(),
            row.reconciled_at.clone(),
        ])?;
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

/// Makes a text that others chose harmless in a spreadsheet, which would run `=…`, `+…`, `-…` and `@…` as formulas.
fn inert(text: &str) -> String {
    match text.bytes().next() {
        Some(b'=' | b'+' | b'-' | b'@' | b'\t' | b'\r') => format!("'{text}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_in_ids_are_inert_and_quotes_are_quoted() {
        let row = BillingRowJson {
            campaign_id: CampaignId::new(r#"=HYPERLINK("http://x","y")"#).expect("valid id"),
            hour_bucket: "2025-01-15T12".parse().expect("valid hour"),
            path: BillingPath::Lambda,
            version: 1,
            status: "reconciled",
            gross: 1,
            duplicates: 0,
            conflicts: 0,
            invalid_givt: 0,
            invalid_sivt: 0,
            billable: 1,
            unpriced: 0,
            amount_micros: -5,
            currency: None,
            digest: Sha256Hex("ab".to_owned()),
            run_id: "lambda/2025-01-15T12/000001".to_owned(),
            reason: "first",
            reconciled_at: "2025-01-15T13:00:00.000000Z".to_owned(),
        };
        let csv = String::from_utf8(write_csv(&[row]).expect("writes")).expect("UTF-8");
        let line = csv.lines().nth(1).expect("a row");
        assert!(line.starts_with(r#""'=HYPERLINK(""http://x"",""y"")",2025-01-15T12,lambda,1,"#), "{line}");
        assert!(line.contains(",-5,"), "numbers stay numbers: {line}");
    }

    #[test]
    fn a_day_is_24_hours_and_nothing_else() {
        let (from, to) = read_day("2025-01-15").expect("a day");
        assert_eq!((from.to_string(), to.to_string()), ("2025-01-15T00".into(), "2025-01-16T00".into()));
        assert!(read_day("2025-1-15").is_err() && read_day("2025-02-30").is_err());
    }
}
