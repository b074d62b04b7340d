//! A node around the reconciler: real log, archive and billing store in a folder; stream path and archiver by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use async_trait::async_trait;
use twice_log::archive::BillingPath;
use twice_log::archive::{Archive, ArchiverSettings, ChainKey, CountingSettings, Cutoff, PartitionArchiver};
use twice_log::event::partition_of;
use twice_log::event::record::{decode_click, encode_click, encode_verdict};
use twice_log::fail::FailPoints;
use twice_log::fs::RealFs;
use twice_log::hot::embedded::{EmbeddedConfig, EmbeddedLog};
use twice_log::hot::{AppendRecord, ClickLog};
use twice_log::{CampaignId, Click, Clock, Hour, LogOffset, PartitionId, Topic, UtcMillis, Verdict};
use twice_reconciler::ports::{ArchiveControl, ClockWitness, HeldRecords, Holding, PortError, SealControl};
use twice_reconciler::recompute::{
    ArchiveLocation, InProcessRecompute, LookedUp, Recompute, RecomputeRequest, Recomputed, ShadowReport,
};
use twice_reconciler::{Reconciler, ReconcilerConfig, ReconcilerDeps, ReconcilerHandle};
use twice_store::{
    BillingQuery, BillingRow, BillingStore, CommittedRun, Correction, CorrectionsQuery, DivergenceRow,
    HourMarks, Page, Reconciliation, RestoredRun, RunCommit, SqliteStore, UtcMicros,
};

use super::model;
use super::replay::SqlReplay;
use super::{GENERATION, Records, Run, hour};

pub const PARTITIONS: u32 = 2;

/// A clock that stands where it is put.
#[derive(Debug)]
pub struct HandClock(AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> UtcMillis {
        UtcMillis::clamped(self.0.load(Ordering::SeqCst))
    }
}

/// Seals as the stream path would, by the naive model over the log.
struct ModelSeals {
    log: Arc<EmbeddedLog>,
    archive: Archive,
    absent: AtomicBool,
}

#[async_trait]
impl SealControl for ModelSeals {
    async fn seal(&self, hour: Hour, partition: PartitionId, at_least: LogOffset) -> Result<(), PortError> {
        if self.absent.load(Ordering::SeqCst) {
            return Err(PortError::Absent { part: "stream path" });
        }
        let records = Records { clicks: read_clicks(&self.log).await, ..Records::default() };
        let run = Run {
            click_ends: BTreeMap::new(),
            rates: Vec::new(),
            settings: CountingSettings::default(),
            seals: Vec::new(),
        };
        for seal in model::seals(&records, &run, hour, &BTreeMap::from([(partition, at_least.0)])) {
            self.archive.put_seal(&seal).await.expect("seal is put");
        }
        Ok(())
    }
}

async fn read_clicks(log: &EmbeddedLog) -> BTreeMap<PartitionId, Vec<Click>> {
    let mut clicks = BTreeMap::new();
    for partition in (0..PARTITIONS).map(PartitionId) {
        let bounds = log.bounds(Topic::AdClicks, partition).await.expect("bounds");
        let (mut next, mut own) = (bounds.earliest, Vec::new());
        while next < bounds.end {
            let batch = log.read(Topic::AdClicks, partition, next, 1 << 20).await.expect("read");
            for (offset, bytes) in batch.records {
                own.push(decode_click(&bytes).expect("click"));
                next = offset.next();
            }
        }
        clicks.insert(partition, own);
    }
    clicks
}

/// Archives on request, and on nothing else.
struct HandArchiver {
    log: Arc<EmbeddedLog>,
    archive: Archive,
    asleep: AtomicBool,
}

#[async_trait]
impl ArchiveControl for HandArchiver {
    async fn flush_through(
        &self,
        topic: Topic,
        partition: PartitionId,
        end: LogOffset,
    ) -> Result<(), PortError> {
        if self.asleep.load(Ordering::SeqCst) {
            return Err(PortError::Unavailable { part: "archiver", detail: "asleep".to_owned() });
        }
        let chain = ChainKey { topic, generation: GENERATION, partition };
        let settings = ArchiverSettings::default();
        let opened =
            PartitionArchiver::open(self.archive.clone(), chain, PARTITIONS, settings, FailPoints::default());
        let mut archiver = opened.await.expect("archiver opens");
        while archiver.next_offset() < end {
            let batch = self.log.read(topic, partition, archiver.next_offset(), 1 << 20).await.expect("read");
            for (offset, bytes) in batch.records {
                archiver.push(offset, &bytes).expect("record is taken");
            }
        }
        archiver.flush().await.expect("flush");
        Ok(())
    }
}

/// Where a test stops the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HangAt {
    Nowhere,
    /// The inputs are put and nothing is computed.
    Recompute,
    /// The rows are computed and not committed.
    BeforeCommit,
    /// The rows are committed and the result is not put.
    AfterCommit,
}

struct HangingRecompute {
    inner: InProcessRecompute,
    hang_at: HangAt,
}

