use std::collections::BTreeMap;

use super::*;
use crate::error::Error;
use crate::keys::Tier;
use crate::limits::{
    LimitCounts, LimitEnd, LimitFigures, LimitOutcome, LimitStore, NewLimits, TierLimits, built_in_limits,
};

fn limits(floor: u32) -> TierLimits {
    TierLimits { floor, ceiling: floor * 2, burst: floor * 3 }
}

fn new(fixture: &Fixture, floor: u32) -> NewLimits {
    NewLimits {
        tiers: BTreeMap::from([(Tier::Standard, limits(floor))]),
        created_at: fixture.clock.now(),
        created_by: "key1".to_owned(),
        note: format!("floor {floor}"),
        share_percent: 5,
        canary_ms: 600_000,
    }
}

fn end(fixture: &Fixture, version: u32, outcome: LimitOutcome) -> LimitEnd {
    let figures = LimitFigures {
        canary: LimitCounts { requests: 200, over: 20 },
        rest: LimitCounts { requests: 9_000, over: 1 },
    };
    let (at, decided_by) = (fixture.clock.now(), String::new());
    LimitEnd { version, outcome, at, decided_by, detail: "tested".to_owned(), figures }
}

#[tokio::test]
async fn the_built_in_limits_are_in_force_until_a_version_is_promoted() {
    let fixture = Fixture::new().await;
    let state = fixture.store.limit_state().await.expect("reads");
    assert_eq!((state.in_force.version, &state.in_force.tiers, state.canary), (0, &built_in_limits(), None));
    let put = fixture.store.put_limits(new(&fixture, 7)).await.expect("puts");
    assert_eq!(put.in_force.version, 0);
    let canary = put.canary.clone().expect("a canary");
    assert_eq!((canary.version, canary.tiers[&Tier::Standard]), (1, limits(7)));
    assert_eq!(canary.tiers[&Tier::Premium], built_in_limits()[&Tier::Premium], "a tier left out stays");

    // A death right after the put, or in mid-canary, changes nothing of it.
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store.limit_state().await.expect("reads"), put);
    let promoted = fixture.store.end_canary(end(&fixture, 1, LimitOutcome::Promoted)).await.expect("ends");
    assert_eq!((promoted.in_force, promoted.canary), (canary, None));
}

#[tokio::test]
async fn one_canary_at_a_time_and_each_ends_once() {
    let fixture = Fixture::new().await;
    fixture.store.put_limits(new(&fixture, 7)).await.expect("puts");
    let second = fixture.store.put_limits(new(&fixture, 8)).await;
    assert!(matches!(second, Err(Error::Conflict { .. })), "{second:?}");
    let other = fixture.store.end_canary(end(&fixture, 2, LimitOutcome::Promoted)).await;
    assert!(matches!(other, Err(Error::Conflict { .. })), "{other:?}");
    let state =
        fixture.store.end_canary(end(&fixture, 1, LimitOutcome::RolledBack)).await.expect("rolls back");
    assert_eq!((state.in_force.version, state.canary), (0, None));
    let again = fixture.store.end_canary(end(&fixture, 1, LimitOutcome::Promoted)).await;
    assert!(matches!(again, Err(Error::Conflict { .. })), "{again:?}");
    let state = fixture.store.put_limits(new(&fixture, 8)).await.expect("puts");
    assert_eq!(state.canary.expect("a canary").version, 2, "no number is given twice");
}

#[tokio::test]
async fn a_revert_takes_back_the_canary_first_and_then_version_by_version() {
    let fixture = Fixture::new().await;
    for version in 1..=2 {
        fixture.store.put_limits(new(&fixture, version)).await.expect("puts");
        fixture.store.end_canary(end(&fixture, version, LimitOutcome::Promoted)).await.expect("promotes");
    }
    fixture.store.put_limits(new(&fixture, 3)).await.expect("puts");
    let revert = |version| fixture.store.revert_limits(end(&fixture, version, LimitOutcome::Reverted));
    let wrong = revert(2).await;
    assert!(matches!(wrong, Err(Error::Conflict { .. })), "the canary goes first: {wrong:?}");
    for (version, in_force) in [(3, 2), (2, 1), (1, 0)] {
        let state = revert(version).await.expect("reverts");
        assert_eq!((state.in_force.version, state.canary), (in_force, None));
    }
    let nothing = revert(0).await;
    assert!(matches!(nothing, Err(Error::Conflict { .. })), "{nothing:?}");
}

#[tokio::test]
async fn what_became_of_each_version_stays_readable_page_by_page() {
    let fixture = Fixture::new().await;
    fixture.store.put_limits(new(&fixture, 1)).await.expect("puts");
    fixture.store.end_canary(end(&fixture, 1, LimitOutcome::Promoted)).await.expect("promotes");
    // A clock put back does not turn the order of the ends.
    fixture.clock.advance(-60_000);
    fixture.store.revert_limits(end(&fixture, 1, LimitOutcome::Reverted)).await.expect("reverts");
    fixture.store.put_limits(new(&fixture, 2)).await.expect("puts");
    let first = fixture.store.limit_versions(1, None).await.expect("lists");
    assert_eq!((first.rows[0].version.version, first.rows[0].ends.len()), (2, 0));
    let second = fixture.store.limit_versions(1, first.next_cursor).await.expect("lists");
    let outcomes: Vec<LimitOutcome> = second.rows[0].ends.iter().map(|end| end.outcome).collect();
    assert_eq!(outcomes, [LimitOutcome::Promoted, LimitOutcome::Reverted]);
    assert_eq!(second.rows[0].ends[0].figures.canary.over, 20);
    assert_eq!((second.rows[0].version.note.as_str(), second.next_cursor), ("floor 1", None));
}

#[tokio::test]
async fn limits_out_of_bounds_are_not_stored() {
    let fixture = Fixture::new().await;
    let bad = NewLimits {
        tiers: BTreeMap::from([(Tier::Premium, TierLimits { floor: 9, ceiling: 3, burst: 1 })]),
        ..new(&fixture, 1)
    };
    let refused = fixture.store.put_limits(bad).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    assert!(fixture.store.limit_versions(10, None).await.expect("lists").rows.is_empty());
}

#[tokio::test]
async fn a_rebuilt_store_has_the_limits_of_the_old_one() {
    let fixture = Fixture::new().await;
    fixture.store.put_limits(new(&fixture, 7)).await.expect("puts");
    fixture.store.end_canary(end(&fixture, 1, LimitOutcome::Promoted)).await.expect("promotes");
    let state = fixture.store.put_limits(new(&fixture, 8)).await.expect("puts");
    let rebuilt = fixture.folder.path().join("rebuilt.sqlite");
    let rebuilt = SqliteStore::open(&rebuilt, fixture.clock.clone()).await.expect("opens");
    let old = fixture.folder.path().join("twice.sqlite");
    for _ in 0..2 {
        rebuilt.copy_settings(&old).await.expect("copies");
        assert_eq!(rebuilt.limit_state().await.expect("reads"), state);
    }
}
