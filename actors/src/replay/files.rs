//! Data files as a replay reads them: verified once, footers kept, of each only the row groups and columns it needs.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use arrow::array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::{ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::file::metadata::{PageIndexPolicy, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use tokio::runtime::Handle;
use twice_log::archive::{Archive, DataFileReader, FileEntry};
use twice_store::{Error, Result};

use super::slices::{Extent, Slice};

/// Footers kept at most; above, they are read again for each slice. About 20 KiB each.
const FOOTERS_MAX: usize = 2_000;
/// Rows decoded at once.
const BATCH_ROWS: usize = 32 * 1024;

/// The files of one kind.
#[derive(Debug)]
pub(super) struct Files {
    archive: Archive,
    entries: Vec<FileEntry>,
    footers: Vec<Mutex<Option<ArrowReaderMetadata>>>,
}

impl Files {
    pub fn new(archive: Archive, entries: Vec<FileEntry>) -> Self {
        let footers = entries.iter().map(|_| Mutex::new(None)).collect();
        Self { archive, entries, footers }
    }

    pub fn entries(&self) -> &[FileEntry] {
        &self.entries
    }

    /// Compares every file with the hash its manifest recorded, `threads` side by side.
    ///
    /// # Errors
    /// `Archive` naming the first file found to be missing or another.
    pub fn verify(&self, runtime: &Handle, threads: usize) -> Result<()> {
        let waiting: Mutex<VecDeque<&FileEntry>> = Mutex::new(self.entries.iter().collect());
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        side_by_side(threads, || {
            while let Some(entry) = next() {
                runtime.block_on(self.archive.verify_data(entry))?;
            }
            Ok(())
        })
    }

    /// Returns what the row groups of a file say of their campaigns.
    ///
    /// # Errors
    /// `Archive` if the footer cannot be read.
    pub fn extents(&self, runtime: &Handle, place: usize) -> Result<Vec<Extent>> {
        let footer = self.footer(runtime, place)?;
        Ok(footer.metadata().row_groups().iter().map(extent).collect())
    }

    /// Opens the row groups of a file that may hold rows of `slice`, with `columns` only; `None` if there are none.
    ///
    /// # Errors
    /// `Archive` if the file has not all of the columns, or cannot be read.
    pub fn open(
        &self,
        runtime: &Handle,
        place: usize,
        columns: &[&str],
        slice: &Slice,
    ) -> Result<Option<Batches<'_>>> {
        let entry = &self.entries[place];
        let footer = self.footer(runtime, place)?;
        let groups = footer.metadata().row_groups().iter().enumerate();
        let groups: Vec<usize> =
            groups.filter(|(_, group)| slice.may_hold(&extent(group))).map(|(index, _)| index).collect();
        if groups.is_empty() {
            return Ok(None);
        }
        if let Some(absent) = columns.iter().find(|column| footer.schema().field_with_name(column).is_err()) {
            return Err(damage(entry, format!("has no column {absent}, which files of every version have")));
        }
        let mask = ProjectionMask::columns(footer.parquet_schema(), columns.iter().copied());
        let stream =
            ParquetRecordBatchStreamBuilder::new_with_metadata(self.archive.data_reader(entry)?, footer)
                .with_projection(mask)
                .with_row_groups(groups)
                .with_batch_size(BATCH_ROWS)
                .build()
                .map_err(|source| parquet(entry, source))?;
        Ok(Some(Batches { runtime: runtime.clone(), entry, stream: Box::pin(stream) }))
    }

    fn footer(&self, runtime: &Handle, place: usize) -> Result<ArrowReaderMetadata> {
        let entry = &self.entries[place];
        let mut kept = self.footers[place].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(footer) = kept.as_ref() {
            return Ok(footer.clone());
        }
        let mut reader = self.archive.data_reader(entry)?;
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Skip);
        let footer = runtime.block_on(ArrowReaderMetadata::load_async(&mut reader, options));
        let footer = footer.map_err(|source| parquet(entry, source))?;
        if self.entries.len() <= FOOTERS_MAX {
            *kept = Some(footer.clone());
        }
        Ok(footer)
    }
}

/// The rows of one file, batch by batch.
pub(super) struct Batches<'a> {
    runtime: Handle,
    entry: &'a FileEntry,
    stream: std::pin::Pin<Box<ParquetRecordBatchStream<DataFileReader>>>,
}

impl Batches<'_> {
    /// Decodes the next batch on this thread.
    ///
    /// # Errors
    /// `Archive` if the file cannot be read.
    pub fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let next = self.runtime.block_on(futures::StreamExt::next(&mut self.stream));
        next.transpose().map_err(|source| parquet(self.entry, source))
    }

    pub fn damage(&self, reason: impl Into<String>) -> Error {
        damage(self.entry, reason.into())
    }
}

/// Runs `work` on so many threads, and returns the first error.
pub(super) fn side_by_side(threads: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&work)).collect();
        let ended = workers.into_iter().map(|worker| {
            worker.join().unwrap_or_else(|_| Err(super::inputs::refused("a thread that counts panicked")))
        });
        ended.fold(Ok(()), Result::and)
    })
}

fn damage(entry: &FileEntry, reason: String) -> Error {
    Error::Archive(twice_log::Error::ArchiveDamage { path: entry.path.clone(), reason })
}

fn parquet(entry: &FileEntry, source: parquet::errors::ParquetError) -> Error {
    Error::Archive(twice_log::Error::Parquet { path: entry.path.clone(), source })
}

fn extent(group: &RowGroupMetaData) -> Extent {
    let rows = u64::try_from(group.num_rows()).unwrap_or(0);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let column = group.columns().iter().find(|column| column.column_descr().name() == "campaign_id");
    let campaigns = match column.and_then(|column| column.statistics()) {
        // Bounds may be shortened, and are then still bounds.
        Some(Statistics::ByteArray(bounds)) => {
            bounds.min_bytes_opt().and_then(text).zip(bounds.max_bytes_opt().and_then(text))
        }
        _ => None,
    };
    Extent { campaigns, rows }
}
