//! One node's folders, and a stream path that can be started on them again and again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tempfile::TempDir;
use twice_log::archive::{Archive, CountingSettings, Seal, StoredSeal};
use twice_log::event::partition_of;
use twice_log::event::record::encode_click;
use twice_log::fail::FailPoints;
use twice_log::fs::RealFs;
use twice_log::hot::embedded::{EmbeddedConfig, EmbeddedLog};
use twice_log::hot::{AppendRecord, ClickLog};
use twice_log::{
    CampaignId, Click, ClickCopy, Clock, Generation, Hour, LogOffset, PartitionId, Topic, UtcMillis,
};
use twice_store::windows::{SledWindows, WindowRow, WindowStore};

use crate::campaign::SealEnds;
use crate::partition::{PartitionStatus, SealArchive};
use crate::testing::{Counts, NOON_MS, copies, naive_counts, row_counts};
use crate::{StreamConfig, StreamParts, StreamPath};

pub(super) const PARTITIONS: u32 = 2;
/// A wait that should end soon and does not is a failure after this many looks.
const LOOKS_MAX: u32 = 3_000;

/// A clock that stands still.
pub(super) struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> UtcMillis {
        UtcMillis::clamped(NOON_MS)
    }
}

pub(super) struct Site {
    pub(super) directory: TempDir,
    pub(super) log: Arc<EmbeddedLog>,
    pub(super) archive: Archive,
    pub(super) config: StreamConfig,
    /// Takes the archive's place as the keeper of seals.
    pub(super) seals: Option<Arc<dyn SealArchive>>,
    /// Takes sled's place as the store of windows.
    pub(super) windows: Option<Arc<dyn WindowStore>>,
    pub(super) clicks: BTreeMap<PartitionId, Vec<Click>>,
}

/// A running stream path, with the store it publishes to.
pub(super) struct Running {
    pub(super) stream: StreamPath,
    pub(super) windows: Arc<dyn WindowStore>,
}

impl Site {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let log_config =
            EmbeddedConfig { partitions: PARTITIONS, segment_bytes: 8 << 10, ..EmbeddedConfig::default() };
        let log = EmbeddedLog::open(
            Arc::new(RealFs),
            &directory.path().join("log"),
            log_config,
            FailPoints::default(),
        );
        let archive = Archive::open_local(Arc::new(RealFs), &directory.path().join("archive"));
        Self {
            log: Arc::new(log.expect("log")),
            archive: archive.expect("archive"),
            config: StreamConfig {
                publish_interval_ms: 50,
                checkpoint_interval_ms: 100,
                read_bytes_max: 4 << 10,
                retry_pause_ms: 5,
                ..StreamConfig::default()
            },
            seals: None,
            windows: None,
            clicks: BTreeMap::new(),
            directory,
        }
    }

    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) async fn start(&self) -> Running {
        self.try_start().await.expect("stream path")
    }

    pub(super) async fn try_start(&self) -> crate::Result<Running> {
        let windows: Arc<dyn WindowStore> = match &self.windows {
            Some(windows) => windows.clone(),
            None => Arc::new(SledWindows::open(&self.folder("windows"), 16 << 20).await.expect("windows")),
        };
        let parts = StreamParts {
            log: self.log.clone(),
            windows: windows.clone(),
            seals: self.seals.clone().unwrap_or_else(|| Arc::new(self.archive.clone())),
            history: Arc::new(self.archive.clone()),
            spend: Arc::default(),
            clock: Arc::new(StoppedClock),
            settings: CountingSettings::default(),
            checkpoints: self.folder("checkpoints"),
            lease_epoch: 0,
            fail_points: FailPoints::default(),
        };
        let stream = StreamPath::start(parts, self.config.clone()).await?;
        Ok(Running { stream, windows })
    }

    pub(super) async fn append(&mut self, clicks: Vec<Click>) {
        let record = |click: &Click| {
            let mut bytes = Vec::new();
            encode_click(click, &mut bytes);
            AppendRecord { partition: partition_of(&click.campaign_id, PARTITIONS), bytes: bytes.into() }
        };
        let records = clicks.iter().map(record).collect();
        self.log.append(Topic::AdClicks, records).await.expect("append");
        for click in clicks {
            self.clicks.entry(partition_of(&click.campaign_id, PARTITIONS)).or_default().push(click);
        }
    }

    /// Returns the end of every partition.
    pub(super) fn ends(&self) -> Vec<(PartitionId, LogOffset)> {
        let end = |partition| self.clicks.get(&partition).map_or(0, Vec::len) as i64;
        (0..PARTITIONS).map(PartitionId).map(|partition| (partition, LogOffset(end(partition)))).collect()
    }

    pub(super) fn copies(&self, partition: PartitionId) -> Vec<ClickCopy> {
        copies(self.clicks.get(&partition).map_or(&[], Vec::as_slice), &CountingSettings::default())
    }

    /// Counts everything appended by the rules, naively; `seals` by partition.
    pub(super) fn expected(&self, seals: &BTreeMap<PartitionId, SealEnds>) -> Counts {
        let mut counts = Counts::new();
        for partition in (0..PARTITIONS).map(PartitionId) {
            let ends = seals.get(&partition).cloned().unwrap_or_default();
            counts.extend(naive_counts(&self.copies(partition), &ends, &CountingSettings::default()));
        }
        counts
    }

    /// Returns what the store of windows shows of every campaign.
    pub(super) async fn shown(&self, running: &Running) -> Counts {
        let clicks = self.clicks.values().flatten();
        let campaigns: std::collections::BTreeSet<CampaignId> =
            clicks.map(|click| click.campaign_id.clone()).collect();
        let mut counts = Counts::new();
        for campaign in campaigns {
            let (from, to) = (UtcMillis::clamped(i64::MIN), UtcMillis::clamped(i64::MAX));
            counts.extend(row_counts(running.windows.read(&campaign, from, to).await.expect("read")));
        }
        counts
    }

    /// Waits until everything appended is applied, and returns the status.
    pub(super) async fn applied(&self, running: &Running) -> Vec<PartitionStatus> {
        for _ in 0..LOOKS_MAX {
            let status = running.stream.status().await;
            if status.iter().all(|status| status.lag() == 0) {
                return status;
            }
            pause().await;
        }
        panic!("not applied: {:?}", running.stream.status().await);
    }

    /// Waits until the store of windows shows what is expected; fails with the difference.
    pub(super) async fn shows(&self, running: &Running, expected: &Counts) {
        for _ in 0..LOOKS_MAX {
            if self.shown(running).await == *expected {
                return;
            }
            pause().await;
        }
        assert_eq!(self.shown(running).await, *expected);
    }

    /// Waits until everything appended is in the windows.
    pub(super) async fn all_shown(&self, running: &Running) {
        for _ in 0..LOOKS_MAX {
            let status = running.stream.status().await;
            if status.iter().all(|status| status.shown_end >= status.log_end) {
                return;
            }
            pause().await;
        }
        panic!("not shown: {:?}", running.stream.status().await);
    }

    /// Lets the next starts publish to a store that refuses rows of these campaigns.
    pub(super) async fn refuse_windows(&mut self, refused: Vec<CampaignId>) -> Arc<PickyWindows> {
        let inner = SledWindows::open(&self.folder("windows"), 16 << 20).await.expect("windows");
        let picky = Arc::new(PickyWindows { inner, refused, refuses: AtomicBool::new(true) });
        self.windows = Some(picky.clone());
        picky
    }

    /// Seals an hour at the present ends and returns the seals, by partition.
    pub(super) async fn seal(&self, running: &Running, hour: Hour) -> BTreeMap<PartitionId, StoredSeal> {
        let sealed = running.stream.seal(hour, &self.ends()).await;
        sealed.into_iter().map(|(partition, seal)| (partition, seal.expect("sealed"))).collect()
    }

    /// Copies a folder as kill -9 would leave it now.
    pub(super) fn keep(&self, name: &str, kept: &str) {
        copy_folder(&self.folder(name), &self.folder(kept));
    }

    /// Puts a kept folder back in the place of the present one.
    pub(super) fn put_back(&self, kept: &str, name: &str) {
        fs::remove_dir_all(self.folder(name)).expect("remove");
        copy_folder(&self.folder(kept), &self.folder(name));
    }
}

