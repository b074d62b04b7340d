//! Retention for the API: passes on request, and imports of hours that can still be counted alone.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::value::{RawValue, to_raw_value};
use twice_api::ports as api;
use twice_log::event::Sha256Hex;
use twice_log::{Hour, UtcMillis};
use twice_reconciler::{Error, ReconcilerHandle, RetentionScope};
use twice_store::SqliteStore;
use twice_store::imports::{Import, ImportStore};

use super::chain;

/// Has a pass made, and returns its report as JSON.
pub(super) async fn retain(
    reconciler: &ReconcilerHandle,
    hour: Option<Hour>,
    dry_run: bool,
) -> Result<Box<RawValue>, api::PortError> {
    let scope = hour.map_or(RetentionScope::Due, RetentionScope::Hour);
    let report = reconciler.retain(scope, dry_run).await.map_err(|error| match error {
        Error::Config { reason } => api::PortError::Conflict { reason },
        error => api::PortError::Unavailable { reason: chain(&error) },
    })?;
    to_raw_value(&report).map_err(|error| api::PortError::Unavailable { reason: error.to_string() })
}

/// Announced imports, as the door takes them: clicks of an hour that can no longer be counted would be in no bill, so their
/// import is refused before any of them is taken.
pub struct CountableImports(pub Arc<SqliteStore>, pub ReconcilerHandle);

#[async_trait]
impl ImportStore for CountableImports {
    async fn announce_import(
        &self,
        hours: Vec<Hour>,
        sha256: Sha256Hex,
        at: UtcMillis,
    ) -> twice_store::Result<Import> {
        match self.1.check_countable(&hours).await {
            Ok(()) => self.0.announce_import(hours, sha256, at).await,
            Err(Error::Frozen { hour, reason }) => Err(twice_store::Error::Conflict {
                reason: format!(
                    "{hour} can no longer be counted: {reason}; leave its clicks out of the import, as no bill would have \
                     them"
                ),
            }),
            Err(Error::Log(error)) => Err(error.into()),
            Err(error) => Err(twice_store::Error::Replay { reason: chain(&error) }),
        }
    }

    async fn import(&self, import_id: &str) -> twice_store::Result<Option<Import>> {
        self.0.import(import_id).await
    }

    async fn is_announced(&self, hour: Hour) -> twice_store::Result<bool> {
        self.0.is_announced(hour).await
    }
}
