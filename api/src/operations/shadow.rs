//! `POST /v1/shadow-runs`: tries a candidate billing statement on a billed hour, writing nothing.

use actix_web::{HttpResponse, post, web};
use serde::Deserialize;
use twice_log::{CampaignId, Hour};
use twice_store::Scope;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::ports::{ShadowQuery, ShadowReport};
use crate::problem::Problem;
use crate::server::ApiState;

/// A candidate statement and the hour to try it on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShadowRun {
    #[schema(value_type = String, example = "2025-01-15T12")]
    hour: Hour,
    /// One SELECT over `clicks`, `verdicts`, `rates` and `run`, with the columns of the billing statement.
    sql: String,
    /// Default: every campaign.
    #[schema(value_type = Option<String>)]
    campaign: Option<CampaignId>,
}

/// Runs a candidate beside the billing statement on the recorded inputs of an hour, and reports every difference.
///
/// Nothing is written: no run record, no billing row.
#[utoipa::path(
    request_body = ShadowRun,
    responses(
        (status = 200, description = "how the two answers differ", body = ShadowReport),
        (status = 404, description = "the hour is not billed yet", body = Problem),
        (status = 409, description = "another shadow run is under way", body = Problem),
        (status = 422, description = "the candidate cannot be run, has other columns, or breaks CR-5", body = Problem),
        (status = 503, description = "the recompute does not answer", body = Problem),
    ),
    tag = "operations",
)]
#[post("/v1/shadow-runs")]
pub(crate) async fn post_shadow_runs(
    state: web::Data<ApiState>,
    caller: Caller,
    body: web::Json<ShadowRun>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let ShadowRun { hour, sql, campaign } = body.into_inner();
    let compared = state.deps.shadow.compare(ShadowQuery { hour, sql, campaign }).await;
    let report: ShadowReport =
        compared.map_err(|error| Error::of_port("recompute", state.config.retry_after_s, error))?;
    Ok(HttpResponse::Ok().json(report))
}
