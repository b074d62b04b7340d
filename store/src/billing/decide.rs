//! What a commit writes, decided from what is stored: no I/O and no clock, so every backend decides alike.

use std::collections::{HashMap, HashSet};

use twice_log::archive::{BillingStatus, RunOutcome};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Currency, Hour};

use super::{BillingCounts, NewBillingRow, Reason, RunCommit, row_digest};
use crate::error::{Error, Result};

/// The newest version of one row.
#[derive(Debug, Clone)]
pub(crate) struct Newest {
    pub version: u32,
    pub status: BillingStatus,
    pub digest: Sha256Hex,
    pub counts: BillingCounts,
}

/// What is stored of the hour and path of a commit.
#[derive(Debug, Clone, Default)]
pub(crate) struct HourFacts {
    /// Highest status of the runs committed so far; `None` before the first one.
    pub status: Option<BillingStatus>,
    pub newest: HashMap<CampaignId, Newest>,
    /// The bill that a change of mode replaces; `None` unless the commit changes the mode and the other path billed.
    pub replaced: Option<ReplacedBill>,
}

/// The bill of the hour by the path in force before a change of mode.
#[derive(Debug, Clone)]
pub(crate) struct ReplacedBill {
    pub status: BillingStatus,
    pub currencies: HashMap<CampaignId, Option<Currency>>,
}

impl HourFacts {
    /// Returns the newest version of each campaign.
    pub fn versions(&self) -> HashMap<CampaignId, u32> {
        self.newest.iter().map(|(campaign_id, newest)| (campaign_id.clone(), newest.version)).collect()
    }

    /// Returns every campaign billed before that a commit must have a row of, in any order.
    fn campaigns(&self) -> HashSet<&CampaignId> {
        let replaced = self.replaced.iter().flat_map(|replaced| replaced.currencies.keys());
        self.newest.keys().chain(replaced).collect()
    }

    /// Returns the currency a campaign was billed in, if it was billed in one.
    pub fn currency(&self, campaign_id: &CampaignId) -> Option<Currency> {
        let newest = self.newest.get(campaign_id).and_then(|newest| newest.counts.currency);
        newest.or_else(|| self.replaced.as_ref()?.currencies.get(campaign_id).copied().flatten())
    }

    /// Returns the status of a commit: it never goes down (CR-9), for a campaign that is new in a final hour neither,
    /// nor where another path takes over a final bill.
    pub fn status_at_least(&self, status: BillingStatus) -> BillingStatus {
        let replaced = self.replaced.as_ref().map(|replaced| replaced.status);
        [self.status, replaced].into_iter().flatten().fold(status, BillingStatus::max)
    }
}

/// A version to write.
#[derive(Debug, Clone)]
pub(crate) struct PlannedRow {
    pub version: u32,
    pub reason: Reason,
    pub row: NewBillingRow,
}

/// What a commit writes.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub outcome: RunOutcome,
    pub status: BillingStatus,
    /// In order of campaign.
    pub rows: Vec<PlannedRow>,
    /// Newest version of each campaign once the plan is written.
    pub versions: HashMap<CampaignId, u32>,
}

/// Checks what the types cannot: CR-5's balance, digests, G-5's sum, one row a campaign, the name of the run.
///
/// # Errors
/// `Invalid`, naming the row.
pub(crate) fn check(commit: &RunCommit) -> Result<()> {
    let run_id = format!("{}/{}/{:06}", commit.path, commit.hour, commit.seq);
    if commit.run_id != run_id {
        return Err(invalid(&commit.run_id, format!("a run of this path, hour and sequence is {run_id}")));
    }
    let mut billable = HashMap::with_capacity(commit.rows.len());
    for row in &commit.rows {
        let campaign_id = &row.counts.campaign_id;
        if let Some(reason) = fault_of_row(commit.hour, row) {
            return Err(invalid(&commit.run_id, format!("{campaign_id} {reason}")));
        }
        if billable.insert(campaign_id, row.counts.billable).is_some() {
            return Err(invalid(&commit.run_id, format!("{campaign_id} comes twice")));
        }
    }
    let mut explained = HashSet::with_capacity(commit.divergence.len());
    for divergence in &commit.divergence {
        let campaign_id = &divergence.campaign_id;
        let refuse = |reason: &str| Err(invalid(&commit.run_id, format!("{campaign_id} {reason}")));
        if !divergence.is_balanced() {
            return refuse("has a difference that its causes do not add up to (G-5)");
        }
        if divergence.billed != billable.get(campaign_id).copied().unwrap_or(0) {
            return refuse("is explained with another billed number than its row's");
        }
        if !explained.insert(campaign_id) {
            return refuse("is explained twice");
        }
    }
    Ok(())
}

