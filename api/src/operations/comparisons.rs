//! Comparisons of lambda and kappa: their start with progress as it happens, and those that were kept.

use std::convert::Infallible;

use actix_web::{HttpResponse, get, post, web};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use twice_log::Hour;
use twice_store::{Page, Scope};
use utoipa::ToSchema;

use super::{PageParams, read_limit};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::ports::{CompareEvent, CompareRequest, ComparisonSummary};
use crate::problem::Problem;
use crate::server::ApiState;

const PART: &str = "comparison";

/// Which hours to compare.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StartComparison {
    #[schema(value_type = String, example = "2025-01-15T12")]
    from: Hour,
    /// Exclusive; at most 7 days after `from`.
    #[schema(value_type = String, example = "2025-01-15T14")]
    to: Hour,
    /// Prices of the cost model, with the keys that `twice compare --print-prices` shows; left out, those.
    #[schema(value_type = Option<Object>)]
    prices: Option<serde_json::Value>,
}

/// A page of comparisons, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ComparisonPage {
    rows: Vec<ComparisonSummary>,
    next_cursor: Option<String>,
}

/// Counts the hours by both paths anew, on the recorded inputs of their newest runs, and answers with progress, one
/// JSON object a line; the last line is the comparison. Nothing is billed by it.
///
/// A client that goes away does not stop it.
#[utoipa::path(
    request_body = StartComparison,
    responses(
        (status = 200, description = "progress, ending with `done` or `failed`", content(
            (CompareEvent = "application/x-ndjson"),
        )),
        (status = 409, description = "another comparison is under way", body = Problem),
        (status = 422, description = "the range is empty or longer than 168 hours (7 days), or the prices are none", body = Problem),
    ),
    tag = "operations",
)]
#[post("/v1/comparisons")]
pub(crate) async fn post_comparisons(
    state: web::Data<ApiState>,
    caller: Caller,
    body: web::Json<StartComparison>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let StartComparison { from, to, prices } = body.into_inner();
    if from >= to {
        return Err(Error::unprocessable(format!("from ({from}) must lie before to ({to})")));
    }
    let started = state.deps.compare.start(CompareRequest { from, to, prices }).await;
    let events = started.map_err(|error| Error::of_port(PART, state.config.retry_after_s, error))?;
    let lines = events.map(|event| Ok::<Bytes, Infallible>(line_of(&event)));
    Ok(HttpResponse::Ok().content_type("application/x-ndjson").streaming(lines))
}

/// Lists comparisons that were made, newest first.
#[utoipa::path(
    params(PageParams),
    responses((status = 200, description = "a page of comparisons", body = ComparisonPage)),
    tag = "operations",
)]
#[get("/v1/comparisons")]
pub(crate) async fn get_comparisons(
    state: web::Data<ApiState>,
    caller: Caller,
    page: web::Query<PageParams>,
) -> Result<HttpResponse> {
    let PageParams { limit, cursor } = page.into_inner();
    caller.require(Scope::Admin)?;
    let listed = state.deps.compare.list(read_limit(limit)?, cursor).await;
    let Page { rows, next_cursor } =
        listed.map_err(|error| Error::of_port(PART, state.config.retry_after_s, error))?;
    Ok(HttpResponse::Ok().json(ComparisonPage { rows, next_cursor }))
}

/// Returns one comparison, as `docs/comparison.md` says.
#[utoipa::path(
    params(("id" = String, Path, description = "as listed")),
    responses(
        (status = 200, description = "the comparison", body = serde_json::Value),
        (status = 404, description = "there is none of that name", body = Problem),
    ),
    tag = "operations",
)]
#[get("/v1/comparisons/{id}")]
pub(crate) async fn get_comparison(
    state: web::Data<ApiState>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let found = state.deps.compare.get(&id).await;
    let json = found.map_err(|error| Error::of_port(PART, state.config.retry_after_s, error))?;
    Ok(HttpResponse::Ok().content_type("application/json").body(json))
}

fn line_of(event: &CompareEvent) -> Bytes {
    // Every field is a number, a text or JSON already: this cannot fail.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
