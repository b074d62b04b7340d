//! `GET /v1/campaigns/{campaign_id}/clicks` and the same per ad.

use actix_web::{HttpResponse, get, web};
use serde::Deserialize;
use twice_log::{AdId, CampaignId};
use twice_store::{Scope, UtcMicros};
use utoipa::IntoParams;

use super::actor::ReadClicks;
use super::answer::ClicksAnswer;
use super::range::{Granularity, QueryPath, Range};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::problem::Problem;
use crate::server::ApiState;

/// What is asked of the clicks of a campaign, or of an ad.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ClicksParams {
    /// First moment: RFC 3339, epoch milliseconds, or an hour such as `2025-01-15T12`; floored to a whole row.
    from: Option<String>,
    /// First moment after; default now.
    to: Option<String>,
    /// Default `hour`.
    #[serde(default)]
    #[param(inline, required = false)]
    granularity: Granularity,
    /// Default `merged`.
    #[serde(default)]
    #[param(inline, required = false)]
    path: QueryPath,
    /// A past moment, RFC 3339, to the microsecond: the bill as it stood then. Not for `stream`.
    as_of: Option<String>,
}

/// Counts the clicks of a campaign, each row labelled with how settled it is.
#[utoipa::path(
    params(("campaign_id" = String, Path, description = "id of the campaign"), ClicksParams),
    responses(
        (status = 200, description = "one row each minute, hour or day", body = ClicksAnswer),
        (status = 422, description = "the range is too wide or does not read", body = Problem),
        (status = 503, description = "the stores do not answer", body = Problem),
    ),
    tag = "query",
)]
#[get("/v1/campaigns/{campaign_id}/clicks")]
pub(crate) async fn get_campaign_clicks(
    state: web::Data<ApiState>,
    caller: Caller,
    campaign: web::Path<CampaignId>,
    params: web::Query<ClicksParams>,
) -> Result<HttpResponse> {
    caller.require_for(Scope::Query, &campaign)?;
    ask(&state, campaign.into_inner(), None, params.into_inner()).await
}

/// Counts the clicks of one ad. A copy counts under its own ad: a duplicate may name another than its winner.
#[utoipa::path(
    params(
        ("campaign_id" = String, Path, description = "id of the campaign"),
        ("ad_id" = String, Path, description = "id of the ad"),
        ClicksParams,
    ),
    responses(
        (status = 200, description = "one row each minute, hour or day", body = ClicksAnswer),
        (status = 422, description = "the range is too wide or does not read", body = Problem),
        (status = 503, description = "the stores do not answer", body = Problem),
    ),
    tag = "query",
)]
#[get("/v1/campaigns/{campaign_id}/ads/{ad_id}/clicks")]
pub(crate) async fn get_ad_clicks(
    state: web::Data<ApiState>,
    caller: Caller,
    ids: web::Path<(CampaignId, AdId)>,
    params: web::Query<ClicksParams>,
) -> Result<HttpResponse> {
    let (campaign, ad) = ids.into_inner();
    caller.require_for(Scope::Query, &campaign)?;
    ask(&state, campaign, Some(ad), params.into_inner()).await
}

/// Reads an `as_of` moment.
pub(super) fn read_as_of(text: &str) -> Result<UtcMicros> {
    text.parse().map_err(|error| Error::unprocessable(format!("as_of {error}")))
}

async fn ask(
    state: &ApiState,
    campaign: CampaignId,
    ad: Option<AdId>,
    params: ClicksParams,
) -> Result<HttpResponse> {
    let ClicksParams { from, to, granularity, path, as_of } = params;
    let (now, rows_max) = (state.deps.clock.now(), state.config.query_rows_max);
    let range = Range::read(from.as_deref(), to.as_deref(), granularity, now, rows_max)?;
    let as_of = as_of.as_deref().map(read_as_of).transpose()?;
    if as_of.is_some() && path == QueryPath::Stream {
        return Err(Error::unprocessable("as_of goes with billed rows; the stream keeps no versions"));
    }
    let question = ReadClicks { campaign, ad, range, path, as_of };
    let asked = state.query.send(question).await;
    let answer: ClicksAnswer =
        asked.map_err(|error| Error::unavailable("query actor", state.config.retry_after_s, error))??;
    Ok(HttpResponse::Ok().json(answer))
}
