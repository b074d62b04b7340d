use super::*;
use crate::error::Error;
use crate::keys::{AdminAction, ApiKey, CampaignSet, KeyStore, Scope, StoredKey, Tier};

fn key(id: &str) -> StoredKey {
    StoredKey {
        key: ApiKey {
            key_id: id.to_owned(),
            name: format!("key {id}"),
            scopes: [Scope::Ingest, Scope::Query].into(),
            campaigns: CampaignSet::Only([campaign("a"), campaign("\"'=b\\")].into()),
            tier: Tier::Premium,
            created_at: UtcMillis::clamped(NOON_MS),
            expires_at: Some(UtcMillis::clamped(NOON_MS + 5_000)),
            revoked_at: None,
            last_used_at: None,
        },
        secret_sha256: [7; 32],
    }
}

fn at(ms: i64) -> UtcMillis {
    UtcMillis::clamped(NOON_MS + ms)
}

fn action(request_id: &str, status: Option<u16>) -> AdminAction {
    AdminAction {
        at: at(0),
        key_id: "k".to_owned(),
        address: Some("192.0.2.1".to_owned()),
        request_id: request_id.to_owned(),
        action: "PUT /v1/mode".to_owned(),
        status,
    }
}

#[tokio::test]
async fn keys_read_back_as_they_were_created_after_a_restart() {
    let fixture = Fixture::new().await;
    let mut everything = key("b");
    everything.key.campaigns = CampaignSet::All;
    everything.key.scopes = [Scope::Admin].into();
    everything.key.tier = Tier::Standard;
    everything.key.expires_at = None;
    fixture.store.create_key(key("a")).await.expect("creates");
    fixture.store.create_key(everything.clone()).await.expect("creates");
    let taken = fixture.store.create_key(key("a")).await.expect_err("is taken");
    assert!(matches!(taken, Error::Conflict { .. }));
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store.keys().await.expect("reads"), [key("a"), everything]);
}

#[tokio::test]
async fn a_key_revoked_again_keeps_its_first_moment_and_stays_listed() {
    let fixture = Fixture::new().await;
    fixture.store.create_key(key("a")).await.expect("creates");
    let first = fixture.store.revoke_key("a", at(1)).await.expect("revokes");
    let again = fixture.store.revoke_key("a", at(9)).await.expect("revokes");
    assert_eq!((first.revoked_at, again.revoked_at), (Some(at(1)), Some(at(1))));
    assert_eq!(fixture.store.keys().await.expect("reads")[0].key.revoked_at, Some(at(1)));
    let unknown = fixture.store.revoke_key("b", at(1)).await.expect_err("is unknown");
    assert!(matches!(unknown, Error::NotFound { .. }));
}

#[tokio::test]
async fn the_last_use_never_goes_back() {
    let fixture = Fixture::new().await;
    fixture.store.create_key(key("a")).await.expect("creates");
    for (used, stored) in [(5, 5), (3, 5), (8, 8)] {
        let uses = vec![("a".to_owned(), at(used)), ("unknown".to_owned(), at(used))];
        fixture.store.note_uses(uses).await.expect("notes");
        assert_eq!(fixture.store.keys().await.expect("reads")[0].key.last_used_at, Some(at(stored)));
    }
}

#[tokio::test]
async fn actions_are_listed_newest_first_page_by_page_and_cannot_be_changed() {
    let fixture = Fixture::new().await;
    for number in 0..5 {
        fixture.store.log_action(action(&number.to_string(), Some(200))).await.expect("logs");
    }
    fixture.store.log_action(action("asked", None)).await.expect("logs");
    let first = fixture.store.actions(4, None).await.expect("lists");
    let rest = fixture.store.actions(4, first.next_cursor).await.expect("lists");
    let ids: Vec<_> = first.rows.iter().chain(&rest.rows).map(|action| action.request_id.as_str()).collect();
    assert_eq!(ids, ["asked", "4", "3", "2", "1", "0"]);
    assert_eq!((first.rows[0].clone(), rest.next_cursor), (action("asked", None), None));
    let mut writer = fixture.store.writer().await.expect("the writer");
    for change in
        ["DELETE FROM admin_actions", "UPDATE admin_actions SET status = 200", "DELETE FROM api_keys"]
    {
        sqlx::query("INSERT OR IGNORE INTO api_keys VALUES ('z', 'z', '[]', NULL, 'standard', zeroblob(32), 0, 0, 0, 0)")
            .execute(&mut *writer)
            .await
            .expect("a key");
        sqlx::query(change).execute(&mut *writer).await.expect_err("is refused");
    }
}

#[tokio::test]
async fn a_rebuilt_store_has_the_keys_and_the_log_of_actions() {
    let old = Fixture::new().await;
    old.store.create_key(key("a")).await.expect("creates");
    old.store.revoke_key("a", at(1)).await.expect("revokes");
    old.store.create_key(key("b")).await.expect("creates");
    old.store.log_action(action("one", Some(403))).await.expect("logs");
    let new = Fixture::new().await;
    for _again in 0..2 {
        new.store.copy_settings(&old.folder.path().join("twice.sqlite")).await.expect("copies");
    }
    assert_eq!(new.store.keys().await.expect("reads"), old.store.keys().await.expect("reads"));
    assert_eq!(new.store.actions(9, None).await.expect("lists").rows, [action("one", Some(403))]);
}

#[tokio::test]
async fn a_rebuild_takes_what_a_file_of_an_older_build_has() {
    let old = Fixture::new().await;
    for table in ["api_keys", "admin_actions"] {
        let mut writer = old.store.writer().await.expect("the writer");
        let drop = sqlx::AssertSqlSafe(format!("DROP TABLE {table}"));
        sqlx::query(drop).execute(&mut *writer).await.expect("drops");
    }
    let new = Fixture::new().await;
    new.store.create_key(key("a")).await.expect("creates");
    new.store.copy_settings(&old.folder.path().join("twice.sqlite")).await.expect("copies");
    assert_eq!(new.store.keys().await.expect("reads"), [key("a")]);
}
