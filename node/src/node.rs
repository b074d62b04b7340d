//! One process with all parts: opened in the order in which they need each other, stopped in the reverse.
//!
//! Guarantee: one node a data folder, by its lock. Whatever stops a node, even a kill, loses nothing acknowledged: each
//! part resumes from its own durable state.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use actix_web::dev::{Server, ServerHandle};
use actix_web::rt::task::JoinHandle;
use anyhow::{Context, Result, bail};
use twice_actors::{
    ArchiverConfig, Archiving, ArchivingParts, BudgetConfig, ProcessReplay, ReplayConfig, StreamConfig,
    StreamParts, StreamPath,
};
use twice_api::{Access, ApiConfig, ApiDeps, KeyRing, Listeners, PseudonymKeys, RateLimits};
use twice_log::archive::s3::S3Config;
use twice_log::archive::{Archive, ArchiveLocation, CountingSettings};
use twice_log::fail::FailPoints;
use twice_log::fs::{FileSystem, RealFs};
use twice_log::spool::{SpoolConfig, Spooling};
use twice_log::{Clock, WallClock};
use twice_reconciler::recompute::ProcessRecompute;
use twice_reconciler::{Reconciler, ReconcilerConfig, ReconcilerDeps, ReconcilerHandle};
use twice_store::{ArchiveAggregates, ResilientWindows, SqliteStore, WindowStore};

use crate::archive;
use crate::audit::AuditProcess;
use crate::budgets::{BudgetWiring, Observing, RunningBudgets};
use crate::clock_watch::ClockWatch;
use crate::database;
use crate::disk::{DiskConfig, DiskSpace};
use crate::housekeeping::Housekeeping;
use crate::keys;
use crate::log::{LogConfig, OpenLog};
use crate::ports::{
    ArchiverFlush, Around, Audits, BudgetReports, Compares, CountableImports, Explains, Reconciles,
    ReplayStarts, Shadows, Status, StreamSeals,
};
use crate::privacy::{PrivacyConfig, watch_keys};
use crate::recovery::Recovery;
use crate::spool;
use crate::stores::StoresConfig;
use crate::swap::refuse_unfinished;
use crate::trim::{TrimConfig, Trimming};

/// Renders the metrics as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Everything a node is started with.
pub struct NodeConfig {
    pub data_dir: PathBuf,
    pub counting: CountingSettings,
    pub log: LogConfig,
    pub spool: SpoolConfig,
    pub stream: StreamConfig,
    pub budget: BudgetConfig,
    pub archiver: ArchiverConfig,
    pub s3: S3Config,
    pub reconciler: ReconcilerConfig,
    pub privacy: PrivacyConfig,
    pub replay: ReplayConfig,
    pub api: ApiConfig,
    pub windows_cache_bytes: u64,
    pub stores: StoresConfig,
    pub disk: DiskConfig,
    pub trim: TrimConfig,
    pub fail_points: FailPoints,
    pub access: Access,
    pub render_metrics: RenderMetrics,
}

/// A running node.
pub struct Node {
    log: OpenLog,
    spooling: Arc<Spooling>,
    draining: JoinHandle<()>,
    windows: Arc<ResilientWindows>,
    store: Arc<SqliteStore>,
    /// The same store, for requests: they do not wait long for it.
    bounded: Arc<SqliteStore>,
    stream: StreamPath,
    budgets: RunningBudgets,
    archiving: Archiving,
    reconciler: ReconcilerHandle,
    housekeeping: JoinHandle<()>,
    recovery: Arc<Recovery>,
    audits: Arc<Audits>,
    keys: Arc<KeyRing>,
    limits: Arc<RateLimits>,
    _lock: File,
}

