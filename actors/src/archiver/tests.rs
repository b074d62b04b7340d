//! The archiver on a real log and a local archive: covers, resumes, waits outages out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use twice_log::archive::layout::ChainKey;
use twice_log::archive::{Archive, CountingSettings, Manifest};
use twice_log::event::partition_of;
use twice_log::event::record::encode_click;
use twice_log::fail::FailPoints;
use twice_log::fs::{File, FileSystem, RealFs};
use twice_log::hot::embedded::{EmbeddedConfig, EmbeddedLog};
use twice_log::hot::{AppendRecord, ClickLog};
use twice_log::{ClickId, LogOffset, PartitionId, Topic};

use super::{Archiving, ArchivingParts};
use crate::config::ArchiverConfig;
use crate::error::Error;
use crate::testing::{NOON_MS, Planned, clicks};

const PARTITIONS: u32 = 2;

/// The machine's files, except that none can be created while it is full.
struct FullFs(Arc<AtomicBool>);

impl FileSystem for FullFs {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        if self.0.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        RealFs.create_new(path)
    }
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        RealFs.open(path, writable)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealFs.create_dir_all(path)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.hard_link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealFs.remove_file(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        RealFs.list(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealFs.sync_dir(path)
    }
}

struct Site {
    _directory: TempDir,
    log: Arc<EmbeddedLog>,
    archive: Archive,
    is_full: Arc<AtomicBool>,
    appended: [i64; PARTITIONS as usize],
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let config = EmbeddedConfig { partitions: PARTITIONS, ..EmbeddedConfig::default() };
        let log =
            EmbeddedLog::open(Arc::new(RealFs), &directory.path().join("log"), config, FailPoints::default());
        let is_full = Arc::new(AtomicBool::new(false));
        let fs = Arc::new(FullFs(is_full.clone()));
        let archive = Archive::open_local(fs, &directory.path().join("archive")).expect("archive");
        Self { log: Arc::new(log.expect("log")), archive, is_full, appended: [0; 2], _directory: directory }
    }

    async fn append(&mut self, count: u32) {
        let plan = |number: u32| Planned {
            campaign: (number % 4) as u8,
            identity: 0,
            ad: 0,
            user: 0,
            age_ms: 0,
            step_ms: 10,
        };
        let mut clicks = clicks(&(0..count).map(plan).collect::<Vec<_>>(), NOON_MS);
        let mut records = Vec::new();
        for (number, click) in clicks.iter_mut().enumerate() {
            click.click_id = ClickId::derived(&number.to_string());
            let mut bytes = Vec::new();
            encode_click(click, &mut bytes);
            let partition = partition_of(&click.campaign_id, PARTITIONS);
            self.appended[partition.0 as usize] += 1;
            records.push(AppendRecord { partition, bytes: bytes.into() });
        }
        self.log.append(Topic::AdClicks, records).await.expect("append");
    }

    fn ends(&self) -> Vec<(PartitionId, LogOffset)> {
        (0..PARTITIONS)
            .map(|number| (PartitionId(number), LogOffset(self.appended[number as usize])))
            .collect()
    }

    async fn start(&self, config: ArchiverConfig) -> Archiving {
        let parts = ArchivingParts {
            log: self.log.clone(),
            archive: self.archive.clone(),
            settings: CountingSettings::default(),
            fail_points: FailPoints::default(),
        };
        Archiving::start(parts, config).await.expect("archiver")
    }

    /// Returns each partition's manifests after checking that they cover its log once and without a hole.
    async fn covering_manifests(&self) -> Vec<Vec<Manifest>> {
        let mut all = Vec::new();
        for (partition, end) in self.ends() {
            let chain = ChainKey { topic: Topic::AdClicks, generation: self.log.generation(), partition };
            let stored = self.archive.manifests(chain, None).await.expect("manifests");
            let manifests: Vec<Manifest> = stored.into_iter().map(|stored| stored.manifest).collect();
            let mut next = LogOffset(0);
            for manifest in &manifests {
                assert_eq!(manifest.first, next);
                next = manifest.last.next();
                let rows: u64 = manifest.files.iter().map(|file| file.rows).sum();
                assert_eq!(rows as i64, manifest.last.0 - manifest.first.0 + 1);
            }
            assert_eq!(next, end);
            all.push(manifests);
        }
        all
    }
}

