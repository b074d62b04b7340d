//! Billing rows, runs and divergence: what a run commits, in one transaction, and how it is read back.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::archive::{BillingPath, BillingStatus, Cutoff, RunOutcome};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Currency, Hour, UtcMillis};

use crate::error::Result;

/// A moment in UTC, in microseconds since 1970: `committed_at` must tell any two commits apart (G-6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UtcMicros(pub i64);

/// The counts of CR-5 for one campaign and hour, as a run computed them.
///
/// Invariant: `gross = duplicates + invalid_givt + invalid_sivt + billable`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillingCounts {
    pub campaign_id: CampaignId,
    pub gross: u64,
    pub duplicates: u64,
    pub conflicts: u64,
    pub invalid_givt: u64,
    pub invalid_sivt: u64,
    pub billable: u64,
    pub unpriced: u64,
    pub amount_micros: i64,
    /// `None` for a campaign without any rate.
    pub currency: Option<Currency>,
}

impl BillingCounts {
    /// Returns whether CR-5's identity holds.
    pub fn is_balanced(&self) -> bool {
        self.gross == self.duplicates + self.invalid_givt + self.invalid_sivt + self.billable
    }
}

/// A row a run wants to commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewBillingRow {
    pub counts: BillingCounts,
    /// SHA-256 of the canonical encoding (CR-8).
    pub digest: Sha256Hex,
}

/// One version of one billing row, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillingRow {
    pub hour: Hour,
    pub path: BillingPath,
    /// 1 for the first; counts per (campaign, hour, path).
    pub version: u32,
    pub status: BillingStatus,
    pub counts: BillingCounts,
    pub digest: Sha256Hex,
    pub run_id: String,
    /// Why this version exists: `first`, `rerun`, and those of restatements.
    pub reason: String,
    pub committed_at: UtcMicros,
}

/// Whether the stream's number of an hour is known to be right (G-5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamState {
    Complete,
    Incomplete,
    Unsealed,
}

/// The difference between stream and bill for one campaign and hour, by cause (G-5).
///
/// `preliminary - billed = late_duplicate + fraud - late + unexplained`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    pub campaign_id: CampaignId,
    pub stream: StreamState,
    pub preliminary: Option<u64>,
    pub billed: u64,
    pub late: Option<u64>,
    pub late_duplicate: Option<u64>,
    pub fraud: Option<u64>,
    pub unexplained: Option<i64>,
}

/// A divergence row as stored, of the hour's newest run or of the run asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergenceRow {
    pub hour: Hour,
    pub path: BillingPath,
    /// Version of the billing row it explains.
    pub version: u32,
    pub divergence: Divergence,
}

/// Everything one run commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunCommit {
    pub path: BillingPath,
    pub hour: Hour,
    pub seq: u32,
    /// `{path}/{hour}/{seq:06}`.
    pub run_id: String,
    pub status: BillingStatus,
    pub inputs_sha256: Sha256Hex,
    pub cutoffs: Vec<Cutoff>,
    pub started_at: UtcMillis,
    pub rows: Vec<NewBillingRow>,
    pub divergence: Vec<Divergence>,
}

/// What a commit did; also what [`BillingStore::committed_run`] finds after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedRun {
    pub outcome: RunOutcome,
    pub committed_at: Option<UtcMicros>,
    /// Path whose rows are the bill of this hour; fixed by the hour's first commit.
    pub mode: BillingPath,
    /// The versions written: empty where the outcome is `identical`.
    pub rows: Vec<BillingRow>,
}

/// A run as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciliation {
    pub run_id: String,
    pub path: BillingPath,
    pub hour: Hour,
    pub seq: u32,
    pub status: BillingStatus,
    pub outcome: RunOutcome,
    pub rows_written: u64,
    pub started_at: UtcMillis,
    pub committed_at: UtcMicros,
    pub inputs_sha256: Sha256Hex,
}

/// Which billing rows to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BillingQuery {
    pub from: Hour,
    /// Exclusive.
    pub to: Hour,
    pub campaign: Option<CampaignId>,
    /// `None`: the path in force of each hour.
    pub path: Option<BillingPath>,
    /// `None`: the newest version (by `as_of`, where given).
    pub version: Option<u32>,
    pub as_of: Option<UtcMicros>,
    pub limit: u32,
    pub cursor: Option<String>,
}

/// One page of a list, with the cursor of the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    pub rows: Vec<T>,
    pub next_cursor: Option<String>,
}

/// The billing store. One writer at a time; reads with `as_of` wait for it (G-6).
#[async_trait]
pub trait BillingStore: Send + Sync + 'static {
    /// Commits a run: versions, divergence, run and reconciled mark, in one transaction (G-4).
    ///
    /// A row is written as a new version only where digest or status differ from the newest version of its
    /// (campaign, hour, path); status never goes down (CR-9). A campaign billed before that the run has no row for
    /// gets a version of zeros. If nothing differs the outcome is `identical` and only the run itself is recorded.
    /// Committing the same run id again changes nothing and returns what the first commit did.
    async fn commit_run(&self, commit: RunCommit) -> Result<CommittedRun>;

    /// Returns what the run committed, if it did.
    async fn committed_run(&self, run_id: &str) -> Result<Option<CommittedRun>>;

    /// Returns billing rows ordered by (hour, campaign, path, version).
    async fn billing(&self, query: &BillingQuery) -> Result<Page<BillingRow>>;

    /// Returns the divergence rows of an hour, of the newest run committed (by `as_of`, where given).
    async fn divergence(
        &self,
        hour: Hour,
        as_of: Option<UtcMicros>,
        limit: u32,
        cursor: Option<String>,
    ) -> Result<Page<DivergenceRow>>;

    /// Returns runs, newest first.
    async fn reconciliations(&self, limit: u32, cursor: Option<String>) -> Result<Page<Reconciliation>>;

    /// Returns the hours in `[from, to)` that have a committed run of `path`, or of the path in force for `None`.
    async fn billed_hours(&self, path: Option<BillingPath>, from: Hour, to: Hour) -> Result<Vec<Hour>>;

    /// Returns the cutoffs of the newest committed run of all hours, which no later run may go below (G-3).
    async fn newest_cutoffs(&self) -> Result<Vec<Cutoff>>;
}
