//! What becomes of records while a log fails, hangs or is busy.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;

use super::*;
use crate::breaker::BreakerState;
use crate::error::{Error, Result};
use crate::event::{Generation, LogOffset};
use crate::hot::{AppendRecord, ClickLog, OffsetBounds, ReadBatch};

const SPILL: Route<'_> = Route::Spill { owner: "a key" };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    Fails,
    /// Stores, and never says so.
    Hangs,
    Busy,
    Refuses,
    /// Takes clicks of partition 3 alone.
    TakesSome,
}

/// A log in memory with moods.
struct MoodyLog {
    mood: Mutex<Mood>,
    calls: AtomicU32,
    stored: Mutex<Vec<(Topic, PartitionId, Bytes)>>,
}

impl MoodyLog {
    fn is(&self, mood: Mood) {
        *self.mood.lock().expect("no panic") = mood;
    }

    fn numbers(&self) -> Vec<String> {
        let stored = self.stored.lock().expect("no panic");
        stored.iter().map(|(_, _, bytes)| String::from_utf8_lossy(&bytes[10..]).into_owned()).collect()
    }
}

#[async_trait]
impl ClickLog for MoodyLog {
    fn generation(&self) -> Generation {
        Generation(0)
    }

    fn partitions(&self) -> u32 {
        4
    }

    async fn append(&self, topic: Topic, records: Vec<AppendRecord>) -> Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mood = *self.mood.lock().expect("no panic");
        let takes = topic == Topic::AdClicks && records.iter().all(|record| record.partition.0 == 3);
        if matches!(mood, Mood::Well | Mood::Hangs) || mood == Mood::TakesSome && takes {
            let records = records.into_iter().map(|record| (topic, record.partition, record.bytes));
            self.stored.lock().expect("no panic").extend(records);
        }
        match mood {
            Mood::Well => Ok(()),
            Mood::TakesSome if takes => Ok(()),
            Mood::Fails | Mood::TakesSome => Err(Error::Stopped),
            Mood::Hangs => std::future::pending().await,
            Mood::Busy => Err(Error::Busy { waiting_bytes: 1 }),
            Mood::Refuses => Err(Error::Config { reason: "too large".to_owned() }),
        }
    }

    async fn read(&self, _: Topic, _: PartitionId, _: LogOffset, _: usize) -> Result<ReadBatch> {
        Ok(ReadBatch::default())
    }

    async fn wait_for(&self, _: Topic, _: PartitionId, _: LogOffset) -> Result<()> {
        std::future::pending().await
    }

    async fn bounds(&self, _: Topic, _: PartitionId) -> Result<OffsetBounds> {
        Ok(OffsetBounds { earliest: LogOffset(0), end: LogOffset(0) })
    }

    async fn trim(&self, _: Topic, _: PartitionId, _: LogOffset) -> Result<()> {
        Ok(())
    }
}

struct Site {
    log: Arc<MoodyLog>,
    spooling: Arc<Spooling>,
    folder: tempfile::TempDir,
}

impl Site {
    /// Stops, and starts over the same folder with other settings.
    async fn restarted(self, config: SpoolConfig) -> Self {
        let Self { log, spooling, folder } = self;
        spooling.close();
        drop(spooling);
        let spooling = Spooling::open(log.clone(), Arc::new(RealFs), folder.path(), config).await;
        Self { log, spooling: Arc::new(spooling.expect("opened")), folder }
    }
}

async fn site(mood: Mood, spool_bytes_max: u64) -> Site {
    let folder = tempfile::tempdir().expect("a folder");
    let log = MoodyLog { mood: Mutex::new(mood), calls: AtomicU32::new(0), stored: Mutex::default() };
    let log = Arc::new(log);
    let config = SpoolConfig {
        spool_after_ms: 50,
        spool_bytes_max,
        spool_segment_bytes: 1 << 16,
        ..SpoolConfig::default()
    };
    let spooling =
        Spooling::open(log.clone(), Arc::new(RealFs), folder.path(), config).await.expect("opened");
    Site { log, spooling: Arc::new(spooling), folder }
}

