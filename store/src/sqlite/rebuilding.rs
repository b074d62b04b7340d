//! What a rebuild of the store takes from elsewhere than the archive's runs: settings of the old file, and recorded rates.
//!
//! Guarantee: copying changes nothing of the old file, and adds nothing twice: a rebuild that was killed does it again.

use std::collections::BTreeMap;
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, QueryBuilder, Sqlite};
use twice_log::archive::Rate;
use twice_log::{CampaignId, Currency};

use super::insert::insert_rows;
use super::{SqliteStore, Writer, begin_write, database};
use crate::error::{Error, Result};

/// Tables that are copied and their columns, in an order in which every row finds what it refers to.
const COPIES: &[(&str, &str)] = &[
    ("campaigns", "campaign_id, name, currency"),
    ("rates", "campaign_id, effective_from_ms, recorded_at_ms, cpc_micros"),
    ("budgets", "campaign_id, recorded_at_ms, daily_budget_micros"),
    ("strictness", "campaign_id, recorded_at_ms, strict"),
    (
        "budget_decisions",
        "sequence, campaign_id, day, number, state, cause, spend_micros, budget_micros, decided_at_ms, generation, log_offset,
            event_time_ms",
    ),
    ("budget_published", "id, sequence"),
    ("imports", "import_id, sha256, announced_at_ms"),
    ("import_hours", "hour, import_id"),
    ("mode_settings", "id, from_hour, path, recorded_at_ms"),
    (
        "api_keys",
        "key_id, name, scopes_json, campaigns_json, tier, secret_sha256, created_at_ms, expires_at_ms, revoked_at_ms,
            last_used_at_ms",
    ),
    ("admin_actions", "id, at_ms, key_id, address, request_id, action, status"),
    ("limit_versions", "version, created_at_ms, created_by, note, share_percent, canary_ms"),
    ("limit_tiers", "version, tier, floor, ceiling, burst"),
    (
        "limit_outcomes",
        "version, outcome, at_ms, decided_by, detail, canary_requests, canary_over, rest_requests, rest_over",
    ),
];

impl SqliteStore {
    /// Copies campaigns with names, rates and budgets, imports, mode settings, keys and the log of actions from another
    /// file of this schema, or an earlier one, all of them or none.
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
        let mut writer = self.writer().await?;
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
        let mut writer = self.writer().await?;
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
        let mut writer = self.writer().await?;
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

async fn copy(writer: &mut Writer<'_>) -> Result<()> {
    let mut transaction = begin_write(writer).await?;
    let failed = database("copy settings of the old store");
    for (table, columns) in COPIES {
        // A file of an older build has fewer tables, and nothing to copy from those it lacks.
        let is_there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM old.sqlite_schema WHERE type = 'table' AND name = ?)",
        )
        .bind(table)
        .fetch_one(&mut *transaction)
        .await
        .map_err(&failed)?;
        if is_there {
            let mut copy = QueryBuilder::<Sqlite>::new("INSERT OR IGNORE INTO ");
            copy.push(table).push(" (").push(columns).push(") SELECT ").push(columns);
            copy.push(" FROM old.").push(table);
            copy.build().execute(&mut *transaction).await.map_err(&failed)?;
        }
    }
    transaction.commit().await.map_err(&failed)
}
