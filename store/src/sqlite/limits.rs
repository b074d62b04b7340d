//! Versions of the rate limits, and what became of each.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::cursor::{self, fetch_limit};
use super::{SqliteStore, begin_write, billing, columns, database};
use crate::billing::Page;
use crate::error::{Error, Result};
use crate::keys::Tier;
use crate::limits::{
    LimitCounts, LimitEnd, LimitFigures, LimitHistory, LimitOutcome, LimitState, LimitStore, LimitVersion,
    NewLimits, TierLimits, Tiers,
};

const LIST_LIMITS: &str = "limits";

const IN_FORCE: &str = "SELECT v.* FROM limit_versions AS v
    JOIN limit_outcomes AS p ON p.version = v.version AND p.outcome = 'promoted'
    WHERE NOT EXISTS (SELECT 1 FROM limit_outcomes AS r WHERE r.version = v.version AND r.outcome = 'reverted')
    ORDER BY v.version DESC LIMIT 1";

const IN_CANARY: &str = "SELECT v.* FROM limit_versions AS v
    WHERE NOT EXISTS (SELECT 1 FROM limit_outcomes AS o WHERE o.version = v.version)
    ORDER BY v.version DESC LIMIT 1";

#[async_trait]
impl LimitStore for SqliteStore {
    async fn limit_state(&self) -> Result<LimitState> {
        let mut transaction = self.begin_read().await?;
        read_state(&mut transaction).await
    }

    async fn put_limits(&self, new: NewLimits) -> Result<LimitState> {
        for (tier, limits) in &new.tiers {
            let refuse = |reason| Error::Invalid { what: format!("limits of {}", tier_name(*tier)), reason };
            limits.validate().map_err(refuse)?;
        }
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        let state = read_state(&mut transaction).await?;
        if let Some(canary) = &state.canary {
            return Err(Error::Conflict {
                reason: format!(
                    "version {} is in its canary; wait for its end, or revert it",
                    canary.version
                ),
            });
        }
        let last: i64 = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM limit_versions")
            .fetch_one(&mut *transaction)
            .await
            .map_err(database("number the limits"))?;
        insert_version(&mut transaction, last + 1, &new).await?;
        let mut tiers = state.in_force.tiers;
        tiers.extend(&new.tiers);
        for (tier, limits) in &tiers {
            insert_tier(&mut transaction, last + 1, *tier, limits).await?;
        }
        let state = read_state(&mut transaction).await?;
        transaction.commit().await.map_err(database("put limits"))?;
        Ok(state)
    }

    async fn end_canary(&self, end: LimitEnd) -> Result<LimitState> {
        if end.outcome == LimitOutcome::Reverted {
            return Err(Error::Conflict { reason: "a revert is not how a canary ends by itself".to_owned() });
        }
        self.end(end, |state| state.canary.as_ref().map(|canary| canary.version)).await
    }

    async fn revert_limits(&self, end: LimitEnd) -> Result<LimitState> {
        let end = LimitEnd { outcome: LimitOutcome::Reverted, ..end };
        self.end(end, |state| {
            let newest = state.canary.as_ref().unwrap_or(&state.in_force).version;
            (newest > 0).then_some(newest)
        })
        .await
    }

    async fn limit_versions(&self, limit: u32, cursor: Option<String>) -> Result<Page<LimitHistory>> {
        let before: Option<i64> = cursor::decode(LIST_LIMITS, cursor.as_deref())?;
        let (limit, fetched) = fetch_limit(limit);
        let mut transaction = self.begin_read().await?;
        let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM limit_versions WHERE version < ");
        builder.push_bind(before.unwrap_or(i64::MAX));
        builder.push(" ORDER BY version DESC LIMIT ").push_bind(fetched);
        let versions = billing::fetch(builder, &mut transaction, "list limits", version_of).await?;
        let page = cursor::page(versions, limit, LIST_LIMITS, |version| i64::from(version.version))?;
        let mut rows = Vec::with_capacity(page.rows.len());
        for mut version in page.rows {
            version.tiers = read_tiers(&mut transaction, version.version).await?;
            let ends = read_ends(&mut transaction, version.version).await?;
            rows.push(LimitHistory { version, ends });
        }
        Ok(Page { rows, next_cursor: page.next_cursor })
    }
}

impl SqliteStore {
    /// Stores the end of the version that `target` finds; the caller must have meant that one.
    async fn end(
        &self,
        end: LimitEnd,
        target: impl Fn(&LimitState) -> Option<u32> + Send,
    ) -> Result<LimitState> {
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        let state = read_state(&mut transaction).await?;
        match target(&state) {
            Some(version) if version == end.version => {}
            Some(version) => {
                let reason = format!("version {version} is there now, not {}; look again", end.version);
                return Err(Error::Conflict { reason });
            }
            None => {
                let reason = "there is no version to take back or to decide about".to_owned();
                return Err(Error::Conflict { reason });
            }
        }
        insert_end(&mut transaction, &end).await?;
        let state = read_state(&mut transaction).await?;
        transaction.commit().await.map_err(database("end a version of the limits"))?;
        Ok(state)
    }
}

async fn read_state(transaction: &mut Transaction<'_, Sqlite>) -> Result<LimitState> {
    let in_force = read_version(transaction, IN_FORCE).await?;
    let canary = read_version(transaction, IN_CANARY).await?;
    Ok(LimitState { in_force: in_force.unwrap_or_else(LimitVersion::built_in), canary })
}

