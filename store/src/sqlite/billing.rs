//! Reading what runs committed, and the store's trait over it and `commit`.

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, Transaction};
use twice_log::archive::{BillingPath, Cutoff, RunOutcome};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Generation, Hour, LogOffset, PartitionId, Topic};

use super::cursor::{self, fetch_limit};
use super::restore::stored_divergence;
use super::{SqliteStore, columns, database, modes};
use crate::billing::{
    BilledMark, BillingQuery, BillingRow, BillingStore, CommittedRun, Correction, CorrectionsQuery,
    Divergence, DivergenceRow, HourMarks, Page, Reconciliation, RestoredRun, RunCommit, UtcMicros,
};
use crate::error::{Error, Result};
use crate::modes::HourMode;

const LIST_BILLING: &str = "billing";
const LIST_DIVERGENCE: &str = "divergence";
const LIST_RUNS: &str = "runs";

/// Key of a billing row: hour, campaign, path, version.
pub(super) type BillingKey = (i64, CampaignId, String, u32);

#[async_trait]
impl BillingStore for SqliteStore {
    async fn commit_run(&self, commit: RunCommit) -> Result<CommittedRun> {
        self.commit(commit).await
    }

    async fn committed_run(&self, run_id: &str) -> Result<Option<CommittedRun>> {
        let mut transaction = self.begin_read().await?;
        read_committed_run(&mut transaction, run_id).await
    }

    async fn billing(&self, query: &BillingQuery) -> Result<Page<BillingRow>> {
        let after: Option<BillingKey> = cursor::decode(LIST_BILLING, query.cursor.as_deref())?;
        if after.as_ref().is_some_and(|(hour, ..)| *hour < query.from.since_epoch()) {
            return Err(Error::Cursor);
        }
        let (limit, fetched) = fetch_limit(query.limit);
        let (mut transaction, seen_to) = self.begin_read_as_of(query.as_of).await?;
        let builder = billing_query(query, seen_to, after, fetched);
        let rows = fetch(builder, &mut transaction, "read billing rows", columns::billing_row).await?;
        cursor::page(rows, limit, LIST_BILLING, |row| {
            (row.hour.since_epoch(), row.counts.campaign_id.clone(), row.path.name(), row.version)
        })
    }

    async fn corrections(&self, query: &CorrectionsQuery) -> Result<Page<Correction>> {
        self.list_corrections(query).await
    }

    async fn restore_run(&self, run: RestoredRun) -> Result<()> {
        self.restore(run).await
    }

    async fn divergence(
        &self,
        hour: Hour,
        as_of: Option<UtcMicros>,
        campaigns: Option<&BTreeSet<CampaignId>>,
        limit: u32,
        cursor: Option<String>,
    ) -> Result<Page<DivergenceRow>> {
        // With the run in it, so that a run committed between two pages does not mix into them.
        let after: Option<(String, CampaignId)> = cursor::decode(LIST_DIVERGENCE, cursor.as_deref())?;
        let (limit, fetched) = fetch_limit(limit);
        let (mut transaction, seen_to) = self.begin_read_as_of(as_of).await?;
        let path = modes::mode_at(&mut transaction, hour, seen_to).await?;
        let run =
            explaining_run(&mut transaction, hour, path, seen_to, after.as_ref().map(|key| &key.0)).await?;
        let Some((run_id, path)) = run else {
            // A first page of an unbilled hour is empty; a cursor that names no run of the hour is not ours.
            return if after.is_some() {
                Err(Error::Cursor)
            } else {
                Ok(Page { rows: Vec::new(), next_cursor: None })
            };
        };
        let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM divergence WHERE run_id = ");
        builder.push_bind(run_id.clone());
        if let Some((_, campaign_id)) = after {
            builder.push(" AND campaign_id > ").push_bind(campaign_id.as_str().to_owned());
        }
        if let Some(campaigns) = campaigns {
            push_campaigns(&mut builder, "campaign_id", campaigns);
        }
        builder.push(" ORDER BY campaign_id LIMIT ").push_bind(fetched);
        let read = |row: &SqliteRow| {
            let version = columns::number(row, "version")?;
            Ok(DivergenceRow { hour, path, version, divergence: columns::divergence(row)? })
        };
        let rows = fetch(builder, &mut transaction, "read divergence", read).await?;
        cursor::page(rows, limit, LIST_DIVERGENCE, |row| (run_id.clone(), row.divergence.campaign_id.clone()))
    }

