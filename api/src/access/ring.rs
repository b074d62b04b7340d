//! The keys in memory, and every change of them.
//!
//! Guarantee: a change made here is durable, then in force at once, then answered; one made by another process is in force
//! after the next reload. While the store does not answer, the keys in memory go on.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use subtle::ConstantTimeEq;
use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};
use twice_log::{Clock, UtcMillis};
use twice_store::{AdminAction, ApiKey, CampaignSet, KeyStore, Page, Scope, StoredKey, Tier};

use super::text::KeyText;

/// How often uses are written down: `last_used_at` is to the minute.
const USES_INTERVAL: Duration = Duration::from_secs(60);
/// Moment of a key that was not used since this process started.
const UNUSED: i64 = i64::MIN;

/// Whether requests need a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody may do everything; for a node on loopback.
    Open,
    /// Each request needs a key.
    Keyed,
}

/// What a new key is to allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    pub name: String,
    pub scopes: BTreeSet<Scope>,
    pub campaigns: CampaignSet,
    pub tier: Tier,
    pub expires_at: Option<UtcMillis>,
}

impl NewKey {
    /// A key that may do everything, for ever.
    pub fn admin(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            scopes: [Scope::Admin].into(),
            campaigns: CampaignSet::All,
            tier: Tier::Standard,
            expires_at: None,
        }
    }
}

/// Why a request has no valid key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has none at all.
    Missing,
    /// What it has is no key of ours.
    Unknown,
    /// The key is ours, and revoked or expired.
    Ended { key_id: String },
}

#[derive(Debug, Clone)]
struct Held {
    key: Arc<ApiKey>,
    secret_sha256: [u8; 32],
    /// Last use seen by this process, epoch milliseconds.
    used_ms: Arc<AtomicI64>,
}

/// Every key, by id.
pub struct KeyRing {
    store: Arc<dyn KeyStore>,
    clock: Arc<dyn Clock>,
    access: Access,
    held: RwLock<HashMap<String, Held>>,
    /// Held by whoever changes keys from the store's change to memory's, so that no reload begun before takes it back.
    changing: Mutex<()>,
}

