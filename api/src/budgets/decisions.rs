//! Decisions: as a list, or as they are made.

use actix_web::{HttpRequest, HttpResponse, get, web};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use twice_log::{CampaignId, Day, Generation, LogOffset, UtcMillis};
use twice_store::{BudgetCause, BudgetDecision, BudgetState, DecisionsQuery, Scope};
use utoipa::{IntoParams, ToSchema};

use super::events::{self, EventStream, Farewell, Pause};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::operations::read_limit;
use crate::server::ApiState;

/// Decisions read from the store at once for a stream.
const READ_AT_ONCE: u32 = 500;

/// Which decisions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DecisionsParams {
    /// Only decisions of this campaign.
    #[param(value_type = Option<String>)]
    campaign: Option<CampaignId>,
    /// Only decisions above this sequence; 0 for all. A stream begins with what is decided next unless this or
    /// `Last-Event-ID` says otherwise, a list begins with the first.
    after: Option<u64>,
    /// Rows a page, 1 to 10 000; default 1 000.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A change of state of one campaign on one day.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DecisionJson {
    /// Place among all decisions: the id of the event.
    sequence: u64,
    #[schema(value_type = String)]
    campaign_id: CampaignId,
    #[schema(value_type = String, example = "2025-01-15")]
    day: Day,
    /// Place among the decisions of this campaign and day, from 1, without a gap and never issued twice.
    number: u32,
    #[schema(value_type = String, example = "exhausted")]
    state: BudgetState,
    /// `day_began`, `stream`, `reconciled`, `budget_changed` or `lag`.
    #[schema(value_type = String, example = "stream")]
    cause: BudgetCause,
    spend_micros: i64,
    /// Null where the budget was lifted.
    budget_micros: Option<i64>,
    #[schema(value_type = String, format = "date-time")]
    decided_at: UtcMillis,
    /// Generation, partition's offset and event time of the last click applied, where clicks decided.
    #[schema(value_type = Option<u32>)]
    generation: Option<Generation>,
    #[schema(value_type = Option<i64>)]
    log_offset: Option<LogOffset>,
    #[schema(value_type = Option<String>, format = "date-time")]
    event_time: Option<UtcMillis>,
}

impl From<BudgetDecision> for DecisionJson {
    fn from(decision: BudgetDecision) -> Self {
        Self {
            sequence: decision.sequence,
            campaign_id: decision.campaign_id,
            day: decision.day,
            number: decision.number,
            state: decision.state,
            cause: decision.cause,
            spend_micros: decision.spend_micros,
            budget_micros: decision.budget_micros,
            decided_at: decision.decided_at,
            generation: decision.position.map(|position| position.generation),
            log_offset: decision.position.map(|position| position.offset),
            event_time: decision.event_time,
        }
    }
}

/// A page of decisions, in the order in which they were made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DecisionPage {
    rows: Vec<DecisionJson>,
    next_cursor: Option<String>,
}

