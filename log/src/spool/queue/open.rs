//! Opens a queue's newest epoch, and stores anew what reads of the ones before it.
//!
//! Why damage begins a new epoch: the embedded log never goes on past damage, and must not. A queue may, as its offsets
//! mean nothing outside it; but files it cannot read whole are kept, never written to again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;

use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::{Active, PARTITION, TOPIC};
use crate::error::{Error, Result};
use crate::event::LogOffset;
use crate::fail::FailPoints;
use crate::fs::{FileSystem, read_file};
use crate::hot::embedded::{EmbeddedConfig, EmbeddedLog, Salvage, salvage};
use crate::hot::{AppendRecord, ClickLog};
use crate::spool::entry::Entry;
use crate::spool::holdings::Holdings;
use crate::spool::position;

const SALVAGED_FILE: &str = "SALVAGED";
const DAMAGED_FILE: &str = "DAMAGED";
const END_WORD: &str = "it ends at offset ";
const WAITING_BYTES_MAX: u64 = 64 << 20;
const SCAN_BYTES: usize = 1 << 20;
const SALVAGE_RECORDS: usize = 4096;

/// What `SALVAGED` says.
#[derive(Debug, Serialize, Deserialize)]
struct SalvageNote {
    records_kept: u64,
    records_missing: u64,
    /// Missing records that somebody gave up.
    #[serde(default)]
    struck_off: u64,
}

pub(super) struct Opened {
    pub active: Active,
    pub missing: u64,
}

/// Where a queue's drainer stood when it broke: the folder of the epoch, and the first offset the log does not have.
pub(super) type Reached = Option<(PathBuf, LogOffset)>;

/// Opens the newest epoch for writing, with the whole records of every earlier one.
pub(super) async fn open(
    fs: Arc<dyn FileSystem>,
    folder: &Path,
    segment_bytes: u64,
    reached: Reached,
) -> Result<Opened> {
    fs.create_dir_all(folder).map_err(Error::io("create", folder))?;
    let newest = epochs(fs.as_ref(), folder)?.last().copied().unwrap_or(1);
    let (epoch, active) = match open_epoch(&fs, folder, newest, segment_bytes, &reached).await {
        Err(Error::Damage { path, at, reason }) => {
            error!(path = %path.display(), at, reason, "the queue is damaged; its files are kept, what reads is stored anew");
            let active = open_epoch(&fs, folder, newest + 1, segment_bytes, &None).await?;
            (newest + 1, active)
        }
        opened => (newest, opened?),
    };
    let mut missing = 0;
    for earlier in epochs(fs.as_ref(), folder)?.into_iter().filter(|earlier| *earlier < epoch) {
        missing += salvage_into(&fs, &epoch_folder(folder, earlier), &active).await?;
    }
    Ok(Opened { active, missing })
}

async fn open_epoch(
    fs: &Arc<dyn FileSystem>,
    folder: &Path,
    epoch: u32,
    segment_bytes: u64,
    reached: &Reached,
) -> Result<Active> {
    let own = epoch_folder(folder, epoch);
    let (opening, at) = (fs.clone(), own.clone());
    let (log, noted) = blocking(move || {
        if is_there(opening.as_ref(), &at, DAMAGED_FILE)? {
            return Err(Error::damage(&at, 0, "records did not read before"));
        }
        let config = EmbeddedConfig {
            partitions: 1,
            segment_bytes,
            waiting_bytes_max: WAITING_BYTES_MAX,
            tail_cache_bytes_max: 0,
        };
        let log = EmbeddedLog::open(opening.clone(), &at, config, FailPoints::default())?;
        Ok((log, position::read(opening.as_ref(), &at)?))
    })
    .await?;
    let bounds = log.bounds(TOPIC, PARTITION).await?;
    let reached = reached.as_ref().filter(|(of, _)| *of == own).map(|(_, reached)| *reached);
    let from = noted.max(reached).unwrap_or(bounds.earliest).clamp(bounds.earliest, bounds.end);
    // One that lags behind only repeats, and a full disk takes no other.
    if let Some(noted) = noted.filter(|noted| *noted > bounds.end) {
        warn!(folder = %own.display(), %noted, end = %bounds.end, "files of the queue were removed");
        // Offsets below a position ahead of the files would be taken for drained when they are given again.
        let (fs, at) = (fs.clone(), own.clone());
        blocking(move || position::write(fs.as_ref(), &at, from)).await?;
    }
    let mut holdings = Holdings::default();
    let mut next = from;
    loop {
        let (entries, end) = match read(&log, next, SCAN_BYTES).await {
            Err(damage @ Error::Damage { .. }) => {
                let (fs, at) = (fs.clone(), own.clone());
                blocking(move || note_damage(fs.as_ref(), &at, bounds.end)).await?;
                return Err(damage);
            }
            read => read?,
        };
        if end == next {
            break;
        }
        holdings.add(&entries);
        next = end;
    }
    let (position, holdings) = (AtomicI64::new(from.0), Mutex::new(holdings));
    Ok(Active { log, folder: own, position, holdings })
}

