//! Modes: which path's rows are the bill of an hour.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, Transaction};
use twice_log::archive::BillingPath;
use twice_log::{Hour, UtcMillis};

use super::cursor::{self, fetch_limit};
use super::{SqliteStore, begin_write, billing, columns, database};
use crate::billing::{Page, UtcMicros};
use crate::error::Result;
use crate::modes::{HourMode, ModeSetting, ModeStore};

const LIST_HOUR_MODES: &str = "hour-modes";

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

/// Returns the path that is the bill of an hour; `None` before the hour's first commit.
pub(super) async fn fixed_mode(
    transaction: &mut Transaction<'_, Sqlite>,
    hour: Hour,
) -> Result<Option<BillingPath>> {
    let query =
        sqlx::query("SELECT path FROM hour_modes WHERE hour = ? ORDER BY committed_at_us DESC LIMIT 1");
    let row = query.bind(hour.since_epoch()).fetch_optional(&mut **transaction).await;
    row.map_err(database("read an hour's mode"))?.as_ref().map(columns::path).transpose()
}

/// Makes `path` the bill of the hour from a commit on.
pub(super) async fn write_hour_mode(
    transaction: &mut Transaction<'_, Sqlite>,
    hour: Hour,
    path: BillingPath,
    committed_at: UtcMicros,
) -> Result<()> {
    sqlx::query("INSERT INTO hour_modes (hour, committed_at_us, path) VALUES (?, ?, ?)")
        .bind(hour.since_epoch())
        .bind(committed_at.0)
        .bind(path.name())
        .execute(&mut **transaction)
        .await
        .map(|_| ())
        .map_err(database("fix an hour's mode"))
}

#[async_trait]
impl ModeStore for SqliteStore {
    async fn set_mode(&self, path: BillingPath, from: Hour, recorded_at: UtcMillis) -> Result<()> {
        let mut writer = self.writer().await?;
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

    async fn hour_modes(
        &self,
        from: Hour,
        to: Hour,
        limit: u32,
        cursor: Option<String>,
    ) -> Result<Page<HourMode>> {
        let before: Option<(i64, i64)> = cursor::decode(LIST_HOUR_MODES, cursor.as_deref())?;
        let (limit, fetched) = fetch_limit(limit);
        let mut transaction = self.begin_read().await?;
        let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM hour_modes WHERE hour >= ");
        builder.push_bind(from.since_epoch()).push(" AND (hour, committed_at_us) < (");
        let (hour, committed_at) = before.unwrap_or((to.since_epoch(), i64::MIN));
        builder.push_bind(hour).push(", ").push_bind(committed_at);
        builder.push(") ORDER BY hour DESC, committed_at_us DESC LIMIT ").push_bind(fetched);
        let rows = billing::fetch(builder, &mut transaction, "list modes of hours", |row| {
            Ok(HourMode {
                hour: columns::hour(row)?,
                path: columns::path(row)?,
                committed_at: columns::committed_at(row)?,
            })
        });
        cursor::page(rows.await?, limit, LIST_HOUR_MODES, |row| (row.hour.since_epoch(), row.committed_at.0))
    }
}
