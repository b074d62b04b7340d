//! Rows into Parquet bytes. Pure: no I/O, no clock; the same rows give the same bytes. Runs on a blocking thread.
//!
//! Rows are sorted by (campaign_id, event_time, offset) and cut into row groups of [`ROW_GROUP_ROWS`], so that the
//! statistics on `campaign_id` let a reader of one campaign, or of a slice of campaigns, leave most groups out.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, FixedSizeBinaryBuilder, Int32Array, Int64Array, RecordBatch, StringBuilder,
    TimestampMillisecondArray,
};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Compression, Encoding, LogicalType, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::{ColumnPath, SchemaDescriptor, Type};

use super::columns::{clicks_schema, quarantine_schema, verdicts_schema};
use super::layout::{self, ChainKey};
use super::rows::{ClickRow, PendingRows, QuarantineRow, WATERMARK_NONE};
use super::{FileEntry, FileKind};
use crate::error::{Error, Result};
use crate::event::{Hour, LogOffset, Sha256Hex, UtcMillis, Verdict};

/// Rows of a row group: small enough to prune by campaign, large enough that its footer does not matter.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// Place and range of the files of one flush.
#[derive(Debug, Clone)]
pub(super) struct FlushScope {
    pub chain: ChainKey,
    pub bucket: Arc<str>,
    pub first: LogOffset,
    /// Inclusive.
    pub last: LogOffset,
    pub rows_per_file_max: usize,
}

/// Which rows go into one file, or several where they are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Portion {
    Clicks(Hour),
    Verdicts(Hour),
    Quarantine,
}

/// A finished file, not yet put.
#[derive(Debug, Clone)]
pub(super) struct EncodedFile {
    pub entry: FileEntry,
    pub bytes: Bytes,
}

impl PendingRows {
    /// Returns what to encode, in the order manifests list it.
    pub(super) fn portions(&self) -> Vec<Portion> {
        let clicks = self.clicks.keys().map(|hour| Portion::Clicks(*hour));
        let verdicts = self.verdicts.keys().map(|hour| Portion::Verdicts(*hour));
        let quarantine = (!self.quarantine.is_empty()).then_some(Portion::Quarantine);
        clicks.chain(verdicts).chain(quarantine).collect()
    }
}

/// Sorts and encodes one portion.
pub(super) fn encode(
    pending: &PendingRows,
    portion: Portion,
    scope: &FlushScope,
) -> Result<Vec<EncodedFile>> {
    match portion {
        Portion::Clicks(hour) => encode_clicks(pending, hour, scope),
        Portion::Verdicts(hour) => encode_verdicts(pending, hour, scope),
        Portion::Quarantine => pending
            .quarantine
            .chunks(scope.rows_per_file_max)
            .map(|rows| finish(FileKind::Quarantine, None, scope, [quarantine_batch(rows)]))
            .collect(),
    }
}

fn encode_clicks(pending: &PendingRows, hour: Hour, scope: &FlushScope) -> Result<Vec<EncodedFile>> {
    let ranks = pending.ranks();
    let mut rows: Vec<&ClickRow> = pending.clicks.get(&hour).into_iter().flatten().collect();
    rows.sort_unstable_by_key(|row| (ranks[row.campaign as usize], row.event_ms, row.offset));
    rows.chunks(scope.rows_per_file_max)
        .map(|file_rows| {
            let groups = file_rows.chunks(ROW_GROUP_ROWS).map(|rows| click_batch(pending, rows, scope.chain));
            finish(FileKind::Clicks, Some(hour), scope, groups)
        })
        .collect()
}

fn encode_verdicts(pending: &PendingRows, hour: Hour, scope: &FlushScope) -> Result<Vec<EncodedFile>> {
    let mut rows: Vec<&(LogOffset, Verdict)> = pending.verdicts.get(&hour).into_iter().flatten().collect();
    rows.sort_unstable_by(|(left_offset, left), (right_offset, right)| {
        (&left.campaign_id, left.decided_at, left_offset).cmp(&(
            &right.campaign_id,
            right.decided_at,
            right_offset,
        ))
    });
    rows.chunks(scope.rows_per_file_max)
        .map(|file_rows| {
            let groups = file_rows.chunks(ROW_GROUP_ROWS).map(|rows| verdict_batch(rows, scope.chain));
            finish(FileKind::Verdicts, Some(hour), scope, groups)
        })
        .collect()
}

