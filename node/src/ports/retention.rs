//! Retention for the API: passes on request, and imports of hours that can still be counted alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::value::{RawValue, to_raw_value};
use twice_api::ports as api;
use twice_log::event::Sha256Hex;
use twice_log::{Hour, UtcMillis};
use twice_reconciler::{Error, ReconcilerHandle, RetentionScope};
use twice_store::SqliteStore;
use twice_store::imports::{Import, ImportStore};

use super::chain;

const CHECKED_FOR: Duration = Duration::from_secs(60);

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
/// import is refused before any of them is taken, and again where retention went past its hours in the middle of it.
pub struct CountableImports {
    store: Arc<SqliteStore>,
    reconciler: ReconcilerHandle,
    /// Imports of which this was checked within the last minute: their requests are many, and a check lists the archive.
    checked: Mutex<HashMap<String, Instant>>,
}

impl CountableImports {
    /// Announces in `store` what the reconciler can count.
    pub fn new(store: Arc<SqliteStore>, reconciler: ReconcilerHandle) -> Self {
        Self { store, reconciler, checked: Mutex::default() }
    }

    async fn check(&self, hours: &[Hour]) -> twice_store::Result<()> {
        match self.reconciler.check_countable(hours).await {
            Ok(()) => Ok(()),
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

    fn is_checked(&self, import_id: &str) -> bool {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.retain(|_, at| at.elapsed() < CHECKED_FOR);
        checked.contains_key(import_id)
    }
}

#[async_trait]
impl ImportStore for CountableImports {
    async fn announce_import(
        &self,
        hours: Vec<Hour>,
        sha256: Sha256Hex,
        at: UtcMillis,
    ) -> twice_store::Result<Import> {
        self.check(&hours).await?;
        self.store.announce_import(hours, sha256, at).await
    }

    async fn import(&self, import_id: &str) -> twice_store::Result<Option<Import>> {
        let import = self.store.import(import_id).await?;
        if let Some(import) = import.as_ref().filter(|_| !self.is_checked(import_id)) {
            self.check(&import.hours).await?;
            let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
            checked.insert(import_id.to_owned(), Instant::now());
        }
        Ok(import)
    }

    async fn is_announced(&self, hour: Hour) -> twice_store::Result<bool> {
        self.store.is_announced(hour).await
    }
}
