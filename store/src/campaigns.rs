//! Campaigns and their append-only rates (CR-6).

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::archive::Rate;
use twice_log::{CampaignId, Currency, UtcMillis};

use crate::billing::Page;
use crate::error::Result;

/// What an operator sets of a campaign. Each put with a rate appends it; older rates stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutCampaign {
    pub campaign_id: CampaignId,
    pub name: String,
    pub currency: Currency,
    pub cpc_micros: i64,
    pub daily_budget_micros: Option<i64>,
    /// `None`: from the moment of recording.
    pub effective_from: Option<UtcMillis>,
}

/// A campaign with its rates, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Campaign {
    pub campaign_id: CampaignId,
    pub name: String,
    pub currency: Currency,
    pub daily_budget_micros: Option<i64>,
    pub rates: Vec<Rate>,
}

/// The store of campaigns.
#[async_trait]
pub trait CampaignStore: Send + Sync + 'static {
    /// Creates the campaign or appends a rate to it. Putting what is in force already appends nothing.
    ///
    /// # Errors
    /// `Conflict` if the campaign has another currency.
    async fn put_campaign(&self, put: PutCampaign, recorded_at: UtcMillis) -> Result<Campaign>;

    /// Creates or updates many campaigns in one transaction, as [`CampaignStore::put_campaign`] does each.
    async fn put_campaigns(&self, puts: Vec<PutCampaign>, recorded_at: UtcMillis) -> Result<()>;

    /// Returns one campaign.
    async fn campaign(&self, id: &CampaignId) -> Result<Option<Campaign>>;

    /// Returns campaigns in order of id.
    async fn campaigns(&self, limit: u32, cursor: Option<String>) -> Result<Page<Campaign>>;

    /// Returns every rate recorded so far that takes effect before `before`, sorted by (campaign, effective_from,
    /// recorded_at): what a run records as its inputs.
    async fn rates_effective_before(&self, before: UtcMillis) -> Result<Vec<Rate>>;
}
