//! Cuts the work into slices that fit the memory, from what the files' row groups say of their campaigns.
//!
//! A slice is a range of campaigns; a range that cannot be cut further is split by a hash of `click_id`. Slices only
//! decide how much is counted at once: no estimate here can change a count.

use std::ops::Range;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::async_reader::MetadataFetch;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use twice_log::archive::{Archive, FileEntry};

use crate::error::{Error, Result};

/// Footers read at once.
const READS_AT_ONCE: usize = 16;
/// Position of `campaign_id` among the columns of every data file.
const CAMPAIGN_COLUMN: usize = 0;

/// What is counted at once: campaigns from `from` (inclusive) to `to` (exclusive), of these a share of the ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    pub from: Option<String>,
    pub to: Option<String>,
    /// (index, parts), where the range is split by a hash of `click_id`.
    pub part: Option<(u32, u32)>,
}

/// Rows of one row group and the campaigns they lie between, both inclusive. `None`: unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Extent {
    campaigns: Option<(String, String)>,
    rows: u64,
}

/// Cuts `files` into slices of about `rows_max` rows.
///
/// # Errors
/// `Archive` or `Log` if a footer cannot be read.
pub async fn plan(archive: &Archive, files: &[FileEntry], rows_max: u64) -> Result<Vec<Slice>> {
    let rows: u64 = files.iter().map(|file| file.rows).sum();
    if rows <= rows_max {
        return Ok(vec![Slice::default()]);
    }
    let extents: Vec<Vec<Extent>> = futures::stream::iter(files.to_vec())
        .map(|file| {
            let archive = archive.clone();
            async move { extents(&archive, &file).await }
        })
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await?;
    Ok(cut(&extents.concat(), rows_max.max(1)))
}

async fn extents(archive: &Archive, file: &FileEntry) -> Result<Vec<Extent>> {
    let path = Path::parse(&file.path)
        .map_err(|error| Error::ArchiveDamage { path: file.path.clone(), reason: error.to_string() })?;
    let footer = Footer { archive, path };
    let metadata = ParquetMetaDataReader::new()
        .load_and_finish(footer, file.bytes)
        .await
        .map_err(|source| twice_log::Error::Parquet { path: file.path.clone(), source })?;
    Ok(metadata.row_groups().iter().map(extent).collect())
}

/// Reads ranges of one file for the footer's decoder.
struct Footer<'a> {
    archive: &'a Archive,
    path: Path,
}

impl MetadataFetch for Footer<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        let bytes = self.archive.store().get_range(&self.path, range);
        bytes.map(|read| read.map_err(|error| ParquetError::External(Box::new(error)))).boxed()
    }
}

fn extent(group: &RowGroupMetaData) -> Extent {
    let rows = u64::try_from(group.num_rows()).unwrap_or(0);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let campaigns = match group.columns().get(CAMPAIGN_COLUMN).and_then(|column| column.statistics()) {
        // Bounds may be shortened, and are then still bounds.
        Some(Statistics::ByteArray(bounds)) => {
            bounds.min_bytes_opt().and_then(text).zip(bounds.max_bytes_opt().and_then(text))
        }
        _ => None,
    };
    Extent { campaigns, rows }
}

/// Cuts where row groups begin, and behind each that holds one campaign only.
fn cut(extents: &[Extent], rows_max: u64) -> Vec<Slice> {
    let known = extents.iter().filter_map(|extent| extent.campaigns.as_ref());
    let mut bounds: Vec<String> = known
        .flat_map(|(low, high)| [Some(low.clone()), (low == high).then(|| format!("{low}\0"))])
        .flatten()
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    if !bounds.is_empty() {
        bounds.remove(0); // the first range is open below
    }
    let weights = weights(extents, &bounds);
    let mut slices = Vec::new();
    let mut from: Option<String> = None;
    let mut weight = 0.0;
    for (index, range_weight) in weights.iter().enumerate() {
        let begins_at = index.checked_sub(1).and_then(|before| bounds.get(before)).cloned();
        if weight > 0.0 && weight + range_weight > rows_max as f64 {
            push(&mut slices, from.take(), begins_at.clone(), weight, rows_max);
            from = begins_at;
            weight = 0.0;
        }
        weight += range_weight;
    }
    push(&mut slices, from, None, weight, rows_max);
    slices
}

/// Estimates the rows of each range between two bounds: a row group's rows are spread evenly over those it touches.
fn weights(extents: &[Extent], bounds: &[String]) -> Vec<f64> {
    let mut steps = vec![0.0; bounds.len() + 2];
    for extent in extents {
        let (first, last) = match &extent.campaigns {
            Some((low, high)) => {
                (bounds.partition_point(|bound| bound <= low), bounds.partition_point(|bound| bound <= high))
            }
            None => (0, bounds.len()),
        };
        let share = extent.rows as f64 / (last - first + 1) as f64;
        steps[first] += share;
        steps[last + 1] -= share;
    }
    let mut sum = 0.0;
    let running = steps.iter().take(bounds.len() + 1).map(|step| {
        sum += step;
        f64::max(sum, 0.0)
    });
    running.collect()
}

fn push(slices: &mut Vec<Slice>, from: Option<String>, to: Option<String>, weight: f64, rows_max: u64) {
    let parts = (weight / rows_max as f64).ceil().clamp(1.0, 65_536.0) as u32;
    if parts == 1 {
        slices.push(Slice { from, to, part: None });
        return;
    }
    slices.extend((0..parts).map(|index| Slice {
        from: from.clone(),
        to: to.clone(),
        part: Some((index, parts)),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(low: &str, high: &str, rows: u64) -> Extent {
        Extent { campaigns: Some((low.to_owned(), high.to_owned())), rows }
    }

    fn range(from: Option<&str>, to: Option<&str>) -> Slice {
        Slice { from: from.map(str::to_owned), to: to.map(str::to_owned), part: None }
    }

    #[test]
    fn ranges_follow_each_other_without_a_gap_from_open_to_open() {
        let extents = [extent("a", "c", 10), extent("c", "f", 10), extent("f", "z", 10), extent("a", "z", 3)];
        let slices = cut(&extents, 12);
        assert!(slices.len() > 1);
        assert_eq!(slices.first().and_then(|slice| slice.from.clone()), None);
        assert_eq!(slices.last().and_then(|slice| slice.to.clone()), None);
        let mut ranges: Vec<_> = slices.iter().map(|slice| (&slice.from, &slice.to)).collect();
        ranges.dedup(); // parts of one range by id
        assert!(ranges.windows(2).all(|pair| pair[0].1.is_some() && pair[0].1 == pair[1].0));
    }

    #[test]
    fn a_campaign_too_big_for_one_slice_is_split_by_id_and_its_neighbours_are_not() {
        let extents =
            [extent("a", "b", 5), extent("m", "m", 100), extent("m", "m", 100), extent("n", "z", 5)];
        let slices = cut(&extents, 50);
        assert_eq!(slices.first(), Some(&range(None, Some("m"))));
        assert_eq!(slices.last(), Some(&range(Some("m\0"), None)));
        let parts: Vec<_> = slices.iter().filter_map(|slice| slice.part).collect();
        assert_eq!(parts, [(0, 4), (1, 4), (2, 4), (3, 4)]);
    }

    #[test]
    fn rows_of_unknown_campaigns_split_by_id_alone() {
        let slices = cut(&[Extent { campaigns: None, rows: 100 }], 60);
        assert_eq!(slices.iter().filter_map(|slice| slice.part).collect::<Vec<_>>(), [(0, 2), (1, 2)]);
    }
}
