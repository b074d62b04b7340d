//! The commit of a run: one transaction, from the facts it is decided on to the last row (G-4).

use std::collections::HashMap;

use futures::TryStreamExt;
use sqlx::{Sqlite, Transaction};
use tracing::info;
use twice_log::archive::{BillingPath, BillingStatus, RunOutcome};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Hour};

use super::insert::insert_rows;
use super::{SqliteStore, begin_write, billing, columns, database, modes};
use crate::billing::decide::{HourFacts, Newest, Plan, ReplacedBill, check, decide};
use crate::billing::{BillingRow, CommittedRun, RunCommit, UtcMicros};
use crate::error::{Error, Result};

/// Newest version of each row of an hour and path.
const NEWEST: &str = "SELECT r.* FROM billing_rows AS r
    WHERE r.hour = ?1 AND r.path = ?2 AND r.version = (SELECT max(n.version) FROM billing_rows AS n
        WHERE n.hour = r.hour AND n.campaign_id = r.campaign_id AND n.path = r.path)";

impl SqliteStore {
    pub(super) async fn commit(&self, commit: RunCommit) -> Result<CommittedRun> {
        let commit = checked(commit).await?;
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        if let Some(inputs) = committed_inputs(&mut transaction, &commit.run_id).await? {
            return first_outcome(&mut transaction, &commit, inputs).await;
        }
        let facts = read_facts(&mut transaction, &commit).await?;
        if facts.replaced.as_ref().is_some_and(|replaced| replaced.status > commit.status) {
            let hour = commit.hour;
            let reason = format!(
                "hour {hour} became final while {} was counted with less than the nightly horizon; restate it again",
                commit.run_id
            );
            return Err(Error::Conflict { reason });
        }
        let plan = decide(&commit, &facts);
        let committed_at = self.next_commit(&mut transaction).await?;
        write_run(&mut transaction, &commit, &plan, committed_at).await?;
        if plan.outcome == RunOutcome::Committed {
            mark_billed(&mut transaction, &commit, committed_at).await?;
            fix_mode(&mut transaction, &commit, committed_at).await?;
            write_rows(&mut transaction, &commit, &plan, committed_at).await?;
            write_divergence(&mut transaction, &commit, &plan).await?;
        }
        write_cutoffs(&mut transaction, &commit).await?;
        let mode = modes::mode_at(&mut transaction, commit.hour, committed_at.0).await?;
        transaction.commit().await.map_err(database("commit a run"))?;
        info!(
            run = commit.run_id,
            outcome = columns::outcome_name(plan.outcome),
            rows = plan.rows.len(),
            "run committed"
        );
        Ok(outcome_of(&commit, plan, committed_at, mode))
    }
}

/// Checks a commit away from the executor: thousands of digests take milliseconds.
pub(super) async fn checked(commit: RunCommit) -> Result<RunCommit> {
    let run_id = commit.run_id.clone();
    let checking = tokio::task::spawn_blocking(move || check(&commit).map(|()| commit));
    checking.await.unwrap_or_else(|error| {
        Err(Error::Invalid {
            what: format!("run {run_id}"),
            reason: format!("its check did not end: {error}"),
        })
    })
}

async fn committed_inputs(transaction: &mut Transaction<'_, Sqlite>, run_id: &str) -> Result<Option<String>> {
    sqlx::query_scalar("SELECT inputs_sha256 FROM runs WHERE run_id = ?")
        .bind(run_id)
        .fetch_optional(&mut **transaction)
        .await
        .map_err(database("look for a run"))
}

async fn first_outcome(
    transaction: &mut Transaction<'_, Sqlite>,
    commit: &RunCommit,
    inputs: String,
) -> Result<CommittedRun> {
    if inputs != commit.inputs_sha256.0 {
        let reason = format!("run {} is committed with other inputs", commit.run_id);
        return Err(Error::Conflict { reason });
    }
    let run = billing::read_committed_run(transaction, &commit.run_id).await?;
    run.ok_or_else(|| Error::NotFound { what: format!("run {}", commit.run_id) })
}

/// Reads what a commit is decided on: the newest rows of its path, and the bill it replaces if it changes the mode.
pub(super) async fn read_facts(
    transaction: &mut Transaction<'_, Sqlite>,
    commit: &RunCommit,
) -> Result<HourFacts> {
    let RunCommit { hour, path, .. } = *commit;
    let status = status_of(transaction, hour, path).await?;
    let newest = newest_rows(transaction, hour, path).await?;
    let replaced = if commit.mode_change { replaced_bill(transaction, hour, path).await? } else { None };
    Ok(HourFacts { status, newest, replaced })
}

