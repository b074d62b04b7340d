//! Reader and keeper on a real database and log, step by step, with windows that fail or hang where a test says so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use hashbrown::HashMap;
use tempfile::TempDir;
use tokio::sync::Notify;
use twice_log::event::partition_of;
use twice_log::fail::FailPoints;
use twice_log::fs::RealFs;
use twice_log::hot::embedded::{EmbeddedConfig, EmbeddedLog};
use twice_log::{CampaignId, Clock, Generation, Hour, LogOffset, PartitionId, UtcMillis};
use twice_store::windows::{Fence, WindowRow, WindowStore};
use twice_store::{
    BudgetDecision, BudgetState, BudgetStore, CampaignStore, DecisionsQuery, PutCampaign, SqliteStore,
};

use super::super::actor::{BudgetParts, Shared};
use super::super::config::BudgetConfig;
use super::super::feed::{SpendFeed, Touched};
use super::super::keeper::Keeper;
use super::super::reader::Reader;
use crate::testing::NOON_MS;

const PARTITIONS: u32 = 2;
const DAY_MS: i64 = 86_400_000;

/// A clock that stands where the test put it.
struct HandClock(AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> UtcMillis {
        UtcMillis::clamped(self.0.load(Ordering::SeqCst))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Fails,
    Hangs,
}

/// Windows that are what the test says.
#[derive(Default)]
struct HandWindows {
    rows: Mutex<Vec<WindowRow>>,
    reads: Mutex<HashMap<CampaignId, Read>>,
    hanging: Notify,
}

impl HandWindows {
    fn put(&self, campaign: &CampaignId, ms: i64, clicks: u64) {
        let fence = Fence { lease_epoch: 0, generation: Generation(0), applied: LogOffset(1) };
        self.rows.lock().expect("a lock").push(WindowRow {
            campaign_id: campaign.clone(),
            window_start: UtcMillis::clamped(NOON_MS + ms),
            fence,
            clicks,
            users: Default::default(),
            ads: Vec::new(),
        });
    }
}

#[async_trait]
impl WindowStore for HandWindows {
    async fn publish(&self, _rows: Vec<WindowRow>) -> twice_store::Result<()> {
        Ok(())
    }

    async fn read(
        &self,
        campaign: &CampaignId,
        from: UtcMillis,
        to: UtcMillis,
    ) -> twice_store::Result<Vec<WindowRow>> {
        let read = self.reads.lock().expect("a lock").get(campaign).copied();
        match read {
            Some(Read::Fails) => {
                return Err(twice_store::Error::Conflict { reason: "refused by the test".to_owned() });
            }
            Some(Read::Hangs) => {
                self.hanging.notify_one();
                std::future::pending::<()>().await;
            }
            None => {}
        }
        let is_wanted =
            |row: &&WindowRow| row.campaign_id == *campaign && (from..to).contains(&row.window_start);
        Ok(self.rows.lock().expect("a lock").iter().filter(is_wanted).cloned().collect())
    }

    async fn flush(&self) -> twice_store::Result<()> {
        Ok(())
    }

    async fn remove_hours(&self, _hours: &[Hour]) -> twice_store::Result<()> {
        Ok(())
    }

    async fn hours(&self) -> twice_store::Result<Vec<Hour>> {
        Ok(Vec::new())
    }
}

struct Desk {
    _folder: TempDir,
    clock: Arc<HandClock>,
    store: Arc<SqliteStore>,
    windows: Arc<HandWindows>,
    feed: Arc<SpendFeed>,
    /// Partition whose clicks wait outside of the log, since when.
    waiting: Arc<Mutex<Option<(PartitionId, UtcMillis)>>>,
    shared: Arc<Shared>,
    reader: Reader,
    keeper: Keeper,
}

impl Desk {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let clock = Arc::new(HandClock(AtomicI64::new(NOON_MS)));
        let store = SqliteStore::open(&folder.path().join("s"), clock.clone()).await.expect("store");
        let (store, windows, feed) = (Arc::new(store), Arc::new(HandWindows::default()), Arc::default());
        let config = EmbeddedConfig { partitions: PARTITIONS, ..EmbeddedConfig::default() };
        let log =
            EmbeddedLog::open(Arc::new(RealFs), &folder.path().join("log"), config, FailPoints::default());
        let waiting = Arc::new(Mutex::new(None));
        let held = waiting.clone();
        let waiting_since = move |partition| {
            let held: Option<(PartitionId, UtcMillis)> = *held.lock().expect("a lock");
            held.filter(|(number, _)| *number == partition).map(|(_, since)| since)
        };
        let parts = BudgetParts {
            log: Arc::new(log.expect("log")),
            windows: windows.clone(),
            billing: store.clone(),
            campaigns: store.clone(),
            decisions: store.clone(),
            feed: Arc::clone(&feed),
            applied_ends: Arc::new(|| vec![LogOffset(0); PARTITIONS as usize]),
            waiting_since: Arc::new(waiting_since),
            clock: clock.clone(),
            fail_points: FailPoints::default(),
        };
        let shared = Arc::new(Shared::new(parts, BudgetConfig::default()));
        let (reader, keeper) = (Reader::new(shared.clone()), Keeper::new(shared.clone()));
        let mut desk = Self { _folder: folder, clock, store, windows, feed, waiting, shared, reader, keeper };
        desk.reader.look().await;
        desk
    }

    async fn set(&self, campaign: &CampaignId, budget: Option<i64>, strict: bool) {
        self.clock.0.fetch_add(1_000, Ordering::SeqCst);
        let put = PutCampaign {
            campaign_id: campaign.clone(),
            name: String::new(),
            currency: "USD".parse().expect("valid currency"),
            cpc_micros: 10,
            daily_budget_micros: budget,
            strict,
            effective_from: Some(UtcMillis::clamped(0)),
        };
        self.store.put_campaign(put, self.clock.now()).await.expect("put");
    }

    /// Leaves clicks of a minute, as the stream does.
    fn count(&self, campaign: &CampaignId, ms: i64, clicks: u64) {
        let minutes = BTreeMap::from([(UtcMillis::clamped(NOON_MS + ms), clicks)]);
        self.feed.put([(campaign.clone(), Touched { minutes, clicks: None })]);
    }

    async fn step(&mut self) {
        self.keeper.look().await;
        self.reader.look().await;
        self.keeper.round().await.expect("a round");
    }

    async fn states(&self, campaign: &CampaignId) -> Vec<BudgetState> {
        let decisions = self.decisions().await;
        let of = decisions.into_iter().filter(|decision| decision.campaign_id == *campaign);
        of.map(|decision| decision.state).collect()
    }

    async fn decisions(&self) -> Vec<BudgetDecision> {
        let query = DecisionsQuery { after: 0, campaigns: None, limit: 100 };
        self.store.decisions(&query).await.expect("decisions")
    }
}

