//! Reconciliations: the list of runs, and their start with progress as it happens.

use std::convert::Infallible;

use actix_web::{HttpResponse, get, post, web};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use twice_log::{Day, Hour};
use twice_store::{Page, Reconciliation, Scope};
use utoipa::{IntoParams, ToSchema};

use super::{PageParams, read_limit};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::ports::{ReconcileEvent, ReconcileTarget};
use crate::problem::Problem;
use crate::server::ApiState;

/// Which hours to reconcile: one, those of a day, all that are due, or all that later events touch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StartReconciliation {
    #[schema(value_type = Option<String>, example = "2025-01-15T12")]
    hour: Option<Hour>,
    /// A past UTC day, whose hours become final.
    #[schema(value_type = Option<String>, example = "2025-01-15")]
    day: Option<Day>,
    #[serde(default)]
    due: bool,
    /// Billed hours that later clicks, verdicts or rates touch.
    #[serde(default)]
    sweep: bool,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StartParams {
    /// `false` answers at once; default `true` answers with progress until the end.
    wait: Option<bool>,
}

/// One run.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReconciliationJson {
    run_id: String,
    #[schema(value_type = String, example = "2025-01-15T12")]
    hour_bucket: Hour,
    #[schema(example = "lambda")]
    path: &'static str,
    seq: u32,
    #[schema(example = "reconciled")]
    status: &'static str,
    #[schema(value_type = String, example = "committed")]
    outcome: twice_log::archive::RunOutcome,
    rows_written: u64,
    started_at: String,
    committed_at: String,
    inputs_sha256: String,
}

impl From<Reconciliation> for ReconciliationJson {
    fn from(run: Reconciliation) -> Self {
        Self {
            run_id: run.run_id,
            hour_bucket: run.hour,
            path: run.path.name(),
            seq: run.seq,
            status: run.status.name(),
            outcome: run.outcome,
            rows_written: run.rows_written,
            started_at: run.started_at.to_string(),
            committed_at: run.committed_at.to_string(),
            inputs_sha256: run.inputs_sha256.0,
        }
    }
}

/// A page of runs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReconciliationPage {
    rows: Vec<ReconciliationJson>,
    next_cursor: Option<String>,
}

/// What was asked is under way.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Started {
    started: bool,
}

/// Lists runs, newest first.
#[utoipa::path(
    params(PageParams),
    responses((status = 200, description = "a page of runs", body = ReconciliationPage)),
    tag = "operations",
)]
#[get("/v1/reconciliations")]
pub(crate) async fn get_reconciliations(
    state: web::Data<ApiState>,
    caller: Caller,
    page: web::Query<PageParams>,
) -> Result<HttpResponse> {
    let PageParams { limit, cursor } = page.into_inner();
    caller.require_every_campaign(Scope::Query)?;
    let _turn = state.turns.list(state.config.retry_after_s).await?;
    let page = state.deps.billing.reconciliations(read_limit(limit)?, cursor).await;
    let Page { rows, next_cursor } =
        page.map_err(|error| Error::of_store("billing store", state.config.retry_after_s, error))?;
    let rows = rows.into_iter().map(ReconciliationJson::from).collect();
    Ok(HttpResponse::Ok().json(ReconciliationPage { rows, next_cursor }))
}

/// Starts a reconciliation and answers with its progress, one JSON object a line, until everything started has ended.
///
/// A client that goes away does not stop it.
#[utoipa::path(
    params(StartParams),
    request_body = StartReconciliation,
    responses(
        (status = 200, description = "progress; each hour ends with `done` or `failed`", content(
            (ReconcileEvent = "application/x-ndjson"),
        )),
        (status = 202, description = "started, with `wait=false`", body = Started),
        (status = 409, description = "something under way forbids it", body = Problem),
        (status = 422, description = "names nothing to reconcile, or several things", body = Problem),
    ),
    tag = "operations",
)]
#[post("/v1/reconciliations")]
pub(crate) async fn post_reconciliations(
    state: web::Data<ApiState>,
    caller: Caller,
    params: web::Query<StartParams>,
    body: web::Json<StartReconciliation>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let target = match body.into_inner() {
        StartReconciliation { hour: Some(hour), day: None, due: false, sweep: false } => {
            ReconcileTarget::Hour(hour)
        }
        StartReconciliation { hour: None, day: Some(day), due: false, sweep: false } => {
            ReconcileTarget::Day(day)
        }
        StartReconciliation { hour: None, day: None, due: true, sweep: false } => ReconcileTarget::Due,
        StartReconciliation { hour: None, day: None, due: false, sweep: true } => ReconcileTarget::Sweep,
        _ => {
            return Err(Error::unprocessable(
                "name one of \"hour\", \"day\", \"due\": true and \"sweep\": true",
            ));
        }
    };
    caller.note(format!("{target:?}"));
    let started = state.deps.reconcile.start(target).await;
    let events = started.map_err(|error| Error::of_port("reconciler", state.config.retry_after_s, error))?;
    if params.wait == Some(false) {
        return Ok(HttpResponse::Accepted().json(Started { started: true }));
    }
    let lines = events.map(|event| Ok::<Bytes, Infallible>(line_of(&event)));
    Ok(HttpResponse::Ok().content_type("application/x-ndjson").streaming(lines))
}

fn line_of(event: &ReconcileEvent) -> Bytes {
    // Every field is a number, a text or null: this cannot fail.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
