//! What a rebuild of the store takes from elsewhere than the archive's runs: settings of the old file, and recorded rates.
//!
//! Guarantee: copying changes nothing of the old file, and adds nothing twice: a rebuild that was killed does it again.

use std::collections::BTreeMap;
use std::path::Path;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnectOptions;
use twice_log::archive::Rate;
use twice_log::{CampaignId, Currency};

use super::insert::insert_rows;
use super::{SqliteStore, begin_write, database};
use crate::error::{Error, Result};

/// What is copied, in an order in which every row finds what it refers to.
const COPIES: [&str; 6] = [
    "INSERT OR IGNORE INTO campaigns (campaign_id, name, currency)
        SELECT campaign_id, name, currency FROM old.campaigns",
    "INSERT OR IGNORE INTO rates (campaign_id, effective_from_ms, recorded_at_ms, cpc_micros)
        SELECT campaign_id, effective_from_ms, recorded_at_ms, cpc_micros FROM old.rates",
    "INSERT OR IGNORE INTO budgets (campaign_id, recorded_at_ms, daily_budget_micros)
        SELECT campaign_id, recorded_at_ms, daily_budget_micros FROM old.budgets",
    "INSERT OR IGNORE INTO imports (import_id, sha256, announced_at_ms)
        SELECT import_id, sha256, announced_at_ms FROM old.imports",
    "INSERT OR IGNORE INTO import_hours (hour, import_id) SELECT hour, import_id FROM old.import_hours",
    "INSERT OR IGNORE INTO mode_settings (id, from_hour, path, recorded_at_ms)
        SELECT id, from_hour, path, recorded_at_ms FROM old.mode_settings",
];

impl SqliteStore {
    /// Copies campaigns with names, rates and budgets, imports and mode settings from another file of this schema, all
    /// of them or none.
    ///
    /// # Errors
    /// `Open` if the old file cannot be read; `Database` if it does not hold what it must.
    pub async fn copy_settings(&self, old: &Path) -> Result<()> {
        // Opened by itself first: attaching would create a file that is not there.
        let options = SqliteConnectOptions::new().filename(old).read_only(true);
        let refuse = |error: sqlx::Error| Error::Open {
            path: old.to_owned(),
            advice: "nothing of it can be copied".to_owned(),
            source: Some(Box::new(error)),
        };
        let mut reader = sqlx::SqliteConnection::connect_with(&options).await.map_err(refuse)?;
        let intact: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut reader).await.map_err(refuse)?;
        reader.close().await.map_err(refuse)?;
        if intact != "ok" {
            let reason = format!("SQLite's check of {} says: {intact}", old.display());
            return Err(Error::Damage { what: "old billing store".to_owned(), reason });
        }
        let mut writer = self.writer().await;
        sqlx::query("ATTACH DATABASE ? AS old")
            .bind(old.to_string_lossy().into_owned())
            .execute(&mut *writer)
            .await
            .map_err(refuse)?;
        let copied = copy(&mut writer).await;
        let detached = sqlx::query("DETACH DATABASE old").execute(&mut *writer).await;
        copied?;
        detached.map(|_| ()).map_err(database("let go of the old store"))
    }

    /// Adds rates that are not recorded, and their campaigns: named by their ids, as their names are in no archive.
    ///
    /// # Errors
    /// `Conflict` if a campaign is recorded in another currency.
    pub async fn restore_rates(&self, rates: &[Rate]) -> Result<()> {
        let campaigns: BTreeMap<&CampaignId, Currency> =
            rates.iter().map(|rate| (&rate.campaign_id, rate.currency)).collect();
        let campaigns: Vec<(&CampaignId, Currency)> = campaigns.into_iter().collect();
        let mut writer = self.writer().await;
        let mut transaction = begin_write(&mut writer).await?;
        let head = "INSERT OR IGNORE INTO campaigns (campaign_id, name, currency) ";
        insert_rows(
            &mut transaction,
            "restore campaigns",
            (head, ""),
            &campaigns,
            |columns, (id, currency)| {
                columns.push_bind(id.as_str().to_owned());
                columns.push_bind(id.as_str().to_owned());
                columns.push_bind(currency.as_str().to_owned());
            },
        )
        .await?;
        let head =
            "INSERT OR IGNORE INTO rates (campaign_id, effective_from_ms, recorded_at_ms, cpc_micros) ";
        insert_rows(&mut transaction, "restore rates", (head, ""), rates, |columns, rate| {
            columns.push_bind(rate.campaign_id.as_str().to_owned());
            columns.push_bind(rate.effective_from.epoch_ms());
            columns.push_bind(rate.recorded_at.epoch_ms());
            columns.push_bind(rate.cpc_micros);
        })
        .await?;
        transaction.commit().await.map_err(database("restore rates"))
    }

    /// Writes everything into the file itself and closes it, so that it can be moved as one.
    ///
    /// # Errors
    /// `Database` if the file is in use elsewhere.
    pub async fn close_whole(&self) -> Result<()> {
        self.readers.close().await;
        let mut writer = self.writer().await;
        let busy: i64 = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&mut *writer)
            .await
            .map_err(database("write the log of changes into the file"))?;
        if busy != 0 {
            let reason = "the file is in use elsewhere, so it cannot be written out whole".to_owned();
            return Err(Error::Conflict { reason });
        }
        Ok(())
    }
}

async fn copy(writer: &mut sqlx::SqliteConnection) -> Result<()> {
    let mut transaction = begin_write(writer).await?;
    for statement in COPIES {
        sqlx::query(statement)
            .execute(&mut *transaction)
            .await
            .map_err(database("copy settings of the old store"))?;
    }
    transaction.commit().await.map_err(database("copy settings of the old store"))
}
