//! The window store on sled.
//!
//! Guarantee: fences hold between any writers of this process, as each row is replaced by compare-and-swap. A damaged
//! folder never stops the node: it is moved aside, and the stream publishes again.
//! Flow: every call runs on a blocking thread, as sled blocks on its cache, its disk and its process-wide lock.

use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tracing::warn;
use twice_log::{CampaignId, Hour, UtcMillis};

use super::{WindowRow, WindowStore, encoding};
use crate::error::{Error, Result};

/// Window rows in one sled tree. Cheap to clone; clones share the tree.
#[derive(Debug, Clone)]
pub struct SledWindows {
    db: sled::Db,
}

impl SledWindows {
    /// Opens the folder, creating it if absent, with a page cache of `cache_bytes`.
    ///
    /// A damaged folder is renamed to `{folder}.damaged-{n}`, named in a warning, and an empty one takes its place. The
    /// caller holds the data directory's lock.
    ///
    /// # Errors
    /// `Open` with advice where the machine must change first: another process, permission, space.
    pub async fn open(folder: &Path, cache_bytes: u64) -> Result<Self> {
        let folder = folder.to_owned();
        blocking(move || open_or_replace(&folder, cache_bytes)).await
    }

    /// Stores one row, unless the stored fence is equal or higher. Blocks.
    pub(super) fn publish_row(&self, row: &WindowRow) -> Result<()> {
        let key = encoding::key_of(row);
        let value = encoding::encode(&key, row);
        let mut stored = self.db.get(&key).map_err(failed("read a row"))?;
        loop {
            match stored.as_deref().map(|bytes| encoding::decode_fence(&key, bytes)) {
                Some(Ok(fence)) if fence >= row.fence => return Ok(()),
                Some(Err(error)) => {
                    // The row that comes is whole, so it heals the place.
                    warn!(campaign = %row.campaign_id, window = %row.window_start, %error, "replacing a damaged row");
                }
                Some(Ok(_)) | None => {}
            }
            let swapped = self.db.compare_and_swap(&key, stored, Some(value.clone()));
            match swapped.map_err(failed("store a row"))? {
                Ok(()) => return Ok(()),
                Err(lost) => stored = lost.current,
            }
        }
    }

    pub(super) fn read_range(
        &self,
        campaign: &CampaignId,
        from: UtcMillis,
        to: UtcMillis,
    ) -> Result<Vec<WindowRow>> {
        let mut rows = Vec::new();
        let mut next = from.hour();
        // From hour to hour that has rows at all: a range of years costs no more than the hours kept.
        while let Some(hour) = self.first_hour_from(next)? {
            if hour.start() >= to {
                break;
            }
            let range = encoding::key(campaign, hour, 0)..=encoding::key(campaign, hour, u8::MAX);
            for entry in self.db.range(range) {
                let (key, value) = entry.map_err(failed("read a range"))?;
                let row = encoding::decode(&key, &value)?;
                if (from..to).contains(&row.window_start) {
                    rows.push(row);
                }
            }
            next = hour.plus(1);
        }
        Ok(rows)
    }

    /// Returns the first hour at or after `from` that has rows.
    fn first_hour_from(&self, from: Hour) -> Result<Option<Hour>> {
        let range = (Bound::Included(encoding::hour_prefix(from).to_vec()), Bound::Unbounded);
        let Some(key) = self.db.range::<Vec<u8>, _>(range).keys().next() else { return Ok(None) };
        let hour = encoding::hour_of(&key.map_err(failed("find an hour"))?)?;
        // Past the last hour a key can hold, the prefix stands still.
        Ok((hour >= from).then_some(hour))
    }

    /// Removes at most `rows_max` rows of an hour; returns whether there are more. Blocks.
    pub(super) fn remove_some(&self, hour: Hour, rows_max: usize) -> Result<bool> {
        // One by one: a batch would stop every sled of the process until it is done.
        let mut keys = self.db.scan_prefix(encoding::hour_prefix(hour)).keys();
        for key in keys.by_ref().take(rows_max) {
            let key = key.map_err(failed("list an hour"))?;
            self.db.remove(key).map_err(failed("remove a row"))?;
        }
        Ok(keys.next().is_some())
    }

    /// Makes everything published durable. Blocks.
    pub(super) fn flush_all(&self) -> Result<()> {
        self.db.flush().map(|_| ()).map_err(failed("flush"))
    }

    pub(super) fn list_hours(&self) -> Result<Vec<Hour>> {
        let mut hours = Vec::new();
        let mut next = Hour::from_since_epoch(i64::MIN);
        while let Some(hour) = self.first_hour_from(next)? {
            hours.push(hour);
            next = hour.plus(1);
        }
        Ok(hours)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(SledWindows) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let windows = self.clone();
        blocking(move || work(windows)).await
    }
}

