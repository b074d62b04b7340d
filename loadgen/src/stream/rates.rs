//! The campaigns of a stream and their rates: some change price in mid-hour, some have none.

use serde::{Deserialize, Serialize};
use twice_log::UtcMillis;
use twice_log::event::HOUR_MS;

use super::random::Draws;
use super::settings::StreamSettings;

const LANE_RATES: u64 = 4;
/// Rates take effect this long before the first event time, so that late and moved copies are priced too.
const IN_FORCE_BEFORE_MS: i64 = 24 * HOUR_MS;

/// One rate as it is put: an entry of `POST /v1/campaigns`, and of a ledger's rates file. Of two with one
/// `effective_from` the later in the file was put later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CampaignRate {
    pub campaign_id: String,
    pub name: String,
    pub currency: String,
    pub cpc_micros: i64,
    pub daily_budget_micros: Option<i64>,
    pub effective_from: UtcMillis,
}

/// What is special about a campaign's rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pricing {
    /// One price throughout.
    Steady,
    /// Another price from the moment of change on.
    Changes,
    /// No price before the moment of change.
    Begins,
    /// No price at all: the node does not know the campaign.
    Unknown,
}

/// Which campaigns are special, spread evenly over the ranks so that popular ones are among them.
#[derive(Debug)]
pub struct CampaignPlan {
    campaigns: u64,
    price_changes: u64,
    unknown: u64,
}

impl CampaignPlan {
    /// Makes the plan of a stream.
    pub fn new(settings: &StreamSettings) -> Self {
        Self {
            campaigns: u64::from(settings.campaigns),
            price_changes: u64::from(settings.price_changes),
            unknown: u64::from(settings.unknown_campaigns),
        }
    }

    /// Returns the pricing of the campaign with popularity rank `campaign`.
    pub fn pricing(&self, campaign: u32) -> Pricing {
        // Unknown ones are counted from the last rank of each stretch, changing ones from the first: they meet only
        // where both are many, and then unknown wins.
        if chosen(self.campaigns - 1 - u64::from(campaign), self.campaigns, self.unknown).is_some() {
            return Pricing::Unknown;
        }
        match chosen(u64::from(campaign), self.campaigns, self.price_changes) {
            Some(nth) if nth % 4 == 1 => Pricing::Begins,
            Some(_) => Pricing::Changes,
            None => Pricing::Steady,
        }
    }
}

/// Returns the how-manieth of `picks` numbers spread evenly over `0..all` `number` is, if it is one.
fn chosen(number: u64, all: u64, picks: u64) -> Option<u64> {
    let nth = (number * picks).div_ceil(all.max(1));
    (nth < picks && nth * all / picks == number).then_some(nth)
}

/// Returns the moment prices change: half past the middle hour of the span, or its middle where that lies outside.
pub fn price_change_at(settings: &StreamSettings) -> UtcMillis {
    let middle = settings.event_start.plus_ms(settings.event_span_ms / 2);
    let half_past = middle.hour().start().plus_ms(HOUR_MS / 2);
    let inside = half_past > settings.event_start && half_past < settings.event_end();
    if inside { half_past } else { middle }
}

/// Returns every rate to put, in order.
pub fn campaign_rates(settings: &StreamSettings) -> Vec<CampaignRate> {
    let plan = CampaignPlan::new(settings);
    let before = settings.event_start.plus_ms(-IN_FORCE_BEFORE_MS).hour().start();
    let change = price_change_at(settings);
    let mut rates = Vec::with_capacity(settings.campaigns as usize);
    for campaign in 0..settings.campaigns {
        let mut draws = Draws::new(settings.seed, LANE_RATES, u64::from(campaign));
        let currency = ["USD", "USD", "USD", "EUR", "EUR", "JPY"][draws.below(6) as usize];
        let cpc_micros = 10_000 + draws.below(2_000_000) as i64;
        let rate = CampaignRate {
            campaign_id: format!("{}{campaign}", settings.campaign_prefix),
            name: format!("Load campaign {campaign}"),
            currency: currency.to_owned(),
            cpc_micros,
            daily_budget_micros: (draws.below(10) == 0).then_some(1_000 * cpc_micros),
            effective_from: before,
        };
        // Never the same price: an unchanged one would not show a click priced on the wrong side.
        let changed = CampaignRate {
            cpc_micros: cpc_micros + 1 + draws.below(500_000) as i64,
            effective_from: change,
            ..rate.clone()
        };
        match plan.pricing(campaign) {
            Pricing::Steady => rates.push(rate),
            Pricing::Changes => rates.extend([rate, changed]),
            Pricing::Begins => rates.push(changed),
            Pricing::Unknown => {}
        }
    }
    rates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::settings::tests::settings;

    fn count(settings: &StreamSettings, pricing: Pricing) -> usize {
        let plan = CampaignPlan::new(settings);
        (0..settings.campaigns).filter(|campaign| plan.pricing(*campaign) == pricing).count()
    }

    #[test]
    fn special_campaigns_are_as_many_as_asked_for() {
        let settings =
            settings("--campaigns 1000 --unknown-campaigns 7 --price-changes 33", 1).expect("valid");
        assert_eq!(count(&settings, Pricing::Unknown), 7);
        let changing = count(&settings, Pricing::Changes) + count(&settings, Pricing::Begins);
        assert!((31..=33).contains(&changing), "{changing}");
        assert_eq!(CampaignPlan::new(&settings).pricing(0), Pricing::Changes);
        assert!(count(&settings, Pricing::Begins) > 0);
    }

    #[test]
    fn every_campaign_can_be_unknown_and_none_need_be() {
        let all = settings("--campaigns 10 --unknown-campaigns 10 --price-changes 0", 1).expect("valid");
        assert_eq!(count(&all, Pricing::Unknown), 10);
        assert!(campaign_rates(&all).is_empty());
        let none = settings("--campaigns 10 --unknown-campaigns 0 --price-changes 0", 1).expect("valid");
        assert_eq!(count(&none, Pricing::Steady), 10);
    }

    #[test]
    fn prices_change_in_mid_hour_and_to_another_price() {
        let settings = settings("--campaigns 100 --price-changes 20", 1).expect("valid");
        let rates = campaign_rates(&settings);
        assert_eq!(price_change_at(&settings).to_string(), "2025-01-15T11:30:00.000Z");
        let pairs: Vec<_> =
            rates.windows(2).filter(|pair| pair[0].campaign_id == pair[1].campaign_id).collect();
        assert!(pairs.len() >= 14, "{}", pairs.len());
        for pair in pairs {
            assert_ne!(pair[0].cpc_micros, pair[1].cpc_micros);
            assert_eq!(pair[0].currency, pair[1].currency);
            assert!(
                pair[0].effective_from < settings.event_start
                    && pair[1].effective_from > settings.event_start
            );
        }
    }
}
