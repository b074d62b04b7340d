//! Health of the node and state of the stream path.
//!
//! Guarantee: who has no key learns whether the node takes work and not why, and asks its parts once a second at most,
//! together with everybody else.

use std::time::{Duration, Instant};

use actix_web::{HttpResponse, get, web};
use serde::Serialize;
use tokio::sync::Mutex;
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

/// How long an answer about readiness serves those without a key.
const READINESS_AGE: Duration = Duration::from_secs(1);

/// What was found when a stranger asked last.
#[derive(Debug, Default)]
pub(crate) struct LastReadiness(Mutex<Option<(Instant, Readiness)>>);

impl LastReadiness {
    /// Returns the readiness as it was within the last second, without what is wrong in detail.
    async fn for_strangers(&self, state: &ApiState) -> Readiness {
        // Held while the parts are asked: the others wait for the same answer.
        let mut last = self.0.lock().await;
        if let Some((found_at, readiness)) = &*last
            && found_at.elapsed() < READINESS_AGE
        {
            return readiness.clone();
        }
        let mut readiness = state.deps.health.readiness().await;
        for reason in &mut readiness.reasons {
            // What follows is of the machine: paths, addresses, causes.
            if let Some((what, _)) = reason.split_once(':') {
                *reason = what.to_owned();
            }
        }
        *last = Some((Instant::now(), readiness.clone()));
        readiness
    }
}

/// Tells whether the node takes work, and why not: in full to those with a key.
#[utoipa::path(
    responses(
        (status = 200, description = "takes work; reasons name what is degraded", body = Readiness),
        (status = 503, description = "does not take work", body = Readiness),
    ),
    tag = "health",
)]
#[get("/readyz")]
pub(crate) async fn get_readyz(state: web::Data<ApiState>, caller: Option<Caller>) -> HttpResponse {
    let readiness = match caller {
        Some(_) => state.deps.health.readiness().await,
        None => state.readiness.for_strangers(&state).await,
    };
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
