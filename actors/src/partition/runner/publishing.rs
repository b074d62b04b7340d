//! Showing windows: what changed, every second; and at the start what campaigns at rest have.
//!
//! Guarantee: whatever the store of windows went through while the process was down, a run shows the windows of every
//! campaign again, before an hour closes.

use std::time::Duration;

use tokio::time::Instant;
use twice_log::{CampaignId, LogOffset};
use twice_store::windows::{Fence, WindowRow};

use super::super::setup::PartitionSetup;
use super::{Runner, joined};
use crate::checkpoint::CheckpointReader;
use crate::error::{Error, Result};
use crate::metrics as names;

/// Campaigns whose windows are read and published at once: bounds the memory of showing them all.
const SHOWN_AT_ONCE: usize = 1_024;

impl Runner {
    /// Begins to show the windows of the campaigns at rest, beside the line.
    pub(super) fn begin_showing(&mut self) {
        let Some(fence) = self.fence() else { return };
        let resting = self.children.resting();
        let (campaigns, reader) = (resting.with_windows(), resting.reader());
        if !campaigns.is_empty() {
            self.showing = Some(actix::spawn(show(self.setup.clone(), reader, campaigns, fence)));
        }
    }

    /// Returns the fence of the present state; `None` while nothing is applied.
    fn fence(&self) -> Option<Fence> {
        (self.applied_end > LogOffset(0)).then(|| Fence {
            lease_epoch: self.setup.parts.lease_epoch,
            generation: self.setup.parts.log.generation(),
            applied: LogOffset(self.applied_end.0 - 1),
        })
    }

    /// Shows everything again if the store was opened anew: what was not flushed may be gone from it.
    pub(super) fn look_at_store(&mut self) {
        let opening = self.setup.parts.windows.openings();
        if std::mem::replace(&mut self.opening, opening) == opening || self.fence().is_none() {
            return;
        }
        tracing::info!(partition = %self.setup.partition, "the window store was opened anew, showing all windows again");
        self.republish = true;
        self.unpublished = true;
        self.waiting_since.get_or_insert_with(Instant::now);
        if let Some(showing) = self.showing.take() {
            showing.abort(); // it begins anew
        }
        self.begin_showing();
    }

    /// Takes what changed and publishes it beside the line.
    pub(super) async fn begin_publish(&mut self) -> Result<()> {
        let Some(fence) = self.fence() else { return Ok(()) };
        let rows = self.children.take_windows(fence, std::mem::take(&mut self.republish)).await?;
        self.unpublished = false;
        self.taken_end = self.applied_end;
        self.ages.take();
        self.next_publish = Instant::now() + Duration::from_millis(self.setup.config.publish_interval_ms);
        let windows = self.setup.parts.windows.clone();
        self.publishing = Some(actix::spawn(async move {
            let since = Instant::now();
            let published = windows.publish(rows).await;
            metrics::histogram!(names::PUBLISH_SECONDS).record(since.elapsed().as_secs_f64());
            published
        }));
        Ok(())
    }

    pub(super) fn published(&mut self, outcome: Result<()>) {
        self.publishing = None;
        if let Err(error) = outcome {
            tracing::warn!(partition = %self.setup.partition, %error, "windows not published, trying again");
            metrics::counter!(names::PUBLISH_FAILURES_TOTAL).increment(1);
            self.republish = true;
            self.unpublished = true;
            self.next_publish = Instant::now() + self.setup.retry_pause();
        } else {
            self.shown_end = self.taken_end;
            self.waiting_since = self.unpublished.then(Instant::now);
            self.setup.freshness.shown(&mut self.ages, self.setup.parts.clock.now());
        }
    }

    /// Publishes everything and makes it durable before it returns; says whether it could.
    pub(super) async fn publish_durably(&mut self) -> Result<bool> {
        if self.publishing.is_some() {
            let outcome = joined(self.publishing.as_mut()).await;
            self.published(outcome.and_then(|done| done.map_err(Error::from)));
        }
        let Some(fence) = self.fence() else { return Ok(true) };
        let rows = self.children.take_windows(fence, std::mem::take(&mut self.republish)).await?;
        self.unpublished = false;
        self.taken_end = self.applied_end;
        self.ages.take();
        let windows = &self.setup.parts.windows;
        let mut outcome = windows.publish(rows).await;
        if outcome.is_ok() {
            outcome = windows.flush().await;
        }
        let is_done = outcome.is_ok();
        self.published(outcome.map_err(Error::from));
        Ok(is_done)
    }
}

/// Publishes the windows of campaigns at rest, under the offset each reflects: a row that reflects as much stays.
async fn show(
    setup: PartitionSetup,
    reader: CheckpointReader,
    campaigns: Vec<CampaignId>,
    fence: Fence,
) -> Result<()> {
    for some in campaigns.chunks(SHOWN_AT_ONCE) {
        let (reader, some) = (reader.clone(), some.to_vec());
        let stored = tokio::task::spawn_blocking(move || reader.windows(&some))
            .await
            .map_err(|_| Error::TaskDied { what: "reading windows at rest" })??;
        let mut rows: Vec<WindowRow> = Vec::new();
        for of_campaign in stored {
            let fence = Fence { applied: of_campaign.applied.unwrap_or(fence.applied), ..fence };
            let windows = of_campaign.windows.iter();
            rows.extend(windows.map(|(start, window)| window.row(&of_campaign.campaign, *start, fence)));
        }
        while let Err(error) = setup.parts.windows.publish(rows.clone()).await {
            tracing::warn!(partition = %setup.partition, %error, "windows not published, trying again");
            metrics::counter!(names::PUBLISH_FAILURES_TOTAL).increment(1);
            tokio::time::sleep(setup.retry_pause()).await;
        }
    }
    Ok(())
}
