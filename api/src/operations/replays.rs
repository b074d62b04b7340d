//! Replays: hours counted again by replay of the archive (kappa), with progress as it happens.

use std::convert::Infallible;

use actix_web::{HttpResponse, post, web};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use twice_log::Hour;
use twice_log::archive::BillingPath;
use twice_store::Scope;
use twice_store::replay::REPLAY_HOURS_MAX;
use utoipa::{IntoParams, ToSchema};

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::ports::{ReplayEvent, ReplayRequest};
use crate::problem::Problem;
use crate::server::ApiState;

/// Which hours to replay: those of the range that are billed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StartReplay {
    #[schema(value_type = String, example = "2025-01-15T00")]
    from: Hour,
    /// Exclusive; at most 31 days after `from`.
    #[schema(value_type = String, example = "2025-01-16T00")]
    to: Hour,
    /// Makes this path's rows the bill of these hours, by versions with reason `mode_change`.
    #[schema(value_type = Option<String>, example = "kappa")]
    restate: Option<BillingPath>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReplayParams {
    /// `false` answers at once; default `true` answers with progress until the end.
    wait: Option<bool>,
}

/// The replay is under way.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReplayStarted {
    started: bool,
}

/// Replays the billed hours of a range and answers with progress, one JSON object a line, until the last is committed.
///
/// A client that goes away does not stop it. The live path and the hourly schedule go on meanwhile.
#[utoipa::path(
    params(ReplayParams),
    request_body = StartReplay,
    responses(
        (status = 200, description = "progress; each hour ends with `done` or `failed`", content(
            (ReplayEvent = "application/x-ndjson"),
        )),
        (status = 202, description = "started, with `wait=false`", body = ReplayStarted),
        (status = 409, description = "another replay is under way", body = Problem),
        (status = 422, description = "the range is empty, or longer than 744 hours (31 days)", body = Problem),
    ),
    tag = "operations",
)]
#[post("/v1/replays")]
pub(crate) async fn post_replays(
    state: web::Data<ApiState>,
    caller: Caller,
    params: web::Query<ReplayParams>,
    body: web::Json<StartReplay>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let StartReplay { from, to, restate } = body.into_inner();
    if from >= to {
        return Err(Error::unprocessable("\"from\" must be before \"to\", which is not replayed itself"));
    }
    if from.plus(REPLAY_HOURS_MAX) < to {
        return Err(Error::unprocessable(format!(
            "from {from} to {to} are more than {REPLAY_HOURS_MAX} hours; replay them in parts"
        )));
    }
    let restated = restate.map(|path| format!(", restated as {path}")).unwrap_or_default();
    caller.note(format!("{from} to {to}{restated}"));
    let started = state.deps.replay.start(ReplayRequest { from, to, restate }).await;
    let events = started.map_err(|error| Error::of_port("replay", state.config.retry_after_s, error))?;
    if params.wait == Some(false) {
        return Ok(HttpResponse::Accepted().json(ReplayStarted { started: true }));
    }
    let lines = events.map(|event| Ok::<Bytes, Infallible>(line_of(&event)));
    Ok(HttpResponse::Ok().content_type("application/x-ndjson").streaming(lines))
}

fn line_of(event: &ReplayEvent) -> Bytes {
    // Every field is a number, a text or null: this cannot fail.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
