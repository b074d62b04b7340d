//! Rows of one slice on local disk, and the slices of a range put together again.
//!
//! A range may have to be aggregated in many slices, and again in more where the memory did not suffice: so a slice's
//! rows go to a file of their own, in order, and what is in memory is one batch of each.

use std::fs::File;
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use twice_log::{AdId, CampaignId, Hour, UtcMillis};
use twice_store::aggregates::{AggregateRows, AggregateWriter};
use twice_store::{AggregateCounts, AggregateRow, UserSketch};

use crate::error::{Error, Result};
use crate::recompute::values::{campaign, column, contradiction, count, integer, text};

const MINUTE_MS: i64 = 60_000;
/// Rows in memory of all slices that are put together: a range cut into hundreds must fit the same memory.
const MERGED_ROWS_MAX: usize = 16 * 1024;

/// Writes the statement's answer for one slice to `path`; returns it, or `None` where the answer is empty.
pub(super) async fn write(
    mut answer: SendableRecordBatchStream,
    path: PathBuf,
    hour: Hour,
) -> Result<Option<PathBuf>> {
    let failed = |source| Error::Process { action: "write aggregates", source };
    let output = std::io::BufWriter::new(File::create(&path).map_err(failed)?);
    let mut writer = AggregateWriter::new(output)?;
    while let Some(batch) = answer.next().await {
        let batch = batch.map_err(Error::engine("aggregate by ad and minute"))?;
        for row in 0..batch.num_rows() {
            let (campaign, row) = row_of(&batch, row, hour)?;
            writer.push(campaign, row)?;
        }
    }
    Ok(writer.finish()?.map(|_| path))
}

fn row_of(batch: &RecordBatch, row: usize, hour: Hour) -> Result<(CampaignId, AggregateRow)> {
    let count = |name: &str| count(batch, name, row);
    let ad = text(batch, "ad_id", row)?.unwrap_or_default();
    let users = column(batch, "users")?.as_binary_opt::<i64>().filter(|users| users.is_valid(row));
    let users = users.ok_or_else(|| contradiction("column users is no sketch".to_owned()))?.value(row);
    let start: UtcMillis = hour.start().plus_ms(integer(batch, "minute", row)? * MINUTE_MS);
    let aggregate = AggregateRow {
        ad_id: Some(AdId::new(&ad).map_err(|error| contradiction(format!("ad {ad:?} {error}")))?),
        window_start: start,
        counts: AggregateCounts {
            gross: count("gross")?,
            duplicates: count("duplicates")?,
            conflicts: count("conflicts")?,
            invalid_givt: count("invalid_givt")?,
            invalid_sivt: count("invalid_sivt")?,
            billable: count("billable")?,
            unpriced: count("unpriced")?,
            amount_micros: integer(batch, "amount_micros", row)?,
        },
        users: UserSketch::from_bytes(users)?,
    };
    Ok((campaign(batch, row)?, aggregate))
}

/// Reads several files of sorted rows as one: rows of the same campaign, ad and minute are added.
pub(super) struct Merged {
    runs: Vec<Peekable<AggregateRows>>,
}

type Key = (CampaignId, Option<AdId>, UtcMillis);

impl Merged {
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let batch_rows = MERGED_ROWS_MAX / paths.len().max(1);
        let open = |path: &PathBuf| Ok(open(path, batch_rows)?.peekable());
        Ok(Self { runs: paths.iter().map(open).collect::<Result<_>>()? })
    }

    /// Returns the next row; `None` after the last.
    pub fn next(&mut self) -> Result<Option<(CampaignId, AggregateRow)>> {
        let lowest = self.runs.iter_mut().filter_map(|run| key_of(run.peek()?)).min();
        let Some(lowest) = lowest else { return self.failed() };
        let mut sum: Option<(CampaignId, AggregateRow)> = None;
        for run in &mut self.runs {
            let is_lowest = |row: &twice_store::Result<_>| key_of(row).as_ref() == Some(&lowest);
            if let Some(row) = run.next_if(is_lowest) {
                let (campaign, row) = row?;
                match &mut sum {
                    Some((_, sum)) => sum.add(&row),
                    None => sum = Some((campaign, row)),
                }
            }
        }
        Ok(sum)
    }

    /// Returns the error a run is left with, or the end.
    fn failed(&mut self) -> Result<Option<(CampaignId, AggregateRow)>> {
        match self.runs.iter_mut().find_map(Iterator::next) {
            Some(row) => Ok(Some(row?)),
            None => Ok(None),
        }
    }
}

fn open(path: &Path, batch_rows: usize) -> Result<AggregateRows> {
    let failed = |source| Error::Process { action: "read aggregates", source };
    Ok(AggregateRows::open(File::open(path).map_err(failed)?, batch_rows)?)
}

fn key_of(row: &twice_store::Result<(CampaignId, AggregateRow)>) -> Option<Key> {
    let (campaign, row) = row.as_ref().ok()?;
    Some((campaign.clone(), row.ad_id.clone(), row.window_start))
}
