//! From the store to the hot log: every decision, in order, at least once, under its number.
//!
//! Guarantee: what is stored is published, whatever dies in between: what was published is noted after the append, so a
//! death between the two repeats records and never leaves one out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use twice_log::Topic;
use twice_log::event::partition_of;
use twice_log::fail::{FailPoint, FailPoints};
use twice_log::hot::{AppendRecord, ClickLog};
use twice_store::{BudgetStore, DecisionsQuery};

use crate::error::Result;
use crate::metrics::BUDGET_UNPUBLISHED;

/// Decisions appended at once.
const BATCH: u32 = 1_000;
/// Wait after a log or store that failed.
const RETRY: Duration = Duration::from_secs(1);
/// An append that takes longer is given up and repeated: the log may be down for long.
const APPEND_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Publisher {
    pub(super) log: Arc<dyn ClickLog>,
    pub(super) decisions: Arc<dyn BudgetStore>,
    /// Sequence of the newest decision stored.
    pub(super) stored: watch::Receiver<u64>,
    pub(super) fail_points: FailPoints,
}

impl Publisher {
    /// Publishes until its task is dropped.
    pub(super) async fn run(mut self) {
        loop {
            match self.publish().await {
                Ok(()) => {
                    if self.stored.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error.with_causes(), "budget decisions wait to be published, trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Publishes everything stored.
    async fn publish(&mut self) -> Result<()> {
        loop {
            let newest = *self.stored.borrow_and_update();
            let published = self.decisions.published_sequence().await?;
            metrics::gauge!(BUDGET_UNPUBLISHED).set(newest.saturating_sub(published) as f64);
            let query = DecisionsQuery { after: published, campaigns: None, limit: BATCH };
            let decisions = self.decisions.decisions(&query).await?;
            let Some(last) = decisions.last().map(|decision| decision.sequence) else { return Ok(()) };
            let mut records = Vec::with_capacity(decisions.len());
            for decision in &decisions {
                let partition = partition_of(&decision.campaign_id, self.log.partitions());
                let refuse = |error: serde_json::Error| twice_store::Error::Invalid {
                    what: "a decision".to_owned(),
                    reason: error.to_string(),
                };
                let bytes = serde_json::to_vec(decision).map_err(refuse)?.into();
                records.push(AppendRecord { partition, bytes });
            }
            let append = self.log.append(Topic::BudgetDecisions, records);
            match tokio::time::timeout(APPEND_LIMIT, append).await {
                Ok(appended) => appended?,
                Err(_) => {
                    let source = Arc::new(std::io::Error::from(std::io::ErrorKind::TimedOut));
                    return Err(twice_log::Error::AppendUnknown { source }.into());
                }
            }
            self.fail_points.pass(FailPoint::BudgetDecisionPublished);
            self.decisions.note_published(last).await?;
        }
    }
}
