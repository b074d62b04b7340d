//! What the node does by itself in the background: forgets real-time windows nobody needs, trims the log, refreshes
//! gauges.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use twice_log::event::HOUR_MS;
use twice_log::{Clock, Hour};
use twice_store::{BillingStore, WindowStore};

use crate::disk::DiskSpace;
use crate::ports::Status;
use crate::trim::Trimming;

/// Real-time windows stay this long after their hour, and in any case until it is billed.
const KEPT_HOURS: i64 = 6;
const GAUGES_EVERY: Duration = Duration::from_secs(1);
const PROBE_EVERY: Duration = Duration::from_secs(1);
const WINDOWS_EVERY: Duration = Duration::from_secs(300);

/// What housekeeping works with.
pub struct Housekeeping {
    pub status: Arc<Status>,
    pub windows: Arc<dyn WindowStore>,
    pub billing: Arc<dyn BillingStore>,
    pub clock: Arc<dyn Clock>,
    pub space: Arc<DiskSpace>,
    /// `None` where the log is not ours to trim.
    pub trimming: Option<Trimming>,
}

impl Housekeeping {
    /// Works until its task is dropped. A failure is logged and tried again at the next turn.
    pub async fn run(mut self) {
        let trimming = self.trimming.take();
        let trim = async {
            if let Some(trimming) = trimming {
                trimming.run().await;
            }
        };
        // Side by side: forgetting a day's windows takes long, and the gauges are looked at meanwhile.
        let look = self.space.clone().watch();
        tokio::join!(look, self.refresh_gauges(), self.watch_windows(), self.probe_stores(), trim);
    }

    async fn refresh_gauges(&self) {
        let mut every = turns(GAUGES_EVERY);
        loop {
            every.tick().await;
            self.status.look().await;
        }
    }

    /// Asks stores that are not asked for lack of answers whether they are back.
    async fn probe_stores(&self) {
        let mut every = turns(PROBE_EVERY);
        loop {
            every.tick().await;
            tokio::join!(self.status.windows.probe(), self.status.bounded.probe());
        }
    }

    async fn watch_windows(&self) {
        let mut every = turns(WINDOWS_EVERY);
        loop {
            every.tick().await;
            if let Err(error) = self.forget_windows().await {
                tracing::warn!(error = format!("{error:#}"), "cannot forget old real-time windows");
            }
        }
    }

    async fn forget_windows(&self) -> Result<()> {
        let newest_kept = self.clock.now().plus_ms(-KEPT_HOURS * HOUR_MS).hour();
        let old: Vec<Hour> =
            self.windows.hours().await?.into_iter().filter(|hour| *hour < newest_kept).collect();
        let Some(first) = old.first() else { return Ok(()) };
        let billed = self.billing.billed_hours(None, *first, newest_kept).await?;
        let forgotten: Vec<Hour> = old.into_iter().filter(|hour| billed.contains(hour)).collect();
        if !forgotten.is_empty() {
            tracing::info!(hours = forgotten.len(), "forgetting real-time windows of billed hours");
            self.windows.remove_hours(&forgotten).await?;
        }
        Ok(())
    }
}

fn turns(every: Duration) -> tokio::time::Interval {
    let mut turns = tokio::time::interval(every);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    turns
}
