//! The archiver of one partition: log records in, Parquet files and a manifest out.
//!
//! Guarantee (G-3): manifests of a partition cover its offsets once each, without a hole, whoever writes them; a
//! record that does not decode is kept in quarantine, never skipped. What a flush returned is durable.
//! Words: the *cursor* is the newest manifest; the *fence* is its successor's key, which only one writer can put.
//! Flow: open at the cursor -> push records in offset order -> flush: encode, put data files, put the manifest if
//! absent. Refused by the fence: read the winners, drop what they cover, go on after them.

use std::sync::Arc;
use std::time::Instant;

use super::chain::OFFSET_END_MAX;
use super::encode::{self, FlushScope};
use super::layout::{self, ChainKey};
use super::rows::PendingRows;
use super::store::encode_json;
use super::{Archive, FileEntry, Manifest, PutOutcome, StoredManifest};
use crate::error::{Error, Result};
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
    pending: Arc<PendingRows>,
    pending_since: Option<Instant>,
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
        let mut archiver = Self {
            archive,
            chain,
            partition_count,
            settings,
            fail_points,
            head,
            next_offset: LogOffset(0),
            watermark: Watermark::new(None, settings.disorder_ms),
            pending: Arc::default(),
            pending_since: None,
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
        self.pending.rows()
    }

    /// Returns about how many bytes of memory the waiting records take.
    pub fn bytes(&self) -> usize {
        self.pending.bytes()
    }

    /// Returns when the oldest waiting record was pushed.
    pub fn pending_since(&self) -> Option<Instant> {
        self.pending_since
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
        // A flush that was abandoned midway may still read the rows: then they are copied, once.
        let pending = Arc::make_mut(&mut self.pending);
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
        }
        self.next_offset = offset.next();
        self.pending_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Archives what waits, and returns the manifest that commits it; `None` if nothing of ours was left to commit.
    ///
    /// Where another archiver was first, its manifests are adopted and only what they leave is put. After an error
    /// nothing is lost: the rows still wait, and the next flush puts them.
    ///
    /// # Errors
    /// `ObjectStore` (call again), `ArchiveDamage` if the chain is not what it must be, `Parquet`, `Arrow`.
    pub async fn flush(&mut self) -> Result<Option<StoredManifest>> {
        while self.pending.rows() > 0 {
            let (first, last) = (self.archived_end(), LogOffset(self.next_offset.0 - 1));
            let files = self.put_files(first, last).await?;
            self.fail_points.pass(FailPoint::ArchiveFilesPut);
            let path = layout::manifest_path(self.chain, first);
            let manifest = self.manifest(first, last, files);
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
                    self.pending = Arc::default();
                    self.pending_since = None;
                    return Ok(Some(committed));
                }
            }
        }
        Ok(None)
    }

    fn manifest(&self, first: LogOffset, last: LogOffset, files: Vec<FileEntry>) -> Manifest {
        Manifest {
            topic: self.chain.topic,
            generation: self.chain.generation,
            partition: self.chain.partition,
            partition_count: self.partition_count,
            hash_name: PARTITION_HASH_NAME.to_owned(),
            first,
            last,
            previous_sha256: self.head.as_ref().map(|head| head.sha256.clone()),
            highest_time: self.watermark.highest(),
            files,
        }
    }

    /// Encodes and puts the data files one by one, so that at most one portion's bytes are in memory.
    async fn put_files(&self, first: LogOffset, last: LogOffset) -> Result<Vec<FileEntry>> {
        let scope = FlushScope {
            chain: self.chain,
            bucket: self.archive.bucket().into(),
            first,
            last,
            rows_per_file_max: self.settings.rows_per_file_max.max(1),
        };
        let mut entries = Vec::new();
        for portion in self.pending.portions() {
            let (pending, scope) = (Arc::clone(&self.pending), scope.clone());
            let encoded = tokio::task::spawn_blocking(move || encode::encode(&pending, portion, &scope));
            let encoded = encoded.await.map_err(|error| Error::ObjectStore {
                action: "encode",
                path: layout::manifest_path(self.chain, first),
                source: error.into(),
            })?;
            for file in encoded? {
                self.put_file(&file).await?;
                entries.push(file.entry);
            }
        }
        Ok(entries)
    }

    async fn put_file(&self, file: &encode::EncodedFile) -> Result<()> {
        match self.archive.put_if_absent(&file.entry.path, file.bytes.clone()).await? {
            PutOutcome::Exists(stored) if stored != file.bytes => Err(Error::ArchiveDamage {
                path: file.entry.path.clone(),
                reason: "exists with other bytes, although its name carries its hash".to_owned(),
            }),
            PutOutcome::Put | PutOutcome::Exists(_) => Ok(()),
        }
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
        Arc::make_mut(&mut self.pending).drop_below(newest.end());
        let behind = newest.end() > self.next_offset;
        self.head = Some(newest);
        if behind {
            self.restart_at_head();
        }
        if self.pending.rows() == 0 {
            self.pending_since = None;
        }
        Ok(())
    }

    /// Takes cursor and watermark from the newest manifest: what lies below is archived.
    fn restart_at_head(&mut self) {
        let highest: Option<UtcMillis> = self.head.as_ref().and_then(|head| head.manifest.highest_time);
        self.watermark = Watermark::new(highest, self.settings.disorder_ms);
        self.next_offset = self.archived_end();
    }
}