fn id(name: &str) -> CampaignId {
    CampaignId::new(name).expect("valid id")
}

use BudgetState::{Exhausted, Serving, Unknown};

#[tokio::test]
async fn an_account_that_was_not_derived_decides_nothing_until_it_is_and_holds_up_no_other() {
    let mut desk = Desk::new().await;
    let (poisoned, sound) = (id("a"), id("b"));
    for campaign in [&poisoned, &sound] {
        desk.set(campaign, Some(50), false).await;
        desk.windows.put(campaign, 0, 9);
    }
    desk.windows.reads.lock().expect("a lock").insert(poisoned.clone(), Read::Fails);
    desk.step().await;
    desk.step().await;
    assert_eq!(desk.states(&sound).await, [Exhausted]);
    assert_eq!(desk.states(&poisoned).await, [], "its spend would be too low");
    desk.windows.reads.lock().expect("a lock").clear();
    desk.clock.0.fetch_add(120_000, Ordering::SeqCst); // set long ago: no look reads its terms again
    desk.step().await;
    assert_eq!(desk.states(&poisoned).await, [Exhausted]);
}

#[tokio::test]
async fn a_budget_that_is_set_again_counts_what_was_clicked_without_it() {
    let mut desk = Desk::new().await;
    let campaign = id("a");
    desk.set(&campaign, Some(50), false).await;
    desk.step().await;
    desk.set(&campaign, None, false).await;
    desk.step().await;
    desk.feed.watch(Default::default()); // as the next reading of all campaigns does
    desk.windows.put(&campaign, 0, 9);
    desk.set(&campaign, Some(60), false).await;
    desk.step().await;
    assert!(desk.feed.watched().contains(&campaign));
    assert_eq!(desk.states(&campaign).await, [Serving, Exhausted]);
}