async fn replaced_bill(
    transaction: &mut Transaction<'_, Sqlite>,
    hour: Hour,
    path: BillingPath,
) -> Result<Option<ReplacedBill>> {
    let in_force = modes::mode_at(transaction, hour, i64::MAX).await?;
    if in_force == path {
        return Ok(None);
    }
    let Some(status) = status_of(transaction, hour, in_force).await? else { return Ok(None) };
    let rows = newest_rows(transaction, hour, in_force).await?.into_iter();
    let currencies = rows.map(|(campaign_id, newest)| (campaign_id, newest.counts.currency)).collect();
    Ok(Some(ReplacedBill { status, currencies }))
}

/// Returns the highest status of the runs of an hour and path; `None` before the first one.
async fn status_of(
    transaction: &mut Transaction<'_, Sqlite>,
    hour: Hour,
    path: BillingPath,
) -> Result<Option<BillingStatus>> {
    // By name, `final` is before `reconciled`: the minimum is the highest status.
    let status: Option<String> =
        sqlx::query_scalar("SELECT min(status) FROM runs WHERE hour = ? AND path = ?")
            .bind(hour.since_epoch())
            .bind(path.name())
            .fetch_one(&mut **transaction)
            .await
            .map_err(database("read an hour's status"))?;
    status.as_deref().map(columns::status_from_name).transpose()
}

async fn newest_rows(
    transaction: &mut Transaction<'_, Sqlite>,
    hour: Hour,
    path: BillingPath,
) -> Result<HashMap<CampaignId, Newest>> {
    let mut newest = HashMap::new();
    let mut rows = sqlx::query(NEWEST).bind(hour.since_epoch()).bind(path.name()).fetch(&mut **transaction);
    while let Some(row) = rows.try_next().await.map_err(database("read an hour's rows"))? {
        let version = Newest {
            version: columns::number(&row, "version")?,
            status: columns::status(&row)?,
            digest: Sha256Hex(columns::text(&row, "digest")?.to_owned()),
            counts: columns::billing_counts(&row)?,
        };
        newest.insert(version.counts.campaign_id.clone(), version);
    }
    Ok(newest)
}

pub(super) async fn write_run(
    transaction: &mut Transaction<'_, Sqlite>,
    commit: &RunCommit,
    plan: &Plan,
    committed_at: UtcMicros,
) -> Result<()> {
    let cutoffs = serde_json::to_string(&commit.cutoffs).map_err(|error| Error::Invalid {
        what: format!("run {}", commit.run_id),
        reason: format!("its cutoffs are no JSON: {error}"),
    })?;
    sqlx::query(
        "INSERT INTO runs (run_id, path, hour, seq, status, outcome, rows_written, started_at_ms, committed_at_us,
            inputs_sha256, cutoffs_json) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&commit.run_id)
    .bind(commit.path.name())
    .bind(commit.hour.since_epoch())
    .bind(i64::from(commit.seq))
    .bind(plan.status.name())
    .bind(columns::outcome_name(plan.outcome))
    .bind(plan.rows.len() as i64)
    .bind(commit.started_at.epoch_ms())
    .bind(committed_at.0)
    .bind(&commit.inputs_sha256.0)
    .bind(cutoffs)
    .execute(&mut **transaction)
    .await
    .map(|_| ())
    .map_err(database("write a run"))
}

/// Marks the hour reconciled by this path, from its first commit on.
pub(super) async fn mark_billed(
    transaction: &mut Transaction<'_, Sqlite>,
    commit: &RunCommit,
    committed_at: UtcMicros,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO billed_hours (hour, path, committed_at_us, run_id) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(commit.hour.since_epoch())
    .bind(commit.path.name())
    .bind(committed_at.0)
    .bind(&commit.run_id)
    .execute(&mut **transaction)
    .await
    .map(|_| ())
    .map_err(database("mark an hour reconciled"))
}

/// Fixes the hour's mode where this is its first commit, and changes it where the commit does.
async fn fix_mode(
    transaction: &mut Transaction<'_, Sqlite>,
    commit: &RunCommit,
    committed_at: UtcMicros,
) -> Result<()> {
    let fixed = modes::fixed_mode(transaction, commit.hour).await?;
    let mode = match fixed {
        _ if commit.mode_change => commit.path,
        Some(_) => return Ok(()),
        // Not the mode set for it by now: that may have been set after the paths were chosen, and have no rows.
        None => commit.path,
    };
    if fixed == Some(mode) {
        return Ok(());
    }
    modes::write_hour_mode(transaction, commit.hour, mode, committed_at).await
}

