//! Reading ledgers and rates back, row group by row group.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::array::{
    Array, AsArray, BooleanArray, FixedSizeBinaryArray, PrimitiveArray, RecordBatch, StringArray,
};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMillisecondType};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::parts::{list_parts, part_path};
use super::shared::{find_shared, rates_beside};
use super::write::rates_path;
use crate::stream::CampaignRate;

/// One row of a ledger, borrowed from its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerRow<'a> {
    pub campaign_id: &'a str,
    pub click_id: [u8; 16],
    pub ad_id: &'a str,
    pub user_id: &'a str,
    pub publisher_id: &'a str,
    pub event_time_ms: i64,
    pub kind: &'a str,
    pub sequence: u64,
    pub acknowledged: bool,
    pub attempts_unknown: u32,
    pub rejected: Option<&'a str>,
    /// The fraud verdict sent on the click, `givt` or `sivt`.
    pub verdict: Option<&'a str>,
}

/// Takes rows as they are read.
pub trait RowSink {
    /// Is told, before the first row, how many there are.
    fn expect(&mut self, rows: usize);
    /// Takes one row.
    ///
    /// # Errors
    /// Whatever makes the row unusable.
    fn take(&mut self, row: &LedgerRow<'_>) -> Result<()>;
}

/// What a ledger consists of on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerFile {
    pub files: Vec<PathBuf>,
    /// Those of `files` that a run which died may have left without an end.
    pub open: Vec<PathBuf>,
    /// `false`: the run died before its end. Rows of its last seconds, and of what was in flight, are missing.
    pub whole: bool,
}

impl LedgerFile {
    /// Finds the ledger `path`, or what a run that died left of it.
    ///
    /// # Errors
    /// If there is neither.
    pub fn find(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return find_shared(path);
        }
        if path.exists() {
            return Ok(Self { files: vec![path.to_path_buf()], open: Vec::new(), whole: true });
        }
        let parts = list_parts(path)?;
        if parts.is_empty() {
            bail!("there is no ledger {}; write one with `twice-loadgen run --ledger`", path.display());
        }
        for (number, part) in parts.iter().enumerate() {
            if *part != part_path(path, number) {
                bail!("part {number} of {} is missing", path.display());
            }
        }
        let open = parts.last().cloned().into_iter().collect();
        Ok(Self { files: parts, open, whole: false })
    }
}

/// Reads the rates beside the ledger, in the order they were put.
///
/// # Errors
/// If the file is missing or not readable.
pub fn read_rates(ledger: &Path) -> Result<Vec<CampaignRate>> {
    let path = rates_path(&rates_beside(ledger));
    let text = std::fs::read(&path)
        .with_context(|| format!("read {}; keep it beside the ledger it belongs to", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no rates file", path.display()))
}

/// Reads every row of a ledger into `sink`, in the order of the file.
///
/// # Errors
/// If a file is damaged, or the sink refuses a row. The last part of a run that died may be cut off: it is passed over.
/// Returns the files that were read.
pub fn read_rows(ledger: &LedgerFile, sink: &mut impl RowSink) -> Result<Vec<PathBuf>> {
    let mut readers = Vec::new();
    let mut rows = 0;
    for path in &ledger.files {
        match open(path) {
            Ok((count, reader)) => {
                rows += count;
                readers.push((path, reader));
            }
            Err(_) if ledger.open.contains(path) => {} // it was open when the run died
            Err(error) => return Err(error),
        }
    }
    sink.expect(rows);
    let mut read = Vec::with_capacity(readers.len());
    for (path, reader) in readers {
        for batch in reader {
            let batch = batch.with_context(|| format!("read {}", path.display()))?;
            let columns = Columns::of(&batch).with_context(|| format!("{} is no ledger", path.display()))?;
            for index in 0..batch.num_rows() {
                sink.take(&columns.row(index))?;
            }
        }
        read.push(path.clone());
    }
    Ok(read)
}

fn open(path: &Path) -> Result<(usize, ParquetRecordBatchReader)> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)
        .with_context(|| format!("{} is not a whole Parquet file", path.display()))?;
    let rows = builder.metadata().file_metadata().num_rows();
    let reader = builder.with_batch_size(8_192).build()?;
    Ok((usize::try_from(rows).unwrap_or_default(), reader))
}

struct Columns<'a> {
    campaign_id: &'a StringArray,
    click_id: &'a FixedSizeBinaryArray,
    ad_id: &'a StringArray,
    user_id: &'a StringArray,
    publisher_id: &'a StringArray,
    event_time: &'a PrimitiveArray<TimestampMillisecondType>,
    kind: &'a StringArray,
    sequence: &'a PrimitiveArray<Int64Type>,
    acknowledged: &'a BooleanArray,
    attempts_unknown: &'a PrimitiveArray<Int32Type>,
    rejected: &'a StringArray,
    /// Not in ledgers of before there were verdicts.
    verdict: Option<&'a StringArray>,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let column =
            |name: &str| batch.column_by_name(name).with_context(|| format!("column {name} is missing"));
        let text = |name: &str| -> Result<&'a StringArray> {
            column(name)?.as_string_opt().with_context(|| format!("column {name} is no text"))
        };
        let wrong = |name: &str| format!("column {name} has another type");
        Ok(Self {
            campaign_id: text("campaign_id")?,
            click_id: column("click_id")?
                .as_fixed_size_binary_opt()
                .filter(|ids| ids.value_length() == 16)
                .with_context(|| wrong("click_id"))?,
            ad_id: text("ad_id")?,
            user_id: text("user_id")?,
            publisher_id: text("publisher_id")?,
            event_time: column("event_time")?.as_primitive_opt().with_context(|| wrong("event_time"))?,
            kind: text("kind")?,
            sequence: column("sequence")?.as_primitive_opt().with_context(|| wrong("sequence"))?,
            acknowledged: column("acknowledged")?.as_boolean_opt().with_context(|| wrong("acknowledged"))?,
            attempts_unknown: column("attempts_unknown")?
                .as_primitive_opt()
                .with_context(|| wrong("attempts_unknown"))?,
            rejected: text("rejected")?,
            verdict: batch.column_by_name("verdict").and_then(|column| column.as_string_opt()),
        })
    }

    fn row(&self, index: usize) -> LedgerRow<'a> {
        let mut click_id = [0; 16];
        click_id.copy_from_slice(self.click_id.value(index)); // 16 bytes, checked in `of`
        LedgerRow {
            campaign_id: self.campaign_id.value(index),
            click_id,
            ad_id: self.ad_id.value(index),
            user_id: self.user_id.value(index),
            publisher_id: self.publisher_id.value(index),
            event_time_ms: self.event_time.value(index),
            kind: self.kind.value(index),
            sequence: self.sequence.value(index).unsigned_abs(),
            acknowledged: self.acknowledged.value(index),
            attempts_unknown: self.attempts_unknown.value(index).unsigned_abs(),
            rejected: self.rejected.is_valid(index).then(|| self.rejected.value(index)),
            verdict: self
                .verdict
                .filter(|verdicts| verdicts.is_valid(index))
                .map(|verdicts| verdicts.value(index)),
        }
    }
}
