//! Billing rows, runs and divergence: what a run commits, in one transaction, and how it is read back.
//!
//! Guarantee: a published version never changes, and an `as_of` read gives the same answer for ever (G-4, G-6).
//! Words: *run* = one computation of one hour by one path; *version* = one state of one row, counted from 1; *mode* =
//! the path whose rows are the bill of an hour; *restatement* = a version of a row the hour's first run did not write;
//! *correction* = a restatement of the bill in force, as finance reads it.

mod corrections;
pub(crate) mod decide;
mod digest;
mod reason;
mod restored;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use twice_log::archive::{BillingPath, BillingStatus, Cutoff, RunOutcome};
use twice_log::event::{Sha256Hex, TimeError};
use twice_log::{CampaignId, Currency, Hour, UtcMillis};

use crate::error::Result;
use crate::modes::HourMode;

pub use corrections::{Correction, CorrectionsQuery, CountsDelta, VersionLink};
pub use digest::{canonical_row, row_digest};
pub use reason::{Reason, UnknownReason};
pub use restored::RestoredRun;

/// A moment in UTC, in microseconds since 1970: `committed_at` must tell any two commits apart (G-6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UtcMicros(pub i64);

impl UtcMicros {
    /// Returns the first microsecond of `millis`.
    pub fn from_millis(millis: UtcMillis) -> Self {
        Self(millis.epoch_ms().saturating_mul(1000))
    }

    /// Returns the millisecond this moment lies in.
    pub fn floor_millis(self) -> UtcMillis {
        UtcMillis::clamped(self.0.div_euclid(1000))
    }
}

impl fmt::Display for UtcMicros {
    /// Writes RFC 3339 with six decimals, as run results carry it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time: DateTime<Utc> = DateTime::from_timestamp_micros(self.0).unwrap_or(DateTime::<Utc>::MIN_UTC);
        formatter.write_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl FromStr for UtcMicros {
    type Err = TimeError;

    /// Reads RFC 3339, floored to microseconds.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        let time = DateTime::parse_from_rfc3339(text).map_err(|_| TimeError::NotATime)?;
        Ok(Self(time.timestamp_micros()))
    }
}

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
    /// Returns the counts of a campaign that has no copy in the hour.
    pub fn zero(campaign_id: CampaignId, currency: Option<Currency>) -> Self {
        Self {
            campaign_id,
            gross: 0,
            duplicates: 0,
            conflicts: 0,
            invalid_givt: 0,
            invalid_sivt: 0,
            billable: 0,
            unpriced: 0,
            amount_micros: 0,
            currency,
        }
    }

    /// Returns whether CR-5's identity holds; a sum that does not fit 64 bits does not hold.
    pub fn is_balanced(&self) -> bool {
        let parts = [self.duplicates, self.invalid_givt, self.invalid_sivt, self.billable];
        parts.into_iter().try_fold(0u64, u64::checked_add) == Some(self.gross)
    }
}

/// A row a run wants to commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewBillingRow {
    pub counts: BillingCounts,
    /// SHA-256 of the canonical encoding (CR-8), as [`row_digest`] computes it; a commit checks it.
    pub digest: Sha256Hex,
}

impl NewBillingRow {
    /// Builds the row of `counts` with its digest.
    pub fn new(hour: Hour, counts: BillingCounts) -> Self {
        let digest = row_digest(hour, &counts);
        Self { counts, digest }
    }
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
    /// Why this version exists.
    pub reason: Reason,
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

impl Divergence {
    /// Returns whether the causes add up to the difference; true where the stream's number or a cause is unknown.
    pub fn is_balanced(&self) -> bool {
        let known = (self.preliminary, self.late, self.late_duplicate, self.fraud, self.unexplained);
        let (Some(preliminary), Some(late), Some(late_duplicate), Some(fraud), Some(unexplained)) = known
        else {
            return true;
        };
        let difference = i128::from(preliminary) - i128::from(self.billed);
        let causes = i128::from(late_duplicate) + i128::from(fraud) - i128::from(late);
        difference == causes + i128::from(unexplained)
    }
}

/// A divergence row as stored, of the hour's newest run or of the run asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergenceRow {
    pub hour: Hour,
    pub path: BillingPath,
    /// Version of the billing row it explains; 0 where the campaign has none.
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
    /// Makes this path the bill of the hour from this commit on, and writes a version of every row for it.
    pub mode_change: bool,
    pub rows: Vec<NewBillingRow>,
    pub divergence: Vec<Divergence>,
}

/// What a commit did; also what [`BillingStore::committed_run`] finds after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedRun {
    /// `Committed` or `Identical`; the store never sees an abandoned run.
    pub outcome: RunOutcome,
    /// `None` where the outcome is `identical`: no version was written.
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
    /// When the run was recorded, also where the outcome is `identical`.
    pub committed_at: UtcMicros,
    pub inputs_sha256: Sha256Hex,
}

