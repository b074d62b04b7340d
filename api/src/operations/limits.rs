//! The rate limits: what holds now, every version there ever was, and the way back.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, get, post, put, web};
use serde::{Deserialize, Serialize};
use twice_log::UtcMillis;
use twice_store::{LimitCounts, LimitEnd, LimitFigures, LimitHistory, LimitVersion, Scope, Tier, TierLimits};
use utoipa::ToSchema;

use super::{PageParams, read_limit};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::limits::{CANARY_MS, HeldView, View, tier_name};
use crate::problem::Problem;
use crate::server::ApiState;

/// Longest note kept with a version, in bytes.
const NOTE_BYTES_MAX: usize = 500;

/// What a key of a tier may send, in clicks.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TierLimitsJson {
    /// Clicks a second that a key may always send, 1 to 10 000 000.
    floor: u32,
    /// Clicks a second that a key may send while there is room; not below the floor.
    ceiling: u32,
    /// Clicks that a key may send at once after a pause. A larger batch passes after a longer one.
    burst: u32,
}

/// Limits to try.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutRateLimits {
    /// By tier, `standard` and `premium`; a tier left out keeps what is in force.
    #[schema(value_type = BTreeMap<String, TierLimitsJson>)]
    tiers: BTreeMap<Tier, TierLimitsJson>,
    /// Why; at most 500 bytes.
    #[serde(default)]
    note: String,
    /// How long the version is tried on a share of the keys, 100 to 604 800 000; default the setting `limits_canary_ms`.
    canary_ms: Option<u64>,
}

/// Requests of a group of keys.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CountsJson {
    requests: u64,
    /// Those answered 429, and those spilled.
    over: u64,
}

/// What a canary is judged by.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FiguresJson {
    /// Keys the version is tried on.
    canary: CountsJson,
    /// All others.
    rest: CountsJson,
}

/// What became of a version.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EndJson {
    /// `promoted`, `rolled_back` or `reverted`.
    outcome: &'static str,
    #[schema(value_type = String, format = "date-time")]
    at: UtcMillis,
    /// Key that decided; empty where the node did.
    decided_by: String,
    detail: String,
    figures: FiguresJson,
}

/// A version.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VersionJson {
    /// 0 are the limits built in.
    version: u32,
    #[schema(value_type = BTreeMap<String, TierLimitsJson>)]
    tiers: BTreeMap<&'static str, TierLimitsJson>,
    #[schema(value_type = String, format = "date-time")]
    created_at: UtcMillis,
    created_by: String,
    note: String,
    /// Share of the keys it is tried on.
    share_percent: u8,
    canary_ms: u64,
    /// `canary`, `promoted`, `rolled_back` or `reverted`.
    state: &'static str,
    /// Oldest first.
    ends: Vec<EndJson>,
}

/// A version that holds now.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HeldJson {
    version: u32,
    #[schema(value_type = BTreeMap<String, TierLimitsJson>)]
    tiers: BTreeMap<&'static str, TierLimitsJson>,
    /// The limit in force of each tier, clicks a second and key, between floor and ceiling.
    #[schema(value_type = BTreeMap<String, u32>)]
    clicks_per_second: BTreeMap<&'static str, u32>,
}

/// A version in its canary.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CanaryJson {
    #[serde(flatten)]
    held: HeldJson,
    share_percent: u8,
    #[schema(value_type = String, format = "date-time")]
    begun_at: UtcMillis,
    /// When it is promoted unless its figures speak against it.
    #[schema(value_type = String, format = "date-time")]
    ends_at: UtcMillis,
    /// Since this node's start, or the canary's.
    figures: FiguresJson,
}

/// The rate limits now.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LimitsNow {
    /// For all keys, or all but those of the canary.
    in_force: HeldJson,
    canary: Option<CanaryJson>,
    /// What decides between floor and ceiling: `room`, `append_latency`, `stream_lag` or `spool_fill`.
    signal: &'static str,
}