fn fault_of_row(hour: Hour, NewBillingRow { counts, digest }: &NewBillingRow) -> Option<&'static str> {
    if !counts.is_balanced() {
        return Some("is not balanced: gross is not duplicates + invalid + billable (CR-5)");
    }
    // Conflicts are duplicates, unpriced clicks are billable: neither can be more than the whole it is part of.
    if counts.conflicts > counts.duplicates || counts.unpriced > counts.billable {
        return Some("counts more conflicts than duplicates, or more unpriced than billable clicks");
    }
    if i64::try_from(counts.gross).is_err() {
        return Some("does not fit 63 bits");
    }
    (*digest != row_digest(hour, counts)).then_some("has another digest than its counts (CR-8)")
}

fn invalid(run_id: &str, reason: String) -> Error {
    Error::Invalid { what: format!("run {run_id}"), reason }
}

/// Decides which versions a checked commit writes, and why.
pub(crate) fn decide(commit: &RunCommit, facts: &HourFacts) -> Plan {
    let status = facts.status_at_least(commit.status);
    let mut rows: Vec<PlannedRow> = Vec::new();
    let present: HashSet<&CampaignId> = commit.rows.iter().map(|row| &row.counts.campaign_id).collect();
    for row in &commit.rows {
        rows.extend(plan_row(row.clone(), status, commit.mode_change, facts));
    }
    for campaign_id in facts.campaigns().difference(&present) {
        let zeros = BillingCounts::zero((*campaign_id).clone(), facts.currency(campaign_id));
        rows.extend(plan_row(NewBillingRow::new(commit.hour, zeros), status, commit.mode_change, facts));
    }
    rows.sort_by(|left, right| left.row.counts.campaign_id.cmp(&right.row.counts.campaign_id));
    // An hour's first run commits the hour even where no campaign had a click, and a change of mode the mode.
    let changes = !rows.is_empty() || facts.status.is_none() || commit.mode_change;
    let outcome = if changes { RunOutcome::Committed } else { RunOutcome::Identical };
    let mut versions = facts.versions();
    versions.extend(rows.iter().map(|planned| (planned.row.counts.campaign_id.clone(), planned.version)));
    Plan { outcome, status, rows, versions }
}

fn plan_row(
    row: NewBillingRow,
    status: BillingStatus,
    mode_change: bool,
    facts: &HourFacts,
) -> Option<PlannedRow> {
    let newest = facts.newest.get(&row.counts.campaign_id);
    let version = newest.map_or(1, |newest| newest.version + 1);
    if mode_change {
        return Some(PlannedRow { version, reason: Reason::ModeChange, row });
    }
    let Some(stored) = facts.status else {
        return Some(PlannedRow { version, reason: Reason::First, row });
    };
    let reason = match newest {
        Some(newest) if newest.digest == row.digest && newest.status == status => return None,
        Some(newest) => Reason::of_change(&newest.counts, &row.counts, newest.status < status),
        // Its currency is no change: zeros have none.
        None => {
            let zeros = BillingCounts::zero(row.counts.campaign_id.clone(), row.counts.currency);
            Reason::of_change(&zeros, &row.counts, stored < status)
        }
    };
    Some(PlannedRow { version, reason, row })
}