async fn read_version(
    transaction: &mut Transaction<'_, Sqlite>,
    statement: &'static str,
) -> Result<Option<LimitVersion>> {
    let row = sqlx::query(statement).fetch_optional(&mut **transaction).await;
    let Some(row) = row.map_err(database("read limits"))? else { return Ok(None) };
    let mut version = version_of(&row)?;
    version.tiers = read_tiers(transaction, version.version).await?;
    Ok(Some(version))
}

/// Reads a version without its tiers.
fn version_of(row: &SqliteRow) -> Result<LimitVersion> {
    Ok(LimitVersion {
        version: columns::number(row, "version")?,
        tiers: BTreeMap::new(),
        created_at: columns::millis(row, "created_at_ms")?,
        created_by: columns::text(row, "created_by")?.to_owned(),
        note: columns::text(row, "note")?.to_owned(),
        share_percent: columns::number(row, "share_percent")?,
        canary_ms: columns::number(row, "canary_ms")?,
    })
}

async fn read_tiers(transaction: &mut Transaction<'_, Sqlite>, version: u32) -> Result<Tiers> {
    let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM limit_tiers WHERE version = ");
    builder.push_bind(i64::from(version));
    let tiers = billing::fetch(builder, transaction, "read limits of tiers", |row| {
        let name = columns::text(row, "tier")?;
        let tier = [Tier::Standard, Tier::Premium].into_iter().find(|tier| tier_name(*tier) == name);
        let limits = TierLimits {
            floor: columns::number(row, "floor")?,
            ceiling: columns::number(row, "ceiling")?,
            burst: columns::number(row, "burst")?,
        };
        Ok((tier.ok_or_else(|| columns::damage("tier", "is no tier"))?, limits))
    })
    .await?;
    let tiers: Tiers = tiers.into_iter().collect();
    if tiers.len() < 2 {
        return Err(columns::damage("tier", format!("version {version} lacks limits of a tier")));
    }
    Ok(tiers)
}

async fn read_ends(transaction: &mut Transaction<'_, Sqlite>, version: u32) -> Result<Vec<LimitEnd>> {
    let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM limit_outcomes WHERE version = ");
    // A version that was promoted can only be reverted after it, whatever the clock did between.
    builder.push_bind(i64::from(version)).push(" ORDER BY outcome = 'reverted'");
    billing::fetch(builder, transaction, "read what became of limits", |row| {
        let counts = |requests, over| -> Result<LimitCounts> {
            Ok(LimitCounts { requests: columns::number(row, requests)?, over: columns::number(row, over)? })
        };
        let outcome = LimitOutcome::from_name(columns::text(row, "outcome")?);
        Ok(LimitEnd {
            version: columns::number(row, "version")?,
            outcome: outcome.ok_or_else(|| columns::damage("outcome", "is no end of limits"))?,
            at: columns::millis(row, "at_ms")?,
            decided_by: columns::text(row, "decided_by")?.to_owned(),
            detail: columns::text(row, "detail")?.to_owned(),
            figures: LimitFigures {
                canary: counts("canary_requests", "canary_over")?,
                rest: counts("rest_requests", "rest_over")?,
            },
        })
    })
    .await
}

async fn insert_version(
    transaction: &mut Transaction<'_, Sqlite>,
    version: i64,
    new: &NewLimits,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO limit_versions (version, created_at_ms, created_by, note, share_percent, canary_ms)
            VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(version)
    .bind(new.created_at.epoch_ms())
    .bind(&new.created_by)
    .bind(&new.note)
    .bind(i64::from(new.share_percent))
    .bind(i64::try_from(new.canary_ms).unwrap_or(i64::MAX))
    .execute(&mut **transaction)
    .await
    .map(|_| ())
    .map_err(database("put limits"))
}

async fn insert_tier(
    transaction: &mut Transaction<'_, Sqlite>,
    version: i64,
    tier: Tier,
    limits: &TierLimits,
) -> Result<()> {
    sqlx::query("INSERT INTO limit_tiers (version, tier, floor, ceiling, burst) VALUES (?, ?, ?, ?, ?)")
        .bind(version)
        .bind(tier_name(tier))
        .bind(i64::from(limits.floor))
        .bind(i64::from(limits.ceiling))
        .bind(i64::from(limits.burst))
        .execute(&mut **transaction)
        .await
        .map(|_| ())
        .map_err(database("put limits of a tier"))
}

async fn insert_end(transaction: &mut Transaction<'_, Sqlite>, end: &LimitEnd) -> Result<()> {
    let LimitFigures { canary, rest } = end.figures;
    let mut query = sqlx::query(
        "INSERT INTO limit_outcomes (version, outcome, at_ms, decided_by, detail,
            canary_requests, canary_over, rest_requests, rest_over) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(i64::from(end.version))
    .bind(end.outcome.name())
    .bind(end.at.epoch_ms())
    .bind(&end.decided_by)
    .bind(&end.detail);
    for count in [canary.requests, canary.over, rest.requests, rest.over] {
        query = query.bind(i64::try_from(count).unwrap_or(i64::MAX));
    }
    query.execute(&mut **transaction).await.map(|_| ()).map_err(database("end a version of the limits"))
}

fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Standard => "standard",
        Tier::Premium => "premium",
    }
}