impl Node {
    /// Opens every part and starts to serve on `listeners`.
    ///
    /// # Errors
    /// The part that did not open, with what to do.
    pub async fn start(config: NodeConfig, listeners: Listeners) -> Result<(Self, Server, ServerHandle)> {
        config.privacy.validate(&config.reconciler, config.api.click_age_ms_max)?;
        let opened = Opened::open(&config).await?;
        let observing = Observing::default();
        let (stream, archiving) = start_readers(&config, &opened, &observing).await?;
        let budgets = RunningBudgets::start(observing, opened.wiring(&config, &stream), config.budget)?;
        let deps = opened.reconciler_deps(&config, &stream, &archiving)?;
        let reconciler = Reconciler::start(config.reconciler.clone(), deps.clone())?;
        let compare = compares(&config, (&reconciler, &deps), &opened.log, &stream, &opened.recovery);
        let status = Arc::new(opened.status(&stream, &archiving, &reconciler));
        let Opened { clock, space, log, spooling, archive, copied, store, bounded, windows, .. } = opened;
        let aggregates = Arc::new(ArchiveAggregates::new(archive, config.api.query_cache_bytes_max));
        let housekeeping = Housekeeping {
            status: status.clone(),
            windows: windows.clone(),
            billing: store.clone(),
            clock: clock.clone(),
            space,
            trimming: trimming(&config, &log, &stream, &archiving, &clock),
        };
        let node = Self {
            log,
            draining: spool::start(&spooling, copied),
            spooling,
            windows,
            store,
            bounded,
            stream,
            budgets,
            archiving,
            reconciler,
            housekeeping: actix_web::rt::spawn(housekeeping.run()),
            recovery: opened.recovery,
            audits: Arc::new(Audits::new(opened.audits)),
            keys: opened.keys,
            limits: opened.limits,
            _lock: opened.lock,
        };
        let pseudonyms = Arc::new(PseudonymKeys::open(config.data_dir.join("keys"))?);
        actix_web::rt::spawn(opened.clock_watch.clone().run());
        actix_web::rt::spawn(watch_keys(
            pseudonyms.clone(),
            clock.clone(),
            opened.clock_watch,
            config.privacy,
        ));
        let deps = node.api_deps(status, aggregates, compare, clock, pseudonyms, config.render_metrics);
        let (server, handle) = twice_api::serve(deps, listeners, config.api)?;
        Ok((node, server, handle))
    }

    fn api_deps(
        &self,
        status: Arc<Status>,
        aggregates: Arc<ArchiveAggregates>,
        compare: Arc<Compares>,
        clock: Arc<dyn Clock>,
        pseudonyms: Arc<PseudonymKeys>,
        render_metrics: RenderMetrics,
    ) -> ApiDeps {
        ApiDeps {
            log: self.log.shared(),
            spooling: self.spooling.clone(),
            windows: self.windows.clone(),
            billing: self.bounded.clone(),
            aggregates,
            campaigns: self.bounded.clone(),
            imports: Arc::new(CountableImports::new(self.bounded.clone(), self.reconciler.clone())),
            modes: self.bounded.clone(),
            keys: self.keys.clone(),
            limits: self.limits.clone(),
            clock,
            pseudonyms,
            reconcile: Arc::new(Reconciles(self.reconciler.clone())),
            explain: Arc::new(Explains(self.reconciler.clone())),
            shadow: Arc::new(Shadows::new(self.reconciler.clone())),
            replay: Arc::new(ReplayStarts::new(self.reconciler.clone())),
            audit: self.audits.clone(),
            compare,
            stream: status.clone(),
            budgets: Arc::new(BudgetReports(self.budgets.budgets.clone())),
            decisions: self.bounded.clone(),
            live: self.budgets.live.clone(),
            stopping: self.budgets.stopping(),
            admission: status.space.clone(),
            health: status,
            render_metrics,
        }
    }

    /// Stops what may take long and is safe to drop at any moment: runs, their child processes and housekeeping. Who waits
    /// for a run hears that it ended.
    pub async fn stop_long_work(&self) {
        self.budgets.end_streams();
        self.housekeeping.abort();
        self.draining.abort();
        self.reconciler.stop().await;
    }

    /// Stops every part once the server takes nothing more: what was taken is applied and checkpointed.
    ///
    /// # Errors
    /// The first part that failed; the others are stopped all the same.
    pub async fn stop(self) -> Result<()> {
        self.stop_long_work().await;
        // Only the moments of last uses: what a stop owes to clicks goes on without them.
        if let Err(error) = self.keys.note_uses().await {
            tracing::warn!(%error, "last uses of keys could not be written down");
        }
        self.budgets.stop().await;
        let stream = self.stream.flush_and_stop().await.context("stopping the stream path");
        let archiving = self.archiving.stop().await.context("stopping the archiver");
        let windows = self.windows.flush().await.context("flushing the windows");
        self.store.close().await;
        // What is held stays on disk; the next start drains it.
        self.spooling.close();
        self.log.close();
        let stopped = stream.and(archiving).and(windows);
        // Only a stop that wrote everything down is a graceful one.
        stopped.and_then(|()| self.recovery.end(&RealFs))
    }
}

