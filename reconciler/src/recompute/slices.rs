//! Cuts the work into slices that fit the memory, from what the files' row groups say of their campaigns.
//!
//! Words: *range* = campaigns that follow each other; *slice* = what is counted at once, a range or, where that is too
//! much, one of its parts by a hash of `click_id`. They only decide how much is counted at once: no estimate here can
//! change a count.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::async_reader::MetadataFetch;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use twice_log::CampaignId;
use twice_log::archive::{Archive, FileEntry, Rate};

use crate::error::{Error, Result};

/// Footers read at once.
const READS_AT_ONCE: usize = 16;
/// Rates that are weighed together: a campaign's rates take memory even where it has no clicks.
const RATES_PER_EXTENT: usize = 16 * 1024;

/// What is counted at once: campaigns from `from` (inclusive) to `to` (exclusive), of these a share of the ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    pub from: Option<String>,
    pub to: Option<String>,
    /// (index, parts), where the range is split by a hash of `click_id`.
    pub part: Option<(u32, u32)>,
}

/// Campaigns from `from` (inclusive) to `to` (exclusive), counted in `parts` slices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CampaignRange {
    pub from: Option<String>,
    pub to: Option<String>,
    pub parts: u32,
}

impl CampaignRange {
    /// Returns the range of one campaign.
    pub fn of_campaign(campaign: &CampaignId) -> Self {
        Self { from: Some(campaign.to_string()), to: Some(format!("{campaign}\0")), parts: 1 }
    }

    /// Returns the range cut into twice as many slices.
    pub fn finer(&self) -> Self {
        Self { parts: self.parts.saturating_mul(2), ..self.clone() }
    }

    /// Iterates over its slices: no identity is in two of them.
    pub fn slices(&self) -> impl Iterator<Item = Slice> + '_ {
        (0..self.parts).map(|index| Slice {
            from: self.from.clone(),
            to: self.to.clone(),
            part: (self.parts > 1).then_some((index, self.parts)),
        })
    }

    /// Returns whether it holds a campaign.
    pub fn holds(&self, campaign: &str) -> bool {
        self.from.as_deref().is_none_or(|from| from <= campaign)
            && self.to.as_deref().is_none_or(|to| campaign < to)
    }
}

/// Rows of one row group and the campaigns they lie between, both inclusive. `None`: unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Extent {
    campaigns: Option<(String, String)>,
    rows: u64,
}

/// Cuts `files` and `rates` into ranges, in order of campaigns, whose slices have about `rows_max` rows.
///
/// # Errors
/// `Archive` or `Log` if a footer cannot be read.
pub async fn plan(
    archive: &Archive,
    files: &[FileEntry],
    rates: &[Rate],
    rows_max: u64,
) -> Result<Vec<CampaignRange>> {
    let rows: u64 = files.iter().map(|file| file.rows).sum();
    if rows + rates.len() as u64 <= rows_max {
        return Ok(vec![CampaignRange { from: None, to: None, parts: 1 }]);
    }
    let mut extents = all_extents(archive, files).await?;
    extents.extend(rates.chunks(RATES_PER_EXTENT).map(rates_extent));
    Ok(cut(&extents, rows_max.max(1)))
}

/// Cuts one campaign into slices of at most about `rows_max` rows.
///
/// # Errors
/// Those of [`plan`].
pub async fn plan_campaign(
    archive: &Archive,
    files: &[FileEntry],
    campaign: &CampaignId,
    rows_max: u64,
) -> Result<CampaignRange> {
    let extents = all_extents(archive, files).await?;
    let may_hold = |extent: &&Extent| match &extent.campaigns {
        Some((low, high)) => low.as_str() <= campaign.as_str() && campaign.as_str() <= high.as_str(),
        None => true,
    };
    let rows: u64 = extents.iter().filter(may_hold).map(|extent| extent.rows).sum();
    Ok(CampaignRange { parts: parts(rows as f64, rows_max.max(1)), ..CampaignRange::of_campaign(campaign) })
}

async fn all_extents(archive: &Archive, files: &[FileEntry]) -> Result<Vec<Extent>> {
    let extents: Vec<Vec<Extent>> = futures::stream::iter(files.to_vec())
        .map(|file| {
            let archive = archive.clone();
            async move { extents(&archive, &file).await }
        })
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await?;
    Ok(extents.concat())
}

fn rates_extent(rates: &[Rate]) -> Extent {
    let campaigns = rates.iter().map(|rate| rate.campaign_id.as_str());
    let bounds = campaigns.clone().min().zip(campaigns.max());
    Extent {
        campaigns: bounds.map(|(low, high)| (low.to_owned(), high.to_owned())),
        rows: rates.len() as u64,
    }
}

async fn extents(archive: &Archive, file: &FileEntry) -> Result<Vec<Extent>> {
    let metadata = footer(archive, file).await?;
    Ok(metadata.row_groups().iter().map(extent).collect())
}

/// Reads a file's footer and nothing else of it.
///
/// # Errors
/// `Archive` or `Log` if it cannot be read.
pub async fn footer(archive: &Archive, file: &FileEntry) -> Result<ParquetMetaData> {
    let path = Path::parse(&file.path)
        .map_err(|error| Error::ArchiveDamage { path: file.path.clone(), reason: error.to_string() })?;
    let footer = Footer { store: archive.store_of(archive.bucket_of(file)), path };
    let read = ParquetMetaDataReader::new().load_and_finish(footer, file.bytes).await;
    Ok(read.map_err(|source| twice_log::Error::Parquet { path: file.path.clone(), source })?)
}