impl KeyRing {
    /// Reads the keys from the store.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn open(
        store: Arc<dyn KeyStore>,
        clock: Arc<dyn Clock>,
        access: Access,
    ) -> twice_store::Result<Self> {
        let ring = Self { store, clock, access, held: RwLock::default(), changing: Mutex::default() };
        ring.reload().await?;
        Ok(ring)
    }

    /// Returns whether requests need a key.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns whether there is any key, revoked ones included.
    pub fn is_empty(&self) -> bool {
        self.held.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Returns the key of a request; `None` on a node that needs none.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Result<Option<Arc<ApiKey>>, Refusal> {
        if self.access == Access::Open {
            return Ok(None);
        }
        let text = KeyText::read(bearer(headers)?).ok_or(Refusal::Unknown)?;
        let held = {
            let keys = self.held.read().unwrap_or_else(PoisonError::into_inner);
            keys.get(text.key_id()).cloned()
        };
        // An id nobody has is compared all the same, so that the time of the answer does not tell it from a known one.
        let expected = held.as_ref().map_or([0; 32], |held| held.secret_sha256);
        let is_same: bool = text.secret_sha256().ct_eq(&expected).into();
        let Some(held) = held.filter(|_| is_same) else { return Err(Refusal::Unknown) };
        let now = self.clock.now();
        if !held.is_valid(now) {
            return Err(Refusal::Ended { key_id: held.key.key_id.clone() });
        }
        held.used_ms.fetch_max(now.epoch_ms(), Ordering::Relaxed);
        Ok(Some(held.key))
    }

    /// Returns whether a key that was good when a long answer began still is.
    pub(crate) fn is_valid(&self, key_id: &str) -> bool {
        let keys = self.held.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(key_id).is_some_and(|held| held.is_valid(self.clock.now()))
    }

    /// Creates a key. Its text is handed out here and never again.
    ///
    /// # Errors
    /// If it could not be stored; the key does not exist then.
    pub async fn create(&self, new: NewKey) -> crate::Result<(Arc<ApiKey>, KeyText)> {
        let text = KeyText::draw()?;
        let NewKey { name, scopes, campaigns, tier, expires_at } = new;
        let key = ApiKey {
            key_id: text.key_id().to_owned(),
            name,
            scopes,
            campaigns,
            tier,
            created_at: self.clock.now(),
            expires_at,
            revoked_at: None,
            last_used_at: None,
        };
        let stored = StoredKey { key, secret_sha256: text.secret_sha256() };
        let _changing = self.changing.lock().await;
        self.store.create_key(stored.clone()).await.map_err(store_error)?;
        let held = Held::of(stored, None);
        let key = held.key.clone();
        info!(key_id = %key.key_id, name = key.name, "key created");
        self.hold(held);
        Ok((key, text))
    }

    /// Revokes a key: from here on it is refused.
    ///
    /// # Errors
    /// `NotFound`, or if that could not be stored: the key goes on then.
    pub async fn revoke(&self, key_id: &str) -> crate::Result<Arc<ApiKey>> {
        let _changing = self.changing.lock().await;
        let key = self.store.revoke_key(key_id, self.clock.now()).await.map_err(store_error)?;
        let mut keys = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let key = Arc::new(key);
        if let Some(held) = keys.get_mut(key_id) {
            held.key = key.clone();
        }
        info!(key_id, name = key.name, "key revoked");
        Ok(key)
    }

    /// Returns every key, oldest first, with its last use as this process knows it.
    pub fn keys(&self) -> Vec<ApiKey> {
        let keys = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys: Vec<ApiKey> = keys.values().map(Held::shown).collect();
        keys.sort_by(|one, two| (one.created_at, &one.key_id).cmp(&(two.created_at, &two.key_id)));
        keys
    }

    /// Reads the keys again: another process may have changed them.
    ///
    /// # Errors
    /// If the store does not answer; the keys in memory stay.
    pub async fn reload(&self) -> twice_store::Result<()> {
        let _changing = self.changing.lock().await;
        let stored = self.store.keys().await?;
        let mut keys = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let known = std::mem::take(&mut *keys);
        keys.extend(stored.into_iter().map(|stored| {
            let used_ms = known.get(&stored.key.key_id).map(|held| held.used_ms.clone());
            (stored.key.key_id.clone(), Held::of(stored, used_ms))
        }));
        Ok(())
    }

    /// Writes down when keys were last used.
    ///
    /// # Errors
    /// If the store does not answer; the next call writes them.
    pub async fn note_uses(&self) -> twice_store::Result<()> {
        let uses: Vec<(String, UtcMillis)> = {
            let keys = self.held.read().unwrap_or_else(PoisonError::into_inner);
            let newer = |held: &&Held| {
                let stored = held.key.last_used_at.map_or(UNUSED, UtcMillis::epoch_ms);
                held.used_ms.load(Ordering::Relaxed) > stored
            };
            keys.values().filter(newer).map(|held| (held.key.key_id.clone(), held.used_at())).collect()
        };
        if uses.is_empty() { Ok(()) } else { self.store.note_uses(uses).await }
    }

    /// Appends to the log of actions; durable on return.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn log_action(&self, action: AdminAction) -> twice_store::Result<()> {
        self.store.log_action(action).await
    }

    /// Returns the log of actions, newest first.
    pub(crate) async fn actions(
        &self,
        limit: u32,
        cursor: Option<String>,
    ) -> twice_store::Result<Page<AdminAction>> {
        self.store.actions(limit, cursor).await
    }

    /// Reloads at intervals and writes down uses, for as long as anybody else holds the ring.
    pub(crate) fn keep(self: &Arc<Self>, reload_interval: Duration) -> impl Future<Output = ()> + use<> {
        let ring = Arc::downgrade(self);
        async move {
            let mut reload = tokio::time::interval(reload_interval);
            let mut uses = tokio::time::interval(USES_INTERVAL);
            reload.set_missed_tick_behavior(MissedTickBehavior::Delay);
            uses.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut failing = false;
            loop {
                let is_reload = tokio::select! {
                    _ = reload.tick() => true,
                    _ = uses.tick() => false,
                };
                let Some(ring) = ring.upgrade() else { return };
                let done = if is_reload { ring.reload().await } else { ring.note_uses().await };
                match done {
                    Ok(()) => failing = false,
                    Err(error) if !failing => {
                        warn!(%error, "the store of keys does not answer; the keys in memory go on");
                        failing = true;
                    }
                    Err(_) => {}
                }
            }
        }
    }

    fn hold(&self, held: Held) {
        let mut keys = self.held.write().unwrap_or_else(PoisonError::into_inner);
        keys.insert(held.key.key_id.clone(), held);
    }
}

impl Held {
    fn of(stored: StoredKey, used_ms: Option<Arc<AtomicI64>>) -> Self {
        let used_ms = used_ms.unwrap_or_else(|| Arc::new(AtomicI64::new(UNUSED)));
        Self { key: Arc::new(stored.key), secret_sha256: stored.secret_sha256, used_ms }
    }

    fn is_valid(&self, now: UtcMillis) -> bool {
        self.key.revoked_at.is_none() && self.key.expires_at.is_none_or(|expires_at| expires_at > now)
    }

    fn used_at(&self) -> UtcMillis {
        UtcMillis::clamped(self.used_ms.load(Ordering::Relaxed))
    }

    fn shown(&self) -> ApiKey {
        let mut key = ApiKey::clone(&self.key);
        if self.used_ms.load(Ordering::Relaxed) != UNUSED {
            key.last_used_at = key.last_used_at.max(Some(self.used_at()));
        }
        key
    }
}

/// Returns what follows `Bearer` in the one `Authorization` header. Two of them are refused: which of them counts is
/// what a proxy and this node may differ on.
fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION);
    let value = values.next().ok_or(Refusal::Missing)?;
    let text = value.to_str().ok().filter(|_| values.next().is_none()).ok_or(Refusal::Unknown)?;
    match text.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(key.trim()),
        _ => Err(Refusal::Unknown),
    }
}

fn store_error(error: twice_store::Error) -> crate::Error {
    crate::Error::of_store("store of keys", 1, error)
}