#[tokio::test]
async fn a_clock_that_jumps_days_ahead_and_back_leaves_the_day_as_it_was() {
    let mut desk = Desk::new().await;
    let campaign = id("a");
    desk.set(&campaign, Some(50), false).await;
    desk.windows.put(&campaign, 0, 3);
    desk.step().await;
    desk.clock.0.fetch_add(2 * DAY_MS, Ordering::SeqCst);
    desk.step().await;
    desk.clock.0.fetch_add(-2 * DAY_MS, Ordering::SeqCst);
    desk.step().await;
    desk.count(&campaign, 60_000, 2);
    desk.step().await;
    let report = desk.shared.report(&campaign, None).await.expect("a report").expect("known");
    assert_eq!((report.spend_micros, report.state), (50, Some(Exhausted)));
    let of_today = desk.decisions().await.into_iter().filter(|decision| decision.day == report.day);
    assert_eq!(
        of_today.map(|one| (one.number, one.state)).collect::<Vec<_>>(),
        [(1, Serving), (2, Exhausted)]
    );
}

#[tokio::test]
async fn clicks_that_wait_outside_the_log_stop_strict_campaigns_of_their_partition_alone() {
    let mut desk = Desk::new().await;
    let of = |number: u32| {
        (0..).map(|at| id(&format!("c{at}"))).find(|id| partition_of(id, PARTITIONS).0 == number)
    };
    let (held, other) = (of(0).expect("one"), of(1).expect("one"));
    for campaign in [&held, &other] {
        desk.set(campaign, Some(50), true).await;
    }
    desk.step().await;
    let since = desk.clock.now().plus_ms(-20_000);
    *desk.waiting.lock().expect("a lock") = Some((PartitionId(0), since));
    desk.step().await;
    assert_eq!(desk.states(&held).await, [Serving, Unknown]);
    assert_eq!(desk.states(&other).await, [Serving]);
}

#[tokio::test]
async fn a_store_that_hangs_for_one_campaign_delays_no_decision_of_another() {
    let mut desk = Desk::new().await;
    let (hanging, sound) = (id("a"), id("b"));
    desk.set(&sound, Some(50), false).await;
    desk.step().await;
    desk.set(&hanging, Some(50), false).await;
    desk.windows.reads.lock().expect("a lock").insert(hanging, Read::Hangs);
    let mut reader = desk.reader;
    let look = tokio::spawn(async move { reader.look().await });
    desk.windows.hanging.notified().await;
    let minutes = BTreeMap::from([(UtcMillis::clamped(NOON_MS), 5)]);
    desk.feed.put([(sound.clone(), Touched { minutes, clicks: None })]);
    desk.keeper.look().await;
    desk.keeper.round().await.expect("a round");
    look.abort();
    let query = DecisionsQuery { after: 0, campaigns: None, limit: 100 };
    let decisions = desk.store.decisions(&query).await.expect("decisions");
    assert_eq!(decisions.into_iter().map(|one| one.state).collect::<Vec<_>>(), [Serving, Exhausted]);
}
