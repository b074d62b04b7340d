//! The embedded log: segmented files on the local disk, one writing process, readers in others.
//!
//! Guarantee (G-1): an append that resolved survives power loss; its offsets are contiguous and never given twice.
//! Words: a *frame* is what one group commit stores in one partition; a *segment* is one preallocated file of frames;
//! a *torn tail* is the newest frame cut short by a crash, nobody having been told of it.
//! Flow: append -> queue -> commit loop (write, sync, publish, resolve) -> readers. Open: layout, lock, walk, mend.
//!
//! On disk, below the log's directory: `LOCK`, `layout.json`, and
//! `{topic}/{generation}/{partition}/{base offset:020}.seg`. The bytes are told in `segment` and `frame`, what is
//! damage and what a torn tail in `scan`.

mod append;
mod commit;
mod config;
mod follow;
mod frame;
pub(crate) mod fuzzing;
mod index;
mod layout;
mod partition;
mod queue;
mod read;
mod recover;
mod salvage;
mod scan;
mod segment;
mod sync;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use tracing::warn;

pub use self::config::EmbeddedConfig;
pub use self::frame::RECORD_BYTES_MAX;
pub(crate) use self::salvage::{Salvage, salvage, salvage_segment, segment_path};

use self::commit::{Committer, Writer};
use self::follow::Follower;
use self::frame::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};
use self::layout::{Layout, WriterLock};
use self::partition::{Located, Partition, PartitionKey};
use self::queue::Queue;
use self::recover::Recovered;
use self::segment::SEGMENT_HEADER_BYTES;
use self::sync::SyncThreads;
use super::{AppendRecord, ClickLog, OffsetBounds, ReadBatch};
use crate::error::{Error, Result};
use crate::event::{Generation, LogOffset, PartitionId, Topic};
use crate::fail::{FailPoint, FailPoints};
use crate::fs::{FileSystem, RealFs, parent_of};

/// How often a reader beside a writer looks for new records. There is nothing between the processes to wake it.
const READER_POLL: Duration = Duration::from_millis(20);

/// The embedded [`ClickLog`].
///
/// An append whose future is dropped may still be stored. Dropping the log, as [`EmbeddedLog::close`], writes what
/// waits, which blocks for as long as the disk takes.
pub struct EmbeddedLog {
    layout: Layout,
    files: Arc<Files>,
    role: Role,
}

/// What reading needs, shared with tasks that may block.
struct Files {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    /// By slot: all partitions of the first topic, then of the next.
    partitions: Arc<Vec<Partition>>,
    /// One trim at a time, so that segments go oldest first.
    trimming: Mutex<()>,
    fail_points: FailPoints,
}

/// A segment file, as whoever trims sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    pub topic: Topic,
    pub partition: PartitionId,
    /// Offset of its first record.
    pub base: LogOffset,
    /// First offset after it; `None` while it is written to, and then it is never trimmed.
    pub end: Option<LogOffset>,
    /// Size of the file, which is reserved as a whole.
    pub bytes: u64,
}

enum Role {
    Writer(WriterRole),
    /// One follower a slot.
    Reader(Arc<Vec<Follower>>),
}

struct WriterRole {
    queue: Arc<Queue>,
    frame_bytes_max: usize,
    /// The commit thread and the lock it writes under; `None` once closed.
    running: Mutex<Option<(JoinHandle<()>, WriterLock)>>,
}