#[async_trait]
impl WindowStore for SledWindows {
    async fn publish(&self, rows: Vec<WindowRow>) -> Result<()> {
        self.run(move |windows| rows.iter().try_for_each(|row| windows.publish_row(row))).await
    }

    async fn read(&self, campaign: &CampaignId, from: UtcMillis, to: UtcMillis) -> Result<Vec<WindowRow>> {
        let campaign = campaign.clone();
        self.run(move |windows| windows.read_range(&campaign, from, to)).await
    }

    async fn flush(&self) -> Result<()> {
        self.run(|windows| windows.flush_all()).await
    }

    async fn remove_hours(&self, hours: &[Hour]) -> Result<()> {
        let hours = hours.to_vec();
        let remove = |windows: &SledWindows, hour| windows.remove_some(hour, usize::MAX).map(|_| ());
        self.run(move |windows| hours.into_iter().try_for_each(|hour| remove(&windows, hour))).await
    }

    async fn hours(&self) -> Result<Vec<Hour>> {
        self.run(|windows| windows.list_hours()).await
    }
}

fn failed(action: &'static str) -> impl Fn(sled::Error) -> Error {
    move |source| Error::Windows { action, source }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        // sled panics on some damage; a runtime that ends cancels.
        let reason = if error.is_panic() { "sled panicked" } else { "the runtime ended" };
        Err(failed(reason)(sled::Error::ReportableBug(reason.to_owned())))
    })
}

enum Opened {
    Ready(sled::Db),
    Damaged(String),
}

fn open_or_replace(folder: &Path, cache_bytes: u64) -> Result<SledWindows> {
    let reason = match try_open(folder, cache_bytes)? {
        Opened::Ready(db) => return Ok(SledWindows { db }),
        Opened::Damaged(reason) => reason,
    };
    let aside = move_aside(folder)?;
    warn!(
        folder = %folder.display(), moved_to = %aside.display(), reason,
        "window store is damaged and was moved aside; real-time numbers fill again from the log"
    );
    match try_open(folder, cache_bytes)? {
        Opened::Ready(db) => Ok(SledWindows { db }),
        Opened::Damaged(again) => {
            let advice = "an empty folder did not open either; check the disk".to_owned();
            Err(Error::Open { path: folder.to_owned(), advice, source: Some(again.into()) })
        }
    }
}

fn try_open(folder: &Path, cache_bytes: u64) -> Result<Opened> {
    let config = sled::Config::default().path(folder).cache_capacity(cache_bytes).flush_every_ms(None);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(Opened::Ready(db)),
        Ok(Err(sled::Error::Io(error))) => Err(refused(folder, error)),
        Ok(Err(sled::Error::Unsupported(reason))) => {
            let advice = "it was written by another version of sled; move it away".to_owned();
            Err(Error::Open { path: folder.to_owned(), advice, source: Some(reason.into()) })
        }
        // Corruption, or sled's own bookkeeping contradicts itself: what is on disk cannot be used.
        Ok(Err(error)) => Ok(Opened::Damaged(error.to_string())),
        Err(_) => Ok(Opened::Damaged("sled panicked".to_owned())),
    }
}

fn refused(folder: &Path, error: std::io::Error) -> Error {
    let advice = match error.kind() {
        std::io::ErrorKind::PermissionDenied => "give the node's user write permission to the folder",
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "the disk is full; free some space"
        }
        std::io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only; mount it writable",
        // A held lock comes without a kind of its own.
        _ if error.to_string().contains("lock") => "another process uses it; stop that process first",
        _ => "see the cause below; if it stays, move the folder away: it is filled again from the log",
    };
    Error::Open { path: folder.to_owned(), advice: advice.to_owned(), source: Some(Box::new(error)) }
}

/// Renames the folder to the first free name and returns it.
fn move_aside(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut number = 1u32;
    let aside = loop {
        let candidate = folder.with_file_name(format!("{name}.damaged-{number}"));
        if !candidate.exists() {
            break candidate;
        }
        number += 1;
    };
    match std::fs::rename(folder, &aside) {
        // A disk of its own is mounted there, which has no room for two and nothing that the log does not have.
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            empty(folder).map_err(|error| refused(folder, error))?;
            Ok(PathBuf::from("nowhere, but emptied: it is a mount point"))
        }
        Err(error) => Err(refused(folder, error)),
        Ok(()) => Ok(aside),
    }
}

/// Removes what is in a folder, and leaves the folder.
fn empty(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(&path)? } else { std::fs::remove_file(&path)? }
    }
    Ok(())
}

#[cfg(test)]
impl SledWindows {
    /// Overwrites a stored row with bytes that fail its checksum.
    pub(super) fn damage_for_test(&self, row: &WindowRow) {
        self.db.insert(encoding::key_of(row), vec![1; 64]).expect("writes");
    }
}
