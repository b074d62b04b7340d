//! Comparisons in the archive: put once under `comparisons/`, listed newest first.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use twice_log::archive::{Archive, layout};
use twice_log::{Hour, UtcMillis};
use twice_store::Page;

use super::figures::{Comparison, Counted};
use crate::error::{Error, Result};

/// Comparisons read at once for a list.
const READS_AT_ONCE: usize = 8;

/// A comparison as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptComparison {
    pub id: String,
    pub created_at: UtcMillis,
    pub from: Hour,
    pub to: Hour,
    pub equal: bool,
    pub counted: Counted,
    pub conclusion: String,
}

/// Keeps a comparison. Two of one range in one millisecond are one: the first stays.
pub(super) async fn keep(archive: &Archive, comparison: &Comparison) -> Result<()> {
    let bytes =
        serde_json::to_vec(comparison).map_err(|source| Error::Json { what: "comparison", source })?;
    archive.put_if_absent(&layout::comparison_path(&comparison.id), bytes.into()).await?;
    Ok(())
}

/// Returns the JSON of a comparison that was kept; `None` if there is none of that name.
///
/// # Errors
/// `Log` if the archive cannot be read.
pub async fn comparison(archive: &Archive, id: &str) -> Result<Option<Bytes>> {
    if layout::parse_comparison_id(id).is_none() {
        return Ok(None);
    }
    Ok(archive.get(&layout::comparison_path(id)).await?)
}

/// Returns comparisons, newest first: those before `cursor`, if one is given, at most `limit`.
///
/// # Errors
/// `ArchiveDamage` if one of them does not read.
pub async fn comparisons(
    archive: &Archive,
    limit: usize,
    cursor: Option<&str>,
) -> Result<Page<KeptComparison>> {
    let listed = archive.list(layout::COMPARISONS_FOLDER, None).await?;
    let names = listed.iter().rev().filter_map(|object| {
        let id = object.location.filename()?.strip_suffix(".json")?;
        layout::parse_comparison_id(id).map(|_| id.to_owned())
    });
    let mut ids: Vec<String> =
        names.filter(|id| cursor.is_none_or(|cursor| id.as_str() < cursor)).take(limit + 1).collect();
    let is_more = ids.len() > limit;
    ids.truncate(limit);
    let next_cursor = ids.last().filter(|_| is_more).cloned();
    let read = futures::stream::iter(ids).map(|id| async move { read::<KeptComparison>(archive, &id).await });
    let rows: Vec<Option<KeptComparison>> = read.buffered(READS_AT_ONCE).try_collect().await?;
    Ok(Page { rows: rows.into_iter().flatten().collect(), next_cursor })
}

async fn read<T: serde::de::DeserializeOwned>(archive: &Archive, id: &str) -> Result<Option<T>> {
    let path = layout::comparison_path(id);
    let Some(bytes) = archive.get(&path).await? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(comparison) => Ok(Some(comparison)),
        Err(error) => Err(Error::ArchiveDamage { path, reason: format!("is no comparison: {error}") }),
    }
}
