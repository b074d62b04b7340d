use twice_log::archive::Rate;

use super::*;
use crate::campaigns::{CampaignStore, PutCampaign};
use crate::error::Error;

fn put(name: &str, cpc_micros: i64) -> PutCampaign {
    PutCampaign {
        campaign_id: campaign(name),
        name: format!("The {name}"),
        currency: "USD".parse().expect("valid currency"),
        cpc_micros,
        daily_budget_micros: None,
        strict: false,
        effective_from: None,
    }
}

fn at(ms: i64) -> UtcMillis {
    UtcMillis::clamped(NOON_MS + ms)
}

fn brief_rates(rates: &[Rate]) -> Vec<(i64, i64, i64)> {
    let since_noon = |time: UtcMillis| time.epoch_ms() - NOON_MS;
    rates
        .iter()
        .map(|rate| (since_noon(rate.effective_from), since_noon(rate.recorded_at), rate.cpc_micros))
        .collect()
}

#[tokio::test]
async fn a_put_creates_and_a_further_one_appends_a_rate() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.store.campaign(&campaign("a")).await.expect("reads"), None);
    fixture.store.put_campaign(put("a", 5), at(0)).await.expect("puts");
    let second = fixture.store.put_campaign(put("a", 7), at(10)).await.expect("puts");
    assert_eq!(brief_rates(&second.rates), [(0, 0, 5), (10, 10, 7)]);
    assert_eq!(second.name, "The a");
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store.campaign(&campaign("a")).await.expect("reads"), Some(second));
}

#[tokio::test]
async fn putting_what_is_in_force_appends_nothing() {
    let fixture = Fixture::new().await;
    fixture.store.put_campaign(put("a", 5), at(0)).await.expect("puts");
    for new in [put("a", 5), PutCampaign { effective_from: Some(at(7)), ..put("a", 5) }] {
        let same = fixture.store.put_campaign(new, at(20)).await.expect("puts");
        assert_eq!(brief_rates(&same.rates), [(0, 0, 5)]);
    }
    // Before the first rate nothing is in force, so the same price there is a new rate.
    let earlier = PutCampaign { effective_from: Some(at(-9)), ..put("a", 5) };
    let earlier = fixture.store.put_campaign(earlier, at(30)).await.expect("puts");
    assert_eq!(brief_rates(&earlier.rates), [(-9, 30, 5), (0, 0, 5)]);
}

#[tokio::test]
async fn the_latest_effective_then_the_latest_recorded_rate_is_in_force() {
    let fixture = Fixture::new().await;
    let rate = |cpc, effective| PutCampaign { effective_from: Some(at(effective)), ..put("a", cpc) };
    for new in [rate(5, 0), rate(9, 100), rate(6, 50), rate(7, 0), rate(8, 0)] {
        // All in one millisecond: their order must show all the same.
        fixture.store.put_campaign(new, at(200)).await.expect("puts");
    }
    let stored = fixture.store.campaign(&campaign("a")).await.expect("reads").expect("is there");
    assert_eq!(
        brief_rates(&stored.rates),
        [(0, 200, 5), (0, 201, 7), (0, 202, 8), (50, 200, 6), (100, 200, 9)]
    );
    let cpc = |ms| stored.rate_in_force(at(ms)).map(|rate| rate.cpc_micros);
    assert_eq!(
        [cpc(-1), cpc(0), cpc(49), cpc(50), cpc(99), cpc(100)],
        [None, Some(8), Some(8), Some(6), Some(6), Some(9)]
    );
}

#[tokio::test]
async fn another_currency_is_a_conflict_and_a_negative_price_is_refused() {
    let fixture = Fixture::new().await;
    fixture.store.put_campaign(put("a", 5), at(0)).await.expect("puts");
    let euro = PutCampaign { currency: "EUR".parse().expect("valid currency"), ..put("a", 6) };
    let refused = fixture.store.put_campaign(euro.clone(), at(1)).await.expect_err("is in USD");
    assert!(matches!(refused, Error::Conflict { .. }));
    let refused = fixture.store.put_campaign(put("b", -1), at(1)).await.expect_err("is negative");
    assert!(matches!(refused, Error::Invalid { .. }));
    // One bad put of many takes all of them back.
    let refused = fixture.store.put_campaigns(vec![put("c", 5), euro], at(1)).await.expect_err("is in USD");
    assert!(matches!(refused, Error::Conflict { .. }));
    let ids: Vec<_> = fixture.store.campaigns(None, 9, None).await.expect("lists").rows;
    assert_eq!(ids.iter().map(|campaign| campaign.campaign_id.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn budgets_are_replaced_and_lifted_though_the_clock_falls_back() {
    let fixture = Fixture::new().await;
    for (budget, recorded) in [(Some(10), 50), (Some(20), 50), (Some(20), 60), (None, 40), (Some(30), 0)] {
        let new = PutCampaign { daily_budget_micros: budget, ..put("a", 5) };
        let stored = fixture.store.put_campaign(new, at(recorded)).await.expect("puts");
        assert_eq!(stored.daily_budget_micros, budget);
        assert_eq!(fixture.store.campaign(&campaign("a")).await.expect("reads"), Some(stored));
    }
}

#[tokio::test]
async fn many_campaigns_are_put_at_once_and_listed_over_pages() {
    let fixture = Fixture::new().await;
    let mut puts: Vec<PutCampaign> =
        (0..1_234).map(|number| put(&format!("camp_{number:04}"), number)).collect();
    puts.push(put("camp_0000", 77));
    fixture.store.put_campaigns(puts.clone(), at(0)).await.expect("puts");
    fixture.store.put_campaigns(puts, at(0)).await.expect("puts");
    let (mut rows, mut cursor) = (Vec::new(), None);
    loop {
        let page = fixture.store.campaigns(None, 500, cursor).await.expect("lists");
        rows.extend(page.rows);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(rows.len(), 1_234);
    assert!(rows.is_sorted_by(|left, right| left.campaign_id < right.campaign_id));
    assert_eq!(brief_rates(&rows[5].rates), [(0, 0, 5)]);
    assert_eq!(rows[0].rate_in_force(at(9)).expect("has a rate").cpc_micros, 77);
}

#[tokio::test]
async fn rates_of_a_run_are_those_effective_before_its_end_in_order() {
    let fixture = Fixture::new().await;
    let rate = |name, cpc, effective| PutCampaign { effective_from: Some(at(effective)), ..put(name, cpc) };
    let puts = vec![rate("b", 1, 0), rate("a", 2, 99), rate("a", 3, 0), rate("a", 4, 100)];
    fixture.store.put_campaigns(puts, at(5)).await.expect("puts");
    let rates = fixture.store.rates_effective_before(at(100)).await.expect("reads");
    assert_eq!(rates.iter().map(|rate| rate.cpc_micros).collect::<Vec<_>>(), [3, 2, 1]);
    assert!(rates.is_sorted_by_key(|rate| (&rate.campaign_id, rate.effective_from, rate.recorded_at)));
    assert_eq!(rates[0].currency.as_str(), "USD");
}
