//! A store of windows that tells others what it stored.
//!
//! Guarantee: observers hear of rows only once they are stored, so nobody is shown a number that a query would not find.

use std::sync::Arc;

use async_trait::async_trait;
use twice_log::{CampaignId, Hour, UtcMillis};

use super::{WindowRow, WindowStore};
use crate::error::Result;

/// What an observer does once the rows it looked at are stored.
pub type Telling = Box<dyn FnOnce() + Send>;

/// Hears of rows that are stored. Called on the path of every publish: it MUST neither block nor wait.
pub trait WindowObserver: Send + Sync + 'static {
    /// Looks at rows about to be stored, and returns what to do once they are; `None` if none of them matters.
    fn look(&self, rows: &[WindowRow]) -> Option<Telling>;
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
}

#[async_trait]
impl WindowStore for ObservedWindows {
    async fn publish(&self, rows: Vec<WindowRow>) -> Result<()> {
        let telling: Vec<Telling> =
            self.observers.iter().filter_map(|observer| observer.look(&rows)).collect();
        self.inner.publish(rows).await?;
        telling.into_iter().for_each(|tell| tell());
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