/// Writes row groups as one file, and names it by its hash.
fn finish(
    kind: FileKind,
    hour: Option<Hour>,
    scope: &FlushScope,
    groups: impl IntoIterator<Item = Result<RecordBatch>>,
) -> Result<EncodedFile> {
    let mut rows = 0;
    let folder = || layout::manifest_path(scope.chain, scope.first);
    let failed = |source: ParquetError| Error::Parquet { path: folder(), source };
    let (schema, options) = writer_options(kind).map_err(failed)?;
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), schema, options).map_err(failed)?;
    for group in groups {
        let group = group?;
        rows += group.num_rows() as u64;
        writer.write(&group).map_err(failed)?;
    }
    let bytes = Bytes::from(writer.into_inner().map_err(failed)?);
    let sha256 = Sha256Hex::of(&bytes);
    let entry = FileEntry {
        path: layout::data_path(kind, scope.chain, hour, scope.first, scope.last, &sha256),
        bucket: scope.bucket.to_string(),
        hour,
        kind,
        rows,
        bytes: bytes.len() as u64,
        sha256,
    };
    Ok(EncodedFile { entry, bytes })
}

fn click_batch(pending: &PendingRows, rows: &[&ClickRow], chain: ChainKey) -> Result<RecordBatch> {
    let column = |value: fn(&ClickRow) -> i64| rows.iter().map(|row| value(row)).collect::<Vec<i64>>();
    let name = |number: fn(&ClickRow) -> u32| strings(rows.iter().map(|row| pending.name(number(row))));
    let watermarks = rows.iter().map(|row| (row.watermark_ms != WATERMARK_NONE).then_some(row.watermark_ms));
    let columns: Vec<ArrayRef> = vec![
        name(|row| row.campaign),
        name(|row| row.ad),
        strings(rows.iter().map(|row| pending.user(row))),
        name(|row| row.publisher),
        ids(rows.iter().map(|row| Some(&row.click_id)))?,
        Arc::new(TimestampMillisecondArray::from(column(|row| row.event_ms)).with_timezone("UTC")),
        Arc::new(TimestampMillisecondArray::from(column(|row| row.arrival_ms)).with_timezone("UTC")),
        Arc::new(TimestampMillisecondArray::from_iter(watermarks).with_timezone("UTC")),
        repeated(chain.generation.0, rows.len()),
        repeated(chain.partition.0, rows.len()),
        Arc::new(Int64Array::from(column(|row| row.offset))),
        Arc::new(Int64Array::from(column(|row| row.payload_hash))),
        ids(rows.iter().map(|row| row.has_ip_hash.then_some(&row.ip_hash)))?,
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| i32::from(row.schema_version)))),
    ];
    Ok(RecordBatch::try_new(clicks_schema(), columns)?)
}

fn verdict_batch(rows: &[&(LogOffset, Verdict)], chain: ChainKey) -> Result<RecordBatch> {
    let verdicts = || rows.iter().map(|(_, verdict)| verdict);
    let click_event_times = verdicts().map(|verdict| verdict.click_event_time.map(UtcMillis::epoch_ms));
    let columns: Vec<ArrayRef> = vec![
        strings(verdicts().map(|verdict| verdict.campaign_id.as_str())),
        ids(verdicts().map(|verdict| Some(verdict.click_id.as_bytes())))?,
        strings(verdicts().map(|verdict| verdict.verdict.name())),
        strings(verdicts().map(|verdict| verdict.model_version.as_str())),
        times(verdicts().map(|verdict| verdict.decided_at)),
        Arc::new(TimestampMillisecondArray::from_iter(click_event_times).with_timezone("UTC")),
        times(verdicts().map(|verdict| verdict.arrival_time)),
        repeated(chain.generation.0, rows.len()),
        repeated(chain.partition.0, rows.len()),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(offset, _)| offset.0))),
        Arc::new(Int32Array::from_iter_values(verdicts().map(|verdict| i32::from(verdict.schema_version)))),
    ];
    Ok(RecordBatch::try_new(verdicts_schema(), columns)?)
}

fn quarantine_batch(rows: &[QuarantineRow]) -> Result<RecordBatch> {
    let mut records = BinaryBuilder::new();
    rows.iter().for_each(|row| records.append_value(&row.bytes));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.offset.0))),
        Arc::new(records.finish()),
        strings(rows.iter().map(|row| row.reason.as_str())),
    ];
    Ok(RecordBatch::try_new(quarantine_schema(), columns)?)
}

fn strings<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    let mut builder = StringBuilder::new();
    values.for_each(|value| builder.append_value(value));
    Arc::new(builder.finish())
}

