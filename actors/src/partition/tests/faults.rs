//! Copies that kill, stores that fail, memory that runs out, history that is gone: said aloud, never a wrong number.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use twice_log::event::partition_of;
use twice_log::hot::{AppendRecord, ClickLog};
use twice_log::{AdId, CampaignId, ClickId, Hour, LogOffset, PartitionId, Topic, UtcMillis};
use twice_store::windows::{SledWindows, WindowRow, WindowStore};

use super::restarts::drawn;
use super::site::{PARTITIONS, Site, hour};
use crate::testing::{NOON_MS, Planned, clicks};

fn fresh(count: u32) -> Vec<twice_log::Click> {
    let plan = |number: u32| Planned {
        campaign: (number % 4) as u8,
        identity: 0,
        ad: 0,
        user: 0,
        age_ms: 0,
        step_ms: 20,
    };
    let plans: Vec<Planned> = (0..count).map(plan).collect();
    let mut clicks = clicks(&plans, NOON_MS);
    for (number, click) in clicks.iter_mut().enumerate() {
        click.click_id = ClickId::derived(&format!("fresh {number}"));
    }
    clicks
}

#[actix::test]
async fn a_copy_that_kills_twice_is_skipped_and_its_hour_incomplete() {
    let mut site = Site::new();
    let mut clicks = fresh(300);
    clicks[100].ad_id = AdId::new("poison").expect("valid");
    let poisoned = clicks[100].clone();
    let running = site.start().await;
    site.append(clicks).await;
    let status = site.applied(&running).await;
    let partition = partition_of(&poisoned.campaign_id, PARTITIONS);
    for status in &status {
        let is_hit = status.partition == partition;
        assert_eq!(status.skipped, u64::from(is_hit));
        assert_eq!(status.restarts, if is_hit { 2 } else { 0 });
    }
    // Without the copy the rest counts as ever: it was no one's duplicate.
    let mut expected = site.expected(&BTreeMap::new());
    let key = (poisoned.campaign_id.clone(), poisoned.event_time.minute_start());
    let counted = expected.get_mut(&key).expect("others in its minute");
    counted.clicks -= 1;
    counted.ads.remove(&poisoned.ad_id);
    site.shows(&running, &expected).await;
    for (sealed, stored) in site.seal(&running, hour(0)).await {
        assert_eq!(stored.seal.complete, sealed != partition);
    }
    running.stop().await;
}

#[actix::test]
async fn a_record_that_does_not_decode_is_passed_over_and_counted() {
    let mut site = Site::new();
    let running = site.start().await;
    let noise = AppendRecord { partition: PartitionId(0), bytes: b"noise".to_vec().into() };
    site.append(fresh(50)).await;
    site.log.append(Topic::AdClicks, vec![noise]).await.expect("append");
    let status = site.applied(&running).await;
    assert_eq!(status[0].undecodable, 1);
    site.shows(&running, &site.expected(&BTreeMap::new())).await;
    running.stop().await;
}

#[actix::test]
async fn a_full_dedup_budget_drops_the_oldest_and_marks_their_hours() {
    let mut site = Site::new();
    site.config.dedup_bytes_max = 1 << 20;
    let running = site.start().await;
    site.append(fresh(60_000)).await;
    let status = site.applied(&running).await;
    assert!(status.iter().map(|status| status.dedup_bytes).sum::<u64>() <= 1 << 20);
    assert!(status.iter().any(|status| status.hours_incomplete.contains(&hour(0))));
    let sealed = site.seal(&running, hour(0)).await;
    assert!(sealed.values().any(|stored| !stored.seal.complete));
    running.stop().await;
    let running = site.start().await;
    assert_eq!(site.seal(&running, hour(0)).await, sealed);
    running.stop().await;
}

#[actix::test]
async fn history_trimmed_past_a_lost_checkpoint_makes_hours_incomplete() {
    let mut site = Site::new();
    let running = site.start().await;
    site.append(fresh(2_000)).await;
    site.applied(&running).await;
    running.stop().await;
    for (partition, end) in site.ends() {
        let half = LogOffset(end.0 / 2);
        site.log.trim(Topic::AdClicks, partition, half).await.expect("trim");
        let bounds = site.log.bounds(Topic::AdClicks, partition).await.expect("bounds");
        assert!(bounds.earliest > LogOffset(0), "segments are small enough to go");
    }
    fs::remove_dir_all(site.folder("checkpoints")).expect("remove");
    let running = site.start().await;
    site.applied(&running).await;
    for stored in site.seal(&running, hour(0)).await.values() {
        assert!(!stored.seal.complete);
    }
    running.stop().await;
}

/// Refuses the first publishes.
struct FailingWindows {
    inner: SledWindows,
    failures_left: AtomicU32,
}

#[async_trait]
impl WindowStore for FailingWindows {
    async fn publish(&self, rows: Vec<WindowRow>) -> twice_store::Result<()> {
        let left =
            self.failures_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => Err(twice_store::Error::Conflict { reason: "refused by the test".to_owned() }),
            Err(_) => self.inner.publish(rows).await,
        }
    }

    async fn read(
        &self,
        campaign: &CampaignId,
        from: UtcMillis,
        to: UtcMillis,
    ) -> twice_store::Result<Vec<WindowRow>> {
        self.inner.read(campaign, from, to).await
    }

    async fn flush(&self) -> twice_store::Result<()> {
        self.inner.flush().await
    }

    async fn remove_hours(&self, hours: &[Hour]) -> twice_store::Result<()> {
        self.inner.remove_hours(hours).await
    }

    async fn hours(&self) -> twice_store::Result<Vec<Hour>> {
        self.inner.hours().await
    }
}

#[actix::test]
async fn windows_that_could_not_be_published_are_published_later_and_before_a_seal() {
    let mut site = Site::new();
    let inner = SledWindows::open(&site.folder("windows"), 16 << 20).await.expect("windows");
    site.windows = Some(Arc::new(FailingWindows { inner, failures_left: AtomicU32::new(20) }));
    let running = site.start().await;
    site.append(clicks(&drawn(200), NOON_MS)).await;
    let sealed = site.seal(&running, hour(0)).await;
    assert!(sealed.values().all(|stored| stored.seal.complete));
    site.shows(&running, &site.expected(&BTreeMap::new())).await;
    running.stop().await;
}

#[actix::test]
async fn a_log_that_ends_before_the_checkpoint_stops_the_start() {
    let mut site = Site::new();
    let running = site.start().await;
    site.append(fresh(200)).await;
    site.applied(&running).await;
    running.stop().await;
    let other = Site::new();
    site.log = other.log.clone();
    let refused = site.try_start().await.err();
    let is_backwards = matches!(
        &refused,
        Some(crate::Error::Log(twice_log::Error::WentBackwards { end: LogOffset(0), .. }))
    );
    assert!(is_backwards, "{refused:?}");
}
