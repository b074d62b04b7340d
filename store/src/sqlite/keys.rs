//! API keys and the log of what administrators did.

use std::collections::BTreeSet;

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, Transaction};
use twice_log::{CampaignId, UtcMillis};

use super::cursor::{self, fetch_limit};
use super::{SqliteStore, begin_write, billing, columns, database};
use crate::billing::Page;
use crate::error::{Error, Result};
use crate::keys::{AdminAction, ApiKey, CampaignSet, KeyStore, Scope, StoredKey, Tier};

const LIST_ACTIONS: &str = "admin-actions";

const INSERT_KEY: &str =
    "INSERT INTO api_keys (key_id, name, scopes_json, campaigns_json, tier, secret_sha256,
        created_at_ms, expires_at_ms, revoked_at_ms, last_used_at_ms)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key_id) DO NOTHING";

const INSERT_ACTION: &str = "INSERT INTO admin_actions (at_ms, key_id, address, request_id, action, status)
    VALUES (?, ?, ?, ?, ?, ?)";

#[async_trait]
impl KeyStore for SqliteStore {
    async fn create_key(&self, key: StoredKey) -> Result<()> {
        let StoredKey { key, secret_sha256 } = key;
        let campaigns = match &key.campaigns {
            CampaignSet::All => None,
            CampaignSet::Only(campaigns) => Some(json_of(campaigns)?),
        };
        let query = sqlx::query(INSERT_KEY)
            .bind(key.key_id.clone())
            .bind(key.name)
            .bind(json_of(&key.scopes)?)
            .bind(campaigns)
            .bind(tier_name(key.tier))
            .bind(secret_sha256.to_vec())
            .bind(key.created_at.epoch_ms())
            .bind(key.expires_at.map(UtcMillis::epoch_ms))
            .bind(key.revoked_at.map(UtcMillis::epoch_ms))
            .bind(key.last_used_at.map(UtcMillis::epoch_ms));
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        let done = query.execute(&mut *transaction).await.map_err(database("create a key"))?;
        if done.rows_affected() == 0 {
            return Err(Error::Conflict { reason: format!("key {} exists", key.key_id) });
        }
        transaction.commit().await.map_err(database("create a key"))
    }

    async fn keys(&self) -> Result<Vec<StoredKey>> {
        let mut transaction = self.begin_read().await?;
        let builder = QueryBuilder::<Sqlite>::new("SELECT * FROM api_keys ORDER BY created_at_ms, key_id");
        billing::fetch(builder, &mut transaction, "read keys", read_key).await
    }

    async fn revoke_key(&self, key_id: &str, at: UtcMillis) -> Result<ApiKey> {
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        sqlx::query("UPDATE api_keys SET revoked_at_ms = ? WHERE key_id = ? AND revoked_at_ms IS NULL")
            .bind(at.epoch_ms())
            .bind(key_id)
            .execute(&mut *transaction)
            .await
            .map_err(database("revoke a key"))?;
        let key = find_key(&mut transaction, key_id).await?;
        let key = key.ok_or_else(|| Error::NotFound { what: format!("key {key_id}") })?;
        transaction.commit().await.map_err(database("revoke a key"))?;
        Ok(key.key)
    }

    async fn note_uses(&self, uses: Vec<(String, UtcMillis)>) -> Result<()> {
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        for (key_id, at) in uses {
            sqlx::query(
                "UPDATE api_keys SET last_used_at_ms = max(coalesce(last_used_at_ms, ?1), ?1) WHERE key_id = ?2",
            )
            .bind(at.epoch_ms())
            .bind(key_id)
            .execute(&mut *transaction)
            .await
            .map_err(database("note uses of keys"))?;
        }
        transaction.commit().await.map_err(database("note uses of keys"))
    }

    async fn log_action(&self, action: AdminAction) -> Result<()> {
        let query = sqlx::query(INSERT_ACTION)
            .bind(action.at.epoch_ms())
            .bind(action.key_id)
            .bind(action.address)
            .bind(action.request_id)
            .bind(action.action)
            .bind(action.status.map(i64::from));
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        query.execute(&mut *transaction).await.map_err(database("log an action"))?;
        transaction.commit().await.map_err(database("log an action"))
    }

