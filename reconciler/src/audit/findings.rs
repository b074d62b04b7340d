//! What the checks found, check by check.
//!
//! Guarantee: a check passes only if it was carried out and found nothing. Lists are bounded, counts are not.

use std::collections::{BTreeMap, BTreeSet};

use twice_log::CampaignId;

use super::certificate::{Check, CheckLine, Finding};

/// Findings listed of one check, and notices listed in all: a broken archive must not make a certificate without end.
const LISTED_MAX: usize = 1_000;

/// Collects findings and notices.
#[derive(Debug, Default)]
pub(super) struct Findings {
    campaign: Option<CampaignId>,
    listed: BTreeSet<Finding>,
    counts: BTreeMap<Check, u64>,
    notices: BTreeSet<Finding>,
    /// What the certificate says in place of a recount.
    deleted: Option<String>,
}

impl Findings {
    /// Collects; findings about rows are limited to `campaign`, if given.
    pub fn of(campaign: Option<CampaignId>) -> Self {
        Self { campaign, ..Self::default() }
    }

    /// Returns whether the rows of a campaign are asked about.
    pub fn covers(&self, campaign: &CampaignId) -> bool {
        self.campaign.as_ref().is_none_or(|asked| asked == campaign)
    }

    /// Adds a finding.
    pub fn add(&mut self, check: Check, object: impl Into<String>, reason: impl Into<String>) {
        let count = self.counts.entry(check).or_default();
        *count += 1;
        if *count <= LISTED_MAX as u64 {
            self.listed.insert(Finding { check, object: object.into(), reason: reason.into() });
        }
    }

    /// Adds a notice: it does not break the verdict.
    pub fn notice(&mut self, check: Check, object: impl Into<String>, reason: impl Into<String>) {
        if self.notices.len() < LISTED_MAX {
            self.notices.insert(Finding { check, object: object.into(), reason: reason.into() });
        }
    }

    /// Notes that the rows cannot be counted again, and what the certificate says about it.
    pub fn not_counted(&mut self, statement: String) {
        self.deleted = Some(statement);
    }

    /// Returns the lines of the checks carried out, the findings in order, and the notices.
    pub fn finish(self) -> (Vec<CheckLine>, Vec<Finding>, Vec<Finding>) {
        let line = |check: Check| {
            let findings = self.counts.get(&check).copied().unwrap_or(0);
            let statement = match &self.deleted {
                Some(statement) if check == Check::Deleted => statement.clone(),
                Some(_) if check == Check::Files => {
                    "each data file that is still there has the SHA-256, size and rows its manifest says"
                        .to_owned()
                }
                _ => check.statement().to_owned(),
            };
            CheckLine { check, statement, passed: findings == 0, findings }
        };
        // A check that was not carried out is no line: it would say that it passed.
        let is_line = |check: &Check| match check {
            Check::Recount => self.deleted.is_none() || self.counts.contains_key(check),
            Check::Deleted => self.deleted.is_some() || self.counts.contains_key(check),
            _ => true,
        };
        let lines = Check::ALL.into_iter().filter(is_line).map(line).collect();
        (lines, self.listed.into_iter().collect(), self.notices.into_iter().collect())
    }
}