    async fn run_divergence(&self, run_id: &str) -> Result<Vec<Divergence>> {
        let mut transaction = self.begin_read().await?;
        stored_divergence(&mut transaction, run_id).await
    }

    async fn reconciliations(&self, limit: u32, cursor: Option<String>) -> Result<Page<Reconciliation>> {
        let before: Option<i64> = cursor::decode(LIST_RUNS, cursor.as_deref())?;
        let (limit, fetched) = fetch_limit(limit);
        let mut transaction = self.begin_read().await?;
        let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM runs WHERE committed_at_us < ");
        builder.push_bind(before.unwrap_or(i64::MAX));
        builder.push(" ORDER BY committed_at_us DESC LIMIT ").push_bind(fetched);
        let rows = fetch(builder, &mut transaction, "list runs", columns::reconciliation).await?;
        cursor::page(rows, limit, LIST_RUNS, |row| row.committed_at.0)
    }

    async fn billed_hours(&self, path: Option<BillingPath>, from: Hour, to: Hour) -> Result<Vec<Hour>> {
        self.list_billed_hours(path, from, to, None).await
    }

    async fn billed_hours_as_of(
        &self,
        path: Option<BillingPath>,
        from: Hour,
        to: Hour,
        as_of: UtcMicros,
    ) -> Result<Vec<Hour>> {
        self.list_billed_hours(path, from, to, Some(as_of)).await
    }

    async fn mode(&self, hour: Hour) -> Result<BillingPath> {
        let mut transaction = self.begin_read().await?;
        modes::mode_at(&mut transaction, hour, i64::MAX).await
    }

    async fn hour_marks(&self, hour: Hour) -> Result<HourMarks> {
        let mut transaction = self.begin_read().await?;
        read_hour_marks(&mut transaction, hour).await
    }

    async fn newest_cutoffs(&self) -> Result<Vec<Cutoff>> {
        let mut transaction = self.begin_read().await?;
        let builder =
            QueryBuilder::<Sqlite>::new("SELECT * FROM cutoffs ORDER BY topic, generation, partition");
        fetch(builder, &mut transaction, "read cutoffs", read_cutoff).await
    }
}

impl SqliteStore {
    async fn list_billed_hours(
        &self,
        path: Option<BillingPath>,
        from: Hour,
        to: Hour,
        as_of: Option<UtcMicros>,
    ) -> Result<Vec<Hour>> {
        let (mut transaction, seen_to) = self.begin_read_as_of(as_of).await?;
        let mut builder =
            QueryBuilder::<Sqlite>::new("SELECT r.hour FROM billed_hours AS r WHERE r.hour >= ");
        builder.push_bind(from.since_epoch()).push(" AND r.hour < ").push_bind(to.since_epoch());
        builder.push(" AND r.committed_at_us <= ").push_bind(seen_to);
        push_path(&mut builder, path, seen_to);
        builder.push(" ORDER BY r.hour");
        fetch(builder, &mut transaction, "list billed hours", columns::hour).await
    }
}

