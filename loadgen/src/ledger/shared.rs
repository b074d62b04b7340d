//! One ledger of several processes: a folder with a manifest and one file a worker.
//!
//! Guarantee: every copy belongs to exactly one worker, that of its original, so the order between differing copies holds
//! and no two processes write one file. The manifest is put once, by whoever comes first; a worker with another stream is
//! refused. `verify` refuses a folder in which a worker left nothing.
//! Killed anywhere, a worker is started again with the same flags: it reads back what it had settled and sends the rest.
//! What it may have sent before it died without writing it down is marked: such a copy may be stored any number of times.
//! To know which, the number below which copies may have been sent is written down before they are (`FILE.sent`).

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::parts::list_parts;
use super::read::{LedgerFile, LedgerRow, RowSink, read_rows};
use super::write::with_suffix;
use crate::stream::{StreamSettings, refusal_due};

const MANIFEST: &str = "manifest.json";
const VERSION: u32 = 1;
/// Unknown sends of a copy that a dead process may have sent: more than any bound on copies tells apart.
pub const ATTEMPTS_ANY: u32 = u16::MAX as u32;

/// Which of several processes this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    /// From 1.
    pub number: u32,
    pub of: u32,
}

impl Worker {
    /// Returns whether the click that begins with copy `original` is this worker's.
    pub fn has(self, original: u64) -> bool {
        original % u64::from(self.of) == u64::from(self.number - 1)
    }

    /// Returns the file of this worker in the folder.
    pub fn file(self, folder: &Path) -> PathBuf {
        folder.join(format!("worker-{:03}.parquet", self.number))
    }
}

impl fmt::Display for Worker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Worker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers =
            text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if (1..=of).contains(&number) && of <= 256 => Ok(Self { number, of }),
            _ => {
                Err("write a worker as 1/4: its number from 1, and how many there are, at most 256"
                    .to_owned())
            }
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    workers: u32,
    stream: StreamSettings,
}

/// Joins the ledger in `folder`, making it if this is the first worker, and returns the settings all have in common:
/// those given, with the first worker's event times where `times_open` says that no flag fixed them.
///
/// # Errors
/// If the folder holds the ledger of another stream, or cannot be written.
pub fn join_shared(
    folder: &Path,
    worker: Worker,
    mut stream: StreamSettings,
    times_open: bool,
) -> Result<StreamSettings> {
    fs::create_dir_all(folder).with_context(|| format!("create the folder {}", folder.display()))?;
    let path = folder.join(MANIFEST);
    let manifest = Manifest { version: VERSION, workers: worker.of, stream: stream.clone() };
    // Written beside it and linked: the manifest appears whole, and the second to come finds the first one's.
    let own = folder.join(format!("{MANIFEST}.{}.tmp", std::process::id()));
    let mut file = fs::File::create(&own).with_context(|| format!("create {}", own.display()))?;
    file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
    file.sync_all()?;
    let linked = fs::hard_link(&own, &path);
    fs::remove_file(&own)?;
    if let Err(error) = linked {
        ensure!(error.kind() == std::io::ErrorKind::AlreadyExists, "put {}: {error}", path.display());
    }
    let found = read_manifest(folder)?;
    if times_open {
        stream.event_start = found.stream.event_start;
    }
    let joined = Manifest { stream: stream.clone(), ..manifest };
    ensure!(
        joined == found,
        "{} is the ledger of another stream; start every worker with the same flags, or give --ledger another folder",
        folder.display()
    );
    Ok(stream)
}

fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let text =
        fs::read(&path).with_context(|| format!("read {}; is it a ledger's folder?", path.display()))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no manifest of a ledger", path.display()))?;
    ensure!(manifest.version == VERSION, "{} has version {}", path.display(), manifest.version);
    Ok(manifest)
}

/// Finds the files of every worker.
pub(super) fn find_shared(folder: &Path) -> Result<LedgerFile> {
    let manifest = read_manifest(folder)?;
    let mut all = LedgerFile { files: Vec::new(), open: Vec::new(), whole: true };
    for number in 1..=manifest.workers {
        let worker = Worker { number, of: manifest.workers };
        let file = worker.file(folder);
        if !file.exists() && list_parts(&file)?.is_empty() {
            bail!(
                "worker {worker} of {} has left nothing; run it, or verify without it is guessing",
                folder.display()
            );
        }
        let found = LedgerFile::find(&file)?;
        all.whole &= found.whole;
        all.files.extend(found.files);
        all.open.extend(found.open);
    }
    Ok(all)
}

