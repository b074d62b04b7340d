//! Aggregates of billed hours: what a run counted, by ad and minute, with sketches of the users who made the clicks.
//!
//! Guarantee: a run's rows of a campaign, at any level, sum to its billing row in every count and in the amount; the
//! run checks it before it commits. A copy belongs to the row of its own ad and minute, as it belongs to the bill of its
//! own hour (CR-5): a duplicate under another ad than its winner is a duplicate there.
//! Words: *level* = what a row sums up; *users* = distinct users of billable clicks, as [`UserSketch`] counts them. The
//! stream's number is of the clicks it counted, so the two differ where the bill does, and nowhere else.
//! Flow: the recompute writes rows with `encode` -> the archive -> [`ArchiveAggregates`] reads one campaign's.

mod archive;
mod cache;
mod columns;
mod decode;
mod encode;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use twice_log::archive::{AggregateLevel, RunKey};
use twice_log::{AdId, CampaignId, UtcMillis};

use crate::billing::BillingCounts;
use crate::error::Result;
use crate::sketch::UserSketch;

pub use archive::ArchiveAggregates;
pub use columns::aggregates_schema;
pub use decode::AggregateRows;
pub use encode::{AggregateWriter, WrittenAggregates};

/// The counts of CR-5 for one row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AggregateCounts {
    pub gross: u64,
    pub duplicates: u64,
    pub conflicts: u64,
    pub invalid_givt: u64,
    pub invalid_sivt: u64,
    pub billable: u64,
    pub unpriced: u64,
    pub amount_micros: i64,
}

impl AggregateCounts {
    /// Takes the counts out of a billing row.
    pub fn of(counts: &BillingCounts) -> Self {
        Self {
            gross: counts.gross,
            duplicates: counts.duplicates,
            conflicts: counts.conflicts,
            invalid_givt: counts.invalid_givt,
            invalid_sivt: counts.invalid_sivt,
            billable: counts.billable,
            unpriced: counts.unpriced,
            amount_micros: counts.amount_micros,
        }
    }

    /// Adds the counts of another row. A sum that leaves 64 bits stays at their end, and equals no billing row.
    pub fn add(&mut self, other: &Self) {
        let Self {
            gross,
            duplicates,
            conflicts,
            invalid_givt,
            invalid_sivt,
            billable,
            unpriced,
            amount_micros,
        } = other;
        self.gross = self.gross.saturating_add(*gross);
        self.duplicates = self.duplicates.saturating_add(*duplicates);
        self.conflicts = self.conflicts.saturating_add(*conflicts);
        self.invalid_givt = self.invalid_givt.saturating_add(*invalid_givt);
        self.invalid_sivt = self.invalid_sivt.saturating_add(*invalid_sivt);
        self.billable = self.billable.saturating_add(*billable);
        self.unpriced = self.unpriced.saturating_add(*unpriced);
        self.amount_micros = self.amount_micros.saturating_add(*amount_micros);
    }
}

/// One row of one campaign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregateRow {
    /// `None` where the row is of all ads together; empty where the sender named no ad.
    pub ad_id: Option<AdId>,
    /// Start of the minute, or of the hour.
    pub window_start: UtcMillis,
    pub counts: AggregateCounts,
    /// Users of the row's billable clicks.
    pub users: UserSketch,
}

impl AggregateRow {
    /// Adds another row's counts and users.
    pub fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.users.merge(&other.users);
    }
}

/// Reads aggregates of billed hours.
#[async_trait]
pub trait AggregateReader: Send + Sync + 'static {
    /// Returns one campaign's rows of what `run` wrote, in order of (ad, time); empty where the campaign has none.
    ///
    /// `None` where the run wrote no aggregates, as runs of earlier builds did, or where they are gone. What is returned
    /// once is returned for ever: a run's aggregates never change.
    ///
    /// # Errors
    /// `Archive` if the archive does not answer; `Archive` or `Damage` if a file is not the one the run wrote.
    async fn read(
        &self,
        run: RunKey,
        level: AggregateLevel,
        campaign: &CampaignId,
    ) -> Result<Option<Arc<Vec<AggregateRow>>>>;
}