/// Follows decisions as they are made, as an event stream; or lists them, where `Accept` asks for JSON.
///
/// Each event is named `decision` and has the decision's sequence as its id; `Last-Event-ID` resumes after it, with nothing
/// left out; comments carry an id as well, so that this holds before the first event too. An id above the newest decision is
/// of a store that is gone: the event `reset` says so, and the stream goes on with what is decided next. The last event of
/// a stream that the node ends says why: `closing`, `refused` or `unavailable`.
#[utoipa::path(
    params(DecisionsParams, ("Last-Event-ID" = Option<u64>, Header, description = "sequence to go on after")),
    responses((
        status = 200,
        description = "decisions of the campaigns that the key reaches",
        content((DecisionPage = "application/json"), (String = "text/event-stream")),
    )),
    tag = "budgets",
)]
#[get("/v1/budget-decisions")]
pub(crate) async fn get_budget_decisions(
    state: web::Data<ApiState>,
    caller: Caller,
    request: HttpRequest,
    params: web::Query<DecisionsParams>,
) -> Result<HttpResponse> {
    let DecisionsParams { campaign, after, limit, cursor } = params.into_inner();
    let campaigns = caller.visible(Scope::Query, campaign)?;
    if events::wants_json(&request) {
        let after = match cursor {
            Some(cursor) => {
                cursor.parse().map_err(|_| Error::unprocessable("cursor is not one this list gave out"))?
            }
            None => after.unwrap_or(0),
        };
        let query = DecisionsQuery { after, campaigns, limit: read_limit(limit)? };
        return list(&state, query).await;
    }
    let asked = last_event_id(&request)?.or(after);
    let newest = state.deps.decisions.newest_sequence().await;
    let newest = newest.map_err(|error| store_error(&state, error))?;
    let after = asked.unwrap_or(newest).min(newest);
    let mut hello = events::heartbeat_after(after);
    if asked.is_some_and(|asked| asked > newest) {
        let detail = "numbers begin anew, as the store was made anew; read the decisions as a list";
        hello.push_str(&events::event("reset", Some(newest), &Farewell { detail }));
    }
    let events = EventStream::open(&state, &caller)?;
    let query = DecisionsQuery { after, campaigns, limit: READ_AT_ONCE };
    let follow = Follow { events, query, stored: state.deps.budgets.stored() };
    Ok(events::answer(hello, futures::stream::unfold(follow, Follow::next)))
}

async fn list(state: &ApiState, query: DecisionsQuery) -> Result<HttpResponse> {
    let rows = state.deps.decisions.decisions(&query).await;
    let rows = rows.map_err(|error| store_error(state, error))?;
    let is_full = rows.len() == query.limit as usize;
    let next_cursor = rows.last().filter(|_| is_full).map(|last| last.sequence.to_string());
    let rows = rows.into_iter().map(DecisionJson::from).collect();
    Ok(HttpResponse::Ok().json(DecisionPage { rows, next_cursor }))
}

fn last_event_id(request: &HttpRequest) -> Result<Option<u64>> {
    let Some(id) = request.headers().get("last-event-id") else { return Ok(None) };
    let id = id.to_str().ok().and_then(|id| id.parse().ok());
    id.map(Some).ok_or_else(|| Error::bad_request("Last-Event-ID is not the id of a decision".to_owned()))
}

/// Somebody who follows decisions.
struct Follow {
    events: EventStream,
    query: DecisionsQuery,
    stored: watch::Receiver<u64>,
}

impl Follow {
    /// Returns the next events as text; `None` after the last.
    async fn next(mut self) -> Option<(String, Self)> {
        if self.events.is_over() {
            return None;
        }
        let text = self.text().await;
        Some((text, self))
    }

    async fn text(&mut self) -> String {
        loop {
            if let Some(last) = self.events.refused() {
                return last;
            }
            // Seen before the read: what is stored later wakes the wait below.
            let newest = *self.stored.borrow_and_update();
            let read = self.events.state.deps.decisions.decisions(&self.query).await;
            let decisions = match read {
                Ok(decisions) => decisions,
                Err(error) => {
                    tracing::warn!(%error, "decisions cannot be read for one who follows them");
                    return self.events.end("unavailable", "the store does not answer; connect again");
                }
            };
            if let Some(last) = decisions.last() {
                self.query.after = last.sequence;
                let write = |decision: BudgetDecision| {
                    let id = decision.sequence;
                    events::event("decision", Some(id), &DecisionJson::from(decision))
                };
                return decisions.into_iter().map(write).collect();
            }
            // Whatever of others lies below need not be passed over again.
            self.query.after = self.query.after.max(newest);
            let stored = &mut self.stored;
            match self.events.wait(stored.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return self.events.end("closing", "the node stops; connect again"),
                Err(Pause::Quiet) => return events::heartbeat_after(self.query.after),
                Err(Pause::End(last)) => return last,
            }
        }
    }
}

fn store_error(state: &ApiState, error: twice_store::Error) -> Error {
    Error::of_store("store of decisions", state.config.retry_after_s, error)
}
