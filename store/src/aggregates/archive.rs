//! Aggregates read from the archive, with a cache in front.
//!
//! Guarantee: what is answered is what the run wrote, or an error names the file. A small file is read whole and its
//! SHA-256 compared; of a large one only the footer and the row groups of the campaign are read, in two requests.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::MetadataFetch;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;
use twice_log::CampaignId;
use twice_log::archive::{AggregateFile, AggregateLevel, AggregateSet, Archive, RunKey};
use twice_log::event::Sha256Hex;

use super::cache::AggregateCache;
use super::decode::{self, Parts, parquet_error};
use super::{AggregateReader, AggregateRow};
use crate::error::{Error, Result};

/// Files up to this size are read whole: one request costs more than their bytes.
const WHOLE_FILE_BYTES_MAX: u64 = 256 * 1024;
/// Bytes read from a large file's end in the hope that its footer is among them.
const FOOTER_BYTES_GUESSED: usize = 64 * 1024;
/// Files of one question read at once. A campaign has more than one only where it is very large.
const FILES_AT_ONCE: usize = 4;

/// Reads aggregates from an archive. Cheap to clone.
#[derive(Clone)]
pub struct ArchiveAggregates {
    archive: Archive,
    cache: AggregateCache,
}

impl ArchiveAggregates {
    /// Reads from `archive`, and keeps about `cache_bytes_max` bytes of what it read.
    pub fn new(archive: Archive, cache_bytes_max: u64) -> Self {
        Self { archive, cache: AggregateCache::new(cache_bytes_max) }
    }

    async fn set(&self, run: RunKey) -> Result<Option<Arc<AggregateSet>>> {
        if let Some(set) = self.cache.set(run).await {
            return Ok(Some(set));
        }
        // Nothing is remembered of an absent list: the run may be about to put it again.
        let Some(set) = self.archive.aggregate_set(run).await? else { return Ok(None) };
        let set = Arc::new(set);
        self.cache.keep_set(run, Arc::clone(&set)).await;
        Ok(Some(set))
    }

    /// Returns the campaign's rows in one file; `None` if the file is gone.
    async fn file_rows(
        &self,
        file: &AggregateFile,
        campaign: &CampaignId,
    ) -> Result<Option<Arc<Vec<AggregateRow>>>> {
        if let Some(rows) = self.cache.rows(&file.path, campaign).await {
            return Ok(Some(rows));
        }
        let read = if file.bytes <= WHOLE_FILE_BYTES_MAX {
            self.read_whole(file, campaign).await?
        } else {
            self.read_parts(file, campaign).await?
        };
        let Some(rows) = read else { return Ok(None) };
        let rows = Arc::new(rows);
        self.cache.keep_rows(&file.path, campaign, Arc::clone(&rows)).await;
        Ok(Some(rows))
    }

