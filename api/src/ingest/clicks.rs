//! `POST /v1/clicks`: the door.

use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, post, web};
use bytes::Bytes;
use rand::Rng;
use serde::Deserialize;
use twice_log::event::json::{AgeLimits, RejectCode, Rejection};
use twice_log::event::{IpHash, record};
use twice_log::spool::Route;
use twice_log::{Click, ClickId, UtcMillis};
use twice_store::Scope;
use twice_store::imports::Import;
use utoipa::IntoParams;

use super::answer::{IngestAnswer, Kind, Prepared};
use super::body::read_bytes;
use super::pseudonym::KeySet;
use super::shape::{GivenId, Incoming, Shape};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::limits::{Allowance, Passage};
use crate::problem::Problem;
use crate::server::ApiState;

/// Longest `Idempotency-Key` accepted, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Bodies above this size are checked and encoded off the arbiter: about half a millisecond of work.
const INLINE_BYTES_MAX: usize = 128 << 10;
/// Bytes of an encoded click with identifiers of usual length; a guess that saves growing the buffer.
const RECORD_BYTES_EXPECTED: usize = 128;
/// Bytes of a click in a body, a guess of the same kind.
const CLICK_BYTES_EXPECTED: usize = 120;

/// Which announced import the clicks belong to.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ClicksParams {
    /// Import announced by `POST /v1/imports`; lifts the age limit for its hours.
    import: Option<String>,
    /// Row of the file, from 0, that the first click of this request was read from; with `import` only. Default 0.
    first_row: Option<u64>,
}