async fn read_hour_marks(transaction: &mut Transaction<'_, Sqlite>, hour: Hour) -> Result<HourMarks> {
    let select = |from: &str, order: &str| {
        let mut builder = QueryBuilder::<Sqlite>::new(from);
        builder.push(" WHERE hour = ").push_bind(hour.since_epoch()).push(" ORDER BY ").push(order);
        builder
    };
    let modes = select("SELECT * FROM hour_modes", "committed_at_us");
    let modes = fetch(modes, transaction, "read modes of an hour", |row| {
        let (path, committed_at) = (columns::path(row)?, columns::committed_at(row)?);
        Ok(HourMode { hour, path, committed_at })
    });
    let modes = modes.await?;
    let billed = select("SELECT * FROM billed_hours", "path");
    let billed = fetch(billed, transaction, "read marks of an hour", |row| {
        let (path, committed_at) = (columns::path(row)?, columns::committed_at(row)?);
        Ok(BilledMark { path, committed_at, run_id: columns::text(row, "run_id")?.to_owned() })
    });
    let billed = billed.await?;
    let versions = select("SELECT DISTINCT path, version FROM billing_rows", "path, version");
    let versions = fetch(versions, transaction, "read an hour's versions", |row| {
        Ok((columns::path(row)?, columns::number(row, "version")?))
    });
    Ok(HourMarks { modes, billed, versions: versions.await? })
}

/// Returns what the run committed, its mode as it was then.
pub(super) async fn read_committed_run(
    transaction: &mut Transaction<'_, Sqlite>,
    run_id: &str,
) -> Result<Option<CommittedRun>> {
    let run = sqlx::query("SELECT * FROM runs WHERE run_id = ?").bind(run_id);
    let Some(run) = run.fetch_optional(&mut **transaction).await.map_err(database("read a run"))? else {
        return Ok(None);
    };
    let run = columns::reconciliation(&run)?;
    let mode = modes::mode_at(transaction, run.hour, run.committed_at.0).await?;
    let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM billing_rows WHERE run_id = ");
    builder.push_bind(run_id.to_owned()).push(" ORDER BY campaign_id");
    let rows = fetch(builder, transaction, "read a run's rows", columns::billing_row).await?;
    let written = run.outcome == RunOutcome::Committed;
    Ok(Some(CommittedRun {
        outcome: run.outcome,
        committed_at: written.then_some(run.committed_at),
        mode,
        rows,
    }))
}

/// Builds the query of a page. Its start is one constraint on the key, not two, or SQLite would walk from the start of
/// the range to every page.
pub(super) fn billing_query(
    query: &BillingQuery,
    seen_to: i64,
    after: Option<BillingKey>,
    fetched: i64,
) -> QueryBuilder<Sqlite> {
    let mut builder = QueryBuilder::new("SELECT r.* FROM billing_rows AS r WHERE r.hour < ");
    builder.push_bind(query.to.since_epoch());
    // One campaign has an index of its own; of several, the rows of the range are looked through.
    let one = query.campaigns.as_ref().filter(|campaigns| campaigns.len() == 1).and_then(BTreeSet::first);
    match (one, after) {
        (None, None) => {
            builder.push(" AND r.hour >= ").push_bind(query.from.since_epoch());
        }
        (None, Some((hour, campaign, path, version))) => {
            builder.push(" AND (r.hour, r.campaign_id, r.path, r.version) > (");
            builder.push_bind(hour).push(", ").push_bind(campaign.as_str().to_owned());
            builder.push(", ").push_bind(path).push(", ").push_bind(i64::from(version)).push(")");
        }
        (Some(campaign), None) => {
            builder.push(" AND r.campaign_id = ").push_bind(campaign.as_str().to_owned());
            builder.push(" AND r.hour >= ").push_bind(query.from.since_epoch());
        }
        (Some(campaign), Some((hour, _, path, version))) => {
            builder.push(" AND r.campaign_id = ").push_bind(campaign.as_str().to_owned());
            builder.push(" AND (r.hour, r.path, r.version) > (").push_bind(hour);
            builder.push(", ").push_bind(path).push(", ").push_bind(i64::from(version)).push(")");
        }
    }
    if let (Some(campaigns), None) = (&query.campaigns, one) {
        push_campaigns(&mut builder, "r.campaign_id", campaigns);
    }
    builder.push(" AND r.committed_at_us <= ").push_bind(seen_to);
    push_path(&mut builder, query.path, seen_to);
    match query.version {
        Some(version) => {
            builder.push(" AND r.version = ").push_bind(i64::from(version));
        }
        None => {
            builder.push(
                " AND r.version = (SELECT max(n.version) FROM billing_rows AS n WHERE n.hour = r.hour
                    AND n.campaign_id = r.campaign_id AND n.path = r.path AND n.committed_at_us <= ",
            );
            builder.push_bind(seen_to).push(")");
        }
    }
    builder.push(" ORDER BY r.hour, r.campaign_id, r.path, r.version LIMIT ").push_bind(fetched);
    builder
}

