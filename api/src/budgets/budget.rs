//! How a campaign's day stands against its budget.

use actix_web::{HttpResponse, get, web};
use serde::{Deserialize, Serialize};
use twice_log::{CampaignId, Currency, Day, UtcMillis};
use twice_store::{BudgetCause, BudgetReport, BudgetState, Scope};
use utoipa::{IntoParams, ToSchema};

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::problem::Problem;
use crate::server::ApiState;

/// Which day.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DayParams {
    /// UTC day; default today.
    #[param(value_type = Option<String>, example = "2025-01-15")]
    day: Option<Day>,
}

/// One day of a campaign against its budget.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BudgetJson {
    #[schema(value_type = String)]
    campaign_id: CampaignId,
    #[schema(value_type = String, example = "2025-01-15")]
    day: Day,
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Null where the campaign has none: then there is no state and there are no decisions.
    budget_micros: Option<i64>,
    /// Whether the campaign stops while its spend is not known.
    strict: bool,
    /// Billed and preliminary together.
    spend_micros: i64,
    /// Of hours that are billed.
    billed_micros: i64,
    /// Of the other hours: the stream's clicks at the prices in force.
    preliminary_micros: i64,
    /// `serving`, `exhausted`, or `unknown` for a strict campaign while the stream is behind.
    #[schema(value_type = Option<String>, example = "serving")]
    state: Option<BudgetState>,
    /// Spend above the budget.
    overspend_micros: i64,
    /// Spend counted since `exhausted` was decided; 0 while it is not.
    spent_after_exhausted_micros: i64,
    /// What the last five minutes cost, a minute.
    recent_micros_per_minute: i64,
    /// When the budget is used up if spending goes on at that rate; null where that is not this day.
    #[schema(value_type = Option<String>, format = "date-time")]
    forecast_exhausted_at: Option<UtcMillis>,
    /// Number of the last decision of this day; null before the first.
    decision_number: Option<u32>,
    #[schema(value_type = Option<String>, example = "stream")]
    decision_cause: Option<BudgetCause>,
    #[schema(value_type = Option<String>, format = "date-time")]
    decided_at: Option<UtcMillis>,
    /// Every click that arrived before is in the spend; null where that is not known.
    #[schema(value_type = Option<String>, format = "date-time")]
    fresh_to: Option<UtcMillis>,
}

impl BudgetJson {
    fn new(report: BudgetReport, fresh_to: Option<UtcMillis>) -> Self {
        let last = report.last_decision.as_ref();
        Self {
            decision_number: last.map(|last| last.number),
            decision_cause: last.map(|last| last.cause),
            decided_at: last.map(|last| last.decided_at),
            campaign_id: report.campaign_id,
            day: report.day,
            currency: report.currency,
            budget_micros: report.budget_micros,
            strict: report.strict,
            spend_micros: report.spend_micros,
            billed_micros: report.billed_micros,
            preliminary_micros: report.preliminary_micros,
            state: report.state,
            overspend_micros: report.overspend_micros,
            spent_after_exhausted_micros: report.spent_after_exhausted_micros,
            recent_micros_per_minute: report.recent_micros_per_minute,
            forecast_exhausted_at: report.forecast_exhausted_at,
            fresh_to,
        }
    }
}

/// Tells what a campaign has spent on a day, and whether its budget is used up.
#[utoipa::path(
    params(("campaign_id" = String, Path, description = "id of the campaign"), DayParams),
    responses(
        (status = 200, description = "the day as it stands", body = BudgetJson),
        (status = 404, description = "no such campaign was set", body = Problem),
    ),
    tag = "budgets",
)]
#[get("/v1/campaigns/{campaign_id}/budget")]
pub(crate) async fn get_budget(
    state: web::Data<ApiState>,
    caller: Caller,
    campaign: web::Path<CampaignId>,
    params: web::Query<DayParams>,
) -> Result<HttpResponse> {
    caller.require_for(Scope::Query, &campaign)?;
    let report = state.deps.budgets.report(&campaign, params.day).await;
    let report = report.map_err(|error| Error::of_port("budgets", state.config.retry_after_s, error))?;
    let Some(report) = report else {
        return Err(Error::NotFound { what: format!("campaign {campaign}") });
    };
    let fresh_to = match state.deps.stream.campaign(&campaign).await {
        Ok(status) => status.fresh_to,
        Err(error) => {
            tracing::debug!(%error, "how fresh a budget's spend is is not known");
            None
        }
    };
    Ok(HttpResponse::Ok().json(BudgetJson::new(report, fresh_to)))
}
