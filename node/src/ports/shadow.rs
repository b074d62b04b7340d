//! Shadow runs for the API: one at a time, in the recompute's child.

use async_trait::async_trait;
use tokio::sync::Semaphore;
use twice_api::ports as api;
use twice_log::Currency;
use twice_reconciler::recompute::{ShadowChange, ShadowReport, ShadowSide};
use twice_reconciler::{Error, ReconcilerHandle};

use super::chain;

/// Compares candidate statements with the one in use.
pub struct Shadows {
    reconciler: ReconcilerHandle,
    /// One at a time: each takes the memory of a recompute beside the one that closes hours.
    slot: Semaphore,
}

impl Shadows {
    /// Asks `reconciler`.
    pub fn new(reconciler: ReconcilerHandle) -> Self {
        Self { reconciler, slot: Semaphore::new(1) }
    }
}

#[async_trait]
impl api::ShadowControl for Shadows {
    async fn compare(&self, query: api::ShadowQuery) -> Result<api::ShadowReport, api::PortError> {
        let Ok(_permit) = self.slot.try_acquire() else {
            return Err(api::PortError::Conflict { reason: "another shadow run is under way".to_owned() });
        };
        let compared = self.reconciler.shadow(query.hour, query.sql, query.campaign).await;
        compared.map(shadow_of).map_err(|error| match error {
            Error::NotReconciled { hour } => {
                api::PortError::NotFound { what: format!("a reconciled bill of {hour}") }
            }
            Error::Candidate { .. } | Error::Frozen { .. } => {
                api::PortError::Refused { reason: error.to_string() }
            }
            error => api::PortError::Unavailable { reason: chain(&error) },
        })
    }
}

/// Returns a report as the API shows it.
pub fn shadow_of(report: ShadowReport) -> api::ShadowReport {
    let text = |currency: Option<Currency>| currency.map(|currency| currency.to_string());
    let amounts = report.amounts.into_iter().map(|amount| api::ShadowAmount {
        currency: text(amount.currency),
        old: amount.old,
        new: amount.new,
        delta: amount.new.saturating_sub(amount.old),
    });
    let rows = report.rows.into_iter().map(|row| api::ShadowRow {
        campaign_id: row.campaign_id,
        only_in: row.only_in.map(|side| match side {
            ShadowSide::Current => api::ShadowSide::Current,
            ShadowSide::Candidate => api::ShadowSide::Candidate,
        }),
        changes: row.changes.into_iter().map(change).collect(),
        currencies: row.currencies.map(|(old, new)| api::ShadowCurrencies { old: text(old), new: text(new) }),
    });
    api::ShadowReport {
        hour: report.hour,
        run_id: report.run_id,
        candidate_sha256: report.candidate_sha256.0,
        equal: report.differing == 0,
        campaigns: report.campaigns,
        differing: report.differing,
        totals: report.totals.into_iter().map(change).collect(),
        amounts: amounts.collect(),
        rows: rows.collect(),
    }
}

fn change(change: ShadowChange) -> api::ShadowChange {
    let delta = change.new.saturating_sub(change.old);
    api::ShadowChange { column: change.column, old: change.old, new: change.new, delta }
}
