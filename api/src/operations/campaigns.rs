//! Campaigns and their rates (CR-6).

use actix_web::{HttpRequest, HttpResponse, get, post, put, web};
use serde::{Deserialize, Serialize};
use twice_log::archive::Rate;
use twice_log::{CampaignId, Currency, UtcMillis};
use twice_store::{Campaign, Page, PutCampaign, Scope};
use utoipa::ToSchema;

use super::{PageParams, read_limit};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::ingest::{read_batch, read_body};
use crate::problem::Problem;
use crate::server::ApiState;

/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 200;
/// Highest price and budget: a million million units of a currency, far below where sums overflow.
const MICROS_MAX: i64 = 1_000_000_000_000_000_000;

/// What is set of a campaign. A price that differs from the one in force is appended; older prices stay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CampaignBody {
    /// Needed where many are set at once; else the path names it.
    #[schema(value_type = Option<String>)]
    campaign_id: Option<CampaignId>,
    /// Default: the campaign's id.
    name: Option<String>,
    /// ISO 4217; never changes once set.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Price of a click in millionths of the currency's unit.
    #[schema(example = 500000)]
    cpc_micros: i64,
    /// Budget of a UTC day; null for none.
    daily_budget_micros: Option<i64>,
    /// Whether the campaign stops (budget state `unknown`) while its spend is not known; default false.
    #[serde(default)]
    strict: bool,
    /// From which event time on the price counts; default the moment it is recorded.
    #[schema(value_type = Option<String>, format = "date-time")]
    effective_from: Option<UtcMillis>,
}

/// One price of a campaign.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RateJson {
    cpc_micros: i64,
    #[schema(value_type = String, format = "date-time")]
    effective_from: UtcMillis,
    #[schema(value_type = String, format = "date-time")]
    recorded_at: UtcMillis,
}

/// A campaign with every price it ever had, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CampaignJson {
    #[schema(value_type = String)]
    campaign_id: CampaignId,
    name: String,
    #[schema(value_type = String)]
    currency: Currency,
    daily_budget_micros: Option<i64>,
    strict: bool,
    rates: Vec<RateJson>,
}

impl From<Campaign> for CampaignJson {
    fn from(campaign: Campaign) -> Self {
        let rate_json = |rate: Rate| RateJson {
            cpc_micros: rate.cpc_micros,
            effective_from: rate.effective_from,
            recorded_at: rate.recorded_at,
        };
        Self {
            campaign_id: campaign.campaign_id,
            name: campaign.name,
            currency: campaign.currency,
            daily_budget_micros: campaign.daily_budget_micros,
            strict: campaign.strict,
            rates: campaign.rates.into_iter().map(rate_json).collect(),
        }
    }
}

/// A page of campaigns, in order of id.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CampaignPage {
    rows: Vec<CampaignJson>,
    next_cursor: Option<String>,
}

/// How many campaigns were stored.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoredCampaigns {
    stored: usize,
}

impl CampaignBody {
    /// Checks every field; `named` is the id the path names.
    fn check(self, named: Option<CampaignId>) -> Result<PutCampaign, String> {
        let campaign_id = match (named, self.campaign_id) {
            (Some(named), Some(stated)) if named != stated => {
                return Err(format!("campaign_id is {stated}, the path names {named}"));
            }
            (Some(id), _) | (None, Some(id)) => id,
            (None, None) => return Err("campaign_id is missing".to_owned()),
        };
        let name = self.name.unwrap_or_else(|| campaign_id.as_str().to_owned());
        if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
            return Err(format!("name must have at most {NAME_CHARS_MAX} characters, none of control"));
        }
        let amounts =
            [("cpc_micros", Some(self.cpc_micros)), ("daily_budget_micros", self.daily_budget_micros)];
        for (field, micros) in amounts {
            if micros.is_some_and(|micros| !(0..=MICROS_MAX).contains(&micros)) {
                return Err(format!("{field} must lie between 0 and {MICROS_MAX}"));
            }
        }
        Ok(PutCampaign {
            campaign_id,
            name,
            currency: self.currency,
            cpc_micros: self.cpc_micros,
            daily_budget_micros: self.daily_budget_micros,
            strict: self.strict,
            effective_from: self.effective_from,
        })
    }
}

