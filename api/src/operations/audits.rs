//! Audits of billed hours.

use actix_web::{HttpResponse, post, web};
use serde::Deserialize;
use twice_log::{CampaignId, Hour};
use twice_store::Scope;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::problem::Problem;
use crate::server::ApiState;

/// Which bill to audit.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditRequest {
    /// UTC hour, such as `2025-01-15T12`.
    #[schema(value_type = String, example = "2025-01-15T12")]
    hour: Hour,
    /// Limits rows, and findings about rows, to one campaign.
    #[schema(value_type = Option<String>)]
    campaign: Option<CampaignId>,
}

/// Derives the bill of an hour again from the archive alone; answers with the certificate when the audit has ended.
///
/// `verdict` is `proved` or `notproved`; `docs/audit.md` describes the rest.
#[utoipa::path(
    request_body = AuditRequest,
    responses(
        (status = 200, description = "the certificate, proved or not", body = serde_json::Value),
        (status = 404, description = "the hour is not billed yet", body = Problem),
        (status = 422, description = "the request does not read", body = Problem),
        (status = 503, description = "archive or store do not answer", body = Problem),
    ),
    tag = "operations",
)]
#[post("/v1/audits")]
pub(crate) async fn post_audits(
    state: web::Data<ApiState>,
    caller: Caller,
    request: web::Json<AuditRequest>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let AuditRequest { hour, campaign } = request.into_inner();
    let audited = state.deps.audit.audit(hour, campaign).await;
    let certificate = audited.map_err(|error| Error::of_port("audit", state.config.retry_after_s, error))?;
    Ok(HttpResponse::Ok().content_type("application/json").body(certificate.get().to_owned()))
}
