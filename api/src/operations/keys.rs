//! API keys and the log of actions.

use std::collections::BTreeSet;

use actix_web::http::header::{CACHE_CONTROL, HeaderValue};
use actix_web::{HttpResponse, delete, get, post, web};
use serde::{Deserialize, Serialize};
use twice_log::{CampaignId, UtcMillis};
use twice_store::{AdminAction, ApiKey, CampaignSet, Page, Scope, Tier};
use utoipa::ToSchema;

use super::{PageParams, read_limit};
use crate::access::NewKey;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::problem::Problem;
use crate::server::ApiState;

/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 200;
/// Most campaigns one key names: each list it asks for is limited to them.
const CAMPAIGNS_MAX: usize = 10_000;

/// What a new key is to allow.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateKey {
    /// What people call it.
    name: String,
    #[schema(value_type = Vec<String>, example = json!(["ingest"]))]
    scopes: BTreeSet<Scope>,
    /// The campaigns it is for; null or left out: all. Keys with scope `admin` are for all.
    #[schema(value_type = Option<Vec<String>>)]
    campaigns: Option<BTreeSet<CampaignId>>,
    /// `standard` or `premium`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "standard")]
    tier: Tier,
    /// From when on it is refused; left out: never.
    #[schema(value_type = Option<String>, format = "date-time")]
    expires_at: Option<UtcMillis>,
}

/// A key, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyJson {
    key_id: String,
    name: String,
    #[schema(value_type = Vec<String>)]
    scopes: BTreeSet<Scope>,
    /// Null: all campaigns.
    #[schema(value_type = Option<Vec<String>>)]
    campaigns: Option<BTreeSet<CampaignId>>,
    #[schema(value_type = String, example = "standard")]
    tier: Tier,
    #[schema(value_type = String, format = "date-time")]
    created_at: UtcMillis,
    #[schema(value_type = Option<String>, format = "date-time")]
    expires_at: Option<UtcMillis>,
    #[schema(value_type = Option<String>, format = "date-time")]
    revoked_at: Option<UtcMillis>,
    /// To the minute, where the node ended without writing it down.
    #[schema(value_type = Option<String>, format = "date-time")]
    last_used_at: Option<UtcMillis>,
}

/// A key that was just created, the only time its text is shown.
#[derive(Serialize, ToSchema)]
pub(crate) struct CreatedKey {
    /// What its owner sends as `Authorization: Bearer …`. It is stored nowhere and not shown again.
    key: String,
    #[serde(flatten)]
    described: KeyJson,
}

/// A page of keys, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyPage {
    rows: Vec<KeyJson>,
    next_cursor: Option<String>,
}

/// One note of the log of actions.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ActionJson {
    #[schema(value_type = String, format = "date-time")]
    at: UtcMillis,
    /// Key that asked; empty on a node without keys.
    key_id: String,
    address: Option<String>,
    request_id: String,
    /// Method and path.
    action: String,
    /// HTTP status of the answer; null in the note made before the action.
    status: Option<u16>,
}

/// A page of the log of actions, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ActionPage {
    rows: Vec<ActionJson>,
    next_cursor: Option<String>,
}

impl From<ApiKey> for KeyJson {
    fn from(key: ApiKey) -> Self {
        let campaigns = match key.campaigns {
            CampaignSet::All => None,
            CampaignSet::Only(campaigns) => Some(campaigns),
        };
        Self {
            key_id: key.key_id,
            name: key.name,
            scopes: key.scopes,
            campaigns,
            tier: key.tier,
            created_at: key.created_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            last_used_at: key.last_used_at,
        }
    }
}

impl From<AdminAction> for ActionJson {
    fn from(action: AdminAction) -> Self {
        let AdminAction { at, key_id, address, request_id, action, status } = action;
        Self { at, key_id, address, request_id, action, status }
    }
}

impl CreateKey {
    fn check(self, now: UtcMillis) -> Result<NewKey> {
        let Self { name, scopes, campaigns, tier, expires_at } = self;
        let chars = name.chars().count();
        if !(1..=NAME_CHARS_MAX).contains(&chars) || name.chars().any(char::is_control) {
            return Err(Error::unprocessable(format!(
                "name must have 1 to {NAME_CHARS_MAX} characters, none of control"
            )));
        }
        if scopes.is_empty() {
            return Err(Error::unprocessable("scopes must name one of ingest, query, verdicts and admin"));
        }
        if campaigns.is_some() && scopes.contains(&Scope::Admin) {
            return Err(Error::unprocessable(
                "scope admin reaches every campaign; leave campaigns out, or admin",
            ));
        }
        if campaigns.as_ref().is_some_and(|campaigns| !(1..=CAMPAIGNS_MAX).contains(&campaigns.len())) {
            return Err(Error::unprocessable(format!("campaigns must name 1 to {CAMPAIGNS_MAX} of them")));
        }
        if expires_at.is_some_and(|expires_at| expires_at <= now) {
            return Err(Error::unprocessable("expires_at lies in the past"));
        }
        let campaigns = campaigns.map_or(CampaignSet::All, CampaignSet::Only);
        Ok(NewKey { name, scopes, campaigns, tier, expires_at })
    }
}

