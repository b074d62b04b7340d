//! What the HTTP face needs of whoever compares the two paths.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use twice_log::{Hour, UtcMillis};
use twice_store::Page;
use utoipa::ToSchema;

use super::PortError;

/// What to compare.
#[derive(Debug, Clone)]
pub struct CompareRequest {
    pub from: Hour,
    /// Exclusive.
    pub to: Hour,
    /// Prices of the cost model; the built-in ones where there are none.
    pub prices: Option<serde_json::Value>,
}

/// One line of a comparison's progress. It ends with `done` or `failed`.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum CompareEvent {
    /// A path is counting.
    Progress {
        #[schema(example = "lambda")]
        path: String,
        /// Hours of lambda, copies of kappa.
        done: u64,
        total: u64,
    },
    /// Both have counted; the result is kept.
    Done {
        id: String,
        /// Whether no row differs.
        equal: bool,
        /// As in `docs/comparison.md`.
        #[schema(value_type = Object)]
        comparison: Box<RawValue>,
    },
    /// It could not be run.
    Failed { detail: String },
}

/// A comparison as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ComparisonSummary {
    pub id: String,
    #[schema(value_type = String, format = "date-time")]
    pub created_at: UtcMillis,
    #[schema(value_type = String, example = "2025-01-15T12")]
    pub from: Hour,
    #[schema(value_type = String, example = "2025-01-15T14")]
    pub to: Hour,
    pub equal: bool,
    pub rows: u64,
    pub copies: u64,
    pub conclusion: String,
}

/// Compares lambda and kappa, and knows what was compared before.
#[async_trait]
pub trait CompareControl: Send + Sync + 'static {
    /// Starts a comparison and returns its progress.
    ///
    /// Dropping the stream MUST NOT stop what was started.
    ///
    /// # Errors
    /// `Conflict` while another one runs; `Refused` for prices that are none.
    async fn start(&self, request: CompareRequest) -> Result<BoxStream<'static, CompareEvent>, PortError>;

    /// Returns what was kept, newest first.
    async fn list(&self, limit: u32, cursor: Option<String>) -> Result<Page<ComparisonSummary>, PortError>;

    /// Returns the JSON of one comparison.
    ///
    /// # Errors
    /// `NotFound`.
    async fn get(&self, id: &str) -> Result<Bytes, PortError>;
}