/// Reads entries from `from` on; returns them and the offset after the last one.
pub(super) async fn read(
    log: &EmbeddedLog,
    from: LogOffset,
    bytes_max: usize,
) -> Result<(Vec<Entry>, LogOffset)> {
    let batch = log.read(TOPIC, PARTITION, from, bytes_max).await?;
    let end = batch.records.last().map_or(from, |(offset, _)| LogOffset(offset.0 + 1));
    let entries = batch.records.iter().map(|(offset, stored)| {
        Entry::decode(stored).map_err(|reason| Error::Damage {
            path: PathBuf::from(format!("the held record at offset {offset}")),
            at: 0,
            reason: reason.to_owned(),
        })
    });
    Ok((entries.collect::<Result<_>>()?, end))
}

/// Stores anew what reads of a damaged epoch; returns how many records do not. Done before, it is not done again; cut
/// short, it is, and records are stored twice.
async fn salvage_into(fs: &Arc<dyn FileSystem>, damaged: &Path, active: &Active) -> Result<u64> {
    if let Some(note) = read_note(fs.as_ref(), damaged)? {
        return Ok(note.records_missing);
    }
    let (reading, at) = (fs.clone(), damaged.to_path_buf());
    let salvaged = blocking(move || salvage_epoch(reading.as_ref(), &at)).await?;
    let whole: Vec<Entry> =
        salvaged.records.iter().filter_map(|(_, stored)| Entry::decode(stored).ok()).collect();
    let missing = salvaged.missing + (salvaged.records.len() - whole.len()) as u64;
    for entries in whole.chunks(SALVAGE_RECORDS) {
        let records =
            entries.iter().map(|entry| AppendRecord { partition: PARTITION, bytes: entry.encode() });
        active.holdings().add(entries);
        active.log.append(TOPIC, records.collect()).await?;
    }
    let note = SalvageNote { records_kept: whole.len() as u64, records_missing: missing, struck_off: 0 };
    error!(folder = %damaged.display(), kept = note.records_kept, missing, "a damaged queue: its whole records are kept; \
        hours from before them wait for a decision if any are missing (docs/spool.md)");
    let (fs, at) = (fs.clone(), damaged.to_path_buf());
    blocking(move || write_note(fs.as_ref(), &at, &note)).await?;
    Ok(missing)
}

/// Reads what reads of an epoch; counts what does not up to the end that was known when the damage was found.
pub(in crate::spool) fn salvage_epoch(fs: &dyn FileSystem, folder: &Path) -> Result<Salvage> {
    let mut salvaged = salvage(fs, folder, TOPIC, position::read(fs, folder)?)?;
    if let Some(end) = known_end(fs, folder)?.filter(|end| *end > salvaged.end) {
        salvaged.missing += u64::try_from(end.0 - salvaged.end.0).unwrap_or(0);
        salvaged.end = end;
    }
    Ok(salvaged)
}