impl EmbeddedLog {
    /// Opens the log in `directory` for writing, creating it where there is none. Blocks on the disk.
    ///
    /// The newest frame that a crash cut short is cut off with a warning; all that stays is synced before it is read.
    ///
    /// # Errors
    /// `Locked` if another writer has it open; `Damage` naming file and position; `Config` if a setting is out of
    /// bounds or the log has another partition count; `Io`.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        directory: &Path,
        config: EmbeddedConfig,
        fail_points: FailPoints,
    ) -> Result<Self> {
        config.validate()?;
        fs.create_dir_all(directory).map_err(Error::io("create", directory))?;
        let lock = WriterLock::take(directory)?;
        let topics = Topic::ALL.map(|topic| directory.join(topic.name()));
        let holds_segments = topics.iter().map(|topic| fs.list(topic).map_err(Error::io("list", topic)));
        let holds_segments =
            holds_segments.collect::<Result<Vec<_>>>()?.iter().any(|found| !found.is_empty());
        let layout = Layout::read_or_create(fs.as_ref(), directory, config.partitions, holds_segments)?;
        create_directories(fs.as_ref(), directory, &layout)?;

        let (mut partitions, mut writers) = (Vec::new(), Vec::new());
        for key in keys(&layout) {
            let own = key.directory(directory);
            let (found, active) = recover::open_for_writing(fs.as_ref(), key, &own, config.segment_bytes)?;
            writers.push(Writer { directory: own, active, next: found.end });
            partitions.push(Partition::new(key, found, config.tail_cache_bytes_max));
        }
        let partitions = Arc::new(partitions);
        let room = config.segment_bytes - (SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES) as u64;
        let frame_bytes_max = usize::try_from(room).unwrap_or(usize::MAX).min(FRAME_PAYLOAD_BYTES_MAX);
        let queue = Arc::new(Queue::new(partitions.len(), config.waiting_bytes_max, frame_bytes_max));
        let sync_threads = SyncThreads::start(config.partitions as usize)
            .map_err(Error::io("start the threads of", directory))?;
        let committer = Committer {
            sync_threads,
            fs: fs.clone(),
            queue: queue.clone(),
            writers,
            partitions: partitions.clone(),
            segment_bytes: config.segment_bytes,
            fail_points: fail_points.clone(),
        };
        let thread = std::thread::Builder::new().name("log-commit".to_owned()).spawn(|| committer.run());
        let thread = thread.map_err(Error::io("start the commit thread of", directory))?;
        let running = Mutex::new(Some((thread, lock)));
        let (directory, trimming) = (directory.to_path_buf(), Mutex::new(()));
        let files = Files { fs, directory, partitions, trimming, fail_points };
        let role = Role::Writer(WriterRole { queue, frame_bytes_max, running });
        Ok(Self { layout, files: Arc::new(files), role })
    }

    /// Opens the log in `directory` for reading alone, also while another process writes it. Blocks on the disk.
    ///
    /// `append` and `trim` are refused. New records are seen with a delay of milliseconds.
    ///
    /// # Errors
    /// `Config` if there is no log; `Damage` naming file and position; `Io`.
    pub fn open_reader(directory: &Path) -> Result<Self> {
        Self::open_reader_on(Arc::new(RealFs), directory)
    }

    fn open_reader_on(fs: Arc<dyn FileSystem>, directory: &Path) -> Result<Self> {
        let Some(layout) = Layout::read(fs.as_ref(), directory)? else {
            return Err(Error::Config { reason: format!("{} holds no log", directory.display()) });
        };
        let partitions: Vec<Partition> =
            keys(&layout).map(|key| Partition::new(key, Recovered::empty(), 0)).collect();
        let followers: Vec<Follower> =
            keys(&layout).map(|key| Follower::new(key.directory(directory))).collect();
        for (follower, partition) in followers.iter().zip(&partitions) {
            follower.look(fs.as_ref(), partition)?;
        }
        let (directory, partitions) = (directory.to_path_buf(), Arc::new(partitions));
        let (trimming, fail_points) = (Mutex::new(()), FailPoints::default());
        let files = Files { fs, directory, partitions, trimming, fail_points };
        Ok(Self { layout, files: Arc::new(files), role: Role::Reader(Arc::new(followers)) })
    }

    /// Refuses appends from now on (`Stopped`), writes those that wait, and gives the lock back. Blocks on the disk.
    /// Reading goes on.
    pub fn close(&self) {
        let Role::Writer(writer) = &self.role else { return };
        writer.queue.close();
        let running = writer.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((thread, _lock)) = running
            && thread.join().is_err()
        {
            warn!(directory = %self.files.directory.display(), "the commit thread of the log panicked");
        }
    }

    /// Returns the segments of every partition, each partition's in order.
    ///
    /// # Errors
    /// `Io`.
    pub async fn segments(&self) -> Result<Vec<SegmentInfo>> {
        let files = self.files.clone();
        blocking(move || {
            let _no_trim_meanwhile = files.trimming.lock().unwrap_or_else(PoisonError::into_inner);
            let mut segments = Vec::new();
            for partition in files.partitions.iter() {
                for (segment, end) in partition.segments() {
                    let file =
                        files.fs.open(&segment.path, false).map_err(Error::io("open", &segment.path))?;
                    let bytes = file.len().map_err(Error::io("read the length of", &segment.path))?;
                    let (topic, partition) = (partition.key.topic, partition.key.partition);
                    segments.push(SegmentInfo { topic, partition, base: segment.id.base, end, bytes });
                }
            }
            Ok(segments)
        })
        .await
    }

    fn slot(&self, topic: Topic, partition: PartitionId) -> Result<usize> {
        if partition.0 >= self.layout.partitions {
            let count = self.layout.partitions;
            return Err(Error::Config {
                reason: format!("partition {partition} does not exist; the log has {count}, from 0 on"),
            });
        }
        let topic = Topic::ALL.iter().position(|other| *other == topic).unwrap_or_default(); // all are in ALL
        Ok(topic * self.layout.partitions as usize + partition.0 as usize)
    }

    fn writer(&self) -> Result<&WriterRole> {
        match &self.role {
            Role::Writer(writer) => Ok(writer),
            Role::Reader(_) => Err(Error::Config { reason: "the log is open for reading alone".to_owned() }),
        }
    }

    /// Lets a reader catch up with the writer in another process.
    async fn refresh(&self, slot: usize) -> Result<()> {
        let Role::Reader(followers) = &self.role else { return Ok(()) };
        let (files, followers) = (self.files.clone(), followers.clone());
        blocking(move || followers[slot].look(files.fs.as_ref(), &files.partitions[slot])).await
    }
}

