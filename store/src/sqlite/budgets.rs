//! Decisions about daily budgets.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, Transaction};
use twice_log::{CampaignId, Day, Generation, Hour, LogOffset, Position, UtcMillis};

use super::cursor::fetch_limit;
use super::insert::insert_rows;
use super::{SqliteStore, begin_write, billing, columns, database};
use crate::billing::UtcMicros;
use crate::budgets::{BilledSince, BudgetDecision, BudgetStore, DecisionsQuery};
use crate::error::{Error, Result};

/// Newest number of each campaign and day that the JSON list `?1` of [campaign, day] names.
const LAST_NUMBERS: &str = "SELECT d.campaign_id, d.day, max(d.number) AS number
    FROM json_each(?1) AS asked JOIN budget_decisions AS d
        ON d.campaign_id = asked.value ->> 0 AND d.day = asked.value ->> 1
    GROUP BY d.campaign_id, d.day";

const LAST_DECISIONS: &str = "SELECT d.* FROM budget_decisions AS d
    WHERE d.day >= ?1 AND d.number = (SELECT max(n.number) FROM budget_decisions AS n
        WHERE n.campaign_id = d.campaign_id AND n.day = d.day)
    ORDER BY d.day, d.campaign_id";

const CHANGED_CAMPAIGNS: &str = "SELECT campaign_id FROM budgets WHERE recorded_at_ms >= ?1
    UNION SELECT campaign_id FROM rates WHERE recorded_at_ms >= ?1
    UNION SELECT campaign_id FROM strictness WHERE recorded_at_ms >= ?1";

#[async_trait]
impl BudgetStore for SqliteStore {
    async fn record_decisions(&self, mut decisions: Vec<BudgetDecision>) -> Result<Vec<BudgetDecision>> {
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        check_numbers(&mut transaction, &decisions).await?;
        let last: i64 = sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'budget_decisions'")
            .fetch_optional(&mut *transaction)
            .await
            .map_err(database("read the last decision's place"))?
            .unwrap_or(0);
        for (decision, sequence) in decisions.iter_mut().zip(last as u64 + 1..) {
            decision.sequence = sequence;
        }
        write_decisions(&mut transaction, &decisions).await?;
        transaction.commit().await.map_err(database("store decisions"))?;
        Ok(decisions)
    }

    async fn last_decisions(&self, from: Day) -> Result<Vec<BudgetDecision>> {
        let mut transaction = self.begin_read().await?;
        let rows = sqlx::query(LAST_DECISIONS).bind(from.since_epoch()).fetch_all(&mut *transaction).await;
        rows.map_err(database("read the last decisions"))?.iter().map(read_decision).collect()
    }

    async fn last_decision(&self, campaign: &CampaignId, day: Day) -> Result<Option<BudgetDecision>> {
        let mut transaction = self.begin_read().await?;
        let row = sqlx::query(
            "SELECT * FROM budget_decisions WHERE campaign_id = ? AND day = ? ORDER BY number DESC LIMIT 1",
        )
        .bind(campaign.as_str())
        .bind(day.since_epoch())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(database("read the last decision"))?;
        row.as_ref().map(read_decision).transpose()
    }

    async fn decisions(&self, query: &DecisionsQuery) -> Result<Vec<BudgetDecision>> {
        let (limit, _) = fetch_limit(query.limit);
        let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM budget_decisions WHERE sequence > ");
        builder.push_bind(i64::try_from(query.after).unwrap_or(i64::MAX));
        if let Some(campaigns) = &query.campaigns {
            billing::push_campaigns(&mut builder, "campaign_id", campaigns);
        }
        builder.push(" ORDER BY sequence LIMIT ").push_bind(limit as i64);
        let mut transaction = self.begin_read().await?;
        billing::fetch(builder, &mut transaction, "read decisions", read_decision).await
    }

    async fn newest_sequence(&self) -> Result<u64> {
        self.sequence("SELECT coalesce(max(sequence), 0) FROM budget_decisions").await
    }

    async fn published_sequence(&self) -> Result<u64> {
        self.sequence("SELECT coalesce(max(sequence), 0) FROM budget_published").await
    }

    async fn note_published(&self, sequence: u64) -> Result<()> {
        let mut writer = self.writer().await?;
        let statement = "INSERT INTO budget_published (id, sequence) VALUES (1, ?)
            ON CONFLICT (id) DO UPDATE SET sequence = max(sequence, excluded.sequence)";
        sqlx::query(statement)
            .bind(i64::try_from(sequence).unwrap_or(i64::MAX))
            .execute(&mut *writer)
            .await
            .map_err(database("note what is published"))?;
        Ok(())
    }

    async fn campaigns_changed_since(&self, since: UtcMillis) -> Result<BTreeSet<CampaignId>> {
        let mut transaction = self.begin_read().await?;
        let rows = sqlx::query(CHANGED_CAMPAIGNS).bind(since.epoch_ms()).fetch_all(&mut *transaction).await;
        let rows = rows.map_err(database("look for changed campaigns"))?;
        rows.iter().map(|row| columns::parsed(row, "campaign_id")).collect()
    }

