//! Recomputes one hour's bill from the archive with SQL, in bounded memory.
//!
//! Guarantee: the answer depends on the run's inputs alone (CR-8): not on threads, memory, slices or what else lies in
//! the archive. Words: *inputs* = the run's recorded files, cutoffs, seals and rates; *slice* = the campaigns (or the
//! share of one campaign's ids) counted at once, so that memory has a bound that does not grow with the hour.
//! Flow: the parent starts a child process and hands it a [`RecomputeRequest`]; the child reads the inputs, runs
//! `billing.sql` and `../compare/causes.sql` slice by slice, and answers in JSON lines, range of campaigns by range;
//! beside the bill it makes the files of aggregates.

pub mod aggregates;
pub mod child;
mod engine;
mod layouts;
mod lookup;
mod memory;
mod process;
mod related;
pub(crate) mod relations;
mod rules;
mod scan;
mod session;
mod shadow;
mod share;
mod slices;
mod spill;
mod split;
pub(crate) mod values;

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::CampaignId;
use twice_log::archive::Archive;
use twice_log::event::Sha256Hex;
use twice_store::{BillingCounts, Cost, Divergence};

use crate::compare::Explanation;
use crate::error::{Error, Result};

pub use aggregates::LocalAggregates;
pub use engine::recompute_inputs;
pub(crate) use engine::{HourRecompute, read_seals};
pub(crate) use lookup::hours_before;
pub use lookup::{LookedUp, TouchedHour, VerdictLookup};
pub(crate) use memory::MemoryBound;
pub use process::ProcessRecompute;
pub use rules::{Rules, rules_sha256};
pub(crate) use session::SliceSession;
pub use shadow::{ShadowAmount, ShadowChange, ShadowReport, ShadowRow, ShadowSide};
pub(crate) use slices::{CampaignRange, footer};
pub(crate) use spill::SpillFolder;
pub use spill::sweep as sweep_spill;
pub use twice_log::archive::ArchiveLocation;

/// The statement that makes the bill. An auditor can paste it into another engine.
pub const BILLING_SQL: &str = include_str!("billing.sql");

/// What one recompute may use of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// Threads of the engine.
    pub threads: usize,
    /// Peak resident memory of the recompute's process. One that runs beside other work counts its own share only.
    pub memory_bytes_max: u64,
    /// Where operators spill to when they outgrow their share.
    pub spill_dir: PathBuf,
    /// Whether each file's SHA-256 is compared with its manifest's before it is read.
    pub verify_files: bool,
    /// Rows counted at once; `None`: as many as fit the memory. Decides slices, never a count.
    pub rows_per_slice_max: Option<u64>,
}

/// What the child is to answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Billing rows and divergence of every campaign.
    Bill,
    /// The copies by which preliminary and billed of one campaign differ, at most `limit`.
    Explain { campaign: CampaignId, limit: u32 },
    /// The hours that stored verdicts rule on. It names no run.
    LookUp(Box<VerdictLookup>),
    /// How a candidate statement's bill differs, of every campaign or of one.
    Shadow { sql: String, campaign: Option<CampaignId> },
}

/// One order to the engine: what to compute, over which recorded inputs, within which limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecomputeRequest {
    /// Where the child opens the archive. An in-process runner has its own and ignores it.
    pub archive: ArchiveLocation,
    /// Path of the run inputs in the archive, and the hash its bytes must have.
    pub inputs_path: String,
    pub inputs_sha256: Sha256Hex,
    pub limits: ResourceLimits,
    pub task: Task,
    /// Folder of the asker's, there and empty, into which aggregates are written; without one none are made.
    #[serde(default)]
    pub aggregates_dir: Option<PathBuf>,
}

/// Figures of one recompute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Copies in the files of the inputs.
    pub copies: u64,
    pub slices: u32,
    /// Processes before this one that died for want of memory; each was followed by one with smaller slices.
    #[serde(default)]
    pub memory_retries: u32,
    pub cost: Cost,
}

/// What a recompute answers, ordered by campaign.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recomputed {
    pub rows: Vec<BillingCounts>,
    pub divergence: Vec<Divergence>,
    /// Files of aggregates, by level and campaign; `None` where none were asked for.
    pub aggregates: Option<Vec<LocalAggregates>>,
    pub summary: Summary,
}

/// Runs recomputes. The node's starts a child process; tests run in their own.
#[async_trait]
pub trait Recompute: Send + Sync + 'static {
    /// Computes billing rows and divergence of the run whose inputs the request names.
    async fn recompute(&self, request: RecomputeRequest) -> Result<Recomputed>;

    /// Lists the copies by which preliminary and billed of a campaign differ.
    async fn explain(&self, request: RecomputeRequest) -> Result<Explanation>;

    /// Finds the hours that stored verdicts rule on.
    async fn look_up(&self, request: RecomputeRequest) -> Result<LookedUp>;

    /// Compares a candidate statement with the billing statement; nothing is written.
    async fn shadow(&self, request: RecomputeRequest) -> Result<ShadowReport>;
}

/// Runs recomputes in this process, on a runtime of their own. For tests and offline commands.
#[derive(Debug, Clone)]
pub struct InProcessRecompute {
    archive: Archive,
}

impl InProcessRecompute {
    /// Reads from `archive`, whatever place a request names.
    pub fn new(archive: Archive) -> Self {
        Self { archive }
    }

    async fn answer(&self, request: RecomputeRequest) -> Result<child::Answer> {
        let archive = self.archive.clone();
        // The engine blocks and spawns: neither belongs on the caller's thread.
        let work = tokio::task::spawn_blocking(move || child::answer_here(&archive, &request));
        work.await.map_err(|error| Error::Process {
            action: "run in this process",
            source: std::io::Error::other(error),
        })?
    }
}

#[async_trait]
impl Recompute for InProcessRecompute {
    async fn recompute(&self, request: RecomputeRequest) -> Result<Recomputed> {
        self.answer(request).await?.into_recomputed()
    }

    async fn explain(&self, request: RecomputeRequest) -> Result<Explanation> {
        self.answer(request).await?.into_explanation()
    }

    async fn look_up(&self, request: RecomputeRequest) -> Result<LookedUp> {
        self.answer(request).await?.into_looked_up()
    }

    async fn shadow(&self, request: RecomputeRequest) -> Result<ShadowReport> {
        self.answer(request).await?.into_shadow()
    }
}