impl Running {
    pub(super) async fn stop(self) {
        self.stream.flush_and_stop().await.expect("stops");
    }
}

pub(super) async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

pub(super) fn hour(after_noon: i64) -> Hour {
    UtcMillis::clamped(NOON_MS).hour().plus(after_noon)
}

/// Returns where each partition's seals end.
pub(super) fn ends_of<'a>(
    seals: impl IntoIterator<Item = &'a BTreeMap<PartitionId, StoredSeal>>,
) -> BTreeMap<PartitionId, SealEnds> {
    let mut ends: BTreeMap<PartitionId, SealEnds> = BTreeMap::new();
    for (partition, stored) in seals.into_iter().flatten() {
        ends.entry(*partition).or_default().insert(stored.seal.hour, stored.seal.end);
    }
    ends
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

/// Keeps seals in an archive that can be made unreachable for puts.
pub(super) struct FlakyArchive {
    pub(super) archive: Archive,
    pub(super) refuses: AtomicBool,
}

#[async_trait]
impl SealArchive for FlakyArchive {
    async fn put_seal(&self, seal: &Seal) -> twice_log::Result<StoredSeal> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(twice_log::Error::Stopped);
        }
        self.archive.put_seal(seal).await
    }

    async fn seal(
        &self,
        hour: Hour,
        generation: Generation,
        partition: PartitionId,
    ) -> twice_log::Result<Option<StoredSeal>> {
        SealArchive::seal(&self.archive, hour, generation, partition).await
    }

    async fn seals_of_partition(
        &self,
        generation: Generation,
        partition: PartitionId,
        from: Option<Hour>,
    ) -> twice_log::Result<Vec<StoredSeal>> {
        SealArchive::seals_of_partition(&self.archive, generation, partition, from).await
    }
}

/// Refuses rows of some campaigns for as long as it is told to.
pub(super) struct PickyWindows {
    inner: SledWindows,
    refused: Vec<CampaignId>,
    pub(super) refuses: AtomicBool,
}

#[async_trait]
impl WindowStore for PickyWindows {
    async fn publish(&self, rows: Vec<WindowRow>) -> twice_store::Result<()> {
        let is_refused = rows.iter().any(|row| self.refused.contains(&row.campaign_id));
        if is_refused && self.refuses.load(Ordering::SeqCst) {
            return Err(twice_store::Error::Conflict { reason: "refused by the test".to_owned() });
        }
        self.inner.publish(rows).await
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
