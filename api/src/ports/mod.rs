//! What the HTTP face needs of the other parts, as traits that the node implements with the actors.

mod audit;
mod budget;
mod compare;
mod replay;
mod shadow;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use twice_log::archive::RunOutcome;
use twice_log::{CampaignId, ClickId, Currency, Day, Generation, Hour, LogOffset, PartitionId, UtcMillis};
use twice_store::billing::StreamState;
use utoipa::ToSchema;

pub use audit::AuditControl;
pub use budget::BudgetControl;
pub use compare::{CompareControl, CompareEvent, CompareRequest, ComparisonSummary};
pub use replay::{ReplayControl, ReplayEvent, ReplayRequest};
pub use shadow::{
    ShadowAmount, ShadowChange, ShadowControl, ShadowCurrencies, ShadowQuery, ShadowReport, ShadowRow,
    ShadowSide,
};

/// Why a port cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The thing asked about does not exist (404).
    #[error("{what} does not exist")]
    NotFound { what: String },
    /// Something under way forbids it (409).
    #[error("{reason}")]
    Conflict { reason: String },
    /// The request cannot be fulfilled as it stands (422).
    #[error("{reason}")]
    Refused { reason: String },
    /// The part behind the port does not answer (503). The client asks again later.
    #[error("{reason}")]
    Unavailable { reason: String },
}

/// Which hours to reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconcileTarget {
    /// One hour, now, at the offsets present.
    Hour(Hour),
    /// Every hour that is due by G-3.
    Due,
    /// Every hour of a past day, to become final (CR-9).
    Day(Day),
    /// Every billed hour that later clicks, verdicts or rates touch.
    Sweep,
}

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReconcileStep {
    Sealing,
    Cutoff,
    Archiving,
    Recomputing,
    Committing,
}

/// One line of a reconciliation's progress. Each hour ends with `done` or `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum ReconcileEvent {
    /// A step of the hour began.
    Step {
        #[schema(value_type = String, example = "2025-01-15T12")]
        hour: Hour,
        step: ReconcileStep,
    },
    /// The hour's run ended.
    Done {
        #[schema(value_type = String, example = "2025-01-15T12")]
        hour: Hour,
        #[schema(value_type = String, example = "committed")]
        outcome: RunOutcome,
        run_id: String,
        /// Row versions the run wrote.
        rows: u64,
        /// Unexplained clicks of all campaigns; null where the stream was not complete.
        unexplained: Option<i64>,
        /// How the run changed a bill that was there before.
        change: BillChange,
    },
    /// What whoever asked should know.
    Note { detail: String },
    /// The hour could not be reconciled; it stays due.
    Failed {
        /// Null where the failure came before any hour was taken up.
        #[schema(value_type = Option<String>)]
        hour: Option<Hour>,
        detail: String,
    },
}

/// By how much a run changed the bill of an hour; nothing where it made the hour's first bill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BillChange {
    /// Rows whose counts or amount changed; `GET /v1/billing/corrections` has them all.
    pub rows: u64,
    /// New billable clicks minus old ones.
    pub billable: i64,
    pub money: Vec<MoneyDelta>,
    /// The first of the changed rows.
    pub listed: Vec<RowChange>,
}

/// New amounts minus old ones, in one currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoneyDelta {
    #[schema(value_type = Option<String>, example = "USD")]
    pub currency: Option<Currency>,
    pub amount_micros: i64,
}

/// How one row changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RowChange {
    #[schema(value_type = String)]
    pub campaign_id: CampaignId,
    pub version: u32,
    /// Why, as in the list of corrections.
    pub reason: String,
    /// New billable clicks minus old ones.
    pub billable: i64,
    pub amount_micros: i64,
    #[schema(value_type = Option<String>, example = "USD")]
    pub currency: Option<Currency>,
}

/// Starts reconciliations.
#[async_trait]
pub trait ReconcileControl: Send + Sync + 'static {
    /// Starts a reconciliation and returns its progress; the stream ends when everything started has ended.
    ///
    /// Dropping the stream MUST NOT stop what was started: `?wait=false` and a client that goes away do just that.
    async fn start(&self, target: ReconcileTarget) -> Result<BoxStream<'static, ReconcileEvent>, PortError>;

    /// Deletes what is expired of the raw archive, of one hour or of all, or says what that would be; the report is JSON.
    async fn retain(
        &self,
        hour: Option<Hour>,
        dry_run: bool,
    ) -> Result<Box<serde_json::value::RawValue>, PortError>;
}

