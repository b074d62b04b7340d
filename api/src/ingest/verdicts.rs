//! `POST /v1/verdicts`: fraud rulings on clicks, which may come hours after their click or before it.

use actix_web::{HttpRequest, HttpResponse, post, web};
use twice_log::event::json::JsonVerdict;
use twice_log::event::record;
use twice_log::spool::Route;
use twice_store::Scope;

use super::answer::{IngestAnswer, Kind, Prepared};
use super::batch::read_batch;
use super::body::read_body;
use super::clicks::caller_still_holds;
use crate::caller::Caller;
use crate::error::Result;
use crate::problem::Problem;
use crate::server::ApiState;

/// Bytes of an encoded verdict with identifiers of usual length.
const RECORD_BYTES_EXPECTED: usize = 96;

/// Takes in verdicts: one object, an array, or one object a line.
#[utoipa::path(
    request_body(
        description = "a verdict: `campaign_id`, `click_id` (UUID), `verdict` (`valid`, `givt` or `sivt`), \
            `decided_at` and, optionally, `model_version` and `click_event_time`",
        content((serde_json::Value = "application/json"), (String = "application/x-ndjson")),
    ),
    responses(
        (status = 202, description = "some or all are durable", body = IngestAnswer),
        (status = 400, description = "the body cannot be read as a whole", body = Problem),
        (status = 413, description = "the body is too large", body = Problem),
        (status = 415, description = "the body's type is not read here", body = Problem),
        (status = 422, description = "every verdict was refused, or there was none (a problem)", body = IngestAnswer),
        (status = 503, description = "none was accepted; send those of `retry` again", body = IngestAnswer),
    ),
    tag = "ingest",
)]
#[post("/v1/verdicts")]
pub(crate) async fn post_verdicts(
    state: web::Data<ApiState>,
    caller: Caller,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse> {
    caller.require(Scope::Verdicts)?;
    let config = &state.config;
    let (format, body) = read_body(&request, payload, config).await?;
    let arrival_time = state.deps.clock.now();
    let verdicts = read_batch::<JsonVerdict<'_>>(&body, format, config.batch_records_max)?;
    let bytes_expected = verdicts.len() * RECORD_BYTES_EXPECTED;
    let mut prepared = Prepared::new(state.deps.log.partitions(), verdicts.len(), bytes_expected);
    for (index, parsed) in (0u32..).zip(verdicts) {
        let checked = parsed.and_then(|verdict| verdict.validate(arrival_time));
        match checked.and_then(|verdict| caller.admit(&verdict.campaign_id).map(|()| verdict)) {
            Ok(verdict) => {
                prepared.pass(index, &verdict.campaign_id, |out| record::encode_verdict(&verdict, out));
            }
            Err(rejection) => prepared.reject(index, rejection),
        }
    }
    caller_still_holds(&state, &caller.key_id)?;
    let answer = prepared.append(&state.deps, Kind::Verdict, Route::Log).await;
    answer.record_metrics(Kind::Verdict);
    Ok(answer.into_response(config.retry_after_s))
}
