//! Corrections: the versions by which a bill that was in force changed, with what finance credits or debits.
//!
//! Words: *in force* = of the path whose rows were the bill of the hour at that moment; *version before* = the newest
//! version in force just before. The hour's first bill is no correction; the sum of it and of all its corrections is the
//! bill in force, count for count.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use twice_log::archive::{BillingPath, BillingStatus};
use twice_log::{CampaignId, Currency, Hour};

use super::{BillingCounts, Reason, UtcMicros};

/// Which corrections to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorrectionsQuery {
    /// Event hours from here on.
    pub from: Hour,
    /// Event hours before this one.
    pub to: Hour,
    /// `None`: every campaign.
    pub campaigns: Option<BTreeSet<CampaignId>>,
    /// Committed after this moment; what was committed at it is left out, so that ranges of moments meet without overlap.
    pub since: Option<UtcMicros>,
    /// Committed by this moment; the answer is the same for ever (G-6).
    pub as_of: Option<UtcMicros>,
    /// Also versions that changed no count, as the nightly close and a change of mode write them.
    pub include_unchanged: bool,
    pub limit: u32,
    pub cursor: Option<String>,
}

/// Names a version of the corrected row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionLink {
    pub path: BillingPath,
    pub version: u32,
}

/// New counts minus old ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountsDelta {
    pub gross: i64,
    pub duplicates: i64,
    pub conflicts: i64,
    pub invalid_givt: i64,
    pub invalid_sivt: i64,
    pub billable: i64,
    pub unpriced: i64,
    pub amount_micros: i64,
}

impl CountsDelta {
    /// Returns `new` minus `old`. Counts fit 63 bits, as a commit checks.
    pub fn between(old: &BillingCounts, new: &BillingCounts) -> Self {
        let difference = |new: u64, old: u64| new as i64 - old as i64;
        Self {
            gross: difference(new.gross, old.gross),
            duplicates: difference(new.duplicates, old.duplicates),
            conflicts: difference(new.conflicts, old.conflicts),
            invalid_givt: difference(new.invalid_givt, old.invalid_givt),
            invalid_sivt: difference(new.invalid_sivt, old.invalid_sivt),
            billable: difference(new.billable, old.billable),
            unpriced: difference(new.unpriced, old.unpriced),
            amount_micros: new.amount_micros.saturating_sub(old.amount_micros),
        }
    }
}

/// A version that changed the bill in force, against the version before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Correction {
    pub campaign_id: CampaignId,
    pub hour: Hour,
    pub path: BillingPath,
    pub version: u32,
    /// `None`: the bill in force had no row of the campaign, which counts as zeros.
    pub before: Option<VersionLink>,
    pub status: BillingStatus,
    pub reason: Reason,
    pub run_id: String,
    pub committed_at: UtcMicros,
    pub delta: CountsDelta,
    pub currency: Option<Currency>,
}
