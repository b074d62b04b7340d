//! Health of the node and state of the stream path.

use actix_web::{HttpResponse, get, web};
use serde::Serialize;
use twice_store::Scope;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::ports::{Readiness, StreamReport};
use crate::problem::Problem;
use crate::server::ApiState;

/// The process serves requests.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Alive {
    alive: bool,
}

/// Answers as long as the process serves requests at all.
#[utoipa::path(responses((status = 200, description = "alive", body = Alive)), tag = "health")]
#[get("/livez")]
pub(crate) async fn get_livez() -> HttpResponse {
    HttpResponse::Ok().json(Alive { alive: true })
}

/// Tells whether the node takes work, and why not.
#[utoipa::path(
    responses(
        (status = 200, description = "takes work; reasons name what is degraded", body = Readiness),
        (status = 503, description = "does not take work", body = Readiness),
    ),
    tag = "health",
)]
#[get("/readyz")]
pub(crate) async fn get_readyz(state: web::Data<ApiState>) -> HttpResponse {
    let readiness: Readiness = state.deps.health.readiness().await;
    if readiness.ready {
        HttpResponse::Ok().json(readiness)
    } else {
        HttpResponse::ServiceUnavailable().json(readiness)
    }
}

/// Shows the metrics in Prometheus text format.
#[utoipa::path(
    responses((status = 200, description = "metrics", body = String, content_type = "text/plain")),
    tag = "health",
)]
#[get("/metrics")]
pub(crate) async fn get_metrics(state: web::Data<ApiState>, caller: Option<Caller>) -> Result<HttpResponse> {
    match caller {
        _ if state.config.metrics_open => {}
        Some(caller) => caller.require(Scope::Admin)?,
        None => return Err(Error::Unauthorized { detail: "this needs an API key".to_owned() }),
    }
    Ok(HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body((state.deps.render_metrics)()))
}

/// Shows how far the stream path of every partition is, and the health of every part.
#[utoipa::path(
    responses(
        (status = 200, description = "partitions and parts", body = StreamReport),
        (status = 503, description = "the stream path does not answer", body = Problem),
    ),
    tag = "health",
)]
#[get("/v1/stream")]
pub(crate) async fn get_stream(state: web::Data<ApiState>, caller: Caller) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let report = state.deps.stream.report().await;
    let report: StreamReport =
        report.map_err(|error| Error::of_port("stream path", state.config.retry_after_s, error))?;
    Ok(HttpResponse::Ok().json(report))
}
