//! Modes: which path's rows are the bill of an hour.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, Transaction};
use twice_log::archive::BillingPath;
use twice_log::{Hour, UtcMillis};

use super::{SqliteStore, begin_write, billing, columns, database};
use crate::error::Result;
use crate::modes::{ModeSetting, ModeStore};

/// The mode fixed for a billed hour by a moment, else the one set last for it.
const MODE_AT: &str = "SELECT coalesce(
    (SELECT path FROM hour_modes WHERE hour = ?1 AND committed_at_us <= ?2 ORDER BY committed_at_us DESC LIMIT 1),
    (SELECT path FROM mode_settings WHERE from_hour <= ?1 ORDER BY id DESC LIMIT 1),
    'lambda') AS path";

/// Returns the path in force of an hour at the moment `seen_to` (microseconds).
pub(super) async fn mode_at(
    transaction: &mut Transaction<'_, Sqlite>,
    hour: Hour,
    seen_to: i64,
) -> Result<BillingPath> {
    let query = sqlx::query(MODE_AT).bind(hour.since_epoch()).bind(seen_to);
    columns::path(&query.fetch_one(&mut **transaction).await.map_err(database("read an hour's mode"))?)
}

#[async_trait]
impl ModeStore for SqliteStore {
    async fn set_mode(&self, path: BillingPath, from: Hour, recorded_at: UtcMillis) -> Result<()> {
        let mut writer = self.writer().await;
        let mut transaction = begin_write(&mut writer).await?;
        sqlx::query("INSERT INTO mode_settings (from_hour, path, recorded_at_ms) VALUES (?, ?, ?)")
            .bind(from.since_epoch())
            .bind(path.name())
            .bind(recorded_at.epoch_ms())
            .execute(&mut *transaction)
            .await
            .map_err(database("set the mode"))?;
        transaction.commit().await.map_err(database("set the mode"))
    }

    async fn mode_settings(&self) -> Result<Vec<ModeSetting>> {
        let mut transaction = self.begin_read().await?;
        let builder = QueryBuilder::<Sqlite>::new("SELECT * FROM mode_settings ORDER BY id");
        billing::fetch(builder, &mut transaction, "read mode settings", |row| {
            Ok(ModeSetting {
                from: Hour::from_since_epoch(columns::integer(row, "from_hour")?),
                path: columns::path(row)?,
                recorded_at: columns::millis(row, "recorded_at_ms")?,
            })
        })
        .await
    }
}