    async fn billed_since(&self, since: Option<UtcMicros>, from: Hour, to: Hour) -> Result<BilledSince> {
        let mut transaction = self.begin_read().await?;
        let newest: Option<i64> = sqlx::query_scalar("SELECT max(committed_at_us) FROM runs")
            .fetch_one(&mut *transaction)
            .await
            .map_err(database("look for the newest run"))?;
        let mut builder =
            QueryBuilder::<Sqlite>::new("SELECT DISTINCT hour FROM runs WHERE committed_at_us > ");
        builder.push_bind(since.map_or(i64::MIN, |since| since.0));
        builder.push(" AND hour >= ").push_bind(from.since_epoch());
        builder.push(" AND hour < ").push_bind(to.since_epoch());
        let hours = billing::fetch(builder, &mut transaction, "look for billed hours", columns::hour).await?;
        Ok(BilledSince { hours: hours.into_iter().collect(), newest: newest.map(UtcMicros) })
    }
}

impl SqliteStore {
    async fn sequence(&self, statement: &'static str) -> Result<u64> {
        let mut transaction = self.begin_read().await?;
        let sequence: i64 = sqlx::query_scalar(statement)
            .fetch_one(&mut *transaction)
            .await
            .map_err(database("read a decision's place"))?;
        u64::try_from(sequence).map_err(|_| columns::damage("sequence", "is out of range"))
    }
}

/// Refuses decisions that do not follow the last one stored of their campaign and day.
async fn check_numbers(
    transaction: &mut Transaction<'_, Sqlite>,
    decisions: &[BudgetDecision],
) -> Result<()> {
    let asked: BTreeSet<(&CampaignId, i64)> =
        decisions.iter().map(|decision| (&decision.campaign_id, decision.day.since_epoch())).collect();
    let mut last: BTreeMap<(CampaignId, i64), i64> = BTreeMap::new();
    let rows = sqlx::query(LAST_NUMBERS).bind(json(&asked)?).fetch_all(&mut **transaction).await;
    for row in rows.map_err(database("read the last numbers"))? {
        let key = (columns::parsed(&row, "campaign_id")?, columns::integer(&row, "day")?);
        last.insert(key, columns::integer(&row, "number")?);
    }
    for decision in decisions {
        let number = last.entry((decision.campaign_id.clone(), decision.day.since_epoch())).or_insert(0);
        *number += 1;
        if *number != i64::from(decision.number) {
            let reason = format!(
                "decision {} of campaign {} on {} does not follow the last, which is {}",
                decision.number,
                decision.campaign_id,
                decision.day,
                *number - 1
            );
            return Err(Error::Conflict { reason });
        }
    }
    Ok(())
}

async fn write_decisions(
    transaction: &mut Transaction<'_, Sqlite>,
    decisions: &[BudgetDecision],
) -> Result<()> {
    let head = "INSERT INTO budget_decisions (sequence, campaign_id, day, number, state, cause, spend_micros,
        budget_micros, decided_at_ms, generation, log_offset, event_time_ms) ";
    insert_rows(transaction, "store decisions", (head, ""), decisions, |row_columns, decision| {
        row_columns.push_bind(decision.sequence as i64);
        row_columns.push_bind(decision.campaign_id.as_str().to_owned());
        row_columns.push_bind(decision.day.since_epoch());
        row_columns.push_bind(i64::from(decision.number));
        row_columns.push_bind(decision.state.name());
        row_columns.push_bind(decision.cause.name());
        row_columns.push_bind(decision.spend_micros);
        row_columns.push_bind(decision.budget_micros);
        row_columns.push_bind(decision.decided_at.epoch_ms());
        row_columns.push_bind(decision.position.map(|position| i64::from(position.generation.0)));
        row_columns.push_bind(decision.position.map(|position| position.offset.0));
        row_columns.push_bind(decision.event_time.map(UtcMillis::epoch_ms));
    })
    .await
}

fn read_decision(row: &SqliteRow) -> Result<BudgetDecision> {
    let offset = columns::integer_or_null(row, "log_offset")?;
    let position = match offset {
        Some(offset) => {
            let generation = Generation(columns::number(row, "generation")?);
            Some(Position { generation, offset: LogOffset(offset) })
        }
        None => None,
    };
    let event_time: Option<i64> =
        row.try_get("event_time_ms").map_err(|error| columns::damage("event_time_ms", error))?;
    Ok(BudgetDecision {
        sequence: columns::number(row, "sequence")?,
        campaign_id: columns::parsed(row, "campaign_id")?,
        day: Day::from_since_epoch(columns::integer(row, "day")?),
        number: columns::number(row, "number")?,
        state: columns::parsed(row, "state")?,
        cause: columns::parsed(row, "cause")?,
        spend_micros: columns::integer(row, "spend_micros")?,
        budget_micros: columns::integer_or_null(row, "budget_micros")?,
        decided_at: columns::millis(row, "decided_at_ms")?,
        position,
        event_time: event_time.map(UtcMillis::clamped),
    })
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::Invalid { what: "campaign ids".to_owned(), reason: error.to_string() })
}
