//! `POST /v1/imports`: announces a file, so that the door lifts its age limit for the file's hours (CR-7).
//!
//! An announced hour is one of every campaign: what comes late in it is no divergence. So a key of single campaigns cannot
//! announce. Each hour is a row that stays, and costs its key what a click does.

use actix_web::{HttpResponse, post, web};
use serde::{Deserialize, Serialize};
use twice_log::Hour;
use twice_log::event::Sha256Hex;
use twice_store::Scope;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::limits::Passage;
use crate::problem::Problem;
use crate::server::ApiState;

/// A file about to be imported.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnnounceImport {
    /// UTC hours of the event times in the file.
    #[schema(value_type = Vec<String>, example = json!(["2025-01-15T12"]))]
    hours: Vec<Hour>,
    /// SHA-256 of the file's bytes, in hexadecimal; with the row it derives the ids of clicks that have none.
    sha256: String,
}

/// The announced import.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnnouncedImport {
    /// To be given as `import` with each batch of clicks of the file.
    import_id: String,
}

/// Announces the import of a file. The same file and hours again return the same import.
#[utoipa::path(
    request_body = AnnounceImport,
    responses(
        (status = 200, description = "announced", body = AnnouncedImport),
        (status = 409, description = "an hour of the file cannot be counted any more", body = Problem),
        (status = 422, description = "not a hash, or no hours or too many", body = Problem),
    ),
    tag = "ingest",
)]
#[post("/v1/imports")]
pub(crate) async fn post_imports(
    state: web::Data<ApiState>,
    caller: Caller,
    announce: web::Json<AnnounceImport>,
) -> Result<HttpResponse> {
    caller.require_every_campaign(Scope::Ingest)?;
    let AnnounceImport { mut hours, sha256 } = announce.into_inner();
    let sha256 = sha256.to_ascii_lowercase();
    if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::unprocessable("sha256 must be 64 hexadecimal digits"));
    }
    hours.sort();
    hours.dedup();
    let hours_max = state.config.import_hours_max as usize;
    if hours.is_empty() || hours.len() > hours_max {
        return Err(Error::unprocessable(format!("hours must name 1 to {hours_max} hours")));
    }
    let rows = u32::try_from(hours.len()).unwrap_or(u32::MAX);
    let allowance = state.deps.limits.of(&caller);
    if let Passage::Over { retry_after_s } = allowance.take(rows)? {
        return Err(allowance.found_no_room(rows, retry_after_s));
    }
    let announced =
        state.deps.imports.announce_import(hours, Sha256Hex(sha256), state.deps.clock.now()).await;
    let import =
        announced.map_err(|error| Error::of_store("import store", state.config.retry_after_s, error))?;
    Ok(HttpResponse::Ok().json(AnnouncedImport { import_id: import.import_id }))
}
