//! A bounded store, whose file another process holds.

use std::time::{Duration, Instant};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};
use twice_log::breaker::BreakerState;

use super::*;
use crate::error::{Error, ErrorKind, Result};
use crate::imports::ImportStore;

/// Well below what a patient store waits, and well above what a slow machine needs.
const LIMIT: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);

async fn announce(store: &SqliteStore) -> Result<()> {
    let sha256 = Sha256Hex::of(b"an import");
    let hour = Hour::from_since_epoch(1);
    store.announce_import(vec![hour], sha256, UtcMillis::clamped(0)).await.map(|_| ())
}

#[tokio::test]
async fn a_held_write_lock_fails_writes_in_time_and_no_reads_until_it_is_free() {
    let fixture = Fixture::new().await;
    let bounded = fixture.store.bounded(LIMIT);
    let options = SqliteConnectOptions::new().filename(fixture.folder.path().join("twice.sqlite"));
    let mut other = SqliteConnection::connect_with(&options).await.expect("connects");
    let held = other.begin_with("BEGIN EXCLUSIVE").await.expect("locked");
    for _ in 0..3 {
        let error = announce(&bounded).await.expect_err("the lock is held");
        assert!(matches!(error, Error::Unanswered { .. }) && error.kind() == ErrorKind::Retry, "{error}");
    }
    assert_eq!(bounded.breakers()[1], ("billing-writes", BreakerState::Open));
    assert!(bounded.trouble().is_some_and(|trouble| trouble.contains("writes")));
    let error = announce(&bounded).await.expect_err("not even asked").to_string();
    assert!(error.contains("lately"), "{error}");
    assert!(bounded.is_announced(Hour::from_since_epoch(1)).await.is_ok(), "reads wait for no writer");
    assert_eq!(bounded.breakers()[0], ("billing-reads", BreakerState::Closed));

    held.rollback().await.expect("let go");
    let begun = Instant::now();
    while let Err(error) = announce(&bounded).await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(bounded.is_announced(Hour::from_since_epoch(1)).await.expect("reads"));
    assert_eq!(bounded.breakers()[1], ("billing-writes", BreakerState::Closed));
}

#[tokio::test]
async fn a_write_waits_for_another_of_ours_no_longer_than_its_bound() {
    let fixture = Fixture::new().await;
    let bounded = fixture.store.bounded(LIMIT);
    let turn = fixture.store.writer().await.expect("the writer");
    let error = announce(&bounded).await.expect_err("it is not its turn").to_string();
    assert!(error.contains("another write"), "{error}");
    drop(turn);
    announce(&bounded).await.expect("its turn");
}
