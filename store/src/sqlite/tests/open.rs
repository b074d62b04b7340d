use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

use super::*;
use crate::error::Error;
use crate::modes::ModeStore;

async fn open_with(options: SqliteConnectOptions, fixture: &Fixture) -> Error {
    let path = fixture.folder.path().join("twice.sqlite");
    let options = options.filename(&path);
    SqliteStore::open_with(&path, options, fixture.clock.clone()).await.expect_err("is refused")
}

fn advice(error: &Error) -> &str {
    match error {
        Error::Open { advice, .. } => advice,
        other => panic!("{other} carries no advice"),
    }
}

#[tokio::test]
async fn every_connection_runs_with_the_settings_that_make_commits_durable() {
    let fixture = Fixture::new().await;
    let mut writer = fixture.store.writer().await.expect("the writer");
    for (pragma, expected) in
        [("PRAGMA synchronous", 2), ("PRAGMA foreign_keys", 1), ("PRAGMA busy_timeout", 10_000)]
    {
        let value: i64 = sqlx::query_scalar(pragma).fetch_one(&mut *writer).await.expect("reads");
        assert_eq!(value, expected, "{pragma}");
    }
    let journal: String =
        sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *writer).await.expect("reads");
    assert_eq!(journal, "wal");
    let write = sqlx::query("DELETE FROM runs").execute(&fixture.store.readers).await;
    assert!(write.is_err(), "a reader must not write");
}

#[tokio::test]
async fn weaker_settings_are_refused_with_advice() {
    let fixture = Fixture::new().await;
    let normal = SqliteConnectOptions::new()
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal);
    assert!(advice(&open_with(normal, &fixture).await).contains("synchronous 1"));
    let fixture = fixture.reopen().await;
    fixture.store.close().await;
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("twice.sqlite");
    let delete = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Delete)
        .synchronous(SqliteSynchronous::Full);
    let refused = SqliteStore::open_with(&path, delete, fixture.clock.clone()).await.expect_err("is refused");
    assert!(advice(&refused).contains("journal_mode delete"));
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_refused_at_open() {
    let fixture = Fixture::new().await.reopen().await;
    let read_only = SqliteConnectOptions::new().read_only(true).synchronous(SqliteSynchronous::Full);
    let refused = open_with(read_only, &fixture).await;
    assert!(advice(&refused).contains("read-only"), "{refused}: {:?}", std::error::Error::source(&refused));
}

#[tokio::test]
async fn a_missing_folder_and_a_file_that_is_no_database_are_refused_with_advice() {
    let fixture = Fixture::new().await;
    let missing = fixture.folder.path().join("nowhere").join("twice.sqlite");
    let refused = SqliteStore::open(&missing, fixture.clock.clone()).await.expect_err("has no folder");
    assert!(advice(&refused).contains("folder does not exist"), "{refused}");
    let other = fixture.folder.path().join("other");
    std::fs::write(&other, "no database at all, and long enough to look like one\n".repeat(90))
        .expect("writes");
    let refused = SqliteStore::open(&other, fixture.clock.clone()).await.expect_err("is no database");
    assert!(advice(&refused).contains("no SQLite file"), "{refused}");
}

#[tokio::test]
async fn a_schema_of_a_newer_build_is_refused() {
    let fixture = Fixture::new().await;
    {
        let mut writer = fixture.store.writer().await.expect("the writer");
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'later', TRUE, x'00', 0)",
        )
        .execute(&mut *writer)
        .await
        .expect("writes");
    }
    let path = fixture.folder.path().join("twice.sqlite");
    let refused = SqliteStore::open(&path, fixture.clock.clone()).await.expect_err("is newer");
    assert!(matches!(refused, Error::Migration(_)));
}

#[tokio::test]
async fn a_reader_beside_the_writer_sees_its_commits_and_writes_nothing() {
    let fixture = Fixture::new().await;
    let path = fixture.folder.path().join("twice.sqlite");
    let reader = SqliteStore::open_read_only(&path, fixture.clock.clone()).await.expect("opens");
    let (hour, now) = (noon(), fixture.clock.now());
    fixture.store.set_mode(BillingPath::Kappa, hour, now).await.expect("the writer goes on");
    assert_eq!(reader.mode(hour).await.expect("reads"), BillingPath::Kappa);
    reader.set_mode(BillingPath::Lambda, hour, now).await.expect_err("is refused");
    let rate = twice_log::archive::Rate {
        campaign_id: CampaignId::new("a").expect("valid id"),
        currency: "EUR".parse().expect("valid currency"),
        cpc_micros: 1,
        effective_from: now,
        recorded_at: now,
    };
    reader.restore_rates(&[rate]).await.expect_err("is refused");
    assert_eq!(fixture.store.mode(hour).await.expect("reads"), BillingPath::Kappa);
}

#[tokio::test]
async fn a_reader_makes_no_file_and_refuses_the_schema_of_another_build() {
    let fixture = Fixture::new().await;
    let absent = fixture.folder.path().join("absent.sqlite");
    let error = SqliteStore::open_read_only(&absent, fixture.clock.clone()).await.expect_err("is refused");
    assert!(advice(&error).contains("does not exist") && !absent.exists());
    let path = fixture.folder.path().join("twice.sqlite");
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (999, 'of a later build', 1, x'00', 0)";
    let mut writer = fixture.store.writer().await.expect("the writer");
    sqlx::query(newer).execute(&mut *writer).await.expect("inserted");
    drop(writer);
    let error = SqliteStore::open_read_only(&path, fixture.clock.clone()).await.expect_err("is refused");
    assert!(advice(&error).contains("version 999"));
}