/// Restricts a column to the campaigns; to none where the set is empty.
pub(super) fn push_campaigns(
    builder: &mut QueryBuilder<Sqlite>,
    column: &str,
    campaigns: &BTreeSet<CampaignId>,
) {
    builder.push(" AND ").push(column);
    // One is a search of an index; a list is looked up for each row.
    if let (1, Some(campaign)) = (campaigns.len(), campaigns.first()) {
        builder.push(" = ").push_bind(campaign.as_str().to_owned());
        return;
    }
    // Ids are visible ASCII, of which JSON can hold everything.
    let json = serde_json::Value::from_iter(campaigns.iter().map(CampaignId::as_str)).to_string();
    builder.push(" IN (SELECT value FROM json_each(").push_bind(json).push("))");
}

/// Restricts `r` to a path, or to the path in force of each hour.
fn push_path(builder: &mut QueryBuilder<Sqlite>, path: Option<BillingPath>, seen_to: i64) {
    match path {
        Some(path) => {
            builder.push(" AND r.path = ").push_bind(path.name());
        }
        None => {
            builder.push(
                " AND r.path = (SELECT m.path FROM hour_modes AS m WHERE m.hour = r.hour AND m.committed_at_us <= ",
            );
            builder.push_bind(seen_to).push(" ORDER BY m.committed_at_us DESC LIMIT 1)");
        }
    }
}

/// Returns the run whose divergence is shown: the one a cursor names, or the newest of `path` that wrote versions.
async fn explaining_run(
    transaction: &mut Transaction<'_, Sqlite>,
    hour: Hour,
    path: BillingPath,
    seen_to: i64,
    named: Option<&String>,
) -> Result<Option<(String, BillingPath)>> {
    let mut builder = QueryBuilder::<Sqlite>::new("SELECT run_id, path FROM runs WHERE hour = ");
    builder.push_bind(hour.since_epoch());
    builder.push(" AND outcome = 'committed' AND committed_at_us <= ").push_bind(seen_to);
    match named {
        Some(run_id) => builder.push(" AND run_id = ").push_bind(run_id.clone()),
        None => builder.push(" AND path = ").push_bind(path.name()),
    };
    builder.push(" ORDER BY committed_at_us DESC LIMIT 1");
    let read = |row: &SqliteRow| Ok((columns::text(row, "run_id")?.to_owned(), columns::path(row)?));
    Ok(fetch(builder, transaction, "find an hour's newest run", read).await?.pop())
}

fn read_cutoff(row: &SqliteRow) -> Result<Cutoff> {
    let topic = Topic::from_name(columns::text(row, "topic")?);
    let sha256: Option<String> = columns::parsed_or_null(row, "head_manifest_sha256")?;
    Ok(Cutoff {
        topic: topic.ok_or_else(|| columns::damage("topic", "is no topic"))?,
        generation: Generation(columns::number(row, "generation")?),
        partition: PartitionId(columns::number(row, "partition")?),
        end: LogOffset(columns::integer(row, "end_offset")?),
        head_manifest_sha256: sha256.map(Sha256Hex),
    })
}

/// Runs a query and reads each row as it comes.
pub(super) async fn fetch<T>(
    mut builder: QueryBuilder<Sqlite>,
    transaction: &mut Transaction<'_, Sqlite>,
    action: &'static str,
    read: impl Fn(&SqliteRow) -> Result<T>,
) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let mut rows = builder.build().fetch(&mut **transaction);
    while let Some(row) = rows.try_next().await.map_err(database(action))? {
        values.push(read(&row)?);
    }
    Ok(values)
}
