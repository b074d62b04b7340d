//! Audits, for the API: each in a process of its own, one at a time.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::value::RawValue;
use tokio::sync::Mutex;
use twice_api::ports as api;
use twice_log::{CampaignId, Hour};

use crate::audit::{AuditProcess, NoCertificate};

/// Audits hours on request.
pub struct Audits {
    process: AuditProcess,
    /// An audit reads much and counts: a second one at once would only slow both.
    turn: Arc<Mutex<()>>,
}

impl Audits {
    /// Starts `process` for each audit.
    pub fn new(process: AuditProcess) -> Self {
        Self { process, turn: Arc::default() }
    }
}

#[async_trait]
impl api::AuditControl for Audits {
    async fn audit(&self, hour: Hour, campaign: Option<CampaignId>) -> Result<Box<RawValue>, api::PortError> {
        let _turn = self.turn.lock().await;
        self.process.audit(hour, campaign).await.map_err(|error| match error {
            NoCertificate::NotReconciled => api::PortError::NotFound { what: format!("a bill of {hour}") },
            NoCertificate::Failed(reason) => api::PortError::Unavailable { reason },
        })
    }
}
