//! Prices in force, from the rates that were put (CR-6).

use std::collections::HashMap;

use super::expect::CampaignIndex;
use crate::stream::CampaignRate;

/// The rates of every campaign.
#[derive(Debug, Default)]
pub struct Prices {
    campaigns: HashMap<u32, CampaignPrices>,
}

#[derive(Debug, Default)]
struct CampaignPrices {
    currency: String,
    /// (effective from, price), ascending; of equal times the one put last stands last.
    steps: Vec<(i64, u64)>,
}

impl Prices {
    /// Takes `rates` in the order they were put, and numbers their campaigns with `index`.
    pub fn new(rates: &[CampaignRate], index: &mut CampaignIndex) -> Self {
        let mut campaigns: HashMap<u32, CampaignPrices> = HashMap::new();
        for rate in rates {
            let prices = campaigns.entry(index.number(&rate.campaign_id)).or_default();
            prices.currency.clone_from(&rate.currency);
            prices.steps.push((rate.effective_from.epoch_ms(), rate.cpc_micros.unsigned_abs()));
        }
        for prices in campaigns.values_mut() {
            prices.steps.sort_by_key(|(effective_from, _)| *effective_from); // stable: put order decides
        }
        Self { campaigns }
    }

    /// Returns the price of a click at `event_time_ms`, if a rate is in force then.
    pub fn at(&self, campaign: u32, event_time_ms: i64) -> Option<u64> {
        let steps = &self.campaigns.get(&campaign)?.steps;
        let later = steps.partition_point(|(effective_from, _)| *effective_from <= event_time_ms);
        later.checked_sub(1).map(|at| steps[at].1)
    }

    /// Returns the campaign's currency, and whether a rate of it takes effect before `before_ms`.
    pub fn currency(&self, campaign: u32, before_ms: i64) -> Option<(&str, bool)> {
        let prices = self.campaigns.get(&campaign)?;
        let begun = prices.steps.first().is_some_and(|(effective_from, _)| *effective_from < before_ms);
        Some((&prices.currency, begun))
    }
}

#[cfg(test)]
mod tests {
    use twice_log::UtcMillis;

    use super::*;

    fn rate(campaign: &str, cpc_micros: i64, effective_from: i64) -> CampaignRate {
        CampaignRate {
            campaign_id: campaign.to_owned(),
            name: String::new(),
            currency: "USD".to_owned(),
            cpc_micros,
            daily_budget_micros: None,
            effective_from: UtcMillis::clamped(effective_from),
        }
    }

    #[test]
    fn the_latest_effective_from_counts_and_then_the_one_put_last() {
        let mut index = CampaignIndex::default();
        let campaign = index.number("c");
        let rates = [rate("c", 20, 2_000), rate("c", 10, 1_000), rate("c", 21, 2_000)];
        let prices = Prices::new(&rates, &mut index);
        assert_eq!(prices.at(campaign, 999), None);
        assert_eq!(prices.at(campaign, 1_000), Some(10));
        assert_eq!(prices.at(campaign, 1_999), Some(10));
        assert_eq!(prices.at(campaign, 2_000), Some(21));
        assert_eq!(prices.currency(campaign, 1_000), Some(("USD", false)));
        assert_eq!(prices.currency(campaign, 1_001), Some(("USD", true)));
        let unknown = index.number("other");
        assert_eq!((prices.at(unknown, 5_000), prices.currency(unknown, 5_000)), (None, None));
    }
}