/// Reads ranges of one file for the footer's decoder.
struct Footer<'a> {
    store: &'a Arc<dyn ObjectStore>,
    path: Path,
}

impl MetadataFetch for Footer<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        let bytes = self.store.get_range(&self.path, range);
        bytes.map(|read| read.map_err(|error| ParquetError::External(Box::new(error)))).boxed()
    }
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

/// Cuts where row groups begin, and behind each that holds one campaign only.
fn cut(extents: &[Extent], rows_max: u64) -> Vec<CampaignRange> {
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
    // Of small files each spans nearly all campaigns, and says nothing of where among them its rows lie.
    let (wide, narrow): (Vec<Extent>, Vec<Extent>) =
        extents.iter().cloned().partition(|extent| is_wide(extent, &bounds));
    let wide_rows = rows_of(&wide);
    if wide_rows * 2.0 > rows_max as f64 {
        return vec![CampaignRange { from: None, to: None, parts: parts(rows_of(extents), rows_max) }];
    }
    let weights = weights(&narrow, &bounds);
    let mut ranges = Vec::new();
    let mut from: Option<String> = None;
    let mut weight = 0.0;
    for (index, range_weight) in weights.iter().enumerate() {
        let begins_at = index.checked_sub(1).and_then(|before| bounds.get(before)).cloned();
        if weight > 0.0 && weight + range_weight + wide_rows > rows_max as f64 {
            ranges.push(CampaignRange {
                from: from.take(),
                to: begins_at.clone(),
                parts: parts(weight + wide_rows, rows_max),
            });
            from = begins_at;
            weight = 0.0;
        }
        weight += range_weight;
    }
    ranges.push(CampaignRange { from, to: None, parts: parts(weight + wide_rows, rows_max) });
    ranges
}

fn rows_of(extents: &[Extent]) -> f64 {
    extents.iter().map(|extent| extent.rows as f64).sum()
}

/// Returns the first and the last range, of those between `bounds`, that an extent touches.
fn touched(extent: &Extent, bounds: &[String]) -> (usize, usize) {
    match &extent.campaigns {
        Some((low, high)) => {
            (bounds.partition_point(|bound| bound <= low), bounds.partition_point(|bound| bound <= high))
        }
        None => (0, bounds.len()),
    }
}

/// Returns whether an extent touches more than three quarters of the ranges: no estimate could place its rows.
fn is_wide(extent: &Extent, bounds: &[String]) -> bool {
    let (first, last) = touched(extent, bounds);
    (last - first + 1) * 4 > (bounds.len() + 1) * 3
}

/// Estimates the rows of each range between two bounds: a row group's rows are spread evenly over those it touches.
fn weights(extents: &[Extent], bounds: &[String]) -> Vec<f64> {
    let mut steps = vec![0.0; bounds.len() + 2];
    for extent in extents {
        let (first, last) = touched(extent, bounds);
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

/// Returns how many slices so many rows take.
fn parts(rows: f64, rows_max: u64) -> u32 {
    (rows / rows_max as f64).ceil().clamp(1.0, 65_536.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(low: &str, high: &str, rows: u64) -> Extent {
        Extent { campaigns: Some((low.to_owned(), high.to_owned())), rows }
    }

    fn range(from: Option<&str>, to: Option<&str>, parts: u32) -> CampaignRange {
        CampaignRange { from: from.map(str::to_owned), to: to.map(str::to_owned), parts }
    }

    #[test]
    fn ranges_follow_each_other_without_a_gap_from_open_to_open() {
        let extents = [extent("a", "c", 10), extent("c", "f", 10), extent("f", "z", 10), extent("a", "z", 3)];
        let ranges = cut(&extents, 12);
        assert!(ranges.len() > 1);
        assert_eq!(ranges.first().and_then(|range| range.from.clone()), None);
        assert_eq!(ranges.last().and_then(|range| range.to.clone()), None);
        assert!(ranges.windows(2).all(|pair| pair[0].to.is_some() && pair[0].to == pair[1].from));
        for campaign in ["a", "b", "c", "ca", "f", "zz", "0"] {
            assert_eq!(ranges.iter().filter(|range| range.holds(campaign)).count(), 1, "{campaign}");
        }
    }

    #[test]
    fn a_campaign_too_big_for_one_slice_is_split_by_id_and_its_neighbours_are_not() {
        let extents =
            [extent("a", "b", 5), extent("m", "m", 100), extent("m", "m", 100), extent("n", "z", 5)];
        let ranges = cut(&extents, 50);
        let expected =
            [range(None, Some("m"), 1), range(Some("m"), Some("m\0"), 4), range(Some("m\0"), None, 1)];
        assert_eq!(ranges, expected);
        let parts: Vec<_> = ranges[1].slices().filter_map(|slice| slice.part).collect();
        assert_eq!(parts, [(0, 4), (1, 4), (2, 4), (3, 4)]);
        assert_eq!(ranges[0].slices().map(|slice| slice.part).collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn small_files_that_span_all_campaigns_are_split_by_id_by_all_their_rows() {
        let mut extents: Vec<_> = (0..100).map(|_| extent("a", "z", 10)).collect();
        extents.extend([extent("b", "z", 10), extent("c", "y", 10)]);
        assert_eq!(cut(&extents, 100), [range(None, None, 11)]);
    }

    #[test]
    fn rows_of_unknown_campaigns_split_by_id_alone() {
        assert_eq!(cut(&[Extent { campaigns: None, rows: 100 }], 60), [range(None, None, 2)]);
    }
}
