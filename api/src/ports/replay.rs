//! What the HTTP face needs of whoever replays hours (kappa).

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use twice_log::Hour;
use twice_log::archive::{BillingPath, RunOutcome};
use utoipa::ToSchema;

use super::PortError;

/// What to replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayRequest {
    pub from: Hour,
    /// Exclusive.
    pub to: Hour,
    /// Path whose rows become the bill of these hours, by versions with reason `mode_change`; `None`: replay only.
    pub restate: Option<BillingPath>,
}

/// One line of a replay's progress. Each hour ends with `done` or `failed`; the last line is `ended`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ReplayEvent {
    /// How far the pass over the archive is.
    Progress { copies_done: u64, copies_total: u64, slices_done: u32, slices_total: u32 },
    /// An hour is committed.
    Done {
        #[schema(value_type = String, example = "2025-01-15T12")]
        hour: Hour,
        #[schema(value_type = String, example = "committed")]
        outcome: RunOutcome,
        run_id: String,
        /// Rows counted: one a campaign with clicks in the hour.
        rows: u64,
        /// Row versions the run wrote.
        rows_written: u64,
        /// Rows that lambda counted differently on the same inputs.
        differing: u64,
    },
    /// An hour, or all of them, could not be replayed; nothing of it was committed.
    Failed {
        #[schema(value_type = Option<String>, example = "2025-01-15T12")]
        hour: Option<Hour>,
        detail: String,
    },
    /// Nothing more comes.
    Ended,
}

/// Replays hours.
#[async_trait]
pub trait ReplayControl: Send + Sync + 'static {
    /// Starts a replay and returns its progress; the stream ends with it.
    ///
    /// Dropping the stream MUST NOT stop what was started.
    ///
    /// # Errors
    /// `Conflict` while another replay is under way.
    async fn start(&self, request: ReplayRequest) -> Result<BoxStream<'static, ReplayEvent>, PortError>;
}