#[async_trait]
impl ClickLog for EmbeddedLog {
    fn generation(&self) -> Generation {
        self.layout.generation
    }

    fn partitions(&self) -> u32 {
        self.layout.partitions
    }

    async fn append(&self, topic: Topic, records: Vec<AppendRecord>) -> Result<()> {
        let writer = self.writer()?;
        if records.is_empty() {
            return Ok(());
        }
        let slot_of = |partition| self.slot(topic, partition);
        let (parts, outcome) = append::encode(&records, writer.frame_bytes_max, slot_of)?;
        drop(records);
        writer.queue.push(parts)?;
        outcome.await.unwrap_or(Err(Error::Stopped))
    }

    async fn read(
        &self,
        topic: Topic,
        partition: PartitionId,
        from: LogOffset,
        bytes_max: usize,
    ) -> Result<ReadBatch> {
        let slot = self.slot(topic, partition)?;
        self.refresh(slot).await?;
        let range = match self.files.partitions[slot].locate(from, bytes_max)? {
            Located::AtEnd => return Ok(ReadBatch::default()),
            Located::Read(batch) => return Ok(batch),
            Located::InFile(range) => range,
        };
        let files = self.files.clone();
        blocking(move || {
            let read = read::read_records(files.fs.as_ref(), &range, from, bytes_max);
            match read {
                // Trimmed after it was looked up.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    let partition = &files.partitions[slot];
                    Err(partition.key.out_of_range(from, partition.bounds()))
                }
                read => read,
            }
        })
        .await
    }

    async fn wait_for(&self, topic: Topic, partition: PartitionId, offset: LogOffset) -> Result<()> {
        let slot = self.slot(topic, partition)?;
        let mut tip = self.files.partitions[slot].subscribe();
        loop {
            self.refresh(slot).await?;
            let now = *tip.borrow_and_update();
            match (now.end > offset, now.stopped, &self.role) {
                (true, _, _) => return Ok(()),
                (false, true, _) => return Err(Error::Stopped),
                (false, false, Role::Writer(_)) => tip.changed().await.map_err(|_| Error::Stopped)?,
                (false, false, Role::Reader(_)) => tokio::time::sleep(READER_POLL).await,
            }
        }
    }

    async fn bounds(&self, topic: Topic, partition: PartitionId) -> Result<OffsetBounds> {
        let slot = self.slot(topic, partition)?;
        self.refresh(slot).await?;
        Ok(self.files.partitions[slot].bounds())
    }

    /// A log that ends too early takes nothing more: it stays closed to appends, on every partition.
    async fn note_end(&self, topic: Topic, partition: PartitionId, end: LogOffset) -> Result<()> {
        let checked = super::check_end(topic, partition, end, self.bounds(topic, partition).await?);
        if let (Err(_), Role::Writer(writer)) = (&checked, &self.role) {
            writer.queue.close();
        }
        checked
    }

    async fn trim(&self, topic: Topic, partition: PartitionId, before: LogOffset) -> Result<()> {
        let slot = self.slot(topic, partition)?;
        if self.writer()?.running.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(Error::Stopped); // the lock was given back: the files may be another writer's
        }
        let files = self.files.clone();
        blocking(move || files.trim(slot, before)).await
    }
}

