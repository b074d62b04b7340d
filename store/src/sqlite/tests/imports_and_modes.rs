use super::*;
use crate::error::Error;
use crate::imports::ImportStore;
use crate::modes::ModeStore;

#[tokio::test]
async fn an_import_announced_again_is_the_first_announcement() {
    let fixture = Fixture::new().await;
    let sha256 = Sha256Hex::of(b"file");
    let hours = vec![noon().plus(2), noon(), noon()];
    let first =
        fixture.store.announce_import(hours, sha256.clone(), fixture.clock.now()).await.expect("announces");
    assert_eq!(first.hours, [noon(), noon().plus(2)]);
    fixture.clock.advance(5_000);
    let hours = vec![noon(), noon().plus(2)];
    let again =
        fixture.store.announce_import(hours.clone(), sha256, fixture.clock.now()).await.expect("announces");
    assert_eq!(again, first);
    assert_eq!(fixture.store.import(&first.import_id).await.expect("reads"), Some(first.clone()));
    let other = fixture.store.announce_import(hours, Sha256Hex::of(b"other"), fixture.clock.now()).await;
    assert_ne!(other.expect("announces").import_id, first.import_id);
    assert_eq!(fixture.store.import("none").await.expect("reads"), None);
}

#[tokio::test]
async fn announced_hours_are_known_and_others_are_not() {
    let fixture = Fixture::new().await;
    let hours = vec![noon(), noon().plus(2)];
    fixture
        .store
        .announce_import(hours, Sha256Hex::of(b"file"), fixture.clock.now())
        .await
        .expect("announces");
    for (hour, announced) in [(noon(), true), (noon().plus(1), false), (noon().plus(2), true)] {
        assert_eq!(fixture.store.is_announced(hour).await.expect("reads"), announced);
    }
    let refused =
        fixture.store.announce_import(Vec::new(), Sha256Hex::of(b"file"), fixture.clock.now()).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })));
}

#[tokio::test]
async fn the_mode_set_last_counts_for_hours_not_yet_billed() {
    let fixture = Fixture::new().await;
    let mode = |hours: i64| fixture.store.mode(noon().plus(hours));
    assert_eq!(mode(0).await.expect("reads"), BillingPath::Lambda);
    let now = fixture.clock.now();
    fixture.store.set_mode(BillingPath::Kappa, noon().plus(5), now).await.expect("sets");
    assert_eq!(mode(4).await.expect("reads"), BillingPath::Lambda);
    assert_eq!(mode(5).await.expect("reads"), BillingPath::Kappa);
    fixture.store.set_mode(BillingPath::Lambda, noon().plus(3), now).await.expect("sets");
    assert_eq!(mode(9).await.expect("reads"), BillingPath::Lambda);
    assert_eq!(fixture.store.mode_settings().await.expect("reads").len(), 2);
}

#[tokio::test]
async fn the_first_commit_of_an_hour_fixes_its_mode() {
    let fixture = Fixture::new().await;
    let now = fixture.clock.now();
    fixture.store.set_mode(BillingPath::Kappa, noon(), now).await.expect("sets");
    let kappa = fixture.commit(moved(run(1, &[("a", 10)]), BillingPath::Kappa, noon())).await;
    assert_eq!(kappa.mode, BillingPath::Kappa);
    // A setting made later does not touch the hour, nor does the path that runs beside the bill.
    fixture.store.set_mode(BillingPath::Lambda, noon().plus(-5), now).await.expect("sets");
    let lambda = fixture.commit(run(1, &[("a", 10)])).await;
    assert_eq!(lambda.mode, BillingPath::Kappa);
    assert_eq!(fixture.store.mode(noon()).await.expect("reads"), BillingPath::Kappa);
    assert_eq!(fixture.rows(&at_noon()).await, kappa.rows);
    let billed = |path| fixture.store.billed_hours(path, noon(), noon().plus(1));
    assert_eq!(billed(Some(BillingPath::Lambda)).await.expect("lists"), [noon()]);
    assert_eq!(billed(None).await.expect("lists"), [noon()]);
}
