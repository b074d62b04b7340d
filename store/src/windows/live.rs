//! Window updates as they happen, for those who watch a campaign.
//!
//! Guarantee: a subscriber never slows the publisher, and memory is bounded: who does not read fast enough loses its
//! subscription and is told so, as a number left out in silence would be taken for the newest.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use twice_log::{CampaignId, UtcMillis};

use super::observed::{Telling, WindowObserver};
use super::{Fence, WindowRow};

/// Updates that wait for one subscriber. A campaign changes a few minutes a second, so this is most of a minute.
const WAITING_MAX: usize = 128;

/// One minute of one campaign as the stream has it now: absolute, preliminary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowUpdate {
    pub window_start: UtcMillis,
    /// Which state it reflects; one that is not above the last shown of the minute says nothing new.
    pub fence: Fence,
    pub clicks: u64,
    pub unique_users: u64,
}

impl WindowUpdate {
    /// Takes what is shown of a row.
    pub fn of(row: &WindowRow) -> Self {
        let unique_users = row.users.count();
        Self { window_start: row.window_start, fence: row.fence, clicks: row.clicks, unique_users }
    }
}

struct Subscriber {
    id: u64,
    updates: mpsc::Sender<WindowUpdate>,
}

#[derive(Default)]
struct Shared {
    subscribers: Mutex<HashMap<CampaignId, Vec<Subscriber>>>,
    count: AtomicU64,
    /// Subscriptions so far, each counted once it is in the map.
    beginnings: AtomicU64,
    next_id: AtomicU64,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<CampaignId, Vec<Subscriber>>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands updates to the subscribers of their campaigns; a full queue ends its subscription.
    fn tell(&self, updates: &[(CampaignId, WindowUpdate)]) {
        let mut subscribers = self.lock();
        for (campaign, update) in updates {
            let Some(of_campaign) = subscribers.get_mut(campaign) else { continue };
            of_campaign.retain(|subscriber| subscriber.updates.try_send(*update).is_ok());
            if of_campaign.is_empty() {
                subscribers.remove(campaign);
            }
        }
    }
}

/// Who watches which campaign. Cheap to clone.
#[derive(Clone, Default)]
pub struct LiveWindows {
    shared: Arc<Shared>,
}

impl LiveWindows {
    /// Subscribes to a campaign. How many may do so at once is the caller's to bound.
    ///
    /// It then reads what is stored: whatever is stored later comes through the subscription.
    pub fn subscribe(&self, campaign: &CampaignId) -> LiveSubscription {
        self.shared.count.fetch_add(1, Ordering::SeqCst);
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (updates, receiver) = mpsc::channel(WAITING_MAX);
        self.shared.lock().entry(campaign.clone()).or_default().push(Subscriber { id, updates });
        self.shared.beginnings.fetch_add(1, Ordering::SeqCst);
        LiveSubscription { campaign: campaign.clone(), id, receiver, shared: self.shared.clone() }
    }

    /// Returns how many are subscribed.
    pub fn subscribers(&self) -> u64 {
        self.shared.count.load(Ordering::SeqCst)
    }
}

impl WindowObserver for LiveWindows {
    fn look(&self, rows: &[WindowRow]) -> Option<Telling> {
        if self.subscribers() == 0 {
            return None;
        }
        let subscribers = self.shared.lock();
        let wanted = rows.iter().filter(|row| subscribers.contains_key(&row.campaign_id));
        let updates: Vec<(CampaignId, WindowUpdate)> =
            wanted.map(|row| (row.campaign_id.clone(), WindowUpdate::of(row))).collect();
        let shared = self.shared.clone();
        (!updates.is_empty()).then(|| Box::new(move || shared.tell(&updates)) as Telling)
    }

    fn beginnings(&self) -> u64 {
        self.shared.beginnings.load(Ordering::SeqCst)
    }

    fn is_watched(&self, campaign: &CampaignId) -> bool {
        self.shared.lock().contains_key(campaign)
    }
}

/// The updates of one campaign. Dropping it ends the subscription.
pub struct LiveSubscription {
    campaign: CampaignId,
    id: u64,
    receiver: mpsc::Receiver<WindowUpdate>,
    shared: Arc<Shared>,
}

impl LiveSubscription {
    /// Waits for the next update; `None` once the subscriber was too slow, after what still waited for it.
    pub async fn next(&mut self) -> Option<WindowUpdate> {
        self.receiver.recv().await
    }
}

impl Drop for LiveSubscription {
    fn drop(&mut self) {
        let mut subscribers = self.shared.lock();
        if let Some(of_campaign) = subscribers.get_mut(&self.campaign) {
            of_campaign.retain(|subscriber| subscriber.id != self.id);
            if of_campaign.is_empty() {
                subscribers.remove(&self.campaign);
            }
        }
        drop(subscribers);
        self.shared.count.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use twice_log::{Generation, LogOffset};

    use super::*;

    fn row(campaign: &str, clicks: u64) -> WindowRow {
        WindowRow {
            campaign_id: CampaignId::new(campaign).expect("valid id"),
            window_start: UtcMillis::clamped(0),
            fence: Fence {
                lease_epoch: 0,
                generation: Generation(0),
                applied: LogOffset(i64::try_from(clicks).expect("small")),
            },
            clicks,
            users: Default::default(),
            ads: Vec::new(),
        }
    }

    fn publish(live: &LiveWindows, rows: &[WindowRow]) {
        if let Some(tell) = live.look(rows) {
            tell();
        }
    }

    #[tokio::test]
    async fn a_subscriber_hears_of_its_campaign_alone() {
        let live = LiveWindows::default();
        let mut watched = live.subscribe(&CampaignId::new("a").expect("valid id"));
        publish(&live, &[row("b", 1), row("a", 2)]);
        assert_eq!(watched.next().await.map(|update| update.clicks), Some(2));
        drop(watched);
        assert_eq!(live.subscribers(), 0);
        assert!(live.look(&[row("a", 3)]).is_none(), "nobody is left");
    }

    #[tokio::test]
    async fn who_does_not_read_is_dropped_after_what_waited() {
        let live = LiveWindows::default();
        let mut slow = live.subscribe(&CampaignId::new("a").expect("valid id"));
        for clicks in 0..WAITING_MAX as u64 + 1 {
            publish(&live, &[row("a", clicks)]);
        }
        let mut read = 0;
        while slow.next().await.is_some() {
            read += 1;
        }
        assert_eq!(read, WAITING_MAX);
    }
}
