//! What the billing store holds of one hour, whole: its lists come in pages.

use twice_log::Hour;
use twice_log::archive::BillingPath;
use twice_store::{BillingQuery, BillingRow, BillingStore, Divergence};

use crate::error::Result;

/// Rows read at once.
const PAGE: u32 = 10_000;

/// Reads the newest version of each row of the hour and path, in order of campaign.
///
/// # Errors
/// `Store` if the store does not answer.
pub async fn newest_rows(
    billing: &dyn BillingStore,
    hour: Hour,
    path: BillingPath,
) -> Result<Vec<BillingRow>> {
    let mut rows = Vec::new();
    let mut query = BillingQuery {
        from: hour,
        to: hour.plus(1),
        campaigns: None,
        path: Some(path),
        version: None,
        as_of: None,
        limit: PAGE,
        cursor: None,
    };
    loop {
        let page = billing.billing(&query).await?;
        rows.extend(page.rows);
        query.cursor = page.next_cursor;
        if query.cursor.is_none() {
            return Ok(rows);
        }
    }
}

/// Reads the differences of the hour's bill in force, in order of campaign.
///
/// # Errors
/// As for [`newest_rows`].
pub async fn divergence(billing: &dyn BillingStore, hour: Hour) -> Result<Vec<Divergence>> {
    let mut divergence = Vec::new();
    let mut cursor = None;
    loop {
        let page = billing.divergence(hour, None, None, PAGE, cursor).await?;
        divergence.extend(page.rows.into_iter().map(|row| row.divergence));
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(divergence);
        }
    }
}