/// That a path has billed an hour, since its first commit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BilledMark {
    pub path: BillingPath,
    pub committed_at: UtcMicros,
    pub run_id: String,
}

/// What the store keeps of one hour beside its runs and rows; every list of billed hours is read from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HourMarks {
    /// Oldest first.
    pub modes: Vec<HourMode>,
    pub billed: Vec<BilledMark>,
    /// The numbers of versions that rows of the hour have, each once.
    pub versions: Vec<(BillingPath, u32)>,
}

/// Which billing rows to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BillingQuery {
    pub from: Hour,
    /// Exclusive.
    pub to: Hour,
    /// `None`: every campaign.
    pub campaigns: Option<BTreeSet<CampaignId>>,
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
    /// gets a version of zeros. If nothing differs the outcome is `identical` and only the run itself is recorded;
    /// the first run of an hour and path is `committed` even without a row, as it makes the hour billed.
    /// A run that changes the mode writes a version of every row, also of campaigns that only the path in force before
    /// has billed, is `committed`, and makes its path the bill of the hour in the same transaction.
    /// Committing the same run id again changes nothing and returns what the first commit did.
    ///
    /// # Errors
    /// `Invalid` if a row is not balanced (CR-5), has a wrong digest or comes twice, if a divergence does not add up or
    /// names another billed number than the row (G-5), or if the run id does not name path, hour and sequence number; `Conflict` if the run id was committed with other inputs. Nothing is stored then.
    async fn commit_run(&self, commit: RunCommit) -> Result<CommittedRun>;

    /// Returns what the run committed, if it did.
    async fn committed_run(&self, run_id: &str) -> Result<Option<CommittedRun>>;

    /// Returns billing rows ordered by (hour, campaign, path, version), paths by name.
    ///
    /// # Errors
    /// `Cursor` for a cursor of another list; `AsOfInFuture`.
    async fn billing(&self, query: &BillingQuery) -> Result<Page<BillingRow>>;

    /// Returns the versions that changed the bill in force, ordered by (moment of commit, campaign).
    ///
    /// An hour's first bill is none of them. A campaign that is new in an hour billed before is one, against zeros. A
    /// change of mode is compared with the newest version of the path in force just before it.
    ///
    /// # Errors
    /// As for [`BillingStore::billing`].
    async fn corrections(&self, query: &CorrectionsQuery) -> Result<Page<Correction>>;

    /// Writes a run as its archived result tells it; nothing of it is decided anew (rebuilding from the archive).
    ///
    /// Committed runs come in order of their `committed_at`, and the clock of commits follows them; identical ones come
    /// after all committed ones, in any order: the moment they were recorded at is in no archive, so `started_at`
    /// stands for it. Restoring a run that is there with the same content changes nothing.
    ///
    /// # Errors
    /// `Invalid` as for [`BillingStore::commit_run`]; `Conflict` if the run is there with something else, comes out of
    /// order, or a row is not what was counted or does not follow the newest stored version. Nothing is stored then.
    async fn restore_run(&self, run: RestoredRun) -> Result<()>;

    /// Returns the divergence rows of an hour, ordered by campaign: those of the newest run of the path in force that
    /// wrote versions (by `as_of`, where given). `campaigns` limits them to these; `None`: every campaign.
    ///
    /// # Errors
    /// As for [`BillingStore::billing`].
    async fn divergence(
        &self,
        hour: Hour,
        as_of: Option<UtcMicros>,
        campaigns: Option<&BTreeSet<CampaignId>>,
        limit: u32,
        cursor: Option<String>,
    ) -> Result<Page<DivergenceRow>>;

    /// Returns the divergence rows that a run committed, ordered by campaign; none for a run that wrote no version.
    async fn run_divergence(&self, run_id: &str) -> Result<Vec<Divergence>>;

    /// Returns runs, newest first.
    async fn reconciliations(&self, limit: u32, cursor: Option<String>) -> Result<Page<Reconciliation>>;

    /// Returns the hours in `[from, to)` that have a committed run of `path`, or of the path in force for `None`.
    async fn billed_hours(&self, path: Option<BillingPath>, from: Hour, to: Hour) -> Result<Vec<Hour>>;

    /// Returns what [`BillingStore::billed_hours`] returned or would have returned at `as_of`, the same for ever (G-6).
    ///
    /// # Errors
    /// `AsOfInFuture`.
    async fn billed_hours_as_of(
        &self,
        path: Option<BillingPath>,
        from: Hour,
        to: Hour,
        as_of: UtcMicros,
    ) -> Result<Vec<Hour>>;

    /// Returns the path in force of an hour: fixed by its first commit, before that the mode set for it.
    async fn mode(&self, hour: Hour) -> Result<BillingPath>;

    /// Returns what is kept of an hour beside its runs and rows.
    async fn hour_marks(&self, hour: Hour) -> Result<HourMarks>;

    /// Returns the highest cutoff any committed run had, per partition; no later run may go below (G-3).
    async fn newest_cutoffs(&self) -> Result<Vec<Cutoff>>;
}
