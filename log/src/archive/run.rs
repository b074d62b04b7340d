//! Run records: the inputs of a billing run, put before any work, and its result, put after the commit (G-4, CR-8).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AggregateFile, FileEntry};
use crate::event::{
    CampaignId, Currency, Generation, Hour, LogOffset, PartitionId, Sha256Hex, Topic, UtcMillis,
};

/// Which path's rows a run writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BillingPath {
    /// Recomputed by SQL over the archive.
    Lambda,
    /// Replayed through the stream code.
    Kappa,
}

impl BillingPath {
    /// Returns the name as it stands in paths, rows and requests.
    pub fn name(self) -> &'static str {
        match self {
            BillingPath::Lambda => "lambda",
            BillingPath::Kappa => "kappa",
        }
    }

    /// Returns the path called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        [BillingPath::Lambda, BillingPath::Kappa].into_iter().find(|path| path.name() == name)
    }
}

impl fmt::Display for BillingPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How settled a billed row is. The order is the order of settling; a row never goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BillingStatus {
    Reconciled,
    Final,
}

impl BillingStatus {
    /// Returns the name as it stands in rows.
    pub fn name(self) -> &'static str {
        match self {
            BillingStatus::Reconciled => "reconciled",
            BillingStatus::Final => "final",
        }
    }
}

/// Up to where one partition's records exist for a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cutoff {
    pub topic: Topic,
    pub generation: Generation,
    pub partition: PartitionId,
    /// Records below this offset exist; those at or above it do not.
    pub end: LogOffset,
    /// Hash of the newest manifest read; `None` where the partition is empty.
    pub head_manifest_sha256: Option<Sha256Hex>,
}

/// The seal a run found for one partition, or that there was none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealInput {
    pub generation: Generation,
    pub partition: PartitionId,
    /// `None`: unsealed, for ever.
    pub seal: Option<SealReference>,
}

/// A seal, by its place and hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealReference {
    pub end: LogOffset,
    pub complete: bool,
    pub sha256: Sha256Hex,
}

/// One recorded price of a campaign.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rate {
    pub campaign_id: CampaignId,
    pub currency: Currency,
    pub cpc_micros: i64,
    pub effective_from: UtcMillis,
    pub recorded_at: UtcMillis,
}

/// Counting settings of a run; part of its inputs and of `rules_sha256`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountingSettings {
    /// Horizon of duplicates in hours: 1 hourly, 24 nightly (CR-3).
    pub horizon_hours: u32,
    /// Disorder under the watermark, milliseconds.
    pub disorder_ms: i64,
    /// Grace after a window's end, milliseconds.
    pub grace_ms: i64,
    /// The stream's dedup horizon, milliseconds.
    pub stream_dedup_ms: i64,
}

impl Default for CountingSettings {
    fn default() -> Self {
        Self { horizon_hours: 1, disorder_ms: 5_000, grace_ms: 30_000, stream_dedup_ms: 600_000 }
    }
}

/// Everything a run reads, put if absent as `runs/{path}/{hour}/{seq:06}.json` before any work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInputs {
    pub path: BillingPath,
    pub hour: Hour,
    /// 1 for the hour's first run; taken only when the run before has a result.
    pub seq: u32,
    pub status: BillingStatus,
    pub settings: CountingSettings,
    /// Every partition of both topics.
    pub cutoffs: Vec<Cutoff>,
    pub seals: Vec<SealInput>,
    /// Files of clicks with event hours within the horizon, in manifest order.
    pub click_files: Vec<FileEntry>,
    /// Files of verdicts that can matter.
    pub verdict_files: Vec<FileEntry>,
    /// Sorted by campaign, effective_from, recorded_at.
    pub rates: Vec<Rate>,
    /// Whether an import announced the hour, where `late` does not count as divergence.
    pub announced: bool,
    /// Whether the run makes its path the bill of an hour that the other path has billed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mode_change: bool,
    /// Hash of the SQL texts and of `settings`.
    pub rules_sha256: Sha256Hex,
    pub created_at: UtcMillis,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunOutcome {
    /// New versions were written.
    Committed,
    /// Every row equals its newest version; nothing was written.
    Identical,
    /// The inputs can no longer be used; the next run takes new ones.
    Abandoned,
}

/// One row version a run wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultRow {
    pub campaign_id: CampaignId,
    pub version: u32,
    pub status: BillingStatus,
    pub reason: String,
    pub digest: Sha256Hex,
}

/// The end of a run, put if absent as `runs/{path}/{hour}/{seq:06}.result.json` after its commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunResult {
    pub path: BillingPath,
    pub hour: Hour,
    pub seq: u32,
    pub outcome: RunOutcome,
    /// RFC 3339 with microseconds; `None` where nothing was committed.
    pub committed_at: Option<String>,
    /// Path whose rows are the bill of this hour.
    pub mode: BillingPath,
    pub inputs_sha256: Sha256Hex,
    pub rows: Vec<ResultRow>,
    /// Files of aggregates whose rows sum to the run's counts; empty in runs of before there were any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aggregates: Vec<AggregateFile>,
}
