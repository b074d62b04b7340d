//! Retention of the raw archive, on request.

use actix_web::{HttpResponse, post, web};
use serde::Deserialize;
use twice_log::Hour;
use twice_store::Scope;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::problem::Problem;
use crate::server::ApiState;

/// What to look at.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retain {
    /// One UTC hour, such as `2025-01-15T12`; left out, everything that is expired.
    #[schema(value_type = Option<String>, example = "2025-01-15T12")]
    hour: Option<Hour>,
    /// Whether to say what would go, and delete nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Deletes raw records that are older than the retention and that no bill needs any more; answers when it is done.
///
/// `deleted` lists hours with files, rows and bytes, `kept` expired hours that stay, each with its reason.
#[utoipa::path(
    request_body = Retain,
    responses(
        (status = 200, description = "what went, or would go, and what stays", body = serde_json::Value),
        (status = 409, description = "a replay reads the archive", body = Problem),
        (status = 422, description = "the request does not read", body = Problem),
        (status = 503, description = "archive or store do not answer", body = Problem),
    ),
    tag = "operations",
)]
#[post("/v1/retention")]
pub(crate) async fn post_retention(
    state: web::Data<ApiState>,
    caller: Caller,
    body: web::Json<Retain>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let Retain { hour, dry_run } = body.into_inner();
    let what = hour.map_or_else(|| "everything expired".to_owned(), |hour| hour.to_string());
    caller.note(format!("{what}{}", if dry_run { ", dry run" } else { "" }));
    let retained = state.deps.reconcile.retain(hour, dry_run).await;
    let report = retained.map_err(|error| Error::of_port("retention", state.config.retry_after_s, error))?;
    Ok(HttpResponse::Ok().content_type("application/json").body(report.get().to_owned()))
}
