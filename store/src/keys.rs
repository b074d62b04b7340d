//! API keys and what they allow (G-8), and the log of what administrators did.
//!
//! Guarantee: the secret of a key is stored nowhere; of its 256 random bits only the SHA-256 is kept. A revoked key stays
//! listed, so that the log of actions keeps its meaning.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::{CampaignId, UtcMillis};

use crate::billing::Page;
use crate::error::Result;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Send clicks and announce imports.
    Ingest,
    /// Read clicks, bills, budgets and differences of the key's campaigns.
    Query,
    /// Send fraud rulings.
    Verdicts,
    /// Everything, operations and keys included.
    Admin,
}

/// Which campaigns a key concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CampaignSet {
    /// Every campaign, also those to come.
    All,
    /// These alone.
    Only(BTreeSet<CampaignId>),
}

impl CampaignSet {
    /// Returns whether the campaign is one of the set.
    pub fn contains(&self, campaign: &CampaignId) -> bool {
        match self {
            CampaignSet::All => true,
            CampaignSet::Only(campaigns) => campaigns.contains(campaign),
        }
    }
}

/// How much a key's owner may send before it is told to wait, and what happens above.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Clicks over the limit are answered 429.
    #[default]
    Standard,
    /// Clicks over the limit are spilled to disk, acknowledged, and appended when there is room.
    Premium,
}

/// A key as stored; its secret is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Public part of the key; names it in lists, in the log of actions and in ids derived from `Idempotency-Key`.
    pub key_id: String,
    /// What people call it.
    pub name: String,
    pub scopes: BTreeSet<Scope>,
    /// For `ingest`, `query` and `verdicts`; `admin` reaches all.
    pub campaigns: CampaignSet,
    pub tier: Tier,
    pub created_at: UtcMillis,
    /// `None`: for ever.
    pub expires_at: Option<UtcMillis>,
    pub revoked_at: Option<UtcMillis>,
    /// To the minute: it is written down at intervals, not with every request.
    pub last_used_at: Option<UtcMillis>,
}

/// A key with the hash its secret is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    pub key: ApiKey,
    /// SHA-256 of the secret's 32 bytes.
    pub secret_sha256: [u8; 32],
}

/// One thing an administrator asked for: noted before it is done, and again with the status of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminAction {
    pub at: UtcMillis,
    /// Key that asked; empty on a node without keys.
    pub key_id: String,
    pub address: Option<String>,
    pub request_id: String,
    /// Method and path.
    pub action: String,
    /// HTTP status of the answer; `None` in the note made before, so that what was done is known even where its answer
    /// was never written down.
    pub status: Option<u16>,
}

/// The store of keys and of the log of actions.
#[async_trait]
pub trait KeyStore: Send + Sync + 'static {
    /// Stores a new key.
    ///
    /// # Errors
    /// `Conflict` if its id is taken.
    async fn create_key(&self, key: StoredKey) -> Result<()>;

    /// Returns every key, revoked ones included, oldest first.
    async fn keys(&self) -> Result<Vec<StoredKey>>;

    /// Revokes a key; one revoked before keeps its moment.
    ///
    /// # Errors
    /// `NotFound`.
    async fn revoke_key(&self, key_id: &str, at: UtcMillis) -> Result<ApiKey>;

    /// Notes when keys were last used; a moment before the stored one changes nothing.
    async fn note_uses(&self, uses: Vec<(String, UtcMillis)>) -> Result<()>;

    /// Appends to the log of actions.
    async fn log_action(&self, action: AdminAction) -> Result<()>;

    /// Returns the log of actions, newest first.
    async fn actions(&self, limit: u32, cursor: Option<String>) -> Result<Page<AdminAction>>;
}
