//! One campaign's rows out of a file of aggregates. Synchronous: call it off the executor.
//!
//! Flow: the footer says which row groups may hold the campaign -> their bytes, read in one go -> rows.

use std::fs::File;
use std::io::Read;
use std::ops::Range;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use bytes::{Buf, Bytes};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;
use twice_log::{AdId, CampaignId, UtcMillis};

use super::{AggregateCounts, AggregateRow};
use crate::error::{Error, Result};
use crate::sketch::UserSketch;

const CAMPAIGN_COLUMN: usize = 0;
/// Rows decoded at once where a whole file is read: sketches of a busy campaign are 4 KiB each in memory.
const BATCH_ROWS_MAX: usize = 1024;
/// What a file on local disk is called in errors.
const LOCAL: &str = "aggregates on local disk";

/// Returns the row groups that may hold rows of the campaign, each with where its bytes lie.
pub(super) fn groups_of(
    path: &str,
    footer: &ArrowReaderMetadata,
    campaign: &CampaignId,
) -> Result<Vec<(usize, Range<u64>)>> {
    let groups = footer.metadata().row_groups().iter().enumerate();
    let may_hold = groups.filter(|(_, group)| may_hold(group, campaign));
    may_hold.map(|(index, group)| Ok((index, bytes_of(path, group)?))).collect()
}

fn may_hold(group: &RowGroupMetaData, campaign: &CampaignId) -> bool {
    let bounds = match group.columns().get(CAMPAIGN_COLUMN).and_then(|column| column.statistics()) {
        // Bounds may be shortened, and are then still bounds.
        Some(Statistics::ByteArray(bounds)) => bounds.min_bytes_opt().zip(bounds.max_bytes_opt()),
        _ => None,
    };
    bounds.is_none_or(|(low, high)| (low..=high).contains(&campaign.as_str().as_bytes()))
}

fn bytes_of(path: &str, group: &RowGroupMetaData) -> Result<Range<u64>> {
    let mut all: Option<Range<u64>> = None;
    for column in group.columns() {
        let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
        let range = u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok());
        let (start, length) = range.ok_or_else(|| damage(path, "its footer names no place of a column"))?;
        let end = start.saturating_add(length);
        all = Some(match all {
            None => start..end,
            Some(all) => all.start.min(start)..all.end.max(end),
        });
    }
    all.ok_or_else(|| damage(path, "its footer names no column"))
}

/// Decodes the campaign's rows in `groups`, whose bytes are in `parts`.
pub(super) fn rows_of(
    path: &str,
    footer: ArrowReaderMetadata,
    groups: Vec<usize>,
    parts: Parts,
    campaign: &CampaignId,
) -> Result<Vec<AggregateRow>> {
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(parts, footer)
        .with_row_groups(groups)
        .build()
        .map_err(|source| parquet_error(path, source))?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(twice_log::Error::from)?;
        let columns = Columns { path, batch: &batch };
        for row in columns.rows_of(campaign)? {
            rows.push(columns.row(row)?);
        }
    }
    Ok(rows)
}

/// All rows of a file, in order, batch by batch.
pub struct AggregateRows {
    reader: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    row: usize,
}

impl AggregateRows {
    /// Opens a file as [`super::AggregateWriter`] wrote it; at most `batch_rows` of it are in memory at once.
    ///
    /// # Errors
    /// `Archive` if it is none.
    pub fn open(file: File, batch_rows: usize) -> Result<Self> {
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .map(|builder| builder.with_batch_size(batch_rows.clamp(1, BATCH_ROWS_MAX)))
            .and_then(|builder| builder.build())
            .map_err(|source| parquet_error(LOCAL, source))?;
        Ok(Self { reader, batch: None, row: 0 })
    }

    fn read(&mut self) -> Result<Option<(CampaignId, AggregateRow)>> {
        loop {
            if let Some(batch) = self.batch.as_ref().filter(|batch| self.row < batch.num_rows()) {
                let columns = Columns { path: LOCAL, batch };
                let campaign = columns.campaign(self.row)?;
                let row = columns.row(self.row)?;
                self.row += 1;
                return Ok(Some((campaign, row)));
            }
            let Some(batch) = self.reader.next() else { return Ok(None) };
            self.batch = Some(batch.map_err(twice_log::Error::from)?);
            self.row = 0;
        }
    }
}

impl Iterator for AggregateRows {
    type Item = Result<(CampaignId, AggregateRow)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

struct Columns<'a> {
    path: &'a str,
    batch: &'a RecordBatch,
}