/// Gives up the records of the queue in `folder` that do not read: no hour waits for them any more. Returns how many.
/// Their files stay. The caller records who decided so.
///
/// # Errors
/// `Io`.
pub fn strike_off(fs: &dyn FileSystem, folder: &Path) -> Result<u64> {
    let mut struck = 0;
    for epoch in epochs(fs, folder)? {
        let own = epoch_folder(folder, epoch);
        if let Some(note) = read_note(fs, &own)?
            && note.records_missing > 0
        {
            struck += note.records_missing;
            write_note(
                fs,
                &own,
                &SalvageNote { records_missing: 0, struck_off: note.records_missing, ..note },
            )?;
        }
    }
    Ok(struck)
}

fn write_note(fs: &dyn FileSystem, folder: &Path, note: &SalvageNote) -> Result<()> {
    let text = serde_json::to_vec(note).map_err(|error| Error::damage(folder, 0, error.to_string()))?;
    put_file(fs, folder, SALVAGED_FILE, &text)
}

/// Returns how many records of an earlier epoch do not read, if what does is stored anew; `None` if it is not.
pub(in crate::spool) fn salvaged(fs: &dyn FileSystem, folder: &Path) -> Result<Option<u64>> {
    Ok(read_note(fs, folder)?.map(|note| note.records_missing))
}

fn read_note(fs: &dyn FileSystem, folder: &Path) -> Result<Option<SalvageNote>> {
    let path = folder.join(SALVAGED_FILE);
    match read_file(fs, &path) {
        // A note cut short by a crash is no note.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path)(error)),
    }
}

/// Notes that an epoch holds records that do not read, so that no start opens it for writing again, and where it ends.
pub(super) fn note_damage(fs: &dyn FileSystem, folder: &Path, end: LogOffset) -> Result<()> {
    match is_there(fs, folder, DAMAGED_FILE)? {
        true => Ok(()),
        false => {
            let text = format!("records of this folder do not read; {END_WORD}{}\n", end.0);
            put_file(fs, folder, DAMAGED_FILE, text.as_bytes())
        }
    }
}

fn known_end(fs: &dyn FileSystem, folder: &Path) -> Result<Option<LogOffset>> {
    let path = folder.join(DAMAGED_FILE);
    match read_file(fs, &path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let end = text.trim().rsplit_once(END_WORD).and_then(|(_, end)| end.parse().ok());
            Ok(end.map(LogOffset))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path)(error)),
    }
}

fn is_there(fs: &dyn FileSystem, folder: &Path, name: &str) -> Result<bool> {
    let found = fs.list(folder).map_err(Error::io("list", folder))?;
    Ok(found.iter().any(|path| path.file_name().is_some_and(|own| own == name)))
}

fn put_file(fs: &dyn FileSystem, folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    match fs.remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("remove", &path)(error));
        }
        _ => {}
    }
    let file = fs.create_new(&path).map_err(Error::io("create", &path))?;
    file.write_all_at(bytes, 0).map_err(Error::io("write", &path))?;
    file.sync_data().map_err(Error::io("sync", &path))?;
    fs.sync_dir(folder).map_err(Error::io("sync", folder))
}

/// Returns the epochs of a queue, oldest first.
pub(in crate::spool) fn epochs(fs: &dyn FileSystem, folder: &Path) -> Result<Vec<u32>> {
    let found = fs.list(folder).map_err(Error::io("list", folder))?;
    let names = found.iter().filter_map(|path| path.file_name()?.to_str());
    let mut epochs: Vec<u32> = names
        .filter(|name| name.len() == 6)
        .filter_map(|name| name.parse().ok())
        .filter(|epoch| *epoch > 0)
        .collect();
    epochs.sort_unstable();
    Ok(epochs)
}

pub(in crate::spool) fn epoch_folder(folder: &Path, epoch: u32) -> PathBuf {
    folder.join(format!("{epoch:06}"))
}

/// Runs file work off the executor.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::Io {
            action: "run file work for",
            path: PathBuf::new(),
            source: std::io::Error::other(error),
        }),
    }
}