fn quick() -> ArchiverConfig {
    ArchiverConfig { retry_pause_ms: 5, retry_pause_ms_max: 20, ..ArchiverConfig::default() }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

#[actix::test]
async fn a_flush_returns_once_manifests_cover_what_was_asked() {
    let mut site = Site::new();
    let archiving = site.start(quick()).await;
    site.append(500).await;
    archiving.flush_through(Topic::AdClicks, &site.ends()).await.expect("flushed");
    assert!(site.covering_manifests().await.iter().all(|manifests| manifests.len() == 1));
    archiving.flush_through(Topic::AdClicks, &site.ends()).await.expect("nothing to do");
    archiving.flush_through(Topic::FraudVerdicts, &[(PartitionId(0), LogOffset(0))]).await.expect("empty");
    archiving.stop().await.expect("stops");
}

#[actix::test]
async fn a_restart_goes_on_after_the_newest_manifest() {
    let mut site = Site::new();
    for _ in 0..3 {
        let archiving = site.start(quick()).await;
        site.append(200).await;
        archiving.flush_through(Topic::AdClicks, &site.ends()).await.expect("flushed");
        site.append(30).await; // gathered or not, never flushed here
        archiving.stop().await.expect("stops");
    }
    let archiving = site.start(quick()).await;
    archiving.flush_through(Topic::AdClicks, &site.ends()).await.expect("flushed");
    assert!(site.covering_manifests().await.iter().all(|manifests| manifests.len() == 4));
    archiving.stop().await.expect("stops");
}

#[actix::test]
async fn rows_and_age_cut_files_without_being_asked() {
    for config in [
        ArchiverConfig { rows_max: 100, ..quick() },
        ArchiverConfig { flush_interval_ms: 20, ..quick() },
        ArchiverConfig { bytes_max: 64 << 10, ..quick() },
    ] {
        let mut site = Site::new();
        let archiving = site.start(config).await;
        site.append(4_000).await;
        while archiving.status().iter().all(|status| status.archived_end == LogOffset(0)) {
            pause().await;
        }
        archiving.stop().await.expect("stops");
    }
}

#[actix::test]
async fn an_outage_of_the_store_is_waited_out_and_loses_nothing() {
    let mut site = Site::new();
    let archiving = site.start(ArchiverConfig { rows_max: 50, ..quick() }).await;
    site.is_full.store(true, Ordering::SeqCst);
    site.append(1_000).await;
    while !archiving.status().iter().any(|status| status.last_error.is_some()) {
        pause().await;
    }
    let flushing = actix::spawn({
        let (archiving, ends) = (archiving.clone(), site.ends());
        async move { archiving.flush_through(Topic::AdClicks, &ends).await }
    });
    pause().await;
    assert!(!flushing.is_finished());
    site.is_full.store(false, Ordering::SeqCst);
    flushing.await.expect("ends").expect("flushed");
    site.covering_manifests().await;
    assert!(archiving.status().iter().all(|status| status.last_error.is_none()));
    archiving.stop().await.expect("stops");
}

#[actix::test]
async fn a_stop_does_not_wait_for_the_store() {
    let mut site = Site::new();
    let archiving = site.start(ArchiverConfig { rows_max: 50, ..quick() }).await;
    site.is_full.store(true, Ordering::SeqCst);
    site.append(1_000).await;
    let flushing = actix::spawn({
        let (archiving, ends) = (archiving.clone(), site.ends());
        async move { archiving.flush_through(Topic::AdClicks, &ends).await }
    });
    pause().await;
    archiving.stop().await.expect("stops");
    assert!(matches!(flushing.await.expect("ends"), Err(Error::Stopped)));
}

#[actix::test]
async fn a_layout_that_differs_from_the_archives_stops_the_start() {
    let mut site = Site::new();
    let archiving = site.start(quick()).await;
    site.append(100).await;
    archiving.flush_through(Topic::AdClicks, &site.ends()).await.expect("flushed");
    archiving.stop().await.expect("stops");
    let other = tempfile::tempdir().expect("directory");
    let config = EmbeddedConfig { partitions: 3, ..EmbeddedConfig::default() };
    let log = EmbeddedLog::open(Arc::new(RealFs), other.path(), config, FailPoints::default()).expect("log");
    let parts = ArchivingParts {
        log: Arc::new(log),
        archive: site.archive.clone(),
        settings: CountingSettings::default(),
        fail_points: FailPoints::default(),
    };
    let error = Archiving::start(parts, quick()).await.err().expect("refused");
    assert!(matches!(error, Error::Log(twice_log::Error::Config { .. })), "{error}");
}