/// Takes in clicks: one object, an array, one object a line, CloudEvents, or an Arrow IPC stream.
///
/// 202 leaves only after every click counted in `accepted` is durable. Clicks without `click_id` get one, derived from
/// the `Idempotency-Key` or from the row of the import where there is one, and named in `click_ids`.
#[utoipa::path(
    params(
        ClicksParams,
        ("Idempotency-Key" = Option<String>, Header, description = "at most 255 bytes of visible ASCII; derives \
            the ids of clicks without one, so that the same request again stores no new click"),
    ),
    request_body(
        description = "a click: `campaign_id` and, optionally, `click_id` (UUID), `ad_id`, `user_id`, \
            `publisher_id`, `event_time` (RFC 3339 or epoch milliseconds), `schema_version`. As CloudEvents 1.0 \
            (`type` `com.count-twice.click.v1` or `.v2`) it is the event's data, and `id` and `time` of the event are \
            its own where it has none. As an Arrow IPC stream these are the columns; `click_id` may be 16 bytes, \
            `event_time` a timestamp",
        content(
            (serde_json::Value = "application/json"),
            (String = "application/x-ndjson"),
            (serde_json::Value = "application/cloudevents+json"),
            (serde_json::Value = "application/cloudevents-batch+json"),
            (String = "application/vnd.apache.arrow.stream"),
        ),
    ),
    responses(
        (status = 202, description = "some or all are durable", body = IngestAnswer),
        (status = 400, description = "the body cannot be read as a whole", body = Problem),
        (status = 413, description = "the body is too large", body = Problem),
        (status = 415, description = "the body's type is not read here", body = Problem),
        (status = 422, description = "every click was refused, or there was none (a problem)", body = IngestAnswer),
        (status = 429, description = "over the key's limit; nothing was stored, send it again later", body = Problem),
        (status = 503, description = "none was accepted; send those of `retry` again", body = IngestAnswer),
    ),
    tag = "ingest",
)]
#[post("/v1/clicks")]
pub(crate) async fn post_clicks(
    state: web::Data<ApiState>,
    caller: Caller,
    params: web::Query<ClicksParams>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse> {
    caller.require(Scope::Ingest)?;
    let allowance = state.deps.limits.of(&caller);
    allowance.glance()?;
    let config = &state.config;
    let key_id = caller.key_id.clone();
    let import = announced(&state, &params).await?;
    let naming = Naming::of(&request, &caller, import.as_ref(), params.first_row)?;
    let shape = Shape::of(&request)?;
    let body = read_bytes(&request, payload, config).await?;
    let arrival_time = state.deps.clock.now();
    let keys = keys_of_request(&state, arrival_time, import.as_ref()).await?;
    let door = Door {
        arrival_time,
        limits: config.age_limits(),
        import,
        naming,
        key_id: caller.key_id.clone(),
        keys,
        ip_hash: caller.address.map(|address| state.deps.pseudonyms.ip_hash(address)),
        caller,
        partitions: state.deps.log.partitions(),
        records_max: config.batch_records_max,
    };
    let prepared = if body.len() <= INLINE_BYTES_MAX {
        door.prepare(&body, &shape)?
    } else {
        web::block(move || door.prepare(&body, &shape))
            .await
            .map_err(|source| Error::Internal { what: "checking clicks", source: Some(Box::new(source)) })??
    };
    caller_still_holds(&state, &key_id)?;
    let answer = append(&state, &allowance, prepared).await?;
    answer.record_metrics(Kind::Click);
    let mut response = answer.into_response(config.retry_after_s);
    allowance.stamp(response.headers_mut());
    Ok(response)
}

/// Refuses what a key sent that was revoked while its body came.
///
/// # Errors
/// `Unauthorized`; nothing is stored.
pub(super) fn caller_still_holds(state: &ApiState, key_id: &str) -> Result<()> {
    if key_id.is_empty() || state.deps.keys.is_valid(key_id) {
        return Ok(());
    }
    Err(Error::Unauthorized { detail: "the API key is not valid any more".to_owned() })
}

/// Appends as the sender's limit allows: to the log, or over the limit of a premium key to the spill queue.
async fn append(state: &ApiState, allowance: &Allowance, prepared: Prepared) -> Result<IngestAnswer> {
    let clicks = prepared.records();
    let begun = Instant::now();
    match allowance.take(clicks)? {
        Passage::Within => {
            let answer = prepared.append(&state.deps, Kind::Click, Route::Log).await;
            allowance.settle(&answer, begun.elapsed());
            Ok(answer)
        }
        Passage::Over { retry_after_s } => {
            let route = Route::Spill { owner: allowance.key_id() };
            let answer = prepared.append(&state.deps, Kind::Click, route).await;
            if answer.found_no_room {
                return Err(allowance.found_no_room(clicks, retry_after_s));
            }
            allowance.spilled(answer.accepted);
            Ok(answer)
        }
    }
}

/// Returns the import the request names, its hours in order.
async fn announced(state: &ApiState, params: &ClicksParams) -> Result<Option<Import>> {
    let Some(import_id) = &params.import else {
        return match params.first_row {
            None => Ok(None),
            Some(_) => Err(Error::unprocessable("first_row goes with import only")),
        };
    };
    let found = state.deps.imports.import(import_id).await;
    let found = found.map_err(|error| Error::of_store("import store", state.config.retry_after_s, error))?;
    let Some(mut import) = found else {
        return Err(Error::NotFound {
            what: format!("import {import_id:?} (POST /v1/imports announces one)"),
        });
    };
    import.hours.sort_unstable();
    Ok(Some(import))
}

/// Returns the keys of every month a click of this request may lie in, all durable.
async fn keys_of_request(
    state: &ApiState,
    arrival_time: UtcMillis,
    import: Option<&Import>,
) -> Result<KeySet> {
    let config = &state.config;
    let usual =
        (arrival_time.plus_ms(-config.click_age_ms_max), arrival_time.plus_ms(config.click_future_ms_max));
    let hours = import.iter().flat_map(|import| &import.hours);
    let spans: Vec<_> = hours.map(|hour| (hour.start(), hour.start())).chain([usual]).collect();
    let keys = &state.deps.pseudonyms;
    if let Some(loaded) = keys.loaded(&spans) {
        return Ok(loaded);
    }
    let keys = keys.clone();
    let loaded = web::block(move || keys.load(&spans))
        .await
        .map_err(|source| Error::Internal { what: "reading month keys", source: Some(Box::new(source)) })?;
    // Without a key nothing can be stored: every click of the request is to be sent again.
    loaded.map_err(|error| Error::unavailable("the folder of pseudonym keys", config.retry_after_s, error))
}

/// How clicks that come without an id get one (CR-1).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Naming {
    /// UUIDv5 of this prefix and the index in the request, plus `first`.
    Derived { prefix: String, first: u64 },
    /// A new UUIDv7.
    Minted,
}