/// A record that says when it arrived, as those of the gateway do.
fn record(text: &str, arrival_ms: i64) -> Vec<AppendRecord> {
    let mut bytes = vec![1, 2];
    bytes.extend_from_slice(&arrival_ms.to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    vec![AppendRecord { partition: PartitionId(3), bytes: bytes.into() }]
}

impl Site {
    async fn append(&self, text: &str, route: Route<'_>) -> Result<Stored> {
        self.spooling.append(Topic::AdClicks, record(text, 5_000), route).await
    }

    /// Waits until the drainer, which runs meanwhile, has emptied both queues.
    async fn drained(&self) {
        let draining = tokio::spawn(self.spooling.clone().drain());
        while self.spooling.status().iter().any(|status| status.records > 0) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        draining.abort();
    }
}

#[tokio::test]
async fn a_log_that_is_well_gets_everything_and_the_spool_nothing() {
    let site = site(Mood::Well, 1 << 20).await;
    assert_eq!(site.append("a", Route::Log).await.expect("stored"), Stored::Log);
    assert_eq!(site.log.numbers(), ["a"]);
    assert!(site.spooling.held_before(UtcMillis::clamped(i64::MAX)).is_empty());
}

#[tokio::test]
async fn what_a_log_does_not_take_is_spooled_and_drained_in_order_once_it_is_back() {
    for mood in [Mood::Fails, Mood::Busy] {
        let site = site(mood, 1 << 20).await;
        for text in ["a", "b", "c", "d", "e"] {
            assert_eq!(site.append(text, Route::Log).await.expect("spooled"), Stored::Spool, "{mood:?}");
        }
        let held = site.spooling.held_before(UtcMillis::clamped(5_001));
        assert_eq!((held.len(), held[0].records), (1, Some(5)), "{mood:?}");
        assert!(
            site.spooling.held_before(UtcMillis::clamped(5_000)).is_empty(),
            "arrived after: no hour waits"
        );
        site.log.is(Mood::Well);
        site.drained().await;
        assert_eq!(site.log.numbers(), ["a", "b", "c", "d", "e"], "{mood:?}");
        assert_eq!(site.log.stored.lock().expect("no panic")[0].1, PartitionId(3));
        assert_eq!(site.append("f", Route::Log).await.expect("stored"), Stored::Log);
    }
}

#[tokio::test]
async fn a_log_that_hangs_is_waited_for_until_the_deadline_and_then_not_asked_each_time() {
    let site = site(Mood::Hangs, 1 << 20).await;
    for _ in 0..20 {
        assert_eq!(site.append("a", Route::Log).await.expect("spooled"), Stored::Spool);
    }
    assert_eq!(site.log.calls.load(Ordering::SeqCst), 3, "the breaker opened at the third");
    assert_ne!(site.spooling.log_state(), BreakerState::Closed);
    site.log.is(Mood::Well);
    site.drained().await;
    assert_eq!(site.log.numbers().len(), 20 + 3, "those that hung were stored twice: CR-1 absorbs it");
}

#[tokio::test]
async fn records_that_no_log_takes_are_not_spooled() {
    let site = site(Mood::Refuses, 1 << 20).await;
    assert!(matches!(site.append("a", Route::Log).await, Err(Error::Config { .. })));
    assert!(site.spooling.status().iter().all(|status| status.records == 0));
}

#[tokio::test]
async fn a_full_spool_refuses_only_while_the_log_is_away() {
    let site = site(Mood::Fails, 1 << 20).await;
    let large = "x".repeat(50_000);
    let mut taken = 0;
    while site.append(&large, Route::Log).await.is_ok() {
        taken += 1;
    }
    assert_eq!(taken, 20);
    assert!(matches!(site.append(&large, Route::Log).await, Err(Error::SpoolFull { .. })));
    assert!(site.append("little", Route::Log).await.is_ok(), "what fits is taken");
    site.log.is(Mood::Well);
    site.drained().await;
    assert_eq!(site.log.numbers().len(), 21, "refused ones are in neither");
    assert_eq!(site.spooling.refusal(), None);
}

#[tokio::test]
async fn spilled_records_wait_while_they_are_told_to() {
    let site = site(Mood::Well, 1 << 20).await;
    site.spooling.pause_spill(true);
    assert_eq!(site.append("a", SPILL).await.expect("spilled"), Stored::Spill);
    let draining = tokio::spawn(site.spooling.clone().drain());
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(site.log.numbers().is_empty());
    assert_eq!(site.spooling.held_before(UtcMillis::clamped(6_000))[0].queue, "spill queue");
    site.spooling.pause_spill(false);
    draining.abort();
    site.drained().await;
    assert_eq!(site.log.numbers(), ["a"]);
}

#[tokio::test]
async fn a_queue_turned_off_takes_nothing_and_gives_up_what_it_holds() {
    let site = site(Mood::Fails, 1 << 20).await;
    site.append("a", Route::Log).await.expect("spooled");
    site.append("b", SPILL).await.expect("spilled");
    let off = SpoolConfig { spool_bytes_max: 0, spill_bytes_max: 0, ..SpoolConfig::default() };
    let site = site.restarted(off.clone()).await;
    let held = site.spooling.held_before(UtcMillis::clamped(6_000));
    assert_eq!(held.iter().map(|held| held.records).collect::<Vec<_>>(), [Some(1), Some(1)]);
    assert!(matches!(site.append("c", Route::Log).await, Err(Error::Stopped)), "the log's own answer");
    assert!(matches!(site.append("c", SPILL).await, Err(Error::SpoolFull { .. })));
    assert!(!site.spooling.has_spool() && site.spooling.refusal().is_none());
    site.log.is(Mood::Well);
    site.drained().await;
    assert_eq!(site.log.numbers(), ["a", "b"]);
    assert!(site.spooling.held_before(UtcMillis::clamped(6_000)).is_empty());
}

#[tokio::test]
async fn one_key_fills_its_share_of_the_spill_queue_and_leaves_room_for_another() {
    let site = site(Mood::Well, 1 << 20).await;
    let config =
        SpoolConfig { spill_bytes_max: 1 << 20, spill_key_percent_max: 25, ..SpoolConfig::default() };
    let site = site.restarted(config).await;
    site.spooling.pause_spill(true);
    let large = "x".repeat(50_000);
    let mut taken = 0;
    while site.append(&large, SPILL).await.is_ok() {
        taken += 1;
    }
    assert_eq!(taken, 5, "a quarter of 1 MiB");
    assert!(matches!(site.append(&large, SPILL).await, Err(Error::SpoolFull { .. })));
    site.append(&large, Route::Spill { owner: "another" }).await.expect("room for another");
    site.spooling.pause_spill(false);
    site.drained().await;
    site.append(&large, SPILL).await.expect("room again");
}

#[tokio::test]
async fn what_the_log_has_of_a_chunk_is_not_appended_again_while_the_rest_waits() {
    let site = site(Mood::Fails, 1 << 20).await;
    site.append("a", Route::Log).await.expect("spooled");
    site.spooling.append(Topic::FraudVerdicts, record("v", 5_000), Route::Log).await.expect("spooled");
    site.log.is(Mood::TakesSome);
    let spool = site.spooling.queues().next().expect("a spool").clone();
    for _ in 0..3 {
        assert!(site.spooling.drain_chunk(&spool).await.is_err());
    }
    assert_eq!((site.log.numbers(), spool.status().records), (vec!["a".to_owned()], 2));
    site.append("b", Route::Spool).await.expect("spooled");
    site.log.is(Mood::Well);
    site.drained().await;
    let mut numbers = site.log.numbers();
    numbers.sort_unstable();
    assert_eq!(numbers, ["a", "b", "v"], "each once");
}

#[tokio::test]
async fn a_node_that_refuses_everything_is_not_ready_though_its_log_is_only_busy() {
    let site = site(Mood::Busy, 1 << 20).await;
    let large = "x".repeat(50_000);
    while site.append(&large, Route::Log).await.is_ok() {}
    assert_eq!(site.spooling.log_state(), BreakerState::Closed, "busy is no failure");
    let refusal = site.spooling.refusal().expect("not ready");
    assert!(refusal.contains("full"), "{refusal}");
    site.log.is(Mood::Well);
    site.append("a", Route::Log).await.expect("stored");
    assert_eq!(site.spooling.refusal(), None);
}

#[tokio::test]
async fn without_queues_the_log_alone_decides() {
    let log = MoodyLog { mood: Mutex::new(Mood::Fails), calls: AtomicU32::new(0), stored: Mutex::default() };
    let spooling = Spooling::without_queues(Arc::new(log));
    let refused = spooling.append(Topic::AdClicks, record("a", 0), Route::Log).await;
    assert!(matches!(refused, Err(Error::Stopped)));
    assert!(spooling.append(Topic::AdClicks, record("a", 0), SPILL).await.is_err());
    assert!(!spooling.has_spool() && spooling.status().is_empty());
}
