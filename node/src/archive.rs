//! Opens the archive where the settings say: a folder in the data folder, or a bucket of S3.
//!
//! Guarantee: a data folder keeps the archive it began with. In another, empty archive nothing would be billed yet, so
//! every hour would be billed again: such a start is refused, by a note of the place in the data folder.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use twice_log::archive::Archive;
use twice_log::archive::s3::S3Config;
use twice_log::fs::FileSystem;
use twice_reconciler::recompute::ArchiveLocation;

use crate::note::Note;

/// Folder of a local archive in the data folder.
const LOCAL_FOLDER: &str = "archive";
/// File in the data folder that names the archive's place.
const NOTE: Note = Note("ARCHIVE");
const LOCAL_NAME: &str = "local";

/// Opens the archive for writing; returns it with where a child process finds it.
///
/// # Errors
/// If it cannot be used, with what to do; if the data folder's archive is another.
pub async fn open(
    config: &S3Config,
    fs: Arc<dyn FileSystem>,
    data_dir: &Path,
) -> Result<(Archive, ArchiveLocation)> {
    let name = config.archive.as_ref().map_or_else(|| LOCAL_NAME.to_owned(), ToString::to_string);
    let noted = noted(data_dir)?;
    if let Some(noted) = &noted
        && *noted != name
    {
        bail!(
            "the archive of {} is {noted}, not {name}; start with {}, or copy everything in it to the new place and \
             then write that place into {}",
            data_dir.display(),
            if noted == LOCAL_NAME { "no --archive".to_owned() } else { format!("--archive {noted}") },
            NOTE.path(data_dir).display(),
        );
    }
    let root = data_dir.join(LOCAL_FOLDER);
    let opened = if config.archive.is_some() {
        (config.open().await?, ArchiveLocation::S3 { config: Box::new(config.clone()) })
    } else {
        (Archive::open_local(fs.clone(), &root)?, ArchiveLocation::Local { root })
    };
    if noted.is_none() {
        NOTE.write(fs.as_ref(), data_dir, &name).context("cannot note where the archive is")?;
    }
    Ok(opened)
}

/// Opens the archive of an existing data folder for reading, where its note says; `config` says how to reach a bucket.
///
/// # Errors
/// If the folder has no archive, or it cannot be used.
pub fn open_for_reading(config: &S3Config, data_dir: &Path) -> Result<(Archive, ArchiveLocation)> {
    let location = match settings_of(config, data_dir)? {
        Some(config) => ArchiveLocation::S3 { config: Box::new(config) },
        None => ArchiveLocation::Local { root: data_dir.join(LOCAL_FOLDER) },
    };
    Ok((location.open()?, location))
}

/// Returns the settings with the bucket that the folder's note names; `None` where the archive is a folder.
///
/// # Errors
/// If the folder never had an archive, or its note does not read.
pub fn settings_of(config: &S3Config, data_dir: &Path) -> Result<Option<S3Config>> {
    let Some(noted) = noted(data_dir)? else {
        bail!("{} is no data folder of a node: it names no archive", data_dir.display());
    };
    if noted == LOCAL_NAME {
        return Ok(None);
    }
    let place = noted.parse().map_err(|error| anyhow::anyhow!("{noted}: {error}"));
    let archive = place.with_context(|| format!("cannot read {}", NOTE.path(data_dir).display()))?;
    Ok(Some(S3Config { archive: Some(archive), ..config.clone() }))
}

/// Returns where the archive of this data folder is; `None` for a new one.
fn noted(data_dir: &Path) -> Result<Option<String>> {
    // Folders of before there were notes.
    let without_note =
        || data_dir.join(LOCAL_FOLDER).join("manifests").exists().then(|| LOCAL_NAME.to_owned());
    Ok(NOTE.read(data_dir)?.or_else(without_note))
}

#[cfg(test)]
mod tests {
    use twice_log::fs::RealFs;

    use super::*;

    fn on_s3() -> S3Config {
        let archive = Some("s3://clicks/a".parse().expect("a location"));
        // Nobody listens there, and the start does not wait.
        let s3_endpoint = Some("http://127.0.0.1:1".to_owned());
        S3Config { archive, s3_endpoint, s3_start_wait_ms: 0, ..S3Config::default() }
    }

    #[tokio::test]
    async fn a_data_folder_refuses_an_archive_that_is_not_its_own() {
        let fs: Arc<dyn FileSystem> = Arc::new(RealFs);
        let (local, remote) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        for _start in 0..2 {
            open(&S3Config::default(), fs.clone(), local.path()).await.expect("opens");
            open(&on_s3(), fs.clone(), remote.path())
                .await
                .expect("opens, though the server does not answer");
        }
        let error = open(&on_s3(), fs.clone(), local.path()).await.expect_err("another archive").to_string();
        assert!(error.contains("is local") && error.contains("no --archive"), "{error}");
        let error = open(&S3Config::default(), fs.clone(), remote.path()).await.expect_err("another archive");
        assert!(error.to_string().contains("--archive s3://clicks/a"), "{error}");
        let other = S3Config { archive: Some("s3://other".parse().expect("a location")), ..on_s3() };
        assert!(open(&other, fs, remote.path()).await.is_err());
    }

    #[tokio::test]
    async fn a_folder_of_before_there_were_notes_is_local() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("archive/manifests")).expect("made");
        let error = open(&on_s3(), Arc::new(RealFs), folder.path()).await.expect_err("another archive");
        assert!(error.to_string().contains("no --archive"), "{error}");
    }
}