/// Returns where the rates of a ledger stand: beside it, or beside the file of its first worker.
pub(super) fn rates_beside(ledger: &Path) -> PathBuf {
    if ledger.is_dir() { Worker { number: 1, of: 1 }.file(ledger) } else { ledger.to_owned() }
}

/// What an earlier life of this worker left.
#[derive(Debug, Default)]
pub struct Earlier {
    /// Copies it settled.
    pub settled: HashSet<u64>,
    /// Every copy below this number may have been sent.
    pub sent_below: u64,
    /// Parts that can be read.
    pub parts: Vec<PathBuf>,
    pub acknowledged: u64,
    /// Good copies that were refused, and bad ones that were not refused as they should.
    pub wrong: u64,
}

impl RowSink for Earlier {
    fn expect(&mut self, rows: usize) {
        self.settled.reserve(rows);
    }

    fn take(&mut self, row: &LedgerRow<'_>) -> Result<()> {
        self.settled.insert(row.sequence);
        self.acknowledged += u64::from(row.acknowledged);
        self.wrong += u64::from(row.rejected != refusal_due(row.kind));
        Ok(())
    }
}

/// Reads what an earlier life of the worker left in `file`, and removes the part it was writing when it died.
///
/// # Errors
/// If the worker had finished, or a part is damaged.
pub fn read_earlier(file: &Path) -> Result<Earlier> {
    if file.exists() {
        bail!("{} is finished already; add --overwrite to send it all again", file.display());
    }
    let mut earlier = Earlier { sent_below: read_sent(file)?, ..Earlier::default() };
    let parts = list_parts(file)?;
    if parts.is_empty() {
        return Ok(earlier);
    }
    let found = LedgerFile::find(file)?;
    let readable = read_rows(&found, &mut earlier)?;
    for part in &parts {
        if !readable.contains(part) {
            fs::remove_file(part).with_context(|| format!("remove {}", part.display()))?;
        }
    }
    earlier.parts = readable;
    Ok(earlier)
}

fn sent_path(file: &Path) -> PathBuf {
    with_suffix(file, ".sent")
}

fn read_sent(file: &Path) -> Result<u64> {
    let path = sent_path(file);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| format!("{} holds no number", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Forgets what was written down as perhaps sent: the worker starts anew, or is at its end.
///
/// # Errors
/// If the file cannot be removed.
pub fn forget_sent(file: &Path) -> Result<()> {
    let path = sent_path(file);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes down that copies below `number` may be sent from now on. It outlives the process, not the machine.
///
/// # Errors
/// If the disk refuses.
pub fn note_sent_below(file: &Path, number: u64) -> Result<()> {
    let path = sent_path(file);
    let own = with_suffix(&path, ".tmp");
    fs::write(&own, number.to_string()).with_context(|| format!("write {}", own.display()))?;
    fs::rename(&own, &path).with_context(|| format!("rename {}", own.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::settings_for_tests;

    fn worker(text: &str) -> Worker {
        text.parse().expect("a worker")
    }

    #[test]
    fn every_click_has_one_worker() {
        for original in 0..100 {
            assert_eq!((1..=3).filter(|number| Worker { number: *number, of: 3 }.has(original)).count(), 1);
        }
        for wrong in ["0/2", "3/2", "1", "1/", "1/257", "a/b"] {
            assert!(wrong.parse::<Worker>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_worker_fixes_the_stream_and_another_stream_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ledger");
        let stream = settings_for_tests("--seed 7", 100).expect("valid");
        let first = join_shared(&path, worker("2/2"), stream.clone(), true).expect("made");
        assert_eq!(first, stream);
        let later = StreamSettings { event_start: stream.event_start.plus_ms(3_600_000), ..stream.clone() };
        assert_eq!(join_shared(&path, worker("1/2"), later.clone(), true).expect("joined"), stream);
        assert!(join_shared(&path, worker("1/2"), later, false).is_err());
        assert!(join_shared(&path, worker("1/3"), stream.clone(), true).is_err());
        let other = settings_for_tests("--seed 8", 100).expect("valid");
        assert!(join_shared(&path, worker("1/2"), other, true).is_err());
        let missing = LedgerFile::find(&path).expect_err("nobody wrote anything").to_string();
        assert!(missing.contains("worker 1/2"), "{missing}");
    }

    #[test]
    fn the_number_sent_below_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = worker("1/1").file(folder.path());
        assert_eq!(read_earlier(&file).expect("nothing").sent_below, 0);
        note_sent_below(&file, 4_711).expect("written");
        assert_eq!(read_earlier(&file).expect("a number").sent_below, 4_711);
    }
}