/// Lists campaigns.
#[utoipa::path(
    params(PageParams),
    responses((status = 200, description = "a page of campaigns", body = CampaignPage)),
    tag = "operations",
)]
#[get("/v1/campaigns")]
pub(crate) async fn get_campaigns(
    state: web::Data<ApiState>,
    caller: Caller,
    page: web::Query<PageParams>,
) -> Result<HttpResponse> {
    let PageParams { limit, cursor } = page.into_inner();
    caller.require(Scope::Query)?;
    let _turn = state.turns.list(state.config.retry_after_s).await?;
    let page = state.deps.campaigns.campaigns(caller.campaigns(), read_limit(limit)?, cursor).await;
    let Page { rows, next_cursor } = page.map_err(|error| store_error(&state, error))?;
    let rows = rows.into_iter().map(CampaignJson::from).collect();
    Ok(HttpResponse::Ok().json(CampaignPage { rows, next_cursor }))
}

/// Shows one campaign.
#[utoipa::path(
    params(("campaign_id" = String, Path, description = "id of the campaign")),
    responses(
        (status = 200, description = "the campaign", body = CampaignJson),
        (status = 404, description = "no such campaign was set; its clicks count all the same", body = Problem),
    ),
    tag = "operations",
)]
#[get("/v1/campaigns/{campaign_id}")]
pub(crate) async fn get_campaign(
    state: web::Data<ApiState>,
    caller: Caller,
    campaign: web::Path<CampaignId>,
) -> Result<HttpResponse> {
    caller.require_for(Scope::Query, &campaign)?;
    let found = state.deps.campaigns.campaign(&campaign).await;
    match found.map_err(|error| store_error(&state, error))? {
        Some(found) => Ok(HttpResponse::Ok().json(CampaignJson::from(found))),
        None => Err(Error::NotFound { what: format!("campaign {campaign}") }),
    }
}

/// Creates a campaign or appends a price to it. The same again changes nothing.
#[utoipa::path(
    params(("campaign_id" = String, Path, description = "id of the campaign")),
    request_body = CampaignBody,
    responses(
        (status = 200, description = "the campaign as it stands now", body = CampaignJson),
        (status = 409, description = "the campaign has another currency", body = Problem),
        (status = 422, description = "a field is not valid", body = Problem),
    ),
    tag = "operations",
)]
#[put("/v1/campaigns/{campaign_id}")]
pub(crate) async fn put_campaign(
    state: web::Data<ApiState>,
    caller: Caller,
    campaign: web::Path<CampaignId>,
    body: web::Json<CampaignBody>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let put = body.into_inner().check(Some(campaign.into_inner())).map_err(Error::unprocessable)?;
    caller.note(terms(&put));
    let stored = state.deps.campaigns.put_campaign(put, state.deps.clock.now()).await;
    let stored = stored.map_err(|error| store_error(&state, error))?;
    Ok(HttpResponse::Ok().json(CampaignJson::from(stored)))
}

/// Creates or updates many campaigns, all or none: an array, or one object a line.
#[utoipa::path(
    request_body(
        description = "what `PUT /v1/campaigns/{campaign_id}` takes, each with its `campaign_id`",
        content((Vec<CampaignBody> = "application/json"), (String = "application/x-ndjson")),
    ),
    responses(
        (status = 200, description = "all are stored", body = StoredCampaigns),
        (status = 409, description = "a campaign has another currency; none is stored", body = Problem),
        (status = 422, description = "one is not valid, named by its index; none is stored", body = Problem),
    ),
    tag = "operations",
)]
#[post("/v1/campaigns")]
pub(crate) async fn post_campaigns(
    state: web::Data<ApiState>,
    caller: Caller,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let (format, body) = read_body(&request, payload, &state.config).await?;
    let parsed = read_batch::<CampaignBody>(&body, format, state.config.batch_records_max)?;
    let mut puts = Vec::with_capacity(parsed.len());
    for (index, campaign) in parsed.into_iter().enumerate() {
        let checked =
            campaign.map_err(|rejection| rejection.detail).and_then(|campaign| campaign.check(None));
        puts.push(checked.map_err(|detail| Error::unprocessable(format!("campaign {index}: {detail}")))?);
    }
    let stored = puts.len();
    let first = puts.first().map(terms).unwrap_or_default();
    caller.note(format!("{stored} campaigns, the first {first}"));
    let put = state.deps.campaigns.put_campaigns(puts, state.deps.clock.now()).await;
    put.map_err(|error| store_error(&state, error))?;
    Ok(HttpResponse::Ok().json(StoredCampaigns { stored }))
}

/// Says what a campaign is to cost.
fn terms(put: &PutCampaign) -> String {
    let budget = match put.daily_budget_micros {
        Some(micros) => format!("daily budget {micros}"),
        None => "no budget".to_owned(),
    };
    let strict = if put.strict { ", strict" } else { "" };
    format!("{} at {} {} micros, {budget}{strict}", put.campaign_id, put.cpc_micros, put.currency)
}

fn store_error(state: &ApiState, error: twice_store::Error) -> Error {
    Error::of_store("campaign store", state.config.retry_after_s, error)
}