/// What is open before anything runs.
struct Opened {
    clock: Arc<dyn Clock>,
    clock_watch: Arc<ClockWatch>,
    lock: File,
    recovery: Arc<Recovery>,
    space: Arc<DiskSpace>,
    log: OpenLog,
    spooling: Arc<Spooling>,
    archive: Archive,
    archive_location: ArchiveLocation,
    /// Where closed segments of the queues are copied to, and under which name of this node.
    copied: (Archive, String),
    audits: AuditProcess,
    store: Arc<SqliteStore>,
    bounded: Arc<SqliteStore>,
    windows: Arc<ResilientWindows>,
    keys: Arc<KeyRing>,
    limits: Arc<RateLimits>,
}

impl Opened {
    async fn open(config: &NodeConfig) -> Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(WallClock);
        let fs: Arc<dyn FileSystem> = Arc::new(RealFs);
        let folder = config.data_dir.as_path();
        let (lock, recovery) = take(folder, fs.as_ref(), clock.as_ref())?;
        let space = Arc::new(DiskSpace::new(folder, config.disk)?);
        let log =
            OpenLog::open(&config.log, folder, fs.clone(), clock.clone(), config.fail_points.clone()).await?;
        let spooling = spool::open(&config.spool, folder, log.shared(), fs.clone()).await?;
        let (archive, archive_location) = archive::open(&config.s3, fs, folder).await?;
        let clock_watch = ClockWatch::open(folder.to_path_buf(), clock.clone(), &archive).await?;
        let copied = (archive.clone(), spool::copies::node_name(&RealFs, folder)?);
        let audits = AuditProcess::new(&config.reconciler, folder, archive_location.clone())?;
        let store = Arc::new(database::open_for_writing(folder, &archive, clock.clone()).await?);
        let limit = config.stores.limit()?;
        let bounded = Arc::new(store.bounded(limit));
        // Every request asks for its key and its limit: neither may wait for the store longer than requests do.
        let keys = keys::open(bounded.clone(), clock.clone(), config.access, &config.fail_points).await?;
        let limits = RateLimits::open(bounded.clone(), clock.clone(), config.api.limits.clone()).await?;
        let windows_folder = folder.join("sled/windows");
        let windows = ResilientWindows::open(&windows_folder, config.windows_cache_bytes, limit).await?;
        Ok(Self {
            clock,
            clock_watch: Arc::new(clock_watch),
            lock,
            recovery,
            space,
            log,
            spooling,
            archive,
            archive_location,
            copied,
            audits,
            store,
            bounded,
            windows: Arc::new(windows),
            keys,
            limits,
        })
    }

    fn wiring(&self, config: &NodeConfig, stream: &StreamPath) -> BudgetWiring {
        BudgetWiring {
            log: self.log.shared(),
            spooling: self.spooling.clone(),
            stream: stream.clone(),
            windows: self.windows.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            fail_points: config.fail_points.clone(),
        }
    }

    fn reconciler_deps(
        &self,
        config: &NodeConfig,
        stream: &StreamPath,
        archiving: &Archiving,
    ) -> Result<ReconcilerDeps> {
        let location = self.archive_location.clone();
        Ok(ReconcilerDeps {
            clock: self.clock.clone(),
            clock_witness: self.clock_watch.clone(),
            log: self.log.shared(),
            archive: self.archive.clone(),
            archive_location: location.clone(),
            billing: self.store.clone(),
            campaigns: self.store.clone(),
            imports: self.store.clone(),
            seals: Arc::new(StreamSeals(stream.clone())),
            archiver: Arc::new(ArchiverFlush(archiving.clone())),
            held: Arc::new(spool::HeldHere(self.spooling.clone())),
            recompute: Arc::new(recompute_child(config.reconciler.nice)?),
            replay: Arc::new(replay_child(&config.replay, location, &config.data_dir)?),
            fail_points: config.fail_points.clone(),
        })
    }

    fn status(&self, stream: &StreamPath, archiving: &Archiving, reconciler: &ReconcilerHandle) -> Status {
        Status {
            node: "local".to_owned(),
            log: self.log.shared(),
            stream: stream.clone(),
            archiving: archiving.clone(),
            reconciler: reconciler.clone(),
            clock: self.clock.clone(),
            freshness: Arc::default(),
            space: self.space.clone(),
            spooling: self.spooling.clone(),
            windows: self.windows.clone(),
            bounded: self.bounded.clone(),
        }
    }
}

