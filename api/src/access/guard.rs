//! What every request passes before a handler: its key is looked up, and what administrators ask for is noted.
//!
//! Guarantee: an action is done only after it is durably noted who asks for it, and its answer leaves only after the
//! answer's status is noted too. A note without a status is an action whose answer never left: the process died, or the
//! client went away, and it may or may not have been done.

use std::sync::{Arc, OnceLock};

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::HeaderValue;
use actix_web::middleware::Next;
use actix_web::{HttpMessage, ResponseError, web};
use metrics::counter;
use tracing::error;
use twice_store::{AdminAction, Scope};

use super::ring::Refusal;
use crate::caller::{Caller, address_of};
use crate::document::OPEN_PATHS;
use crate::error::Error;
use crate::metrics::UNAUTHORIZED_TOTAL;
use crate::server::ApiState;

/// What changes by clients that are no administrators; everything else that is no read is an action.
const CLIENT_PATHS: [&str; 3] = ["/v1/clicks", "/v1/verdicts", "/v1/imports"];
/// What keys with scope `query` may read.
const QUERY_PATHS: [&str; 12] = [
    "/v1/billing",
    "/v1/billing/corrections",
    "/v1/budget-decisions",
    "/v1/campaigns",
    "/v1/campaigns/{campaign_id}",
    "/v1/campaigns/{campaign_id}/ads/{ad_id}/clicks",
    "/v1/campaigns/{campaign_id}/budget",
    "/v1/campaigns/{campaign_id}/clicks",
    "/v1/campaigns/{campaign_id}/live",
    "/v1/divergence",
    "/v1/explain",
    "/v1/reconciliations",
];
/// Longest part of a path that is noted, of a query, and of what a handler says.
const ACTION_BYTES_MAX: usize = 512;

/// The id of the request, left in its extensions by what gives it.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub HeaderValue);

/// Lets a request with a valid key through, with a `Caller` in its extensions; others only to open paths.
pub(crate) async fn guard<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let Some(state) = request.app_data::<web::Data<ApiState>>().cloned() else {
        return Ok(refuse(request, &Error::Internal { what: "finding the server's state", source: None }));
    };
    let identified = state.deps.keys.identify(request.headers());
    let address = address_of(request.request(), state.config.trusted_proxies);
    let asked = action_of(&request).map(|action| AdminAction {
        at: state.deps.clock.now(),
        key_id: String::new(),
        address: address.map(|address| address.to_string()),
        request_id: request_id(&request),
        action,
        status: None,
    });
    match identified {
        Ok(key) => {
            let key_id = key.as_ref().map(|key| key.key_id.clone()).unwrap_or_default();
            let asked = asked.map(|asked| AdminAction { key_id: key_id.clone(), ..asked });
            let noted = asked.as_ref().map(|_| Arc::default());
            let caller = Caller { key_id, key, address, noted };
            let scope = if is_open(&state, request.path()) { None } else { scope_of(&request) };
            let allowed = scope.map_or(Ok(()), |scope| caller.require(scope));
            if let Err(error) = allowed {
                if let Some(asked) = asked {
                    note_refused(&state, AdminAction { status: Some(403), ..asked }).await;
                }
                return Ok(refuse(request, &error));
            }
            let asked = asked.zip(caller.noted.clone());
            request.extensions_mut().insert(caller);
            pass(&state, request, next, asked).await
        }
        Err(_) if is_open(&state, request.path()) => Ok(next.call(request).await?.map_into_left_body()),
        Err(refusal) => {
            counter!(UNAUTHORIZED_TOTAL, "reason" => refusal.name()).increment(1);
            // Requests without any key of ours are counted alone: whoever has none must not be able to fill the disk.
            if let (Some(asked), Refusal::Ended { key_id }) = (asked, &refusal) {
                note_refused(&state, AdminAction { key_id: key_id.clone(), status: Some(401), ..asked })
                    .await;
            }
            Ok(refuse(request, &refusal.into()))
        }
    }
}

/// Notes an action before and after it; passes everything else on.
async fn pass<B: MessageBody + 'static>(
    state: &ApiState,
    request: ServiceRequest,
    next: Next<B>,
    asked: Option<(AdminAction, Arc<OnceLock<String>>)>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let Some((asked, noted)) = asked else { return Ok(next.call(request).await?.map_into_left_body()) };
    if let Err(error) = state.deps.keys.log_action(asked.clone()).await {
        let error = Error::of_store("log of actions", state.config.retry_after_s, error);
        return Ok(refuse(request, &error));
    }
    let response = next.call(request).await?;
    let mut action = asked.action;
    if let Some(what) = noted.get() {
        action.push_str(": ");
        action.extend(what.chars().filter(|letter| !letter.is_control()).take(ACTION_BYTES_MAX));
    }
    let (at, status) = (state.deps.clock.now(), Some(response.status().as_u16()));
    note(state, AdminAction { at, action, status, ..asked }).await;
    Ok(response.map_into_left_body())
}

