//! What the stream counted of campaigns with a budget, on its way from the partitions to the budgets.
//!
//! Guarantee: the click path never waits: values are absolute, so newer ones take the place of older ones, and memory is
//! bounded by the campaigns watched. Whatever is missed on the way comes again when its window is published.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hashbrown::{HashMap, HashSet};
use tokio::sync::Notify;
use twice_log::{CampaignId, Position, UtcMillis};
use twice_store::windows::{Telling, WindowObserver, WindowRow};

/// What one batch, or several, changed of a campaign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Clicks counted in each minute touched, absolute, by start of the minute.
    pub minutes: BTreeMap<UtcMillis, u64>,
    /// The clicks that did it; `None` where the values come from published windows.
    pub clicks: Option<TouchedBy>,
}

/// Clicks that were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TouchedBy {
    /// Arrival of the first of them: how late a decision is at most.
    pub first_arrival: UtcMillis,
    /// Where the last of them stands.
    pub position: Position,
    /// Event time of the last of them.
    pub event_time: UtcMillis,
}

impl TouchedBy {
    /// Returns both, `later` being the newer.
    pub fn then(self, later: Self) -> Self {
        Self { first_arrival: self.first_arrival.min(later.first_arrival), ..later }
    }
}

impl Touched {
    fn merge(&mut self, newer: Self) {
        for (start, clicks) in newer.minutes {
            // A partition that starts again counts up from its checkpoint: what is known stays until it is passed.
            let known = self.minutes.entry(start).or_insert(0);
            *known = clicks.max(*known);
        }
        self.clicks = match (self.clicks, newer.clicks) {
            (Some(earlier), Some(later)) => Some(earlier.then(later)),
            (earlier, later) => later.or(earlier),
        };
    }
}

/// The feed. Shared by the partitions, the store of windows and the budgets.
#[derive(Debug, Default)]
pub struct SpendFeed {
    watched: RwLock<Arc<HashSet<CampaignId>>>,
    /// How often campaigns were added to them.
    beginnings: AtomicU64,
    waiting: Mutex<HashMap<CampaignId, Touched>>,
    changed: Notify,
}

impl SpendFeed {
    /// Returns the campaigns whose counts are wanted.
    pub fn watched(&self) -> Arc<HashSet<CampaignId>> {
        self.watched.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the campaigns whose counts are wanted from now on.
    pub fn watch(&self, campaigns: HashSet<CampaignId>) {
        let is_more = !campaigns.is_subset(&self.watched());
        *self.watched.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(campaigns);
        if is_more {
            self.beginnings.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Leaves what was counted, for the budgets to take.
    pub fn put(&self, touched: impl IntoIterator<Item = (CampaignId, Touched)>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (campaign, newer) in touched {
            waiting.entry(campaign).or_default().merge(newer);
        }
        let is_empty = waiting.is_empty();
        drop(waiting);
        if !is_empty {
            self.changed.notify_one();
        }
    }

    /// Takes everything that waits.
    pub(super) fn take(&self) -> HashMap<CampaignId, Touched> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something was put since the last wait.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// A handle of the feed as an observer of the store of windows.
#[derive(Debug, Clone)]
pub struct PublishedSpend(pub Arc<SpendFeed>);

impl WindowObserver for PublishedSpend {
    fn look(&self, rows: &[WindowRow]) -> Option<Telling> {
        let watched = self.0.watched();
        if watched.is_empty() {
            return None;
        }
        let mut touched: HashMap<CampaignId, Touched> = HashMap::new();
        for row in rows.iter().filter(|row| watched.contains(&row.campaign_id)) {
            let of_campaign = touched.entry(row.campaign_id.clone()).or_default();
            of_campaign.minutes.insert(row.window_start, row.clicks);
        }
        let feed = self.0.clone();
        (!touched.is_empty()).then(|| Box::new(move || feed.put(touched)) as Telling)
    }

    fn beginnings(&self) -> u64 {
        self.0.beginnings.load(Ordering::SeqCst)
    }

    fn is_watched(&self, campaign: &CampaignId) -> bool {
        self.0.watched().contains(campaign)
    }
}