    async fn actions(&self, limit: u32, cursor: Option<String>) -> Result<Page<AdminAction>> {
        let before: Option<i64> = cursor::decode(LIST_ACTIONS, cursor.as_deref())?;
        let (limit, fetched) = fetch_limit(limit);
        let mut transaction = self.begin_read().await?;
        let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM admin_actions WHERE id < ");
        builder.push_bind(before.unwrap_or(i64::MAX)).push(" ORDER BY id DESC LIMIT ").push_bind(fetched);
        let rows = billing::fetch(builder, &mut transaction, "list actions", read_action).await?;
        let Page { rows, next_cursor } = cursor::page(rows, limit, LIST_ACTIONS, |(id, _)| *id)?;
        Ok(Page { rows: rows.into_iter().map(|(_, action)| action).collect(), next_cursor })
    }
}

async fn find_key(transaction: &mut Transaction<'_, Sqlite>, key_id: &str) -> Result<Option<StoredKey>> {
    let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM api_keys WHERE key_id = ");
    builder.push_bind(key_id.to_owned());
    Ok(billing::fetch(builder, transaction, "read a key", read_key).await?.pop())
}

fn read_key(row: &SqliteRow) -> Result<StoredKey> {
    let scopes: BTreeSet<Scope> =
        from_json(row, "scopes_json")?.ok_or_else(|| columns::damage("scopes_json", "is null"))?;
    let campaigns: Option<BTreeSet<CampaignId>> = from_json(row, "campaigns_json")?;
    let tier = [Tier::Standard, Tier::Premium]
        .into_iter()
        .find(|tier| columns::text(row, "tier").is_ok_and(|name| name == tier_name(*tier)));
    let secret: &[u8] =
        row.try_get("secret_sha256").map_err(|error| columns::damage("secret_sha256", error))?;
    let key = ApiKey {
        key_id: columns::text(row, "key_id")?.to_owned(),
        name: columns::text(row, "name")?.to_owned(),
        scopes,
        campaigns: campaigns.map_or(CampaignSet::All, CampaignSet::Only),
        tier: tier.ok_or_else(|| columns::damage("tier", "is no tier"))?,
        created_at: columns::millis(row, "created_at_ms")?,
        expires_at: millis_or_null(row, "expires_at_ms")?,
        revoked_at: millis_or_null(row, "revoked_at_ms")?,
        last_used_at: millis_or_null(row, "last_used_at_ms")?,
    };
    let secret_sha256 =
        secret.try_into().map_err(|_| columns::damage("secret_sha256", "is not 32 bytes long"))?;
    Ok(StoredKey { key, secret_sha256 })
}

fn read_action(row: &SqliteRow) -> Result<(i64, AdminAction)> {
    let status = columns::integer_or_null(row, "status")?.map(u16::try_from).transpose();
    let address: Option<&str> = row.try_get("address").map_err(|error| columns::damage("address", error))?;
    let action = AdminAction {
        at: columns::millis(row, "at_ms")?,
        key_id: columns::text(row, "key_id")?.to_owned(),
        address: address.map(str::to_owned),
        request_id: columns::text(row, "request_id")?.to_owned(),
        action: columns::text(row, "action")?.to_owned(),
        status: status.map_err(|_| columns::damage("status", "is out of range"))?,
    };
    Ok((columns::integer(row, "id")?, action))
}

fn millis_or_null(row: &SqliteRow, column: &str) -> Result<Option<UtcMillis>> {
    let value = columns::integer_or_null(row, column)?;
    value.map(UtcMillis::new).transpose().map_err(|error| columns::damage(column, error))
}

fn from_json<T: serde::de::DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<Option<T>> {
    let text: Option<&str> = row.try_get(column).map_err(|error| columns::damage(column, error))?;
    text.map(serde_json::from_str).transpose().map_err(|error| columns::damage(column, error))
}

fn json_of(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::Invalid { what: "key".to_owned(), reason: error.to_string() })
}

fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Standard => "standard",
        Tier::Premium => "premium",
    }
}