/// The rate limits now, and how they came to be.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RateLimitsJson {
    #[serde(flatten)]
    now: LimitsNow,
    /// Every version, newest first: a page. The limits built in are not among them.
    versions: Vec<VersionJson>,
    next_cursor: Option<String>,
}

/// What was changed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RateLimitsChanged {
    detail: String,
    #[serde(flatten)]
    now: LimitsNow,
}

/// Shows the rate limits in force, the version in its canary, and every version there ever was.
#[utoipa::path(
    params(PageParams),
    responses(
        (status = 200, description = "the rate limits", body = RateLimitsJson),
        (status = 422, description = "a limit or cursor does not read", body = Problem),
        (status = 503, description = "the store does not answer", body = Problem),
    ),
    tag = "operations",
)]
#[get("/v1/rate-limits")]
pub(crate) async fn get_rate_limits(
    state: web::Data<ApiState>,
    caller: Caller,
    page: web::Query<PageParams>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let PageParams { limit, cursor } = page.into_inner();
    let page = state.deps.limits.versions(read_limit(limit)?, cursor).await;
    let page = page.map_err(|error| of_store(&state, error))?;
    Ok(HttpResponse::Ok().json(RateLimitsJson {
        now: state.deps.limits.view().into(),
        versions: page.rows.into_iter().map(VersionJson::from).collect(),
        next_cursor: page.next_cursor,
    }))
}

/// Stores new rate limits and tries them on a share of the keys; they hold for all when the time is over and the figures
/// are good, and for nobody if more than 5 % of the requests tried are over their limit, or ten times as many as of others.
#[utoipa::path(
    responses(
        (status = 200, description = "stored; the canary has begun", body = RateLimitsChanged),
        (status = 409, description = "another version is in its canary", body = Problem),
        (status = 422, description = "the limits are out of bounds", body = Problem),
        (status = 503, description = "the store does not answer", body = Problem),
    ),
    tag = "operations",
)]
#[put("/v1/rate-limits")]
pub(crate) async fn put_rate_limits(
    state: web::Data<ApiState>,
    caller: Caller,
    body: web::Json<PutRateLimits>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let PutRateLimits { tiers, note, canary_ms } = body.into_inner();
    if tiers.is_empty() {
        return Err(Error::unprocessable("tiers is empty; name standard, premium or both"));
    }
    if note.len() > NOTE_BYTES_MAX {
        return Err(Error::unprocessable(format!("note has more than {NOTE_BYTES_MAX} bytes")));
    }
    if let Some(canary_ms) = canary_ms.filter(|canary_ms| !CANARY_MS.contains(canary_ms)) {
        let (lowest, highest) = (CANARY_MS.start(), CANARY_MS.end());
        let detail = format!("canary_ms is {canary_ms}; it must lie between {lowest} and {highest}");
        return Err(Error::unprocessable(detail));
    }
    let mut checked = BTreeMap::new();
    for (tier, TierLimitsJson { floor, ceiling, burst }) in tiers {
        let limits = TierLimits { floor, ceiling, burst };
        limits.validate().map_err(|reason| Error::unprocessable(format!("{}: {reason}", tier_name(tier))))?;
        checked.insert(tier, limits);
    }
    let of_tiers = checked.iter().map(|(tier, limits)| {
        let TierLimits { floor, ceiling, burst } = limits;
        format!("{} {floor} to {ceiling}, burst {burst}", tier_name(*tier))
    });
    caller.note(of_tiers.collect::<Vec<_>>().join("; "));
    let put = state.deps.limits.put(checked, note, canary_ms, caller.key_id).await;
    let now = LimitsNow::from(put.map_err(|error| of_store(&state, error))?);
    let detail = match &now.canary {
        Some(canary) => format!(
            "version {} is tried on {} % of the keys until {}; then it holds for all, unless its figures speak against it",
            canary.held.version, canary.share_percent, canary.ends_at
        ),
        None => "the version was stored and has ended already".to_owned(),
    };
    Ok(HttpResponse::Ok().json(RateLimitsChanged { detail, now }))
}

