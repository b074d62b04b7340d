//! The archiver of one partition: log records in, Parquet files and a manifest out.
//!
//! Guarantee (G-3): manifests of a partition cover its offsets once each, without a hole, whoever writes them; a
//! record that does not decode is kept in quarantine, never skipped. What a flush returned is durable.
//! Words: the *cursor* is the newest manifest; the *fence* is its successor's key, which only one writer can put; a
//! *batch* is what one flush set aside to put, and every try after it puts again: the same files under the same names,
//! so that an outage leaves nothing behind that no manifest names.
//! Flow: open at the cursor -> push records in offset order -> flush: set the batch aside, encode, put data files, put
//! the manifest if absent. Refused by the fence: read the winners, drop what they cover, go on after them.

use std::sync::Arc;
use std::time::Instant;

use super::chain::OFFSET_END_MAX;
use super::encode::{self, FlushScope};
use super::failover::Failover;
use super::layout::{self, ChainKey};
use super::rows::PendingRows;
use super::store::encode_json;
use super::{Archive, Bucket, FileEntry, Manifest, PutOutcome, StoredManifest};
use crate::error::{Error, ErrorKind, Result};
use crate::event::record::{decode_click, decode_verdict};
use crate::event::{
    DISORDER_MS_DEFAULT, LogOffset, PARTITION_HASH_NAME, Sha256Hex, Topic, UtcMillis, Watermark,
};
use crate::fail::{FailPoint, FailPoints};
use crate::hot::OffsetBounds;

/// Rows of one file at most; more rows of an hour go into several files of one manifest.
pub const ROWS_PER_FILE_MAX: usize = 1_000_000;

/// Settings of an archiver that decide bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiverSettings {
    /// Disorder under the watermark, milliseconds; the stream path has the same. Default 5000.
    pub disorder_ms: i64,
    /// Rows of one file at most. Default [`ROWS_PER_FILE_MAX`].
    pub rows_per_file_max: usize,
}

impl Default for ArchiverSettings {
    fn default() -> Self {
        Self { disorder_ms: DISORDER_MS_DEFAULT, rows_per_file_max: ROWS_PER_FILE_MAX }
    }
}

/// Archives one partition of one topic. Several may run at once on one partition: the fence keeps them apart.
#[derive(Debug)]
pub struct PartitionArchiver {
    archive: Archive,
    chain: ChainKey,
    partition_count: u32,
    settings: ArchiverSettings,
    fail_points: FailPoints,
    head: Option<StoredManifest>,
    next_offset: LogOffset,
    watermark: Watermark,
    /// Pushed since the last flush began.
    pending: PendingRows,
    pending_since: Option<Instant>,
    /// Set aside by a flush that has not put its manifest yet.
    batch: Option<Batch>,
    failover: Failover,
}

/// What one flush puts.
#[derive(Debug)]
struct Batch {
    rows: Arc<PendingRows>,
    since: Option<Instant>,
    first: LogOffset,
    /// Inclusive.
    last: LogOffset,
    highest_time: Option<UtcMillis>,
    /// Portions whose files are put, and those files.
    portions_put: usize,
    files: Vec<FileEntry>,
}

impl PartitionArchiver {
    /// Opens the partition's archiver behind its newest manifest. Begin reading the log at [`Self::next_offset`].
    ///
    /// # Errors
    /// `Config` if the generation was archived with another partition count or hash; `ArchiveDamage`, `ObjectStore`.
    pub async fn open(
        archive: Archive,
        chain: ChainKey,
        partition_count: u32,
        settings: ArchiverSettings,
        fail_points: FailPoints,
    ) -> Result<Self> {
        let head = archive.head(chain).await?;
        if let Some(StoredManifest { manifest, .. }) = &head
            && (manifest.partition_count != partition_count || manifest.hash_name != PARTITION_HASH_NAME)
        {
            let reason = format!(
                "generation {} is archived with {} partitions by {}; the log has {partition_count} by {PARTITION_HASH_NAME}",
                chain.generation, manifest.partition_count, manifest.hash_name
            );
            return Err(Error::Config { reason });
        }
        let failover = Failover::new(archive.secondary.as_ref().map(|secondary| secondary.after));
        let mut archiver = Self {
            archive,
            chain,
            partition_count,
            settings,
            fail_points,
            head,
            next_offset: LogOffset(0),
            watermark: Watermark::new(None, settings.disorder_ms),
            pending: PendingRows::default(),
            pending_since: None,
            batch: None,
            failover,
        };
        archiver.restart_at_head();
        Ok(archiver)
    }

    /// Returns topic, generation and partition.
    pub fn chain(&self) -> ChainKey {
        self.chain
    }

    /// Returns the offset that [`Self::push`] expects next. Ask again after each flush: a fence may have moved it.
    pub fn next_offset(&self) -> LogOffset {
        self.next_offset
    }

