//! Divergence between stream and bill: by cause, and copy by copy (G-5).

use actix_web::{HttpResponse, get, web};
use serde::{Deserialize, Serialize};
use twice_log::archive::BillingPath;
use twice_log::{CampaignId, Hour};
use twice_store::{DivergenceRow, Page, Scope, StreamState, UtcMicros};
use utoipa::{IntoParams, ToSchema};

use super::read_limit;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::ports::{ExplainQuery, Explanation};
use crate::problem::Problem;
use crate::server::ApiState;

/// Copies listed a cause where the request names no limit.
const COPIES_DEFAULT: u32 = 100;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DivergenceParams {
    /// UTC hour, such as `2025-01-15T12`.
    #[param(value_type = String)]
    hour: Hour,
    /// A past moment, RFC 3339, to the microsecond.
    as_of: Option<String>,
    /// Rows a page, 1 to 10 000; default 1 000.
    limit: Option<u32>,
    cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExplainParams {
    /// UTC hour, such as `2025-01-15T12`.
    #[param(value_type = String)]
    hour: Hour,
    #[param(value_type = String)]
    campaign: CampaignId,
    /// Copies listed a cause, 1 to 10 000; default 100.
    limit: Option<u32>,
}

/// The difference between stream and bill of one campaign.
///
/// `preliminary - billed = late_duplicate + fraud - late + unexplained`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DivergenceJson {
    #[schema(value_type = String)]
    campaign_id: CampaignId,
    #[schema(value_type = String, example = "2025-01-15T12")]
    hour_bucket: Hour,
    #[schema(value_type = String, example = "lambda")]
    path: BillingPath,
    version: u32,
    #[schema(value_type = String, example = "complete")]
    stream: StreamState,
    preliminary: Option<u64>,
    billed: u64,
    late: Option<u64>,
    late_duplicate: Option<u64>,
    fraud: Option<u64>,
    unexplained: Option<i64>,
}

impl From<DivergenceRow> for DivergenceJson {
    fn from(row: DivergenceRow) -> Self {
        let DivergenceRow { hour, path, version, divergence } = row;
        Self {
            campaign_id: divergence.campaign_id,
            hour_bucket: hour,
            path,
            version,
            stream: divergence.stream,
            preliminary: divergence.preliminary,
            billed: divergence.billed,
            late: divergence.late,
            late_duplicate: divergence.late_duplicate,
            fraud: divergence.fraud,
            unexplained: divergence.unexplained,
        }
    }
}

/// A page of differences, in order of campaign.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DivergencePage {
    rows: Vec<DivergenceJson>,
    next_cursor: Option<String>,
}

/// Lists the differences between stream and bill of one hour, by cause.
#[utoipa::path(
    params(DivergenceParams),
    responses(
        (status = 200, description = "a page of differences", body = DivergencePage),
        (status = 422, description = "a limit or cursor does not read", body = Problem),
    ),
    tag = "query",
)]
#[get("/v1/divergence")]
pub(crate) async fn get_divergence(
    state: web::Data<ApiState>,
    caller: Caller,
    params: web::Query<DivergenceParams>,
) -> Result<HttpResponse> {
    let DivergenceParams { hour, as_of, limit, cursor } = params.into_inner();
    let as_of: Option<UtcMicros> = as_of
        .map(|text| text.parse().map_err(|error| Error::unprocessable(format!("as_of {error}"))))
        .transpose()?;
    caller.require(Scope::Query)?;
    let limit = read_limit(limit)?;
    let _turn = state.turns.list(state.config.retry_after_s).await?;
    let page = state.deps.billing.divergence(hour, as_of, caller.campaigns(), limit, cursor).await;
    let Page { rows, next_cursor } =
        page.map_err(|error| Error::of_store("billing store", state.config.retry_after_s, error))?;
    let rows = rows.into_iter().map(DivergenceJson::from).collect();
    Ok(HttpResponse::Ok().json(DivergencePage { rows, next_cursor }))
}

/// Lists the copies on which stream and bill differ, by cause.
#[utoipa::path(
    params(ExplainParams),
    responses(
        (status = 200, description = "the copies by cause", body = Explanation),
        (status = 404, description = "the hour is not billed yet", body = Problem),
        (status = 503, description = "the key has an explanation under way, or others have all places", body = Problem),
    ),
    tag = "query",
)]
#[get("/v1/explain")]
pub(crate) async fn get_explain(
    state: web::Data<ApiState>,
    caller: Caller,
    params: web::Query<ExplainParams>,
) -> Result<HttpResponse> {
    let ExplainParams { hour, campaign, limit } = params.into_inner();
    caller.require_for(Scope::Query, &campaign)?;
    let limit = read_limit(limit.or(Some(COPIES_DEFAULT)))?;
    // Held until the answer is there; whoever goes away ends the explanation with it.
    let _turn = state.turns.explanation(&caller.key_id, state.config.retry_after_s)?;
    let explained = state.deps.explain.explain(ExplainQuery { hour, campaign, limit }).await;
    let explanation: Explanation =
        explained.map_err(|error| Error::of_port("explain", state.config.retry_after_s, error))?;
    Ok(HttpResponse::Ok().json(explanation))
}