pub(super) async fn write_rows(
    transaction: &mut Transaction<'_, Sqlite>,
    commit: &RunCommit,
    plan: &Plan,
    committed_at: UtcMicros,
) -> Result<()> {
    let head =
        "INSERT INTO billing_rows (hour, campaign_id, path, version, status, gross, duplicates, conflicts,
        invalid_givt, invalid_sivt, billable, unpriced, amount_micros, currency, digest, run_id, reason,
        committed_at_us) ";
    insert_rows(transaction, "write billing rows", (head, ""), &plan.rows, |row_columns, planned| {
        let counts = &planned.row.counts;
        row_columns.push_bind(commit.hour.since_epoch());
        row_columns.push_bind(counts.campaign_id.as_str().to_owned());
        row_columns.push_bind(commit.path.name());
        row_columns.push_bind(i64::from(planned.version));
        row_columns.push_bind(plan.status.name());
        // Checked: gross fits 63 bits, and every other count is part of it.
        for count in [counts.gross, counts.duplicates, counts.conflicts, counts.invalid_givt] {
            row_columns.push_bind(count as i64);
        }
        for count in [counts.invalid_sivt, counts.billable, counts.unpriced] {
            row_columns.push_bind(count as i64);
        }
        row_columns.push_bind(counts.amount_micros);
        row_columns.push_bind(counts.currency.map(|currency| currency.as_str().to_owned()));
        row_columns.push_bind(planned.row.digest.0.clone());
        row_columns.push_bind(commit.run_id.clone());
        row_columns.push_bind(planned.reason.name());
        row_columns.push_bind(committed_at.0);
    })
    .await
}

pub(super) async fn write_divergence(
    transaction: &mut Transaction<'_, Sqlite>,
    commit: &RunCommit,
    plan: &Plan,
) -> Result<()> {
    let head = "INSERT INTO divergence (run_id, campaign_id, version, stream, preliminary, billed, late,
        late_duplicate, fraud, unexplained) ";
    insert_rows(transaction, "write divergence", (head, ""), &commit.divergence, |row_columns, row| {
        let version = plan.versions.get(&row.campaign_id).copied().unwrap_or(0);
        row_columns.push_bind(commit.run_id.clone());
        row_columns.push_bind(row.campaign_id.as_str().to_owned());
        row_columns.push_bind(i64::from(version));
        row_columns.push_bind(columns::stream_name(row.stream));
        // Counts of clicks of one hour: far below 2^63.
        row_columns.push_bind(row.preliminary.map(|count| count as i64));
        row_columns.push_bind(row.billed as i64);
        for cause in [row.late, row.late_duplicate, row.fraud] {
            row_columns.push_bind(cause.map(|count| count as i64));
        }
        row_columns.push_bind(row.unexplained);
    })
    .await
}

/// Keeps the highest cutoff of each partition. A replay of an older hour has lower ones, which change nothing.
pub(super) async fn write_cutoffs(
    transaction: &mut Transaction<'_, Sqlite>,
    commit: &RunCommit,
) -> Result<()> {
    let head = "INSERT INTO cutoffs (topic, generation, partition, end_offset, head_manifest_sha256) ";
    let tail = " ON CONFLICT (topic, generation, partition) DO UPDATE SET end_offset = excluded.end_offset,
        head_manifest_sha256 = excluded.head_manifest_sha256 WHERE excluded.end_offset >= cutoffs.end_offset";
    insert_rows(transaction, "write cutoffs", (head, tail), &commit.cutoffs, |row_columns, cutoff| {
        row_columns.push_bind(cutoff.topic.name());
        row_columns.push_bind(i64::from(cutoff.generation.0));
        row_columns.push_bind(i64::from(cutoff.partition.0));
        row_columns.push_bind(cutoff.end.0);
        row_columns.push_bind(cutoff.head_manifest_sha256.as_ref().map(|sha256| sha256.0.clone()));
    })
    .await
}

fn outcome_of(commit: &RunCommit, plan: Plan, committed_at: UtcMicros, mode: BillingPath) -> CommittedRun {
    let status = plan.status;
    let rows = plan.rows.into_iter().map(|planned| BillingRow {
        hour: commit.hour,
        path: commit.path,
        version: planned.version,
        status,
        counts: planned.row.counts,
        digest: planned.row.digest,
        run_id: commit.run_id.clone(),
        reason: planned.reason,
        committed_at,
    });
    let written = plan.outcome == RunOutcome::Committed;
    CommittedRun {
        outcome: plan.outcome,
        committed_at: written.then_some(committed_at),
        mode,
        rows: rows.collect(),
    }
}