impl Files {
    /// Removes segments oldest first, each removal durable before the next: no crash leaves a hole between segments.
    fn trim(&self, slot: usize, before: LogOffset) -> Result<()> {
        let _one_at_a_time = self.trimming.lock().unwrap_or_else(PoisonError::into_inner);
        let partition = &self.partitions[slot];
        let directory = partition.key.directory(&self.directory);
        for segment in partition.take_before(before) {
            self.fs.remove_file(&segment.path).map_err(Error::io("remove", &segment.path))?;
            self.fail_points.pass(FailPoint::LogSegmentRemoved);
            self.fs.sync_dir(&directory).map_err(Error::io("sync", &directory))?;
        }
        Ok(())
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.close();
    }
}

/// Returns the partitions by slot.
fn keys(layout: &Layout) -> impl Iterator<Item = PartitionKey> {
    let (generation, partitions) = (layout.generation, layout.partitions);
    Topic::ALL.into_iter().flat_map(move |topic| {
        (0..partitions).map(move |partition| PartitionKey {
            topic,
            generation,
            partition: PartitionId(partition),
        })
    })
}

/// Creates the directories of all partitions. Those that are there are synced as well, the log's own entry too:
/// whoever made them may have been killed before it synced them.
fn create_directories(fs: &dyn FileSystem, directory: &Path, layout: &Layout) -> Result<()> {
    for key in keys(layout) {
        let own = key.directory(directory);
        fs.create_dir_all(&own).map_err(Error::io("create", &own))?;
    }
    let generation = layout.generation.to_string();
    let topics = Topic::ALL.map(|topic| directory.join(topic.name()));
    let own = topics.iter().flat_map(|topic| [topic.join(&generation), topic.clone()]);
    for parent in own.chain([directory.to_path_buf()]) {
        fs.sync_dir(&parent).map_err(Error::io("sync", &parent))?;
    }
    match fs.sync_dir(parent_of(directory)) {
        // Not ours to open, so not ours to have made the log's directory in.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced.map_err(Error::io("sync", parent_of(directory))),
    }
}

/// Runs file work off the executor.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::Io {
            action: "run file work for",
            path: PathBuf::new(),
            source: std::io::Error::other(error),
        }),
    }
}