/// Starts what reads the log: the stream path and the archiver.
async fn start_readers(
    config: &NodeConfig,
    opened: &Opened,
    observing: &Observing,
) -> Result<(StreamPath, Archiving)> {
    let (log, archive) = (opened.log.shared(), opened.archive.clone());
    let parts = StreamParts {
        log: log.clone(),
        windows: observing.over(opened.windows.clone()),
        spend: observing.spend.clone(),
        seals: Arc::new(archive.clone()),
        history: Arc::new(archive.clone()),
        clock: opened.clock.clone(),
        settings: config.counting,
        checkpoints: config.data_dir.join("sled/checkpoints"),
        lease_epoch: 0,
        fail_points: config.fail_points.clone(),
    };
    let stream = StreamPath::start(parts, config.stream.clone()).await?;
    let settings = config.counting;
    let parts = ArchivingParts { log, archive, settings, fail_points: config.fail_points.clone() };
    Ok((stream, Archiving::start(parts, config.archiver.clone()).await?))
}

/// Returns what compares the paths, and begins to watch how long the stream path takes to catch up.
fn compares(
    config: &NodeConfig,
    (reconciler, deps): (&ReconcilerHandle, &ReconcilerDeps),
    log: &OpenLog,
    stream: &StreamPath,
    recovery: &Arc<Recovery>,
) -> Arc<Compares> {
    let (watched, watching) = (stream.clone(), recovery.clone());
    actix_web::rt::spawn(async move { watching.watch(watched).await });
    let around = Around {
        folder: config.data_dir.clone(),
        log: log.embedded(),
        running: Some((stream.clone(), recovery.clone())),
    };
    Arc::new(Compares::of(reconciler.clone(), deps, &config.reconciler, &config.replay, Arc::new(around)))
}

/// Returns what trims the log, where the node keeps one of its own.
fn trimming(
    config: &NodeConfig,
    log: &OpenLog,
    stream: &StreamPath,
    archiving: &Archiving,
    clock: &Arc<dyn Clock>,
) -> Option<Trimming> {
    log.embedded().map(|log| Trimming {
        log,
        stream: stream.clone(),
        archiving: archiving.clone(),
        clock: clock.clone(),
        counting: config.counting,
        config: config.trim,
    })
}

/// Returns what counts by replay, in a child process of its own that keeps finished slices in the data folder.
///
/// # Errors
/// If a setting does not fit, or the path of this program is unknown.
pub fn replay_child(
    config: &ReplayConfig,
    archive: ArchiveLocation,
    data_dir: &Path,
) -> Result<ProcessReplay> {
    config.validate()?;
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    Ok(ProcessReplay::new(program, config.nice, archive, config.limits(Some(data_dir.join("replay")))))
}

fn recompute_child(nice: i32) -> Result<ProcessRecompute> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    Ok(ProcessRecompute::new(program, nice))
}

/// Makes the data folder if it is not there, and takes it for a node.
fn take(folder: &Path, fs: &dyn FileSystem, clock: &dyn Clock) -> Result<(File, Arc<Recovery>)> {
    fs.create_dir_all(folder)
        .with_context(|| format!("cannot create the data folder {}", folder.display()))?;
    let lock = lock(folder)?;
    Ok((lock, Arc::new(Recovery::begin(fs, folder, clock)?)))
}

/// Takes the data folder for this process until the file is dropped, with a database that is in place.
///
/// # Errors
/// If another process has the folder, or a rebuild of its database has not ended.
pub fn lock(folder: &Path) -> Result<File> {
    let lock = take_lock(folder)?;
    refuse_unfinished(folder)?;
    Ok(lock)
}

/// Takes the data folder for this process, whatever state its database is in.
///
/// # Errors
/// If another process has it.
pub fn take_lock(folder: &Path) -> Result<File> {
    let path = folder.join("LOCK");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "{} is in use by another node; stop it first, or choose another --data-dir",
                folder.display()
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}
