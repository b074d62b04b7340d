//! Every route and what surrounds them.
//!
//! Flow of a request: [`stamp`] gives it an id and measures it; [`edge`] checks its head; [`guard`] finds its key; its handler answers; what no handler takes goes to
//! [`fallback`], which tells an unknown path (404) from a known one asked with another method (405). Every error is a
//! problem document, also those of actix's own extractors.

use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::error::{JsonPayloadError, PathError, QueryPayloadError};
use actix_web::http::header::{HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, HttpMessage, HttpRequest, HttpResponse, web};
use metrics::histogram;
use tracing::{debug, warn};
use utoipa_actix_web::AppExt;
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use crate::access::{RequestId, guard};
use crate::edge::{body_error, edge};
use crate::error::{Error, Result};
use crate::metrics::REQUEST_SECONDS;
use crate::server::ApiState;
use crate::{budgets, dashboard, document, ingest, operations, query};

/// Largest JSON body of the operations; clicks, verdicts and bulk campaigns have their own limit.
const JSON_BYTES_MAX: usize = 1 << 20;
const REQUEST_ID_BYTES_MAX: usize = 64;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Builds the application one worker runs.
pub(crate) fn app(
    state: web::Data<ApiState>,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    App::new()
        .into_utoipa_app()
        .app_data(state)
        .app_data(
            web::JsonConfig::default()
                .limit(JSON_BYTES_MAX)
                .error_handler(|error, _| json_error(error).into()),
        )
        .app_data(web::QueryConfig::default().error_handler(|error, _| query_error(&error).into()))
        .app_data(web::PathConfig::default().error_handler(|error, _| path_error(&error).into()))
        .configure(configure)
        .default_service(web::to(fallback))
        .into_app()
        .wrap(from_fn(guard))
        .wrap(from_fn(edge))
        .wrap(from_fn(stamp))
}

pub(crate) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(ingest::post_clicks)
        .service(ingest::post_verdicts)
        .service(ingest::post_imports)
        .service(query::get_campaign_clicks)
        .service(query::get_ad_clicks)
        .service(budgets::get_budget)
        .service(budgets::get_budget_decisions)
        .service(budgets::get_live)
        .service(query::get_billing)
        .service(query::get_corrections)
        .service(operations::get_campaigns)
        .service(operations::post_campaigns)
        .service(operations::get_campaign)
        .service(operations::put_campaign)
        .service(operations::get_reconciliations)
        .service(operations::post_reconciliations)
        .service(operations::post_retention)
        .service(operations::post_replays)
        .service(operations::post_audits)
        .service(operations::get_divergence)
        .service(operations::get_explain)
        .service(operations::get_comparisons)
        .service(operations::post_comparisons)
        .service(operations::get_comparison)
        .service(operations::get_mode)
        .service(operations::put_mode)
        .service(operations::post_shadow_runs)
        .service(operations::get_rate_limits)
        .service(operations::put_rate_limits)
        .service(operations::post_rate_limits_revert)
        .service(operations::get_keys)
        .service(operations::post_keys)
        .service(operations::delete_key)
        .service(operations::get_admin_actions)
        .service(operations::get_stream)
        .service(operations::get_livez)
        .service(operations::get_readyz)
        .service(operations::get_metrics)
        .service(document::get_openapi)
        .service(dashboard::get_dashboard);
}

async fn fallback(state: web::Data<ApiState>, request: HttpRequest) -> Result<HttpResponse> {
    Err(match state.document.allow(request.path()) {
        Some(allow) => Error::MethodNotAllowed { allow: allow.to_owned() },
        None => Error::NotFound { what: format!("path {}", request.path()) },
    })
}

/// Gives the request an id, or keeps the sender's, and measures and logs its answer.
async fn stamp(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let begun = Instant::now();
    let request_id = request_id_of(&request);
    request.extensions_mut().insert(RequestId(request_id.clone()));
    let method = method_label(request.method());
    let mut response = next.call(request).await?;
    let status = response.status();
    let route = response.request().match_pattern().unwrap_or_else(|| "unknown".to_owned());
    let error = response.response().error().map(error_chain);
    // A 503 asks the sender to come back: its cause is logged where it lies, once, and not for each who was sent away.
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        warn!(request_id = ?request_id, %method, %route, status = status.as_u16(), error, "request failed");
    } else {
        debug!(request_id = ?request_id, %method, %route, status = status.as_u16(), error, "request answered");
    }
    histogram!(REQUEST_SECONDS, "route" => route, "method" => method, "status" => status.as_str().to_owned())
        .record(begun.elapsed());
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, request_id);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// Returns the method as metrics and log lines name it: one of a few, as a sender may invent any and each label value is a
/// series that stays.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn request_id_of(request: &ServiceRequest) -> HeaderValue {
    let fits = |id: &&HeaderValue| {
        (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    match request.headers().get(REQUEST_ID).filter(fits) {
        Some(id) => id.clone(),
        None => {
            let id = Uuid::from_bytes(rand::random()).simple().to_string();
            // Hexadecimal digits are always a header value.
            HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("-"))
        }
    }
}

/// Writes an error with its causes, outermost first.
fn error_chain(error: &actix_web::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.as_error::<Error>().and_then(|error| std::error::Error::source(error));
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn json_error(error: JsonPayloadError) -> Error {
    match error {
        JsonPayloadError::OverflowKnownLength { limit, .. } | JsonPayloadError::Overflow { limit } => {
            Error::TooLarge { limit: limit as u64, unit: "bytes" }
        }
        JsonPayloadError::ContentType => Error::UnsupportedMediaType {
            detail: "this path reads JSON; send content-type application/json".to_owned(),
        },
        JsonPayloadError::Payload(error) => body_error(&error),
        JsonPayloadError::Deserialize(error) if error.is_data() => Error::unprocessable(error.to_string()),
        JsonPayloadError::Deserialize(error) => Error::bad_request(format!("the body is not JSON: {error}")),
        other => Error::bad_request(other.to_string()),
    }
}

fn query_error(error: &QueryPayloadError) -> Error {
    match error {
        QueryPayloadError::Deserialize(error) => Error::bad_request(format!("query string: {error}")),
        other => Error::bad_request(other.to_string()),
    }
}

fn path_error(error: &PathError) -> Error {
    match error {
        PathError::Deserialize(error) => Error::bad_request(format!("path: {error}")),
        other => Error::bad_request(other.to_string()),
    }
}