    /// Returns the first offset that no manifest known here covers. Everything below it is durably archived.
    pub fn archived_end(&self) -> LogOffset {
        self.head.as_ref().map_or(LogOffset(0), StoredManifest::end)
    }

    /// Returns the newest manifest known here.
    pub fn head(&self) -> Option<&StoredManifest> {
        self.head.as_ref()
    }

    /// Returns how many records wait for a flush.
    pub fn rows(&self) -> usize {
        self.pending.rows() + self.batch.as_ref().map_or(0, |batch| batch.rows.rows())
    }

    /// Returns about how many bytes of memory the waiting records take.
    pub fn bytes(&self) -> usize {
        self.pending.bytes() + self.batch.as_ref().map_or(0, |batch| batch.rows.bytes())
    }

    /// Returns when the oldest waiting record was pushed.
    pub fn pending_since(&self) -> Option<Instant> {
        self.batch.as_ref().and_then(|batch| batch.since).or(self.pending_since)
    }

    /// Checks that the log still goes on where the archive ends.
    ///
    /// # Errors
    /// `OutOfRange` if the log lost records not yet archived, or went backwards: an operator must look.
    pub fn check_log(&self, bounds: OffsetBounds) -> Result<()> {
        if bounds.earliest <= self.next_offset && self.next_offset <= bounds.end {
            return Ok(());
        }
        Err(Error::OutOfRange {
            topic: self.chain.topic,
            partition: self.chain.partition,
            offset: self.next_offset,
            earliest: bounds.earliest,
            end: bounds.end,
        })
    }

