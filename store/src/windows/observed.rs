//! A store of windows that tells others what it stored.
//!
//! Guarantee: observers hear of rows only once they are stored, so nobody is shown a number that a query would not find;
//! and who begins to watch a campaign and then reads the store hears of every row that this read did not find.
//! Flow: look at the rows, as the store takes them -> store -> read again what somebody began to watch meanwhile -> tell.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use twice_log::event::MINUTE_MS;
use twice_log::{CampaignId, Hour, UtcMillis};

use super::{WindowRow, WindowStore};
use crate::error::Result;

/// What an observer does once the rows it looked at are stored.
pub type Telling = Box<dyn FnOnce() + Send>;

/// Hears of rows that are stored. Called on the path of every publish: it MUST neither block nor wait.
pub trait WindowObserver: Send + Sync + 'static {
    /// Looks at rows about to be stored, and returns what to do once they are; `None` if none of them matters.
    fn look(&self, rows: &[WindowRow]) -> Option<Telling>;

    /// Returns how often a campaign began to be watched. MUST grow after it is watched and before the store is read for it.
    fn beginnings(&self) -> u64;

    /// Returns whether a campaign is watched.
    fn is_watched(&self, campaign: &CampaignId) -> bool;
}

/// A store of windows with observers.
pub struct ObservedWindows {
    inner: Arc<dyn WindowStore>,
    observers: Vec<Arc<dyn WindowObserver>>,
}

impl ObservedWindows {
    /// Wraps a store.
    pub fn new(inner: Arc<dyn WindowStore>, observers: Vec<Arc<dyn WindowObserver>>) -> Self {
        Self { inner, observers }
    }

    /// Tells an observer of rows stored while somebody began to watch: neither did it look at them for those, nor need they
    /// have been there when those read the store.
    ///
    /// # Errors
    /// The store does not read; whoever publishes does so again, and observers hear then.
    async fn tell_late(&self, observer: &dyn WindowObserver, stored: &Stored) -> Result<()> {
        for (campaign, starts) in stored.iter().filter(|(campaign, _)| observer.is_watched(campaign)) {
            for start in starts {
                let rows = self.inner.read(campaign, *start, start.plus_ms(MINUTE_MS)).await?;
                if let Some(tell) = observer.look(&rows) {
                    tell();
                }
            }
        }
        Ok(())
    }
}

/// Starts of the windows stored, by campaign.
type Stored = HashMap<CampaignId, Vec<UtcMillis>>;

fn starts(rows: &[WindowRow]) -> Stored {
    let mut stored = Stored::new();
    for row in rows {
        stored.entry(row.campaign_id.clone()).or_default().push(row.window_start);
    }
    stored
}

#[async_trait]
impl WindowStore for ObservedWindows {
    async fn publish(&self, rows: Vec<WindowRow>) -> Result<()> {
        let before: Vec<u64> = self.observers.iter().map(|observer| observer.beginnings()).collect();
        let telling: Vec<Telling> =
            self.observers.iter().filter_map(|observer| observer.look(&rows)).collect();
        let stored = starts(&rows);
        self.inner.publish(rows).await?;
        telling.into_iter().for_each(|tell| tell());
        for (observer, before) in self.observers.iter().zip(before) {
            if observer.beginnings() != before {
                self.tell_late(observer.as_ref(), &stored).await?;
            }
        }
        Ok(())
    }

    async fn read(&self, campaign: &CampaignId, from: UtcMillis, to: UtcMillis) -> Result<Vec<WindowRow>> {
        self.inner.read(campaign, from, to).await
    }

    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }

    async fn remove_hours(&self, hours: &[Hour]) -> Result<()> {
        self.inner.remove_hours(hours).await
    }

    async fn hours(&self) -> Result<Vec<Hour>> {
        self.inner.hours().await
    }

    fn openings(&self) -> u64 {
        self.inner.openings()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use futures::FutureExt;
    use twice_log::{Generation, LogOffset};

    use super::super::{Fence, LiveSubscription, LiveWindows};
    use super::*;

    /// A store in which somebody begins to watch, and reads, right before rows are stored.
    struct Interleaved {
        rows: Mutex<Vec<WindowRow>>,
        live: LiveWindows,
        watching: Mutex<Option<LiveSubscription>>,
    }

    impl Interleaved {
        fn rows(&self) -> std::sync::MutexGuard<'_, Vec<WindowRow>> {
            self.rows.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    #[async_trait]
    impl WindowStore for Interleaved {
        async fn publish(&self, rows: Vec<WindowRow>) -> Result<()> {
            let subscription = self.live.subscribe(&rows[0].campaign_id);
            assert!(self.rows().is_empty(), "who subscribes reads nothing yet");
            *self.watching.lock().unwrap_or_else(PoisonError::into_inner) = Some(subscription);
            self.rows().extend(rows);
            Ok(())
        }

        async fn read(
            &self,
            campaign: &CampaignId,
            from: UtcMillis,
            to: UtcMillis,
        ) -> Result<Vec<WindowRow>> {
            let is_wanted =
                |row: &&WindowRow| row.campaign_id == *campaign && (from..to).contains(&row.window_start);
            Ok(self.rows().iter().filter(is_wanted).cloned().collect())
        }

        async fn flush(&self) -> Result<()> {
            Ok(())
        }

        async fn remove_hours(&self, _hours: &[Hour]) -> Result<()> {
            Ok(())
        }

        async fn hours(&self) -> Result<Vec<Hour>> {
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn who_begins_to_watch_while_rows_are_stored_hears_of_them() {
        let live = LiveWindows::default();
        let inner =
            Arc::new(Interleaved { rows: Mutex::default(), live: live.clone(), watching: Mutex::default() });
        let observed = ObservedWindows::new(inner.clone(), vec![Arc::new(live)]);
        let row = WindowRow {
            campaign_id: CampaignId::new("a").expect("valid id"),
            window_start: UtcMillis::clamped(0),
            fence: Fence { lease_epoch: 0, generation: Generation(0), applied: LogOffset(7) },
            clicks: 3,
            users: Default::default(),
            ads: Vec::new(),
        };
        observed.publish(vec![row]).await.expect("stored");
        let mut watching = inner.watching.lock().expect("a lock").take().expect("subscribed");
        let update = watching.next().now_or_never().flatten();
        assert_eq!(update.map(|update| update.clicks), Some(3));
    }
}
