//! Reading corrections: the versions that changed a bill in force, beside the versions they replaced.
//!
//! Runs are walked in order of their commits, which is the order of the answer: a page starts at its key and nothing is
//! sorted. Later commits only append, so pages never shift.

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use twice_log::CampaignId;
use twice_log::archive::BillingPath;

use super::cursor::{self, fetch_limit};
use super::{SqliteStore, billing, columns};
use crate::billing::{BillingCounts, Correction, CorrectionsQuery, CountsDelta, Page, VersionLink};
use crate::error::Result;

const LIST_CORRECTIONS: &str = "corrections";

/// Moment of the commit, campaign.
pub(super) type CorrectionKey = (i64, CampaignId);

/// Runs `u` of a path in force, with the path in force before a change of mode. A change of mode corrects nothing where
/// that path had not billed the hour: it is the hour's first bill.
const RESTATING: &str = "SELECT r.*, b.path AS b_path, b.version AS b_version, b.gross AS b_gross,
        b.duplicates AS b_duplicates, b.conflicts AS b_conflicts, b.invalid_givt AS b_invalid_givt,
        b.invalid_sivt AS b_invalid_sivt, b.billable AS b_billable, b.unpriced AS b_unpriced,
        b.amount_micros AS b_amount_micros, b.currency AS b_currency
    FROM runs AS u
    CROSS JOIN billing_rows AS r ON r.run_id = u.run_id
    LEFT JOIN billing_rows AS b ON b.hour = r.hour AND b.campaign_id = r.campaign_id
        AND b.path = CASE r.reason WHEN 'mode_change' THEN (SELECT m.path FROM hour_modes AS m
                WHERE m.hour = r.hour AND m.committed_at_us < r.committed_at_us
                ORDER BY m.committed_at_us DESC LIMIT 1) ELSE r.path END
        AND b.version = (SELECT max(n.version) FROM billing_rows AS n WHERE n.hour = b.hour
            AND n.campaign_id = b.campaign_id AND n.path = b.path AND n.committed_at_us < r.committed_at_us)
    WHERE u.outcome = 'committed'
        AND u.path = (SELECT m.path FROM hour_modes AS m WHERE m.hour = u.hour
            AND m.committed_at_us <= u.committed_at_us ORDER BY m.committed_at_us DESC LIMIT 1)
        AND r.reason <> 'first'
        AND (r.reason <> 'mode_change' OR EXISTS (SELECT 1 FROM billed_hours AS h WHERE h.hour = u.hour
            AND h.committed_at_us < u.committed_at_us AND h.path = (SELECT m.path FROM hour_modes AS m
                WHERE m.hour = u.hour AND m.committed_at_us < u.committed_at_us
                ORDER BY m.committed_at_us DESC LIMIT 1)))";

impl SqliteStore {
    pub(super) async fn list_corrections(&self, query: &CorrectionsQuery) -> Result<Page<Correction>> {
        let after: Option<CorrectionKey> = cursor::decode(LIST_CORRECTIONS, query.cursor.as_deref())?;
        let (limit, fetched) = fetch_limit(query.limit);
        let (mut transaction, seen_to) = self.begin_read_as_of(query.as_of).await?;
        let builder = corrections_query(query, seen_to, after, fetched);
        let rows = billing::fetch(builder, &mut transaction, "read corrections", correction).await?;
        cursor::page(rows, limit, LIST_CORRECTIONS, |row| (row.committed_at.0, row.campaign_id.clone()))
    }
}

/// Builds the query of a page.
pub(super) fn corrections_query(
    query: &CorrectionsQuery,
    seen_to: i64,
    after: Option<CorrectionKey>,
    fetched: i64,
) -> QueryBuilder<Sqlite> {
    let mut builder = QueryBuilder::new(RESTATING);
    builder.push(" AND u.hour >= ").push_bind(query.from.since_epoch());
    builder.push(" AND u.hour < ").push_bind(query.to.since_epoch());
    builder.push(" AND u.committed_at_us <= ").push_bind(seen_to);
    // One lower bound, or SQLite would walk from the lower of two: the run of the last row still has rows to come.
    let since = query.since.map_or(i64::MIN, |since| since.0);
    match after {
        None => {
            builder.push(" AND u.committed_at_us > ").push_bind(since);
        }
        Some((committed_at, campaign_id)) => {
            builder.push(" AND u.committed_at_us >= ").push_bind(committed_at.max(since.saturating_add(1)));
            builder.push(" AND (u.committed_at_us > ").push_bind(committed_at);
            builder.push(" OR r.campaign_id > ").push_bind(campaign_id.as_str().to_owned()).push(")");
        }
    }
    if let Some(campaigns) = &query.campaigns {
        billing::push_campaigns(&mut builder, "r.campaign_id", campaigns);
    }
    if !query.include_unchanged {
        // A close changed nothing, by its reason: the index over all other versions leaves closed days unread.
        builder.push(" AND r.reason <> 'close'");
        // The digest covers every count, the amount and the currency; a row of zeros changes no bill without a row.
        builder.push(" AND CASE WHEN b.digest IS NULL THEN r.gross <> 0 ELSE r.digest <> b.digest END");
    }
    builder.push(" ORDER BY u.committed_at_us, r.campaign_id LIMIT ").push_bind(fetched);
    builder
}

fn correction(row: &SqliteRow) -> Result<Correction> {
    let new = columns::billing_row(row)?;
    let path: Option<&str> = row.try_get("b_path").map_err(|error| columns::damage("b_path", error))?;
    let (before, old) = match path {
        None => (None, BillingCounts::zero(new.counts.campaign_id.clone(), None)),
        Some(path) => {
            let path = BillingPath::from_name(path);
            let path = path.ok_or_else(|| columns::damage("path", "is no path"))?;
            (Some(VersionLink { path, version: columns::number(row, "b_version")? }), counts_before(row)?)
        }
    };
    Ok(Correction {
        delta: CountsDelta::between(&old, &new.counts),
        currency: new.counts.currency.or(old.currency),
        campaign_id: new.counts.campaign_id,
        hour: new.hour,
        path: new.path,
        version: new.version,
        before,
        status: new.status,
        reason: new.reason,
        run_id: new.run_id,
        committed_at: new.committed_at,
    })
}

fn counts_before(row: &SqliteRow) -> Result<BillingCounts> {
    Ok(BillingCounts {
        campaign_id: columns::parsed(row, "campaign_id")?,
        gross: columns::number(row, "b_gross")?,
        duplicates: columns::number(row, "b_duplicates")?,
        conflicts: columns::number(row, "b_conflicts")?,
        invalid_givt: columns::number(row, "b_invalid_givt")?,
        invalid_sivt: columns::number(row, "b_invalid_sivt")?,
        billable: columns::number(row, "b_billable")?,
        unpriced: columns::number(row, "b_unpriced")?,
        amount_micros: columns::integer(row, "b_amount_micros")?,
        currency: columns::parsed_or_null(row, "b_currency")?,
    })
}
