//! Announced imports.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, Transaction};
use twice_log::event::Sha256Hex;
use twice_log::{Hour, UtcMillis};
use uuid::Uuid;

use super::insert::insert_rows;
use super::{SqliteStore, begin_write, billing, columns, database};
use crate::error::{Error, Result};
use crate::imports::{Import, ImportStore};

#[async_trait]
impl ImportStore for SqliteStore {
    async fn announce_import(
        &self,
        mut hours: Vec<Hour>,
        sha256: Sha256Hex,
        at: UtcMillis,
    ) -> Result<Import> {
        hours.sort_unstable();
        hours.dedup();
        if hours.is_empty() {
            return Err(Error::Invalid { what: "import".to_owned(), reason: "it names no hour".to_owned() });
        }
        let import_id = import_id(&hours, &sha256);
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        if let Some(first) = read_import(&mut transaction, &import_id).await? {
            return Ok(first);
        }
        sqlx::query("INSERT INTO imports (import_id, sha256, announced_at_ms) VALUES (?, ?, ?)")
            .bind(&import_id)
            .bind(&sha256.0)
            .bind(at.epoch_ms())
            .execute(&mut *transaction)
            .await
            .map_err(database("announce an import"))?;
        let head = "INSERT INTO import_hours (hour, import_id) ";
        insert_rows(&mut transaction, "announce an import", (head, ""), &hours, |row_columns, hour| {
            row_columns.push_bind(hour.since_epoch());
            row_columns.push_bind(import_id.clone());
        })
        .await?;
        transaction.commit().await.map_err(database("announce an import"))?;
        Ok(Import { import_id, hours, sha256, announced_at: at })
    }

    async fn import(&self, import_id: &str) -> Result<Option<Import>> {
        let mut transaction = self.begin_read().await?;
        read_import(&mut transaction, import_id).await
    }

    async fn is_announced(&self, hour: Hour) -> Result<bool> {
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM import_hours WHERE hour = ?)")
            .bind(hour.since_epoch())
            .fetch_one(&self.readers)
            .await
            .map_err(database("look for an announced hour"))
    }
}

/// Derives the id from file and hours, so that the same announcement has the same id in any store.
fn import_id(hours: &[Hour], sha256: &Sha256Hex) -> String {
    let mut name = format!("import:{sha256}");
    hours.iter().for_each(|hour| name.push_str(&format!(":{hour}")));
    Uuid::new_v5(&twice_log::event::namespace_click(), name.as_bytes()).to_string()
}

async fn read_import(transaction: &mut Transaction<'_, Sqlite>, import_id: &str) -> Result<Option<Import>> {
    let query = sqlx::query("SELECT * FROM imports WHERE import_id = ?").bind(import_id);
    let row = query.fetch_optional(&mut **transaction).await.map_err(database("read an import"))?;
    let Some(row) = row else { return Ok(None) };
    let mut builder = QueryBuilder::<Sqlite>::new("SELECT hour FROM import_hours WHERE import_id = ");
    builder.push_bind(import_id.to_owned()).push(" ORDER BY hour");
    let hours = billing::fetch(builder, transaction, "read an import's hours", columns::hour).await?;
    Ok(Some(Import {
        import_id: import_id.to_owned(),
        hours,
        sha256: Sha256Hex(columns::text(&row, "sha256")?.to_owned()),
        announced_at: columns::millis(&row, "announced_at_ms")?,
    }))
}
