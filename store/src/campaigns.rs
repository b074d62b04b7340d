//! Campaigns and their append-only rates (CR-6).
//!
//! Guarantee: a rate or budget once recorded never changes; what is put later is a further record. [`put`] decides what
//! a put appends, so every backend decides alike.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::archive::Rate;
use twice_log::{CampaignId, Currency, UtcMillis};

use crate::billing::Page;
use crate::error::{Error, Result};

/// What an operator sets of a campaign. Each put with a rate appends it; older rates stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutCampaign {
    pub campaign_id: CampaignId,
    pub name: String,
    pub currency: Currency,
    pub cpc_micros: i64,
    pub daily_budget_micros: Option<i64>,
    /// Stops while its spend is not known, rather than serving on (CR-11).
    pub strict: bool,
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
    /// Stops while its spend is not known (CR-11).
    pub strict: bool,
    pub rates: Vec<Rate>,
}

impl Campaign {
    /// Returns the rate in force at `time`: the latest `effective_from` not after it, of those the latest recorded.
    pub fn rate_in_force(&self, time: UtcMillis) -> Option<&Rate> {
        self.rates.iter().rfind(|rate| rate.effective_from <= time)
    }
}

/// A campaign with what is stored but not shown.
#[derive(Debug, Clone)]
pub(crate) struct StoredCampaign {
    pub campaign: Campaign,
    pub budget_recorded_at: Option<UtcMillis>,
    pub strict_recorded_at: Option<UtcMillis>,
}

/// What one put writes besides the campaign itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Appends {
    pub rate: Option<Rate>,
    /// The budget put, and when it was recorded.
    pub budget: Option<(Option<i64>, UtcMillis)>,
    /// The strictness put, and when it was recorded.
    pub strict: Option<(bool, UtcMillis)>,
}

/// Applies a put to what is stored (`None`: nothing yet) and returns what it appends.
///
/// # Errors
/// `Conflict` for another currency, `Invalid` for a negative price or budget; `stored` is unchanged then.
pub(crate) fn put(
    stored: &mut Option<StoredCampaign>,
    new: &PutCampaign,
    recorded_at: UtcMillis,
) -> Result<Appends> {
    if new.cpc_micros < 0 || new.daily_budget_micros.is_some_and(|budget| budget < 0) {
        let reason = "a price or a budget below zero".to_owned();
        return Err(Error::Invalid { what: format!("campaign {}", new.campaign_id), reason });
    }
    if let Some(StoredCampaign { campaign, .. }) = stored
        && campaign.currency != new.currency
    {
        let (id, old) = (&new.campaign_id, campaign.currency);
        let reason = format!("campaign {id} is in {old}; a campaign's currency never changes");
        return Err(Error::Conflict { reason });
    }
    let known = stored.get_or_insert_with(|| StoredCampaign {
        campaign: Campaign {
            campaign_id: new.campaign_id.clone(),
            name: String::new(),
            currency: new.currency,
            daily_budget_micros: None,
            strict: false,
            rates: Vec::new(),
        },
        budget_recorded_at: None,
        strict_recorded_at: None,
    });
    known.campaign.name.clone_from(&new.name);
    let rate = append_rate(&mut known.campaign, new, recorded_at);
    let budget = (known.campaign.daily_budget_micros != new.daily_budget_micros).then(|| {
        let at = after(known.budget_recorded_at, recorded_at);
        known.campaign.daily_budget_micros = new.daily_budget_micros;
        known.budget_recorded_at = Some(at);
        (new.daily_budget_micros, at)
    });
    let strict = (known.campaign.strict != new.strict).then(|| {
        let at = after(known.strict_recorded_at, recorded_at);
        known.campaign.strict = new.strict;
        known.strict_recorded_at = Some(at);
        (new.strict, at)
    });
    Ok(Appends { rate, budget, strict })
}

fn append_rate(campaign: &mut Campaign, new: &PutCampaign, recorded_at: UtcMillis) -> Option<Rate> {
    let effective_from = new.effective_from.unwrap_or(recorded_at);
    let in_force = campaign.rate_in_force(effective_from);
    if in_force.is_some_and(|rate| rate.cpc_micros == new.cpc_micros) {
        return None;
    }
    let replaced = in_force.filter(|rate| rate.effective_from == effective_from);
    let rate = Rate {
        campaign_id: new.campaign_id.clone(),
        currency: new.currency,
        cpc_micros: new.cpc_micros,
        effective_from,
        recorded_at: after(replaced.map(|rate| rate.recorded_at), recorded_at),
    };
    let place = campaign.rates.partition_point(|known| known.effective_from <= effective_from);
    campaign.rates.insert(place, rate.clone());
    Some(rate)
}

/// Returns `recorded_at`, or the first moment after `previous`: two records of one millisecond, or of a clock set back,
/// still have an order.
fn after(previous: Option<UtcMillis>, recorded_at: UtcMillis) -> UtcMillis {
    previous.map_or(recorded_at, |previous| recorded_at.max(previous.plus_ms(1)))
}

/// The store of campaigns.
#[async_trait]
pub trait CampaignStore: Send + Sync + 'static {
    /// Creates the campaign or appends a rate to it. A put whose price is in force already at its `effective_from`
    /// appends no rate, one whose budget is the present one no budget; the name is replaced.
    ///
    /// # Errors
    /// `Conflict` if the campaign has another currency, `Invalid` for a price or budget below zero.
    async fn put_campaign(&self, put: PutCampaign, recorded_at: UtcMillis) -> Result<Campaign>;

    /// Creates or updates many campaigns in one transaction, as [`CampaignStore::put_campaign`] does each; all
    /// or, after an error, none.
    async fn put_campaigns(&self, puts: Vec<PutCampaign>, recorded_at: UtcMillis) -> Result<()>;

    /// Returns one campaign.
    async fn campaign(&self, id: &CampaignId) -> Result<Option<Campaign>>;

    /// Returns campaigns in order of id; of those in `campaigns` alone, where given.
    async fn campaigns(
        &self,
        campaigns: Option<&BTreeSet<CampaignId>>,
        limit: u32,
        cursor: Option<String>,
    ) -> Result<Page<Campaign>>;

    /// Returns every rate recorded so far that takes effect before `before`, sorted by (campaign, effective_from,
    /// recorded_at): what a run records as its inputs.
    async fn rates_effective_before(&self, before: UtcMillis) -> Result<Vec<Rate>>;
}
