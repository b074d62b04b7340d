//! Audits: the proof of an hour's bill.

use async_trait::async_trait;
use serde_json::value::RawValue;
use twice_log::{CampaignId, Hour};

use super::PortError;

/// Derives bills again from the archive.
#[async_trait]
pub trait AuditControl: Send + Sync + 'static {
    /// Audits an hour, rows limited to `campaign` if given, and returns the certificate as JSON.
    ///
    /// What is wrong with archive or store is in the certificate and no error.
    async fn audit(&self, hour: Hour, campaign: Option<CampaignId>) -> Result<Box<RawValue>, PortError>;
}