/// Takes back the version in its canary, else the one in force: then the one promoted before it holds again, at once and
/// for all keys.
#[utoipa::path(
    responses(
        (status = 200, description = "taken back", body = RateLimitsChanged),
        (status = 409, description = "only the limits built in are in force", body = Problem),
        (status = 503, description = "the store does not answer", body = Problem),
    ),
    tag = "operations",
)]
#[post("/v1/rate-limits/revert")]
pub(crate) async fn post_rate_limits_revert(
    state: web::Data<ApiState>,
    caller: Caller,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let reverted = state.deps.limits.revert(caller.key_id.clone()).await;
    let (version, view) = reverted.map_err(|error| of_store(&state, error))?;
    caller.note(format!("version {version}"));
    let now = LimitsNow::from(view);
    let detail = match now.in_force.version {
        0 => format!("version {version} is taken back; the limits built in hold for all keys"),
        in_force => format!("version {version} is taken back; version {in_force} holds for all keys"),
    };
    Ok(HttpResponse::Ok().json(RateLimitsChanged { detail, now }))
}

fn of_store(state: &ApiState, error: twice_store::Error) -> Error {
    Error::of_store("store of rate limits", state.config.retry_after_s, error)
}

fn by_name<T>(by_tier: impl IntoIterator<Item = (Tier, T)>) -> BTreeMap<&'static str, T> {
    by_tier.into_iter().map(|(tier, value)| (tier_name(tier), value)).collect()
}

impl From<TierLimits> for TierLimitsJson {
    fn from(TierLimits { floor, ceiling, burst }: TierLimits) -> Self {
        Self { floor, ceiling, burst }
    }
}

impl From<LimitCounts> for CountsJson {
    fn from(LimitCounts { requests, over }: LimitCounts) -> Self {
        Self { requests, over }
    }
}

impl From<LimitFigures> for FiguresJson {
    fn from(LimitFigures { canary, rest }: LimitFigures) -> Self {
        Self { canary: canary.into(), rest: rest.into() }
    }
}

impl From<LimitEnd> for EndJson {
    fn from(end: LimitEnd) -> Self {
        let LimitEnd { outcome, at, decided_by, detail, figures, .. } = end;
        Self { outcome: outcome.name(), at, decided_by, detail, figures: figures.into() }
    }
}

impl From<LimitHistory> for VersionJson {
    fn from(LimitHistory { version, ends }: LimitHistory) -> Self {
        Self {
            version: version.version,
            tiers: by_name(version.tiers.into_iter().map(|(tier, limits)| (tier, limits.into()))),
            created_at: version.created_at,
            created_by: version.created_by,
            note: version.note,
            share_percent: version.share_percent,
            canary_ms: version.canary_ms,
            state: ends.last().map_or("canary", |end| end.outcome.name()),
            ends: ends.into_iter().map(EndJson::from).collect(),
        }
    }
}

impl From<HeldView> for HeldJson {
    fn from(held: HeldView) -> Self {
        let HeldView { version, clicks_per_second } = held;
        Self {
            version: version.version,
            tiers: by_name(version.tiers.into_iter().map(|(tier, limits)| (tier, limits.into()))),
            clicks_per_second: by_name(clicks_per_second),
        }
    }
}

impl From<View> for LimitsNow {
    fn from(view: View) -> Self {
        let canary = view.canary.map(|(held, figures)| {
            let LimitVersion { share_percent, created_at, canary_ms, .. } = held.version;
            let ends_at = created_at.plus_ms(i64::try_from(canary_ms).unwrap_or(i64::MAX));
            CanaryJson {
                held: held.into(),
                share_percent,
                begun_at: created_at,
                ends_at,
                figures: figures.into(),
            }
        });
        Self { in_force: view.in_force.into(), canary, signal: view.signal }
    }
}