impl Columns<'_> {
    fn column(&self, name: &str) -> Result<&dyn Array> {
        let column = self.batch.column_by_name(name).map(AsRef::as_ref);
        column.ok_or_else(|| damage(self.path, &format!("it has no column {name}")))
    }

    fn wrong(&self, name: &str) -> Error {
        damage(self.path, &format!("column {name} has a value or a type that it must not have"))
    }

    /// Rows are sorted by campaign, so the campaign's stand together.
    fn rows_of(&self, campaign: &CampaignId) -> Result<Range<usize>> {
        let name = "campaign_id";
        let campaigns = self.column(name)?.as_string_opt::<i32>().ok_or_else(|| self.wrong(name))?;
        let is = |row: &usize| campaigns.value(*row) == campaign.as_str();
        let first = (0..campaigns.len()).find(is).unwrap_or(campaigns.len());
        let after = (first..campaigns.len()).find(|row| !is(row)).unwrap_or(campaigns.len());
        Ok(first..after)
    }

    fn campaign(&self, row: usize) -> Result<CampaignId> {
        let name = "campaign_id";
        let campaigns = self.column(name)?.as_string_opt::<i32>().ok_or_else(|| self.wrong(name))?;
        CampaignId::new(campaigns.value(row)).map_err(|_| self.wrong(name))
    }

    fn number(&self, name: &str, row: usize) -> Result<i64> {
        let column = self.column(name)?.as_primitive_opt::<Int64Type>().filter(|column| column.is_valid(row));
        column.map(|column| column.value(row)).ok_or_else(|| self.wrong(name))
    }

    fn count(&self, name: &str, row: usize) -> Result<u64> {
        u64::try_from(self.number(name, row)?).map_err(|_| self.wrong(name))
    }

    fn row(&self, row: usize) -> Result<AggregateRow> {
        let ads = self.column("ad_id")?.as_string_opt::<i32>().ok_or_else(|| self.wrong("ad_id"))?;
        let ad_id = ads.is_valid(row).then(|| AdId::new(ads.value(row))).transpose();
        let starts = self.column("window_start")?.as_primitive_opt::<TimestampMillisecondType>();
        let start =
            starts.filter(|starts| starts.is_valid(row)).map(|starts| UtcMillis::new(starts.value(row)));
        let users = self.column("users")?.as_binary_opt::<i32>().ok_or_else(|| self.wrong("users"))?;
        Ok(AggregateRow {
            ad_id: ad_id.map_err(|_| self.wrong("ad_id"))?,
            window_start: start.and_then(|start| start.ok()).ok_or_else(|| self.wrong("window_start"))?,
            counts: AggregateCounts {
                gross: self.count("gross", row)?,
                duplicates: self.count("duplicates", row)?,
                conflicts: self.count("conflicts", row)?,
                invalid_givt: self.count("invalid_givt", row)?,
                invalid_sivt: self.count("invalid_sivt", row)?,
                billable: self.count("billable", row)?,
                unpriced: self.count("unpriced", row)?,
                amount_micros: self.number("amount_micros", row)?,
            },
            users: UserSketch::from_bytes(users.value(row))?,
        })
    }
}

pub(super) fn parquet_error(path: &str, source: ParquetError) -> Error {
    Error::Archive(twice_log::Error::Parquet { path: path.to_owned(), source })
}

pub(super) fn damage(path: &str, reason: &str) -> Error {
    Error::Archive(twice_log::Error::ArchiveDamage { path: path.to_owned(), reason: reason.to_owned() })
}

/// Parts of a file, each with where it begins: all that a decoder of some row groups asks for.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub file_bytes: u64,
    pub parts: Vec<(u64, Bytes)>,
}

impl Parts {
    fn from(&self, start: u64) -> parquet::errors::Result<Bytes> {
        let part = self.parts.iter().find_map(|(begin, bytes)| {
            let skipped = usize::try_from(start.checked_sub(*begin)?).ok()?;
            (skipped < bytes.len()).then(|| bytes.slice(skipped..))
        });
        part.ok_or_else(|| ParquetError::EOF(format!("byte {start} was not read")))
    }
}

impl Length for Parts {
    fn len(&self) -> u64 {
        self.file_bytes
    }
}

impl ChunkReader for Parts {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(Box::new(self.from(start)?.reader()))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let bytes = self.from(start)?;
        if length > bytes.len() {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} were not read")));
        }
        Ok(bytes.slice(..length))
    }
}