#[async_trait]
impl Recompute for HangingRecompute {
    async fn recompute(&self, request: RecomputeRequest) -> twice_reconciler::Result<Recomputed> {
        if self.hang_at == HangAt::Recompute {
            std::future::pending::<()>().await;
        }
        self.inner.recompute(request).await
    }

    async fn explain(
        &self,
        request: RecomputeRequest,
    ) -> twice_reconciler::Result<twice_reconciler::compare::Explanation> {
        self.inner.explain(request).await
    }

    async fn look_up(&self, request: RecomputeRequest) -> twice_reconciler::Result<LookedUp> {
        self.inner.look_up(request).await
    }

    async fn shadow(&self, request: RecomputeRequest) -> twice_reconciler::Result<ShadowReport> {
        self.inner.shadow(request).await
    }
}

struct HangingBilling {
    inner: Arc<SqliteStore>,
    hang_at: HangAt,
}

#[async_trait]
impl BillingStore for HangingBilling {
    async fn commit_run(&self, commit: RunCommit) -> twice_store::Result<CommittedRun> {
        if self.hang_at == HangAt::BeforeCommit {
            std::future::pending::<()>().await;
        }
        let committed = self.inner.commit_run(commit).await;
        if self.hang_at == HangAt::AfterCommit {
            std::future::pending::<()>().await;
        }
        committed
    }

    async fn committed_run(&self, run_id: &str) -> twice_store::Result<Option<CommittedRun>> {
        self.inner.committed_run(run_id).await
    }

    async fn billing(&self, query: &BillingQuery) -> twice_store::Result<Page<BillingRow>> {
        self.inner.billing(query).await
    }

    async fn corrections(&self, query: &CorrectionsQuery) -> twice_store::Result<Page<Correction>> {
        self.inner.corrections(query).await
    }

    async fn restore_run(&self, run: RestoredRun) -> twice_store::Result<()> {
        self.inner.restore_run(run).await
    }

    async fn divergence(
        &self,
        hour: Hour,
        as_of: Option<UtcMicros>,
        campaigns: Option<&BTreeSet<CampaignId>>,
        limit: u32,
        cursor: Option<String>,
    ) -> twice_store::Result<Page<DivergenceRow>> {
        self.inner.divergence(hour, as_of, campaigns, limit, cursor).await
    }

    async fn run_divergence(&self, run_id: &str) -> twice_store::Result<Vec<twice_store::Divergence>> {
        self.inner.run_divergence(run_id).await
    }

    async fn reconciliations(
        &self,
        limit: u32,
        cursor: Option<String>,
    ) -> twice_store::Result<Page<Reconciliation>> {
        self.inner.reconciliations(limit, cursor).await
    }

    async fn billed_hours(
        &self,
        path: Option<BillingPath>,
        from: Hour,
        to: Hour,
    ) -> twice_store::Result<Vec<Hour>> {
        self.inner.billed_hours(path, from, to).await
    }

    async fn billed_hours_as_of(
        &self,
        path: Option<BillingPath>,
        from: Hour,
        to: Hour,
        as_of: UtcMicros,
    ) -> twice_store::Result<Vec<Hour>> {
        self.inner.billed_hours_as_of(path, from, to, as_of).await
    }

    async fn mode(&self, hour: Hour) -> twice_store::Result<BillingPath> {
        self.inner.mode(hour).await
    }

    async fn hour_marks(&self, hour: Hour) -> twice_store::Result<HourMarks> {
        self.inner.hour_marks(hour).await
    }

    async fn newest_cutoffs(&self) -> twice_store::Result<Vec<Cutoff>> {
        self.inner.newest_cutoffs().await
    }
}

/// The parts a node has beside the reconciler, in one folder.
pub struct Node {
    folder: tempfile::TempDir,
    pub clock: Arc<HandClock>,
    log: Arc<EmbeddedLog>,
    pub archive: Archive,
    pub store: Arc<SqliteStore>,
    seals: Arc<ModelSeals>,
    archiver: Arc<HandArchiver>,
    pub held: Arc<HandHeld>,
    pub clock_witness: Arc<HandWitness>,
    pub replay: Arc<SqlReplay>,
}

/// Doubts the clock when it is told to.
#[derive(Default)]
pub struct HandWitness(pub AtomicBool);

impl ClockWitness for HandWitness {
    fn doubt(&self) -> Option<String> {
        self.0.load(Ordering::SeqCst).then(|| "the clock may be ahead".to_owned())
    }
}

/// Holds as many records as it is told, all of any time.
#[derive(Default)]
pub struct HandHeld(pub AtomicU64);

impl Holding for HandHeld {
    fn held_before(&self, _instant: UtcMillis) -> Vec<HeldRecords> {
        match self.0.load(Ordering::SeqCst) {
            0 => Vec::new(),
            held => {
                vec![HeldRecords { holder: "spool of a gateway".to_owned(), records: Some(held), missing: 0 }]
            }
        }
    }
}

