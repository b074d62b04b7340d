//! Decisions: their numbers, their order, and what is published of them.

use std::collections::BTreeSet;

use twice_log::{Day, Position};

use super::*;
use crate::budgets::{BudgetCause, BudgetDecision, BudgetState, BudgetStore, DecisionsQuery};
use crate::campaigns::{CampaignStore, PutCampaign};
use crate::error::Error;

fn decision(name: &str, number: u32) -> BudgetDecision {
    BudgetDecision {
        sequence: 0,
        campaign_id: campaign(name),
        day: Day::of(UtcMillis::clamped(NOON_MS).hour()),
        number,
        state: if number % 2 == 1 { BudgetState::Serving } else { BudgetState::Exhausted },
        cause: BudgetCause::Stream,
        spend_micros: i64::from(number),
        budget_micros: Some(7),
        decided_at: UtcMillis::clamped(NOON_MS),
        position: Some(Position { generation: Generation(0), offset: LogOffset(9) }),
        event_time: Some(UtcMillis::clamped(NOON_MS - 1)),
    }
}

#[tokio::test]
async fn a_number_is_given_out_once_and_none_is_left_out() {
    let fixture = Fixture::new().await;
    let first = vec![decision("a", 1), decision("b", 1), decision("a", 2)];
    let stored = fixture.store.record_decisions(first).await.expect("stored");
    assert_eq!(stored.iter().map(|one| one.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    for wrong in [vec![decision("a", 2)], vec![decision("a", 4)], vec![decision("b", 2), decision("b", 2)]] {
        let refused = fixture.store.record_decisions(wrong).await;
        assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    }
    let fixture = fixture.reopen().await;
    let all = DecisionsQuery { limit: 10, ..DecisionsQuery::default() };
    assert_eq!(fixture.store.decisions(&all).await.expect("reads"), stored);
    let next = fixture.store.record_decisions(vec![decision("a", 3)]).await.expect("stored");
    assert_eq!(next[0].sequence, 4, "what was refused took no place");
}

#[tokio::test]
async fn decisions_are_read_by_place_campaign_and_day() {
    let fixture = Fixture::new().await;
    let yesterday = BudgetDecision { day: decision("a", 1).day.plus(-1), ..decision("a", 1) };
    let all = vec![yesterday, decision("a", 1), decision("b", 1), decision("a", 2)];
    let stored = fixture.store.record_decisions(all).await.expect("stored");
    let campaigns = Some(BTreeSet::from([campaign("a")]));
    let query = DecisionsQuery { after: 1, campaigns, limit: 10 };
    assert_eq!(fixture.store.decisions(&query).await.expect("reads"), [stored[1].clone(), stored[3].clone()]);
    let last = fixture.store.last_decisions(stored[1].day).await.expect("reads");
    assert_eq!(last, [stored[3].clone(), stored[2].clone()]);
    let last = fixture.store.last_decision(&campaign("a"), stored[0].day).await.expect("reads");
    assert_eq!(last.as_ref(), Some(&stored[0]));
    assert_eq!(fixture.store.newest_sequence().await.expect("reads"), 4);
}

#[tokio::test]
async fn what_is_published_never_goes_back() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.store.published_sequence().await.expect("reads"), 0);
    for (sequence, then) in [(5, 5), (3, 5), (6, 6)] {
        fixture.store.note_published(sequence).await.expect("noted");
        assert_eq!(fixture.store.published_sequence().await.expect("reads"), then);
    }
}

#[tokio::test]
async fn strictness_is_kept_and_what_was_set_lately_is_found() {
    let fixture = Fixture::new().await;
    let put = |strict, cpc_micros| PutCampaign {
        campaign_id: campaign("a"),
        name: "A".to_owned(),
        currency: "USD".parse().expect("valid currency"),
        cpc_micros,
        daily_budget_micros: Some(5),
        strict,
        effective_from: None,
    };
    let at = |ms: i64| UtcMillis::clamped(NOON_MS + ms);
    assert!(fixture.store.put_campaign(put(true, 1), at(0)).await.expect("puts").strict);
    assert!(!fixture.store.put_campaign(put(false, 1), at(10)).await.expect("puts").strict);
    let fixture = fixture.reopen().await;
    let found = fixture.store.campaign(&campaign("a")).await.expect("reads").expect("there");
    assert!(!found.strict);
    let changed = |since| fixture.store.campaigns_changed_since(at(since));
    assert_eq!(changed(10).await.expect("reads"), BTreeSet::from([campaign("a")]));
    assert_eq!(changed(11).await.expect("reads"), BTreeSet::new());
}