    async fn read_whole(
        &self,
        file: &AggregateFile,
        campaign: &CampaignId,
    ) -> Result<Option<Vec<AggregateRow>>> {
        let Some(bytes) = self.archive.get(&file.path).await? else { return Ok(None) };
        let (file, campaign) = (file.clone(), campaign.clone());
        let rows = off_the_executor(move || {
            let path = &file.path;
            if Sha256Hex::of(&bytes) != file.sha256 {
                return Err(decode::damage(path, "is not the file its run wrote: SHA-256 differs"));
            }
            let footer = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new())
                .map_err(|source| parquet_error(path, source))?;
            let groups = decode::groups_of(path, &footer, &campaign)?;
            let groups = groups.into_iter().map(|(index, _)| index).collect();
            let parts = Parts { file_bytes: file.bytes, parts: vec![(0, bytes)] };
            decode::rows_of(path, footer, groups, parts, &campaign)
        });
        rows.await.map(Some)
    }

    async fn read_parts(
        &self,
        file: &AggregateFile,
        campaign: &CampaignId,
    ) -> Result<Option<Vec<AggregateRow>>> {
        let footer = match self.cache.footer(&file.path).await {
            Some(footer) => footer,
            None => {
                let Some(footer) = self.read_footer(file).await? else { return Ok(None) };
                self.cache.keep_footer(&file.path, footer.clone()).await;
                footer
            }
        };
        let groups = decode::groups_of(&file.path, &footer, campaign)?;
        let ranges: Vec<_> = groups.iter().map(|(_, range)| range.clone()).collect();
        let Some(bytes) = self.archive.get_ranges(&file.path, &ranges).await? else { return Ok(None) };
        let parts = ranges.iter().map(|range| range.start).zip(bytes).collect();
        let parts = Parts { file_bytes: file.bytes, parts };
        let groups = groups.into_iter().map(|(index, _)| index).collect();
        let (path, campaign) = (file.path.clone(), campaign.clone());
        let rows = off_the_executor(move || decode::rows_of(&path, footer, groups, parts, &campaign));
        rows.await.map(Some)
    }

    pub(super) async fn read_footer(&self, file: &AggregateFile) -> Result<Option<ArrowReaderMetadata>> {
        let mut fetch = Fetch { archive: &self.archive, path: &file.path, is_gone: false };
        let metadata = ParquetMetaDataReader::new()
            .with_prefetch_hint(Some(FOOTER_BYTES_GUESSED))
            .load_and_finish(&mut fetch, file.bytes)
            .await;
        let failed = |source| parquet_error(&file.path, source);
        match metadata {
            Err(_) if fetch.is_gone => Ok(None),
            Err(source) => Err(failed(source)),
            Ok(metadata) => {
                let options = ArrowReaderOptions::new();
                ArrowReaderMetadata::try_new(Arc::new(metadata), options).map(Some).map_err(failed)
            }
        }
    }
}

#[async_trait]
impl AggregateReader for ArchiveAggregates {
    async fn read(
        &self,
        run: RunKey,
        level: AggregateLevel,
        campaign: &CampaignId,
    ) -> Result<Option<Arc<Vec<AggregateRow>>>> {
        let Some(set) = self.set(run).await? else { return Ok(None) };
        let holds = |file: &&AggregateFile| {
            file.level == level && (&file.campaign_first..=&file.campaign_last).contains(&campaign)
        };
        let files: Vec<AggregateFile> = set.files.iter().filter(holds).cloned().collect();
        let read = futures::stream::iter(files)
            .map(|file| async move { self.file_rows(&file, campaign).await })
            .buffered(FILES_AT_ONCE);
        let parts: Vec<Option<Arc<Vec<AggregateRow>>>> = read.try_collect().await?;
        let Some(mut parts) = parts.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
        match parts.len() {
            0 => Ok(Some(Arc::default())),
            1 => Ok(parts.pop()),
            _ => Ok(Some(Arc::new(parts.iter().flat_map(|part| part.iter().cloned()).collect()))),
        }
    }
}

/// Reads ranges of one file for the footer's decoder.
struct Fetch<'a> {
    archive: &'a Archive,
    path: &'a str,
    is_gone: bool,
}

impl MetadataFetch for &mut Fetch<'_> {
    fn fetch(&mut self, range: std::ops::Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move {
            let read = self.archive.get_ranges(self.path, &[range]).await;
            match read.map(|read| read.and_then(|mut parts| parts.pop())) {
                Ok(Some(bytes)) => Ok(bytes),
                Ok(None) => {
                    self.is_gone = true;
                    Err(ParquetError::EOF("the file is gone".to_owned()))
                }
                Err(error) => Err(ParquetError::External(Box::new(error))),
            }
        }
        .boxed()
    }
}

async fn off_the_executor<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    // A panic of the decoder on bytes nobody foresaw is damage, not the end of the node.
    done.unwrap_or_else(|error| {
        Err(Error::Damage { what: "aggregates".to_owned(), reason: error.to_string() })
    })
}
