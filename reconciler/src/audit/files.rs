//! The data files: those the run read, byte for byte, and those that nobody committed.
//!
//! Memory: pieces of a few files at once, and their footers.

use std::collections::BTreeSet;

use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use twice_log::archive::{Archive, FileEntry, RunInputs, layout};

use super::certificate::Check;
use super::chains::{Chains, reason_of};
use super::deleted::Deleted;
use super::findings::Findings;
use crate::error::{Error, Result, describe};
use crate::recompute::footer;

/// What became of the files the inputs name.
#[derive(Debug, Default)]
pub(super) struct CheckedFiles {
    pub count: u64,
    pub bytes: u64,
    /// Paths of those that a tombstone names and that are gone.
    pub gone: BTreeSet<String>,
}

/// Checks each file the inputs name: SHA-256, size, rows; or that it is gone, where a tombstone names it.
///
/// # Errors
/// `Log` if the archive does not answer.
pub(super) async fn check_files(
    archive: &Archive,
    inputs: &RunInputs,
    deleted: &Deleted,
    at_once: usize,
    findings: &mut Findings,
) -> Result<CheckedFiles> {
    let mut checked_files = CheckedFiles::default();
    let mut files: Vec<FileEntry> = Vec::new();
    for file in inputs.click_files.iter().chain(&inputs.verdict_files) {
        if deleted.names(file) {
            if archive.data_size(file).await?.is_none() {
                checked_files.gone.insert(file.path.clone());
                continue;
            }
            let reason =
                "is there, and a tombstone says that it was deleted; `twice retain --hour` removes it again";
            findings.notice(Check::Files, &file.path, reason);
        }
        files.push(file.clone());
    }
    checked_files.count = files.len() as u64;
    checked_files.bytes = files.iter().map(|file| file.bytes).sum();
    let check = |file: FileEntry| {
        let archive = archive.clone();
        // A task each, so that threads hash side by side.
        async move {
            let path = file.path.clone();
            let checked = tokio::spawn(async move { check_file(&archive, &file).await }).await;
            (path, checked)
        }
    };
    let mut checks = futures::stream::iter(files).map(check).buffered(at_once.max(1));
    while let Some((path, checked)) = checks.next().await {
        let checked = checked.map_err(|error| Error::Process {
            action: "hash a file",
            source: std::io::Error::other(error),
        })?;
        if let Some(reason) = checked? {
            findings.add(Check::Files, path, reason);
        }
    }
    Ok(checked_files)
}

/// Returns what is wrong with a file.
async fn check_file(archive: &Archive, file: &FileEntry) -> Result<Option<String>> {
    match archive.verify_data(file).await {
        Ok(()) => {}
        Err(error) if error.kind() == twice_log::ErrorKind::Damage => return Ok(Some(reason_of(&error))),
        Err(error @ twice_log::Error::Deleted { .. }) => {
            // Meanwhile: an audit made later says so without a finding.
            return Ok(Some(format!("{error}, during this audit; audit the hour again")));
        }
        Err(error) => return Err(error.into()),
    }
    let path = Path::parse(&file.path)
        .map_err(|error| Error::ArchiveDamage { path: file.path.clone(), reason: error.to_string() })?;
    let store = archive.store_of(archive.bucket_of(file));
    let failed = |source| Error::Archive { action: "head", path: file.path.clone(), source };
    let size = store.head(&path).await.map_err(failed)?.size;
    if size != file.bytes {
        return Ok(Some(format!("has {size} bytes, its manifest says {}", file.bytes)));
    }
    // The bytes are those committed: a footer that does not read, or counts other rows, was committed so.
    Ok(match footer(archive, file).await.map(|footer| footer.file_metadata().num_rows()) {
        Ok(rows) if u64::try_from(rows).ok() == Some(file.rows) => None,
        Ok(rows) => Some(format!("holds {rows} rows, its manifest says {}", file.rows)),
        Err(error) => Some(format!("is no Parquet file: {}", describe(&error))),
    })
}

/// Lists files in the folders the run reads from that no manifest names. They do not exist for billing: a file counts by
/// its manifest alone, and an archiver that was killed between files and manifest leaves such files behind. So each is a
/// notice and breaks no verdict.
///
/// # Errors
/// `Log` if the archive does not answer.
pub(super) async fn find_orphans(
    archive: &Archive,
    inputs: &RunInputs,
    chains: &Chains,
    findings: &mut Findings,
) -> Result<()> {
    let known = chains.paths();
    let horizon = i64::from(inputs.settings.horizon_hours);
    let clicks = (-horizon..=horizon).map(|hours| layout::clicks_folder(inputs.hour.plus(hours)));
    let named = inputs.verdict_files.iter().filter_map(|file| Some(file.path.rsplit_once('/')?.0.to_owned()));
    let verdicts = named.chain([layout::verdicts_folder(inputs.hour)]);
    let folders: BTreeSet<String> = clicks.chain(verdicts).collect();
    for folder in folders {
        for object in archive.list(&folder, None).await? {
            let path = object.location.to_string();
            if !known.contains(path.as_str()) {
                let reason = "no manifest names this file: an added file, or one left by an archiver that was killed; \
                              it does not exist for billing";
                findings.notice(Check::Files, path, reason);
            }
        }
    }
    Ok(())
}