impl Node {
    /// Starts the parts; the clock stands ten minutes after the end of the test's hour.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let clock = Arc::new(HandClock(AtomicI64::new(hour().end().plus_ms(600_000).epoch_ms())));
        let config =
            EmbeddedConfig { partitions: PARTITIONS, segment_bytes: 1 << 20, ..EmbeddedConfig::default() };
        let log =
            EmbeddedLog::open(Arc::new(RealFs), &folder.path().join("log"), config, FailPoints::default());
        let log = Arc::new(log.expect("log opens"));
        let archive = super::open_archive(&folder.path().join("archive"));
        let store = SqliteStore::open(&folder.path().join("twice.sqlite"), clock.clone()).await;
        let seals = ModelSeals { log: log.clone(), archive: archive.clone(), absent: AtomicBool::new(false) };
        let archiver =
            HandArchiver { log: log.clone(), archive: archive.clone(), asleep: AtomicBool::new(false) };
        let replay = SqlReplay {
            archive: archive.clone(),
            spill_dir: folder.path().join("replay"),
            miscounted: AtomicU64::new(0),
        };
        Self {
            folder,
            clock,
            log,
            archive,
            store: Arc::new(store.expect("store opens")),
            seals: Arc::new(seals),
            archiver: Arc::new(archiver),
            held: Arc::default(),
            clock_witness: Arc::default(),
            replay: Arc::new(replay),
        }
    }

    pub fn archive_root(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn without_stream(&self) {
        self.seals.absent.store(true, Ordering::SeqCst);
    }

    pub fn put_archiver_to_sleep(&self) {
        self.archiver.asleep.store(true, Ordering::SeqCst);
    }

    pub fn set_clock(&self, now: UtcMillis) {
        self.clock.0.store(now.epoch_ms(), Ordering::SeqCst);
    }

    pub async fn append(&self, clicks: &[Click]) {
        let records = clicks.iter().map(|click| {
            let mut bytes = Vec::new();
            encode_click(click, &mut bytes);
            AppendRecord { partition: partition_of(&click.campaign_id, PARTITIONS), bytes: bytes.into() }
        });
        self.log.append(Topic::AdClicks, records.collect()).await.expect("append");
    }

    pub async fn append_verdicts(&self, verdicts: &[Verdict]) {
        let records = verdicts.iter().map(|verdict| {
            let mut bytes = Vec::new();
            encode_verdict(verdict, &mut bytes);
            AppendRecord { partition: partition_of(&verdict.campaign_id, PARTITIONS), bytes: bytes.into() }
        });
        self.log.append(Topic::FraudVerdicts, records.collect()).await.expect("append");
    }

    /// Archives everything, as the archiver does by age.
    pub async fn archive_all(&self) {
        for topic in Topic::ARCHIVED {
            for partition in (0..PARTITIONS).map(PartitionId) {
                let end = self.log.bounds(topic, partition).await.expect("bounds").end;
                self.archiver.flush_through(topic, partition, end).await.expect("flush");
            }
        }
    }

    pub fn reconciler(&self, schedule: bool, hang_at: HangAt) -> ReconcilerHandle {
        let inner = InProcessRecompute::new(self.archive.clone());
        self.reconciler_with(schedule, hang_at, Arc::new(HangingRecompute { inner, hang_at }))
    }

    pub fn reconciler_with(
        &self,
        schedule: bool,
        hang_at: HangAt,
        recompute: Arc<dyn Recompute>,
    ) -> ReconcilerHandle {
        let config = ReconcilerConfig {
            schedule,
            tick_ms: 100,
            archive_timeout_ms: 2_000,
            archive_poll_ms: 20,
            threads: 1,
            spill_dir: self.folder.path().join("spill"),
            memory_bytes_max: 256 << 20,
            ..ReconcilerConfig::default()
        };
        let deps = ReconcilerDeps {
            clock: self.clock.clone(),
            clock_witness: self.clock_witness.clone(),
            log: self.log.clone(),
            archive: self.archive.clone(),
            archive_location: ArchiveLocation::Local { root: self.archive_root() },
            billing: Arc::new(HangingBilling { inner: self.store.clone(), hang_at }),
            campaigns: self.store.clone(),
            imports: self.store.clone(),
            seals: self.seals.clone(),
            archiver: self.archiver.clone(),
            held: self.held.clone(),
            recompute,
            replay: self.replay.clone(),
            fail_points: FailPoints::default(),
        };
        Reconciler::start(config, deps).expect("reconciler starts")
    }

    /// Returns every version of every lambda row of the hour.
    pub async fn rows(&self) -> Vec<BillingRow> {
        let query = BillingQuery {
            from: hour(),
            to: hour().plus(1),
            campaigns: None,
            path: Some(BillingPath::Lambda),
            version: None,
            as_of: None,
            limit: 1000,
            cursor: None,
        };
        self.store.billing(&query).await.expect("billing").rows
    }

    /// Waits until `done` says so; gives up after a long time.
    pub async fn wait_until(&self, what: &str, done: impl AsyncFn() -> bool) {
        for _ in 0..3000 {
            if done().await {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("never: {what}");
    }
}
