//! The stored differences between stream and bill (G-5), against what was counted again and against the rows they explain.

use std::collections::BTreeMap;

use twice_log::archive::BillingPath;
use twice_log::{CampaignId, Hour};
use twice_store::{BillingRow, BillingStore, Divergence, DivergenceRow};

use super::certificate::Check;
use super::findings::Findings;
use crate::error::Result;

/// Rows read at once.
const PAGE: u32 = 10_000;

/// Checks the differences of the newest run that wrote versions: each explains its row; where that very run was counted
/// again (`counted`), they are what it counted, and none is missing.
///
/// # Errors
/// `Store` if the store does not answer.
pub(super) async fn check_divergence(
    billing: &dyn BillingStore,
    (hour, path): (Hour, BillingPath),
    counted: Option<Vec<Divergence>>,
    rows: &BTreeMap<CampaignId, BillingRow>,
    findings: &mut Findings,
) -> Result<()> {
    let is_known = counted.is_some();
    let counted = counted.unwrap_or_default().into_iter();
    let mut counted: BTreeMap<CampaignId, Divergence> =
        counted.map(|row| (row.campaign_id.clone(), row)).collect();
    let mut cursor = None;
    loop {
        let page = billing.divergence(hour, None, None, PAGE, cursor).await?;
        for stored in page.rows {
            let campaign = &stored.divergence.campaign_id;
            let counted = counted.remove(campaign);
            if !findings.covers(campaign) {
                continue;
            }
            let object = name_of(campaign, hour, path);
            if let Some(reason) = fault_of(&stored, rows.get(campaign)) {
                findings.add(Check::Store, &object, reason);
            }
            if is_known && counted.as_ref() != Some(&stored.divergence) {
                let counted = counted.map_or("nothing".to_owned(), |counted| text(&counted));
                let stored = text(&stored.divergence);
                findings.add(
                    Check::Recount,
                    &object,
                    format!("is {stored} in the billing store and counts to {counted}"),
                );
            }
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    for (campaign, counted) in counted {
        if findings.covers(&campaign) {
            let reason = format!("is not in the billing store, and counts to {}", text(&counted));
            findings.add(Check::Recount, name_of(&campaign, hour, path), reason);
        }
    }
    Ok(())
}

/// Returns what is wrong with a difference and the row it explains; one of no row is of a campaign that was not billed.
fn fault_of(stored: &DivergenceRow, row: Option<&BillingRow>) -> Option<String> {
    let divergence = &stored.divergence;
    let (version, billable) = row.map_or((0, 0), |row| (row.version, row.counts.billable));
    if (stored.version, divergence.billed) != (version, billable) {
        return Some(format!(
            "explains version {} with {} billed; the row has version {version} with {billable} billable",
            stored.version, divergence.billed
        ));
    }
    (!divergence.is_balanced())
        .then(|| format!("is {}, whose causes do not add up to the difference (G-5)", text(divergence)))
}

fn name_of(campaign: &CampaignId, hour: Hour, path: BillingPath) -> String {
    format!("difference {campaign} {hour} {path}")
}

fn text(divergence: &Divergence) -> String {
    let Divergence { stream, preliminary, billed, late, late_duplicate, fraud, unexplained, .. } = divergence;
    let known = |count: &Option<u64>| count.map_or("unknown".to_owned(), |count| count.to_string());
    let unexplained = unexplained.map_or("unknown".to_owned(), |count| count.to_string());
    let stream = format!("{stream:?}").to_lowercase();
    format!(
        "(stream {stream}, preliminary {}, billed {billed}, late {}, late_duplicate {}, fraud {}, \
         unexplained {unexplained})",
        known(preliminary),
        known(late),
        known(late_duplicate),
        known(fraud)
    )
}
