//! The mode: which path's rows are the bill, from an hour on, with every setting there ever was.

use actix_web::{HttpResponse, get, put, web};
use serde::{Deserialize, Serialize};
use twice_log::archive::BillingPath;
use twice_log::{Hour, UtcMillis};
use twice_store::Scope;
use twice_store::modes::{HourMode, ModeSetting};
use utoipa::ToSchema;

use super::{PageParams, read_limit};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::problem::Problem;
use crate::server::ApiState;

/// Hours named at most in an answer as keeping their mode.
const KEPT_HOURS_MAX: u32 = 1_000;

/// Which path is to write the bill.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutMode {
    #[schema(value_type = String, example = "kappa")]
    path: BillingPath,
    /// First hour it is for; default the next to close, which is the present one.
    #[schema(value_type = Option<String>, example = "2025-01-15T12")]
    from: Option<Hour>,
}

/// A mode set for an hour and all later ones, until a later setting.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModeSettingJson {
    #[schema(value_type = String, example = "2025-01-15T12")]
    from: Hour,
    #[schema(value_type = String, example = "kappa")]
    path: BillingPath,
    #[schema(value_type = String, format = "date-time")]
    recorded_at: UtcMillis,
}

impl From<ModeSetting> for ModeSettingJson {
    fn from(setting: ModeSetting) -> Self {
        Self { from: setting.from, path: setting.path, recorded_at: setting.recorded_at }
    }
}

/// The path that became the bill of an hour, by the hour's first commit or by a change of mode.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HourModeJson {
    #[schema(value_type = String, example = "2025-01-15T12")]
    hour: Hour,
    #[schema(value_type = String, example = "lambda")]
    path: BillingPath,
    #[schema(format = "date-time")]
    committed_at: String,
}

impl From<HourMode> for HourModeJson {
    fn from(mode: HourMode) -> Self {
        Self { hour: mode.hour, path: mode.path, committed_at: mode.committed_at.to_string() }
    }
}

/// The mode now, and how it came to be.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModeJson {
    /// The next hour to close.
    #[schema(value_type = String, example = "2025-01-15T12")]
    hour: Hour,
    /// Its mode.
    #[schema(value_type = String, example = "lambda")]
    path: BillingPath,
    /// Every setting, oldest first; without any the mode is `lambda`. Of those for an hour the last one counts.
    settings: Vec<ModeSettingJson>,
    /// Modes fixed by bills, latest hour first: a page.
    hours: Vec<HourModeJson>,
    next_cursor: Option<String>,
}

/// What was set, and what it does not change.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModeSet {
    #[schema(value_type = String, example = "2025-01-15T12")]
    from: Hour,
    #[schema(value_type = String, example = "kappa")]
    path: BillingPath,
    #[schema(value_type = String, format = "date-time")]
    recorded_at: UtcMillis,
    /// Hours from `from` on that are billed by the other path already and keep it; at most 1 000 of them.
    #[schema(value_type = Vec<String>)]
    kept: Vec<Hour>,
    detail: String,
}

/// Shows the mode, every setting of it, and the hours whose mode their bills fixed.
#[utoipa::path(
    params(PageParams),
    responses(
        (status = 200, description = "the mode", body = ModeJson),
        (status = 422, description = "a limit or cursor does not read", body = Problem),
        (status = 503, description = "the billing store does not answer", body = Problem),
    ),
    tag = "operations",
)]
#[get("/v1/mode")]
pub(crate) async fn get_mode(
    state: web::Data<ApiState>,
    caller: Caller,
    page: web::Query<PageParams>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let PageParams { limit, cursor } = page.into_inner();
    let failed = |error| Error::of_store("billing store", state.config.retry_after_s, error);
    let hour = state.deps.clock.now().hour();
    let path = state.deps.billing.mode(hour).await.map_err(failed)?;
    let settings = state.deps.modes.mode_settings().await.map_err(failed)?;
    let (first, last) = (Hour::from_since_epoch(i64::MIN), Hour::from_since_epoch(i64::MAX));
    let hours = state.deps.modes.hour_modes(first, last, read_limit(limit)?, cursor).await.map_err(failed)?;
    Ok(HttpResponse::Ok().json(ModeJson {
        hour,
        path,
        settings: settings.into_iter().map(ModeSettingJson::from).collect(),
        hours: hours.rows.into_iter().map(HourModeJson::from).collect(),
        next_cursor: hours.next_cursor,
    }))
}

/// Sets which path writes the bill of an hour and all later ones. Hours billed already keep their mode.
#[utoipa::path(
    request_body = PutMode,
    responses(
        (status = 200, description = "set", body = ModeSet),
        (status = 422, description = "the path or the hour does not read", body = Problem),
        (status = 503, description = "the billing store does not answer", body = Problem),
    ),
    tag = "operations",
)]
#[put("/v1/mode")]
pub(crate) async fn put_mode(
    state: web::Data<ApiState>,
    caller: Caller,
    body: web::Json<PutMode>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let PutMode { path, from } = body.into_inner();
    let failed = |error| Error::of_store("billing store", state.config.retry_after_s, error);
    let recorded_at = state.deps.clock.now();
    let from = from.unwrap_or_else(|| recorded_at.hour());
    caller.note(format!("{path} from {from} on"));
    state.deps.modes.set_mode(path, from, recorded_at).await.map_err(failed)?;
    // Read after the setting: an hour first billed in between keeps what it was billed with, and is named.
    let last = Hour::from_since_epoch(i64::MAX);
    let fixed = state.deps.modes.hour_modes(from, last, KEPT_HOURS_MAX, None).await.map_err(failed)?;
    let kept = kept_hours(&fixed.rows, path);
    let detail = match kept.len() {
        0 => format!("hours from {from} on are billed by {path}"),
        count => format!(
            "hours from {from} on are billed by {path}, but for {count} that were billed before: they keep the other path"
        ),
    };
    tracing::info!(%path, %from, kept = kept.len(), "mode set");
    Ok(HttpResponse::Ok().json(ModeSet { from, path, recorded_at, kept, detail }))
}

/// Returns the hours whose latest mode is another than `path`; of each hour the latest change comes first.
fn kept_hours(fixed: &[HourMode], path: BillingPath) -> Vec<Hour> {
    let mut last = None;
    let mut kept = Vec::new();
    for mode in fixed {
        if last.replace(mode.hour) != Some(mode.hour) && mode.path != path {
            kept.push(mode.hour);
        }
    }
    kept
}