/// Which copies to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainQuery {
    pub hour: Hour,
    pub campaign: CampaignId,
    /// Most copies listed; counts are of all.
    pub limit: u32,
}

/// Why the stream's number and the bill of one campaign and hour differ (G-5).
///
/// `preliminary - billed = late_duplicate + fraud - late + unexplained`; nulls where the stream is not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    #[schema(value_type = String, example = "2025-01-15T12")]
    pub hour: Hour,
    #[schema(value_type = String)]
    pub campaign_id: CampaignId,
    #[schema(value_type = String, example = "complete")]
    pub stream: StreamState,
    pub preliminary: Option<u64>,
    pub billed: u64,
    pub late: Option<u64>,
    pub late_duplicate: Option<u64>,
    pub fraud: Option<u64>,
    pub unexplained: Option<i64>,
    /// In order of position.
    pub copies: Vec<ExplainedCopy>,
    /// Whether there are more copies than the limit.
    pub truncated: bool,
}

/// A cause of difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Billed, not counted by the stream: it came too late for it.
    Late,
    /// Counted by the stream, a duplicate by the batch path's wider horizon.
    LateDuplicate,
    /// Counted by the stream, ruled invalid traffic.
    Fraud,
}

/// One copy on which the paths differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedCopy {
    pub cause: Cause,
    #[schema(value_type = String, format = "uuid")]
    pub click_id: ClickId,
    #[schema(value_type = String, format = "date-time")]
    pub event_time: UtcMillis,
    #[schema(value_type = u32)]
    pub generation: Generation,
    #[schema(value_type = u32)]
    pub partition: PartitionId,
    #[schema(value_type = i64)]
    pub log_offset: LogOffset,
    /// Archive files of the hour whose offset range holds this position.
    pub files: Vec<String>,
}

/// Lists copies by cause.
#[async_trait]
pub trait ExplainControl: Send + Sync + 'static {
    /// Derives the causes of one campaign and hour from the archive, at the inputs of the hour's newest run.
    ///
    /// # Errors
    /// `NotFound` where the hour has no committed run.
    async fn explain(&self, query: ExplainQuery) -> Result<Explanation, PortError>;
}

/// Whether a partition's stream path runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PartitionState {
    /// Reading and applying.
    Running,
    /// Coming back from its checkpoint.
    Restarting,
    /// Stopped by an error an operator must see.
    Stopped,
}

/// How far the stream path of one partition is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartitionStatus {
    #[schema(value_type = u32)]
    pub generation: Generation,
    #[schema(value_type = u32)]
    pub partition: PartitionId,
    pub state: PartitionState,
    /// First offset not yet applied.
    #[schema(value_type = i64)]
    pub applied_end: LogOffset,
    /// First offset the log does not hold yet.
    #[schema(value_type = i64)]
    pub log_end: LogOffset,
    /// First offset not yet archived.
    #[schema(value_type = i64)]
    pub archived_end: LogOffset,
    /// Records in the log that are not yet applied.
    pub lag: u64,
    /// Clicks that arrived before this moment are in the numbers.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub fresh_to: Option<UtcMillis>,
    /// What stopped it, or what it waits for.
    pub detail: Option<String>,
}

/// One part of one node, with its health in a word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartHealth {
    pub node: String,
    #[schema(example = "archiver")]
    pub part: String,
    pub healthy: bool,
    /// What is wrong, where something is.
    pub detail: Option<String>,
}

/// The stream path as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamReport {
    pub parts: Vec<PartHealth>,
    pub partitions: Vec<PartitionStatus>,
}

/// Tells how far the stream path is. MUST answer from memory: it is asked with every question about clicks.
#[async_trait]
pub trait StreamStatus: Send + Sync + 'static {
    /// Returns every partition and part.
    async fn report(&self) -> Result<StreamReport, PortError>;

    /// Returns the partition of one campaign.
    async fn campaign(&self, campaign: &CampaignId) -> Result<PartitionStatus, PortError>;
}

/// Whether the node takes work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    /// Why not; also what is degraded while still ready.
    pub reasons: Vec<String>,
}

/// Tells whether the node takes work.
#[async_trait]
pub trait HealthStatus: Send + Sync + 'static {
    /// Returns the readiness of the node now. MUST answer within a second whatever is down.
    async fn readiness(&self) -> Readiness;
}

/// Whether clicks and verdicts may be taken now. MUST answer from memory: it is asked with every request.
pub trait Admission: Send + Sync + 'static {
    /// Says `Unavailable` while nothing may be acknowledged, with what to do about it.
    fn admit(&self) -> Result<(), PortError>;
}