impl Naming {
    fn of(
        request: &HttpRequest,
        caller: &Caller,
        import: Option<&Import>,
        first_row: Option<u64>,
    ) -> Result<Self> {
        if let Some(key) = request.headers().get("idempotency-key") {
            let key = key.as_bytes();
            let fits = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len());
            let Some(key) =
                std::str::from_utf8(key).ok().filter(|_| fits && key.iter().all(u8::is_ascii_graphic))
            else {
                return Err(Error::bad_request(format!(
                    "Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes of visible ASCII"
                )));
            };
            return Ok(Naming::Derived { prefix: format!("key:{}:{key}:", caller.key_id), first: 0 });
        }
        Ok(match import {
            Some(import) => {
                Naming::Derived { prefix: format!("file:{}:", import.sha256), first: first_row.unwrap_or(0) }
            }
            None => Naming::Minted,
        })
    }

    fn id(&self, index: u32, arrival_time: UtcMillis, random: &mut impl Rng) -> ClickId {
        match self {
            Naming::Derived { prefix, first } => {
                ClickId::derived(&format!("{prefix}{}", first.saturating_add(index.into())))
            }
            Naming::Minted => {
                let epoch_ms = u64::try_from(arrival_time.epoch_ms()).unwrap_or(0);
                let mut bytes = [0; 10];
                random.fill_bytes(&mut bytes);
                ClickId(uuid::Builder::from_unix_timestamp_millis(epoch_ms, &bytes).into_uuid())
            }
        }
    }
}

/// Everything a click is checked and completed with.
struct Door {
    arrival_time: UtcMillis,
    limits: AgeLimits,
    /// Its hours are in order.
    import: Option<Import>,
    naming: Naming,
    /// Of the sender, for ids derived from events.
    key_id: String,
    /// Of every month the limits and the import let through.
    keys: KeySet,
    ip_hash: Option<IpHash>,
    caller: Caller,
    partitions: u32,
    records_max: u32,
}

impl Door {
    fn prepare(&self, body: &Bytes, shape: &Shape) -> Result<Prepared> {
        let expected = (body.len() / CLICK_BYTES_EXPECTED).clamp(1, self.records_max as usize);
        let mut prepared = Prepared::new(self.partitions, expected, expected * RECORD_BYTES_EXPECTED);
        let mut random = rand::rng();
        shape.read(body, &self.key_id, self.records_max, &mut |index, parsed| {
            let mut given = None;
            let checked = parsed.and_then(|click| self.check(&click, index, &mut given, &mut random));
            match checked {
                Ok(click) => {
                    if let Some(id) = given {
                        prepared.name(index, id);
                    }
                    prepared.pass(index, &click.campaign_id, |out| record::encode_click(&click, out));
                }
                Err(rejection) => prepared.reject(index, rejection),
            }
        })?;
        Ok(prepared)
    }

    /// Checks one click and makes it pseudonymous; `given` is the id it got, if it came without.
    fn check(
        &self,
        incoming: &Incoming<'_>,
        index: u32,
        given: &mut Option<uuid::Uuid>,
        random: &mut impl Rng,
    ) -> Result<Click, Rejection> {
        let name = || {
            let id = match incoming.id {
                GivenId::AsBytes(id) => return id,
                GivenId::OfEvent(id) => id,
                GivenId::OfClick => self.naming.id(index, self.arrival_time, random),
            };
            *given = Some(id.0);
            id
        };
        let click = &incoming.click;
        let mut click = match &self.import {
            None => click.validate(self.arrival_time, name, &self.limits)?,
            Some(import) => {
                let lifted = AgeLimits { past_ms_max: None, ..self.limits };
                let click = click.validate(self.arrival_time, name, &lifted)?;
                self.check_announced(&click, import)?;
                click
            }
        };
        self.caller.admit(&click.campaign_id)?;
        click.user_id = self.keys.pseudonym(&click.user_id, click.event_time);
        // Records of version 1 have no room for it.
        click.ip_hash = self.ip_hash.filter(|_| click.schema_version >= 2);
        Ok(click)
    }

    fn check_announced(&self, click: &Click, import: &Import) -> Result<(), Rejection> {
        let age_ms = self.arrival_time.epoch_ms() - click.event_time.epoch_ms();
        let too_old = self.limits.past_ms_max.is_some_and(|past_ms_max| age_ms > past_ms_max);
        if !too_old || import.hours.binary_search(&click.event_time.hour()).is_ok() {
            return Ok(());
        }
        let detail = format!(
            "event_time {} is old and its hour is not among those import {} announced",
            click.event_time, import.import_id
        );
        Err(Rejection::new(RejectCode::TooOld, detail))
    }
}