    /// Takes the record at `offset`, which MUST be [`Self::next_offset`]. Bytes that are no record go to quarantine.
    ///
    /// # Errors
    /// `Hole` at any other offset; nothing was taken.
    pub fn push(&mut self, offset: LogOffset, bytes: &[u8]) -> Result<()> {
        let ChainKey { topic, partition, .. } = self.chain;
        if offset != self.next_offset {
            return Err(Error::Hole { topic, partition, expected: self.next_offset, read: offset });
        }
        if offset.0 >= OFFSET_END_MAX {
            let reason = format!("{topic} partition {partition} is full; begin a new generation");
            return Err(Error::Config { reason });
        }
        let pending = &mut self.pending;
        match topic {
            Topic::AdClicks => match decode_click(bytes) {
                Ok(click) => {
                    pending.push_click(offset, self.watermark.at_next(), &click);
                    self.watermark.advance(&click);
                }
                Err(error) => pending.push_quarantine(offset, bytes, error.to_string()),
            },
            Topic::FraudVerdicts => match decode_verdict(bytes) {
                Ok(verdict) => pending.push_verdict(offset, verdict),
                Err(error) => pending.push_quarantine(offset, bytes, error.to_string()),
            },
            Topic::BudgetDecisions => {
                return Err(Error::Config {
                    reason: format!("{topic} is not archived: no bill is made of it"),
                });
            }
        }
        self.next_offset = offset.next();
        self.pending_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Archives what waits, and returns the manifest that commits it; `None` if nothing of ours was left to commit.
    ///
    /// Where another archiver was first, its manifests are adopted and only what they leave is put. After an error
    /// nothing is lost: the batch still waits, and the next flush goes on where this one stopped. What was pushed
    /// meanwhile waits for the flush after it.
    ///
    /// # Errors
    /// `ObjectStore` (call again), `ArchiveDamage` if the chain is not what it must be, `Parquet`, `Arrow`.
    pub async fn flush(&mut self) -> Result<Option<StoredManifest>> {
        while self.set_aside() {
            self.put_files().await?;
            self.fail_points.pass(FailPoint::ArchiveFilesPut);
            let Some(batch) = &self.batch else { break };
            let path = layout::manifest_path(self.chain, batch.first);
            let manifest = self.manifest(batch);
            // Rows that do not add up are a bug here; better no manifest than a false one.
            manifest.check_rows().map_err(|reason| Error::ArchiveDamage { path: path.clone(), reason })?;
            let bytes = encode_json(&path, &manifest)?;
            match self.archive.put_if_absent(&path, bytes.clone()).await? {
                PutOutcome::Exists(stored) if stored != bytes => self.go_on_after_winners(&path).await?,
                // Existing with our bytes: an earlier try of ours whose answer was lost.
                PutOutcome::Put | PutOutcome::Exists(_) => {
                    self.fail_points.pass(FailPoint::ManifestPut);
                    let committed = StoredManifest { manifest, sha256: Sha256Hex::of(&bytes) };
                    self.head = Some(committed.clone());
                    self.batch = None;
                    return Ok(Some(committed));
                }
            }
        }
        Ok(None)
    }

    /// Makes what waits the batch, unless there is one; returns whether there is one now.
    fn set_aside(&mut self) -> bool {
        if self.batch.is_none() && self.pending.rows() > 0 {
            self.batch = Some(Batch {
                rows: Arc::new(std::mem::take(&mut self.pending)),
                since: self.pending_since.take(),
                first: self.archived_end(),
                last: LogOffset(self.next_offset.0 - 1),
                highest_time: self.watermark.highest(),
                portions_put: 0,
                files: Vec::new(),
            });
        }
        self.batch.is_some()
    }

    fn manifest(&self, batch: &Batch) -> Manifest {
        Manifest {
            topic: self.chain.topic,
            generation: self.chain.generation,
            partition: self.chain.partition,
            partition_count: self.partition_count,
            hash_name: PARTITION_HASH_NAME.to_owned(),
            first: batch.first,
            last: batch.last,
            previous_sha256: self.head.as_ref().map(|head| head.sha256.clone()),
            highest_time: batch.highest_time,
            files: batch.files.clone(),
        }
    }

    /// Encodes and puts the data files not yet put one by one, so that at most one portion's bytes are in memory.
    async fn put_files(&mut self) -> Result<()> {
        let Some(batch) = &mut self.batch else { return Ok(()) };
        let scope = FlushScope {
            chain: self.chain,
            bucket: self.archive.bucket().into(),
            first: batch.first,
            last: batch.last,
            rows_per_file_max: self.settings.rows_per_file_max.max(1),
        };
        for portion in batch.rows.portions().into_iter().skip(batch.portions_put) {
            let (rows, scope) = (Arc::clone(&batch.rows), scope.clone());
            let encoded = tokio::task::spawn_blocking(move || encode::encode(&rows, portion, &scope));
            let encoded = encoded.await.map_err(|error| Error::ObjectStore {
                action: "encode",
                path: layout::manifest_path(self.chain, batch.first),
                source: error.into(),
            })?;
            let mut files = Vec::new();
            for file in encoded? {
                files.push(put_file(&self.archive, &mut self.failover, file).await?);
            }
            batch.portions_put += 1;
            batch.files.append(&mut files);
        }
        Ok(())
    }

    /// Adopts the manifests another archiver put, and keeps of the waiting rows only what they do not cover.
    async fn go_on_after_winners(&mut self, path: &str) -> Result<()> {
        let winners = self.archive.manifests_after(self.chain, self.head.as_ref()).await?;
        let Some((newest, _)) = winners.into_iter().next_back() else {
            let reason = "refused as existing, and then not listed".to_owned();
            return Err(Error::ArchiveDamage { path: path.to_owned(), reason });
        };
        tracing::info!(
            topic = %self.chain.topic, partition = %self.chain.partition, end = %newest.end(),
            "another archiver was first, going on after it"
        );
        self.drop_below(newest.end());
        let behind = newest.end() > self.next_offset;
        self.head = Some(newest);
        if behind {
            self.restart_at_head();
        }
        Ok(())
    }

    /// Forgets the waiting rows below `end`: another archiver's manifest has them.
    fn drop_below(&mut self, end: LogOffset) {
        if let Some(mut batch) = self.batch.take() {
            // An encoder that was abandoned midway may still read the rows: then they are copied, once.
            Arc::make_mut(&mut batch.rows).drop_below(end);
            if batch.rows.rows() > 0 {
                // Other bounds, so other names: every file is put anew.
                self.batch = Some(Batch { first: end, portions_put: 0, files: Vec::new(), ..batch });
            }
        }
        self.pending.drop_below(end);
        if self.pending.rows() == 0 {
            self.pending_since = None;
        }
    }

    /// Takes cursor and watermark from the newest manifest: what lies below is archived.
    fn restart_at_head(&mut self) {
        let highest: Option<UtcMillis> = self.head.as_ref().and_then(|head| head.manifest.highest_time);
        self.watermark = Watermark::new(highest, self.settings.disorder_ms);
        self.next_offset = self.archived_end();
    }
}

/// Puts one data file where it can be put, and returns its entry with the bucket that took it.
async fn put_file(
    archive: &Archive,
    failover: &mut Failover,
    file: encode::EncodedFile,
) -> Result<FileEntry> {
    let encode::EncodedFile { mut entry, bytes } = file;
    if failover.target(Instant::now()) == Bucket::Primary {
        match archive.put_data(Bucket::Primary, &entry.path, &bytes).await {
            Ok(()) => {
                failover.taken();
                return Ok(entry);
            }
            Err(error) if error.kind() == ErrorKind::Retry => {
                if !failover.refused(Instant::now()) {
                    return Err(error);
                }
                tracing::warn!(path = %entry.path, %error, bucket = archive.name_of(Bucket::Secondary),
                    "the primary bucket goes on refusing data files, putting them into the secondary");
            }
            Err(error) => return Err(error),
        }
    }
    archive.put_data(Bucket::Secondary, &entry.path, &bytes).await?;
    entry.bucket = archive.name_of(Bucket::Secondary).to_owned();
    Ok(entry)
}
