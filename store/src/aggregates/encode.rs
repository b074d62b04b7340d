//! Rows of aggregates into Parquet. The same rows give the same bytes.
//!
//! Rows come in order of (campaign, ad, time). Row groups are small, by rows and by bytes, so that one campaign's rows
//! are one or two reads: the bounds of `campaign_id` in the footer say which.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int64Array, RecordBatch, StringBuilder, TimestampMillisecondArray,
};
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use twice_log::CampaignId;

use super::AggregateRow;
use super::columns::aggregates_schema;
use crate::error::{Error, Result};

/// Rows of a row group at most.
const GROUP_ROWS_MAX: usize = 8 * 1024;
/// Bytes of sketches in a row group at most: a busy campaign's are 3 KiB a row.
const GROUP_SKETCH_BYTES_MAX: usize = 1 << 20;

/// Writes rows of one level as one Parquet file.
pub struct AggregateWriter<W: Write + Send> {
    writer: ArrowWriter<W>,
    group: Vec<(CampaignId, AggregateRow)>,
    group_sketch_bytes: usize,
    rows: u64,
    first: Option<CampaignId>,
    last: Option<CampaignId>,
}

/// A finished file.
#[derive(Debug)]
pub struct WrittenAggregates<W> {
    pub output: W,
    pub rows: u64,
    pub campaign_first: CampaignId,
    /// Inclusive.
    pub campaign_last: CampaignId,
}

impl<W: Write + Send> AggregateWriter<W> {
    /// Begins a file in `output`.
    ///
    /// # Errors
    /// `Archive` if it cannot be written to.
    pub fn new(output: W) -> Result<Self> {
        let options = options().map_err(failed)?;
        let writer =
            ArrowWriter::try_new_with_options(output, aggregates_schema(), options).map_err(failed)?;
        Ok(Self { writer, group: Vec::new(), group_sketch_bytes: 0, rows: 0, first: None, last: None })
    }

    /// Appends a row; rows MUST come in order of (campaign, ad, time).
    ///
    /// # Errors
    /// `Archive` if the output cannot be written to.
    pub fn push(&mut self, campaign: CampaignId, row: AggregateRow) -> Result<()> {
        let bytes = row.users.encoded_len();
        if self.group.len() >= GROUP_ROWS_MAX || self.group_sketch_bytes + bytes > GROUP_SKETCH_BYTES_MAX {
            self.end_group()?;
        }
        self.group_sketch_bytes += bytes;
        self.rows += 1;
        self.first.get_or_insert_with(|| campaign.clone());
        self.group.push((campaign, row));
        Ok(())
    }

    /// Returns the bytes of the row groups that are finished.
    pub fn bytes_written(&self) -> usize {
        self.writer.bytes_written()
    }

    /// Ends the file; `None` if it has no row.
    ///
    /// # Errors
    /// `Archive` if the output cannot be written to.
    pub fn finish(mut self) -> Result<Option<WrittenAggregates<W>>> {
        self.end_group()?;
        let output = self.writer.into_inner().map_err(failed)?;
        let bounds = self.first.zip(self.last);
        Ok(bounds.map(|(campaign_first, campaign_last)| WrittenAggregates {
            output,
            rows: self.rows,
            campaign_first,
            campaign_last,
        }))
    }

    fn end_group(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.group);
        self.group_sketch_bytes = 0;
        let Some((campaign, _)) = rows.last() else { return Ok(()) };
        self.last = Some(campaign.clone());
        self.writer.write(&batch(&rows)?).map_err(failed)?;
        self.writer.flush().map_err(failed)
    }
}

fn batch(rows: &[(CampaignId, AggregateRow)]) -> Result<RecordBatch> {
    let mut campaigns = StringBuilder::new();
    let mut ads = StringBuilder::new();
    let mut users = BinaryBuilder::new();
    let mut sketch = Vec::new();
    for (campaign, row) in rows {
        campaigns.append_value(campaign.as_str());
        ads.append_option(row.ad_id.as_ref().map(|ad| ad.as_str()));
        sketch.clear();
        row.users.write_to(&mut sketch);
        users.append_value(&sketch);
    }
    let number = |value: fn(&AggregateRow) -> u64| -> Result<ArrayRef> {
        let values = rows.iter().map(|(_, row)| i64::try_from(value(row)));
        let values = values.collect::<std::result::Result<Vec<i64>, _>>().map_err(|_| Error::Invalid {
            what: "aggregates".to_owned(),
            reason: "a count leaves 63 bits".to_owned(),
        })?;
        Ok(Arc::new(Int64Array::from(values)))
    };
    let starts = rows.iter().map(|(_, row)| row.window_start.epoch_ms());
    let amounts = rows.iter().map(|(_, row)| row.counts.amount_micros);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(campaigns.finish()),
        Arc::new(ads.finish()),
        Arc::new(TimestampMillisecondArray::from_iter_values(starts).with_timezone("UTC")),
        number(|row| row.counts.gross)?,
        number(|row| row.counts.duplicates)?,
        number(|row| row.counts.conflicts)?,
        number(|row| row.counts.invalid_givt)?,
        number(|row| row.counts.invalid_sivt)?,
        number(|row| row.counts.billable)?,
        number(|row| row.counts.unpriced)?,
        Arc::new(Int64Array::from_iter_values(amounts)),
        number(|row| row.users.count())?,
        Arc::new(users.finish()),
    ];
    Ok(RecordBatch::try_new(aggregates_schema(), columns).map_err(twice_log::Error::from)?)
}

fn options() -> std::result::Result<ArrowWriterOptions, ParquetError> {
    let sorting =
        [0, 1, 2].map(|column_idx| SortingColumn { column_idx, descending: false, nulls_first: false });
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        // Row groups are ended by hand.
        .set_max_row_group_row_count(None)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_dictionary_enabled(true)
        // Hashes and registers repeat nothing, and bounds of them say nothing.
        .set_column_dictionary_enabled(ColumnPath::from("users"), false)
        .set_column_statistics_enabled(ColumnPath::from("users"), EnabledStatistics::None)
        .set_sorting_columns(Some(sorting.to_vec()))
        .build();
    Ok(ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true))
}

fn failed(source: ParquetError) -> Error {
    Error::Archive(twice_log::Error::Parquet { path: "aggregates".to_owned(), source })
}
