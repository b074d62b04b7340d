//! Counts the audited run again and compares each row with the archive's results and the billing store.
//!
//! Lambda rows come from the recompute's child process, kappa rows from a replay; both read the recorded inputs alone.

use std::collections::{BTreeMap, BTreeSet};

use twice_log::archive::{BillingPath, RunInputs, StoredRunInputs, layout};
use twice_log::{CampaignId, Hour};
use twice_store::{BillingCounts, BillingRow, Cost, Divergence, row_digest};

use super::AuditDeps;
use super::certificate::{CertifiedRow, Check};
use super::findings::Findings;
use super::history::{NewestVersion, Recorded, name_of};
use crate::error::{Error, Result};
use crate::recompute::{RecomputeRequest, Recomputed, ResourceLimits, Task};

/// Rows counted again, by campaign.
pub(super) type Recounted = BTreeMap<CampaignId, BillingCounts>;

/// What a run counts to.
pub(super) struct Recount {
    pub rows: Recounted,
    /// `None` for kappa, whose causes are those the recompute found.
    pub divergence: Option<Vec<Divergence>>,
    pub copies: u64,
    pub cost: Cost,
}

/// Counts the run again.
///
/// # Errors
/// Whatever kept it from being counted; the audit makes a finding of it where the run's objects are to blame.
pub(super) async fn recount(deps: &AuditDeps, inputs: &Recorded<RunInputs>) -> Result<Recount> {
    let RunInputs { path, hour, seq, .. } = inputs.value;
    let (rows, divergence, copies, cost) = match path {
        BillingPath::Lambda => {
            let request = RecomputeRequest {
                archive: deps.archive_location.clone(),
                inputs_path: layout::run_inputs_path(path, hour, seq),
                inputs_sha256: inputs.sha256.clone(),
                // The audit has just compared each file itself, and goes on where one differs.
                limits: ResourceLimits { verify_files: false, ..deps.limits.clone() },
                task: Task::Bill,
                aggregates_dir: None,
            };
            let recomputed = deps.recompute.recompute(request).await?;
            let Recomputed { rows, divergence, summary, .. } = recomputed;
            (rows, Some(divergence), summary.copies, summary.cost)
        }
        BillingPath::Kappa => {
            let Some(replay) = &deps.replay else {
                let reason = "the bill of this hour is the replay's, and no replay can be started here";
                return Err(Error::Config { reason: reason.to_owned() });
            };
            let stored = StoredRunInputs { inputs: inputs.value.clone(), sha256: inputs.sha256.clone() };
            let replayed = replay.replay(std::slice::from_ref(&stored), None).await?;
            let hour = replayed.hours.into_iter().find(|replayed| replayed.hour == hour);
            (hour.map(|hour| hour.rows).unwrap_or_default(), None, replayed.copies, replayed.cost)
        }
    };
    let rows = rows.into_iter().map(|row| (row.campaign_id.clone(), row)).collect();
    Ok(Recount { rows, divergence, copies, cost })
}

/// Compares rows counted again with the newest versions in the archive's results and in the store.
pub(super) fn compare(
    hour: Hour,
    path: BillingPath,
    mut recounted: Recounted,
    versions: &BTreeMap<CampaignId, NewestVersion>,
    stored: &BTreeMap<CampaignId, BillingRow>,
    findings: &mut Findings,
) -> Vec<CertifiedRow> {
    let campaigns: BTreeSet<CampaignId> =
        recounted.keys().chain(versions.keys()).chain(stored.keys()).cloned().collect();
    let mut rows = Vec::new();
    for campaign in campaigns {
        if !findings.covers(&campaign) {
            continue;
        }
        let in_store = stored.get(&campaign);
        // A campaign that vanished has a version of zeros, in the currency it had.
        let counts = recounted.remove(&campaign).unwrap_or_else(|| {
            BillingCounts::zero(campaign.clone(), in_store.and_then(|row| row.counts.currency))
        });
        let digest = row_digest(hour, &counts);
        let version = versions.get(&campaign);
        let name = in_store.map_or_else(|| format!("row {campaign} {hour} {path}"), name_of);
        if let Some(reason) = difference(&counts, in_store) {
            findings.add(Check::Recount, &name, reason);
        }
        match version {
            Some(version) if version.digest != digest => {
                let reason = format!(
                    "counts to the digest {digest}, and the results in the archive say {}",
                    version.digest
                );
                findings.add(Check::Recount, &name, reason);
            }
            Some(version) if in_store.is_some_and(|row| row.version != version.version) => {
                let reason = format!(
                    "is the newest version in the billing store; in the results of the archive version {} is",
                    version.version
                );
                findings.add(Check::Store, &name, reason);
            }
            Some(_) => {}
            None => findings.add(Check::Recount, &name, "is in no result of the archive, and was counted"),
        }
        rows.push(CertifiedRow { counts, digest, version: version.map(|version| version.version) });
    }
    rows
}

/// Says how a stored row differs from what was counted, each number with both values.
fn difference(counted: &BillingCounts, stored: Option<&BillingRow>) -> Option<String> {
    let Some(stored) = stored else {
        return Some(format!("is not in the billing store, and counts to {} billable", counted.billable));
    };
    let stored = &stored.counts;
    let numbers = [
        ("gross", counted.gross, stored.gross),
        ("duplicates", counted.duplicates, stored.duplicates),
        ("conflicts", counted.conflicts, stored.conflicts),
        ("invalid_givt", counted.invalid_givt, stored.invalid_givt),
        ("invalid_sivt", counted.invalid_sivt, stored.invalid_sivt),
        ("billable", counted.billable, stored.billable),
        ("unpriced", counted.unpriced, stored.unpriced),
    ];
    let numbers = numbers.into_iter().filter(|(_, counted, stored)| counted != stored);
    let mut texts: Vec<String> = numbers
        .map(|(name, counted, stored)| {
            format!("{name} is {stored} in the billing store and counts to {counted}")
        })
        .collect();
    if counted.amount_micros != stored.amount_micros || counted.currency != stored.currency {
        let money = |counts: &BillingCounts| {
            let currency = counts.currency.map_or("no currency".to_owned(), |code| code.to_string());
            format!("{} {currency}", counts.amount_micros)
        };
        texts.push(format!(
            "amount_micros is {} in the billing store and counts to {}",
            money(stored),
            money(counted)
        ));
    }
    (!texts.is_empty()).then(|| texts.join("; "))
}