fn ids<'a>(values: impl Iterator<Item = Option<&'a [u8; 16]>>) -> Result<ArrayRef> {
    let mut builder = FixedSizeBinaryBuilder::new(16);
    for value in values {
        match value {
            Some(value) => builder.append_value(value)?,
            None => builder.append_null(),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn times(values: impl Iterator<Item = UtcMillis>) -> ArrayRef {
    let values = values.map(UtcMillis::epoch_ms);
    Arc::new(TimestampMillisecondArray::from_iter_values(values).with_timezone("UTC"))
}

/// Generations and partitions are small counts; the public columns are signed, as Parquet's integers are.
fn repeated(value: u32, rows: usize) -> ArrayRef {
    Arc::new(Int32Array::from_value(value as i32, rows))
}

fn writer_options(kind: FileKind) -> std::result::Result<(SchemaRef, ArrowWriterOptions), ParquetError> {
    let (schema, properties, sorted_by) = match kind {
        FileKind::Clicks => (clicks_schema(), click_properties()?, &["campaign_id", "event_time"][..]),
        FileKind::Verdicts => (verdicts_schema(), verdict_properties()?, &["campaign_id", "decided_at"][..]),
        FileKind::Quarantine => (quarantine_schema(), base_properties()?, &["log_offset"][..]),
    };
    let sorting = sorted_by.iter().filter_map(|name| schema.index_of(name).ok()).map(|index| SortingColumn {
        column_idx: index as i32,
        descending: false,
        nulls_first: false,
    });
    let properties = properties.set_sorting_columns(Some(sorting.collect())).build();
    let options = ArrowWriterOptions::new()
        .with_properties(properties)
        // Every column's Parquet type says all there is; a copy of the Arrow schema would only add bytes.
        .with_skip_arrow_metadata(true)
        .with_parquet_schema(parquet_schema(&schema)?);
    Ok((schema, options))
}

fn base_properties() -> std::result::Result<WriterPropertiesBuilder, ParquetError> {
    Ok(WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_dictionary_enabled(true))
}

fn click_properties() -> std::result::Result<WriterPropertiesBuilder, ParquetError> {
    let mut builder = base_properties()?;
    for column in ["event_time", "arrival_time", "watermark", "log_offset"] {
        builder = packed(builder, column);
    }
    // Unique or nearly so: a dictionary would be written and given up, and bounds would prune nothing. Splitting the
    // bytes of time-ordered ids would save 2 more bytes a click, but DuckDB does not read fixed bytes so encoded.
    for column in ["click_id", "payload_hash", "ip_hash", "user_id"] {
        builder = builder
            .set_column_dictionary_enabled(ColumnPath::from(column), false)
            .set_column_statistics_enabled(ColumnPath::from(column), EnabledStatistics::Chunk);
    }
    Ok(builder.set_column_encoding(ColumnPath::from("user_id"), Encoding::DELTA_LENGTH_BYTE_ARRAY))
}

fn verdict_properties() -> std::result::Result<WriterPropertiesBuilder, ParquetError> {
    let mut builder = base_properties()?;
    for column in ["decided_at", "click_event_time", "arrival_time", "log_offset"] {
        builder = packed(builder, column);
    }
    Ok(builder.set_column_dictionary_enabled(ColumnPath::from("click_id"), false))
}

/// Stores differences from row to row: times rise within a campaign, offsets nearly so.
fn packed(builder: WriterPropertiesBuilder, column: &str) -> WriterPropertiesBuilder {
    builder
        .set_column_dictionary_enabled(ColumnPath::from(column), false)
        .set_column_encoding(ColumnPath::from(column), Encoding::DELTA_BINARY_PACKED)
}

/// Returns the Parquet schema of an Arrow one, with `click_id` marked as the UUID it is.
fn parquet_schema(schema: &SchemaRef) -> std::result::Result<SchemaDescriptor, ParquetError> {
    let plain = ArrowSchemaConverter::new().convert(schema)?;
    let mut fields = plain.root_schema().get_fields().to_vec();
    for field in fields.iter_mut().filter(|field| field.name() == "click_id") {
        let uuid = Type::primitive_type_builder("click_id", field.get_physical_type())
            .with_repetition(field.get_basic_info().repetition())
            .with_length(16)
            .with_logical_type(Some(LogicalType::Uuid))
            .build()?;
        *field = Arc::new(uuid);
    }
    let root = Type::group_type_builder(plain.root_schema().name()).with_fields(fields).build()?;
    Ok(SchemaDescriptor::new(Arc::new(root)))
}