/// Notes what cannot be undone any more: a failure is logged, and the note made before stands.
async fn note(state: &ApiState, action: AdminAction) {
    let (request_id, status) = (action.request_id.clone(), action.status);
    if let Err(error) = state.deps.keys.log_action(action).await {
        error!(%error, request_id, status, "the answer of an action could not be noted");
    }
}

/// Notes the first action of a minute that a key was refused, and how many there were since the note before: a key that
/// may do nothing must not be able to fill the disk.
async fn note_refused(state: &ApiState, action: AdminAction) {
    let Some(left_out) = state.refused.take(&action.key_id, action.status, action.at) else { return };
    let action = match left_out {
        0 => action,
        _ => AdminAction {
            action: format!("{} (and {left_out} refused before, not noted)", action.action),
            ..action
        },
    };
    note(state, action).await;
}

fn refuse<B: MessageBody>(request: ServiceRequest, error: &Error) -> ServiceResponse<EitherBody<B>> {
    request.into_response(error.error_response()).map_into_right_body()
}

/// Returns the scope a request needs: `admin`, unless its route is named here or it asks for a path nobody has. So a route
/// that is new, and whose handler forgets to ask, is closed rather than open, and whatever changes anything is for
/// administrators even where its path is read here in another way than there. What campaigns a key is for is the handlers'
/// to ask.
fn scope_of(request: &ServiceRequest) -> Option<Scope> {
    let pattern = pattern_of(request);
    Some(match (request.method(), pattern.as_deref()) {
        (&Method::POST, Some("/v1/clicks" | "/v1/imports")) => Scope::Ingest,
        (&Method::POST, Some("/v1/verdicts")) => Scope::Verdicts,
        (&Method::GET, Some(path)) if QUERY_PATHS.contains(&path) => Scope::Query,
        (_, None) if is_read(request.method()) => return None,
        _ => Scope::Admin,
    })
}

/// Returns what is noted of a request that acts as an administrator does.
fn action_of(request: &ServiceRequest) -> Option<String> {
    let pattern = pattern_of(request);
    let is_client = |path: &str| request.method() == Method::POST && CLIENT_PATHS.contains(&path);
    if is_read(request.method()) || pattern.as_deref().is_some_and(is_client) {
        return None;
    }
    // As they were sent, percent signs and all: nothing in them can end a line or hide.
    let cut = |text: &str| text.chars().take(ACTION_BYTES_MAX).collect::<String>();
    let query = request.uri().query().map(|query| format!("?{}", cut(query))).unwrap_or_default();
    Some(format!("{} {}{query}", request.method(), cut(request.uri().path())))
}

/// Returns the route a request will come to, found as the router finds it: by the decoded path. By the path as it was sent,
/// `/v1/key%73` were no route here, and keys there.
fn pattern_of(request: &ServiceRequest) -> Option<String> {
    request.resource_map().match_pattern(request.match_info().unprocessed())
}

fn is_read(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
}

fn is_open(state: &ApiState, path: &str) -> bool {
    OPEN_PATHS.contains(&path) || (path == "/metrics" && state.config.metrics_open)
}

fn request_id(request: &ServiceRequest) -> String {
    let extensions = request.extensions();
    let id = extensions.get::<RequestId>().and_then(|RequestId(id)| id.to_str().ok());
    id.unwrap_or("-").to_owned()
}

impl Refusal {
    fn name(&self) -> &'static str {
        match self {
            Refusal::Missing => "missing",
            Refusal::Unknown => "unknown",
            Refusal::Ended { .. } => "ended",
        }
    }
}

impl From<Refusal> for Error {
    /// Of a key that is not valid it is not said why: that would tell a thief what to try next.
    fn from(refusal: Refusal) -> Self {
        let detail = match refusal {
            Refusal::Missing => {
                "this needs an API key; send it as `Authorization: Bearer twice_…` (`twice keys create` makes one)"
            }
            Refusal::Unknown | Refusal::Ended { .. } => "the API key is not valid",
        };
        Error::Unauthorized { detail: detail.to_owned() }
    }
}