/// Lists keys, revoked ones included.
#[utoipa::path(
    params(PageParams),
    responses(
        (status = 200, description = "a page of keys", body = KeyPage),
        (status = 422, description = "a limit or cursor does not read", body = Problem),
    ),
    tag = "operations",
)]
#[get("/v1/keys")]
pub(crate) async fn get_keys(
    state: web::Data<ApiState>,
    caller: Caller,
    page: web::Query<PageParams>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let PageParams { limit, cursor } = page.into_inner();
    let limit = read_limit(limit)? as usize;
    let mut keys = state.deps.keys.keys();
    if let Some(after) = cursor {
        // Keys are never removed, so the one a page ended with is there.
        let last = keys.iter().position(|key| key.key_id == after);
        let last = last.ok_or_else(|| Error::unprocessable("cursor is not one of this list"))?;
        keys.drain(..=last);
    }
    let more = keys.len() > limit;
    keys.truncate(limit);
    let next_cursor = keys.last().filter(|_| more).map(|key| key.key_id.clone());
    let rows = keys.into_iter().map(KeyJson::from).collect();
    Ok(HttpResponse::Ok().json(KeyPage { rows, next_cursor }))
}

/// Creates a key and shows it, this once.
#[utoipa::path(
    request_body = CreateKey,
    responses(
        (status = 201, description = "created; the key is shown this once", body = CreatedKey),
        (status = 422, description = "a field is not valid", body = Problem),
    ),
    tag = "operations",
)]
#[post("/v1/keys")]
pub(crate) async fn post_keys(
    state: web::Data<ApiState>,
    caller: Caller,
    body: web::Json<CreateKey>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let new = body.into_inner().check(state.deps.clock.now())?;
    let (key, text) = state.deps.keys.create(new).await?;
    caller.note(described(&key));
    let created = CreatedKey { key: text.to_string(), described: ApiKey::clone(&key).into() };
    let mut response = HttpResponse::Created();
    response.insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")));
    Ok(response.json(created))
}

/// Says which key was made and what it may do.
fn described(key: &ApiKey) -> String {
    let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope_name(*scope)).collect();
    let campaigns = match &key.campaigns {
        CampaignSet::All => "all campaigns".to_owned(),
        CampaignSet::Only(campaigns) => format!("{} campaigns", campaigns.len()),
    };
    let expires = key.expires_at.map(|at| format!(" until {at}")).unwrap_or_default();
    format!("{} with {} of {campaigns}{expires}", key.key_id, scopes.join(", "))
}

fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Ingest => "ingest",
        Scope::Query => "query",
        Scope::Verdicts => "verdicts",
        Scope::Admin => "admin",
    }
}

/// Revokes a key: from this answer on it is refused. Revoked again, it keeps its first moment.
#[utoipa::path(
    params(("key_id" = String, Path, description = "the part of the key between the underscores")),
    responses(
        (status = 200, description = "revoked", body = KeyJson),
        (status = 404, description = "there is no such key", body = Problem),
    ),
    tag = "operations",
)]
#[delete("/v1/keys/{key_id}")]
pub(crate) async fn delete_key(
    state: web::Data<ApiState>,
    caller: Caller,
    key_id: web::Path<String>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let key = state.deps.keys.revoke(&key_id).await?;
    Ok(HttpResponse::Ok().json(KeyJson::from(ApiKey::clone(&key))))
}

/// Lists what administrators asked for, newest first: a note before each action, and one with its answer's status.
#[utoipa::path(
    params(PageParams),
    responses(
        (status = 200, description = "a page of the log", body = ActionPage),
        (status = 422, description = "a limit or cursor does not read", body = Problem),
    ),
    tag = "operations",
)]
#[get("/v1/admin-actions")]
pub(crate) async fn get_admin_actions(
    state: web::Data<ApiState>,
    caller: Caller,
    page: web::Query<PageParams>,
) -> Result<HttpResponse> {
    caller.require(Scope::Admin)?;
    let PageParams { limit, cursor } = page.into_inner();
    let page = state.deps.keys.actions(read_limit(limit)?, cursor).await;
    let Page { rows, next_cursor } =
        page.map_err(|error| Error::of_store("log of actions", state.config.retry_after_s, error))?;
    let rows = rows.into_iter().map(ActionJson::from).collect();
    Ok(HttpResponse::Ok().json(ActionPage { rows, next_cursor }))
}
