//! What every request meets first: limits of its head, the pace of its body, other origins, and how many connections are
//! open.
//!
//! Guarantee: near the most connections allowed, each answer closes its own, so that idle ones cannot keep others out for
//! long (when they end by themselves says `idle`); only origins that were named may read answers in a browser, and none may send anything but a read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Extensions, ServiceRequest, ServiceResponse};
use actix_web::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap,
    HeaderValue, ORIGIN, VARY,
};
use actix_web::http::{ConnectionType, Method};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, HttpResponse, ResponseError, web};
use metrics::gauge;

use super::config::EdgeConfig;
use super::idle::{Answer, Ends};
use super::pace::Paced;
use crate::error::Error;
use crate::metrics::CONNECTIONS;
use crate::server::ApiState;

/// Headers a page of another origin may send.
const REQUEST_HEADERS: &str = "authorization, accept, last-event-id, x-request-id";
/// Headers a page of another origin may read.
const RESPONSE_HEADERS: &str = "x-request-id, x-next-cursor, retry-after";
/// How long a browser may keep the answer of a preflight, in seconds.
const PREFLIGHT_AGE_S: &str = "600";

/// How many connections are open.
#[derive(Debug, Default)]
pub(crate) struct Connections(AtomicU32);

/// Counts one connection for as long as it is open.
struct Counted {
    connections: Arc<Connections>,
    ends: Arc<Ends>,
}

impl Connections {
    /// Notes a new connection in what the server keeps of it.
    pub fn count(self: &Arc<Self>, ends: &Arc<Ends>, kept: &mut Extensions) {
        let open = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        gauge!(CONNECTIONS).set(f64::from(open));
        kept.insert(Counted { connections: self.clone(), ends: ends.clone() });
    }

    /// Whether so many are open that idle ones must go: four in five.
    fn is_crowded(&self, config: &EdgeConfig) -> bool {
        self.0.load(Ordering::Relaxed) >= config.connections_max - config.connections_max / 5
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let before = self.connections.0.fetch_sub(1, Ordering::Relaxed);
        gauge!(CONNECTIONS).set(f64::from(before.saturating_sub(1)));
    }
}

/// Checks the head, paces the body, and answers what other origins ask before they ask.
pub(crate) async fn edge<B: MessageBody + Unpin + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<Answer<EitherBody<B>>>, actix_web::Error> {
    let ends = request.request().conn_data::<Counted>().map(|counted| counted.ends.clone());
    if let Some(ends) = &ends {
        ends.never();
    }
    let answered =
        |response: ServiceResponse<EitherBody<B>>| response.map_body(|_, body| Answer::of(body, ends));
    let Some(state) = request.app_data::<web::Data<ApiState>>().cloned() else {
        let error = Error::Internal { what: "finding the server's state", source: None };
        return Ok(answered(request.into_response(error.error_response()).map_into_right_body()));
    };
    let config = &state.config.edge;
    let bytes =
        head_bytes(request.headers()) + request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let limit = config.header_bytes_max as usize;
    let origin = allowed_origin(config, request.headers());
    let mut response = if bytes > limit {
        let error = Error::HeadTooLarge { limit };
        request.into_response(error.error_response()).map_into_right_body()
    } else if let (Some(_), true) = (&origin, is_preflight(&request)) {
        request.into_response(preflight()).map_into_right_body()
    } else {
        let body = Paced::of(request.take_payload(), &state.config);
        request.set_payload(body);
        next.call(request).await?.map_into_left_body()
    };
    if !config.cors_origins.is_empty() {
        let headers = response.headers_mut();
        headers.append(VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(RESPONSE_HEADERS));
        }
    }
    if state.connections.is_crowded(config) {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    Ok(answered(response))
}

/// Returns the size of the headers as they were sent, but for separators.
fn head_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

fn allowed_origin(config: &EdgeConfig, headers: &HeaderMap) -> Option<HeaderValue> {
    if config.cors_origins.is_empty() {
        return None;
    }
    let origin = headers.get(ORIGIN)?;
    config.cors_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

fn is_preflight(request: &ServiceRequest) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Allows reads alone: what changes anything is not for pages of others.
fn preflight() -> HttpResponse {
    HttpResponse::NoContent()
        .insert_header((ACCESS_CONTROL_ALLOW_METHODS, "GET"))
        .insert_header((ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS))
        .insert_header((ACCESS_CONTROL_MAX_AGE, PREFLIGHT_AGE_S))
        .finish()
}
