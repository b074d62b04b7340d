//! Restoring runs from the archive: the same rows a commit wrote, at the moment it wrote them.

use sqlx::{QueryBuilder, Sqlite, Transaction};
use tracing::debug;
use twice_log::archive::{BillingStatus, RunOutcome};

use super::commit::{
    checked, mark_billed, read_facts, write_cutoffs, write_divergence, write_rows, write_run,
};
use super::{SqliteStore, begin_write, billing, columns, database, modes};
use crate::billing::{CommittedRun, Divergence, RestoredRun, UtcMicros};
use crate::error::Result;

impl SqliteStore {
    pub(super) async fn restore(&self, run: RestoredRun) -> Result<()> {
        run.check()?;
        let RestoredRun { commit, result } = run;
        let run = RestoredRun { commit: checked(commit).await?, result };
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        let stored = billing::read_committed_run(&mut transaction, &run.commit.run_id).await?;
        if let Some(stored) = stored {
            return check_equal(&mut transaction, &run, &stored).await;
        }
        let mut facts = read_facts(&mut transaction, &run.commit).await?;
        if run.result.outcome == RunOutcome::Identical {
            // It comes after runs that were later than it, whose status it did not have.
            facts.status = status_before(&mut transaction, &run).await?;
        }
        let plan = run.plan(&facts)?;
        let moment = advance_clock(&mut transaction, &run).await?;
        write_run(&mut transaction, &run.commit, &plan, moment).await?;
        if plan.outcome == RunOutcome::Committed {
            mark_billed(&mut transaction, &run.commit, moment).await?;
            if run.fixes_mode(modes::fixed_mode(&mut transaction, run.commit.hour).await?)? {
                modes::write_hour_mode(&mut transaction, run.commit.hour, run.result.mode, moment).await?;
            }
            write_rows(&mut transaction, &run.commit, &plan, moment).await?;
            write_divergence(&mut transaction, &run.commit, &plan).await?;
        }
        write_cutoffs(&mut transaction, &run.commit).await?;
        transaction.commit().await.map_err(database("restore a run"))?;
        debug!(run = run.commit.run_id, rows = plan.rows.len(), "run restored");
        Ok(())
    }
}

/// Returns the highest status of the hour's and path's runs with lower sequence numbers.
async fn status_before(
    transaction: &mut Transaction<'_, Sqlite>,
    run: &RestoredRun,
) -> Result<Option<BillingStatus>> {
    // By name, `final` is before `reconciled`.
    let status: Option<String> =
        sqlx::query_scalar("SELECT min(status) FROM runs WHERE hour = ? AND path = ? AND seq < ?")
            .bind(run.commit.hour.since_epoch())
            .bind(run.commit.path.name())
            .bind(i64::from(run.commit.seq))
            .fetch_one(&mut **transaction)
            .await
            .map_err(database("read an hour's status"))?;
    status.as_deref().map(columns::status_from_name).transpose()
}

/// Takes the run's moment as settled, so that no later commit and no `as_of` answer given can contradict it (G-6).
async fn advance_clock(transaction: &mut Transaction<'_, Sqlite>, run: &RestoredRun) -> Result<UtcMicros> {
    let moment = match run.committed_at()? {
        Some(committed_at) => {
            let settled: i64 = sqlx::query_scalar("SELECT settled_at_us FROM commit_clock")
                .fetch_one(&mut **transaction)
                .await
                .map_err(database("read the commit clock"))?;
            if committed_at.0 <= settled {
                let settled = UtcMicros(settled);
                return Err(run.conflict(format!(
                    "it was committed at {committed_at}, and what the store holds reaches to {settled}"
                )));
            }
            committed_at
        }
        None => free_moment(transaction, UtcMicros::from_millis(run.commit.started_at)).await?,
    };
    sqlx::query("UPDATE commit_clock SET settled_at_us = max(settled_at_us, ?)")
        .bind(moment.0)
        .execute(&mut **transaction)
        .await
        .map_err(database("restore the commit clock"))?;
    Ok(moment)
}

/// Returns the first moment from `from` on at which no run is recorded.
async fn free_moment(transaction: &mut Transaction<'_, Sqlite>, from: UtcMicros) -> Result<UtcMicros> {
    let moment: i64 = sqlx::query_scalar(
        "SELECT CASE WHEN NOT EXISTS (SELECT 1 FROM runs WHERE committed_at_us = ?1) THEN ?1 ELSE
            (SELECT min(u.committed_at_us) + 1 FROM runs AS u WHERE u.committed_at_us >= ?1
                AND NOT EXISTS (SELECT 1 FROM runs AS n WHERE n.committed_at_us = u.committed_at_us + 1)) END",
    )
    .bind(from.0)
    .fetch_one(&mut **transaction)
    .await
    .map_err(database("find a free moment"))?;
    Ok(UtcMicros(moment))
}

/// Refuses a run that is stored with anything else than what is to be restored.
async fn check_equal(
    transaction: &mut Transaction<'_, Sqlite>,
    run: &RestoredRun,
    stored: &CommittedRun,
) -> Result<()> {
    let RestoredRun { commit, result } = run;
    let inputs: String = sqlx::query_scalar("SELECT inputs_sha256 FROM runs WHERE run_id = ?")
        .bind(&commit.run_id)
        .fetch_one(&mut **transaction)
        .await
        .map_err(database("look for a run"))?;
    if inputs != commit.inputs_sha256.0 {
        return Err(run.conflict("it is stored with other inputs"));
    }
    if (stored.outcome, stored.committed_at) != (result.outcome, run.committed_at()?) {
        return Err(run.conflict("it is stored with another outcome or moment"));
    }
    if stored.outcome == RunOutcome::Committed && stored.mode != result.mode {
        return Err(run.conflict("it is stored with another mode in force"));
    }
    let mut rows: Vec<_> = result.rows.iter().collect();
    rows.sort_by(|left, right| left.campaign_id.cmp(&right.campaign_id));
    let equal = rows.len() == stored.rows.len()
        && rows.iter().zip(&stored.rows).all(|(row, stored)| {
            // The digest stands for every count.
            (&row.campaign_id, row.version, row.status, row.reason.as_str(), &row.digest)
                == (
                    &stored.counts.campaign_id,
                    stored.version,
                    stored.status,
                    stored.reason.name(),
                    &stored.digest,
                )
        });
    if !equal {
        return Err(run.conflict("it is stored with other rows"));
    }
    if stored.outcome == RunOutcome::Committed {
        let mut divergence = commit.divergence.clone();
        divergence.sort_by(|left, right| left.campaign_id.cmp(&right.campaign_id));
        if stored_divergence(transaction, &commit.run_id).await? != divergence {
            return Err(run.conflict("it is stored with another divergence"));
        }
    }
    Ok(())
}

/// Returns the divergence rows of a run, in order of campaign.
pub(super) async fn stored_divergence(
    transaction: &mut Transaction<'_, Sqlite>,
    run_id: &str,
) -> Result<Vec<Divergence>> {
    let mut builder = QueryBuilder::<Sqlite>::new("SELECT * FROM divergence WHERE run_id = ");
    builder.push_bind(run_id.to_owned()).push(" ORDER BY campaign_id");
    billing::fetch(builder, transaction, "read divergence", columns::divergence).await
}
