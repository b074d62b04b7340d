//! Shadow runs: a candidate statement beside the one in use, on recorded inputs, with nothing written.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::{CampaignId, Hour};
use utoipa::ToSchema;

use super::PortError;

/// What to try, on which hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowQuery {
    pub hour: Hour,
    /// The candidate: one SELECT over the relations of the billing statement, with its columns.
    pub sql: String,
    /// `None`: every campaign.
    pub campaign: Option<CampaignId>,
}

/// How the answers of two statements differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShadowReport {
    #[schema(value_type = String, example = "2025-01-15T12")]
    pub hour: Hour,
    /// The run whose recorded inputs both statements read.
    pub run_id: String,
    /// SHA-256 of the candidate's text.
    pub candidate_sha256: String,
    pub equal: bool,
    /// Campaigns that either statement has a row of.
    pub campaigns: u64,
    /// Campaigns on which they differ.
    pub differing: u64,
    /// Sums over all campaigns, amounts apart.
    pub totals: Vec<ShadowChange>,
    /// Sums of the amounts, by currency.
    pub amounts: Vec<ShadowAmount>,
    /// Campaigns on which they differ, by id; the first 1 000.
    pub rows: Vec<ShadowRow>,
}

/// A number by the statement in use and by the candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShadowChange {
    #[schema(example = "duplicates")]
    pub column: String,
    pub old: i64,
    pub new: i64,
    /// `new` minus `old`.
    pub delta: i64,
}

/// The amount billed in one currency, in millionths of its unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShadowAmount {
    /// Null for campaigns without a rate.
    #[schema(example = "USD")]
    pub currency: Option<String>,
    pub old: i64,
    pub new: i64,
    pub delta: i64,
}

/// Which statement alone has a row of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShadowSide {
    Current,
    Candidate,
}

/// One campaign on which the statements differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShadowRow {
    #[schema(value_type = String)]
    pub campaign_id: CampaignId,
    /// Null where both have a row; a missing row counts as zeros.
    pub only_in: Option<ShadowSide>,
    /// The columns that differ.
    pub changes: Vec<ShadowChange>,
    /// The currencies, where they differ.
    pub currencies: Option<ShadowCurrencies>,
}

/// The currency of a campaign by both statements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShadowCurrencies {
    pub old: Option<String>,
    pub new: Option<String>,
}

/// Runs candidates. Nothing authoritative is written: no run record, no row.
#[async_trait]
pub trait ShadowControl: Send + Sync + 'static {
    /// Compares the candidate with the statement in use on the inputs of the hour's newest run that ended.
    ///
    /// # Errors
    /// `NotFound` for an hour without such a run; `Refused` with one line where the candidate is no statement that can
    /// be run here; `Conflict` while another shadow run is under way.
    async fn compare(&self, query: ShadowQuery) -> Result<ShadowReport, PortError>;
}
