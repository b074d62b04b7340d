//! Which folder a node's queues lie in, noted in the data folder, and that it is that very folder.
//!
//! Guarantee (G-1, G-3): a disk that is not mounted, or was replaced, is never taken for queues that hold nothing. The
//! queues' folder carries an id from before its first record on, and the data folder says which one belongs to it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use twice_log::fs::FileSystem;
use twice_log::spool::{SpoolConfig, survey};

use super::folder_of;
use crate::note::Note;

/// File in the data folder that names the folder of its queues, and on a second line its id.
const NOTE: Note = Note("SPOOL");
/// File in the folder of the queues: its id.
const ID: Note = Note("ID");
const ID_WORD: &str = "id ";
/// What the note says of a spool within the data folder, which may be moved as a whole.
const INSIDE: &str = "in the data folder";

/// What the data folder says of its queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Noted {
    place: String,
    /// `None`: the folder could not be given one yet, so it holds nothing.
    pub id: Option<String>,
}

impl Noted {
    pub fn read(data_dir: &Path) -> Result<Option<Self>> {
        let Some(text) = NOTE.read(data_dir)? else { return Ok(None) };
        let (place, id) = match text.rsplit_once('\n') {
            Some((place, last)) if last.starts_with(ID_WORD) => (place, last.strip_prefix(ID_WORD)),
            _ => (text.as_str(), None),
        };
        Ok(Some(Self { place: place.trim().to_owned(), id: id.map(str::to_owned) }))
    }

    fn write(&self, fs: &dyn FileSystem, data_dir: &Path) -> Result<()> {
        let id = self.id.as_ref().map(|id| format!("\n{ID_WORD}{id}")).unwrap_or_default();
        let written = NOTE.write(fs, data_dir, &format!("{}{id}", self.place));
        written.context("cannot note where the spool lies")
    }

    fn folder(&self, data_dir: &Path) -> PathBuf {
        if self.place == INSIDE { data_dir.join("spool") } else { PathBuf::from(&self.place) }
    }

    /// Fails unless the folder found is the one that is noted.
    fn check(&self, data_dir: &Path, found: Option<&str>) -> Result<()> {
        let Some(id) = self.id.as_deref().filter(|id| Some(*id) != found) else { return Ok(()) };
        bail!(
            "the spool in {} is not the one {} was used with (its id is {}, noted is {id}): mount the disk it lies on. If \
             that is lost with what it held, remove {} and start again, and write down who decided that",
            self.folder(data_dir).display(),
            data_dir.display(),
            found.unwrap_or("missing"),
            NOTE.path(data_dir).display()
        )
    }
}

/// Returns the folder of the queues that belong to a data folder, once it is sure to be the right one.
///
/// # Errors
/// If it is not there, or another: nobody may bill as if it held nothing.
pub(super) fn noted_folder(data_dir: &Path) -> Result<PathBuf> {
    let Some(noted) = Noted::read(data_dir)? else { return Ok(data_dir.join("spool")) };
    let folder = noted.folder(data_dir);
    if noted.place != INSIDE && !folder.is_dir() {
        bail!(
            "the spool of {} lies in {}, which is not there; mount its disk first",
            data_dir.display(),
            folder.display()
        );
    }
    noted.check(data_dir, ID.read(&folder)?.as_deref())?;
    Ok(folder)
}

/// Notes where the queues lie, and refuses to leave records behind in another folder, or to begin anew where they were.
pub(super) fn note_folder(fs: &dyn FileSystem, data_dir: &Path, config: &SpoolConfig) -> Result<()> {
    let folder = folder_of(config, data_dir);
    let place = match config.spool_dir.is_some() {
        true => folder.to_str().context("the path of the spool is not UTF-8")?,
        false => INSIDE,
    };
    let noted = Noted::read(data_dir)?;
    if let Some(noted) = noted.as_ref().filter(|noted| noted.place == place) {
        let found = match ID.read(&folder) {
            Ok(found) => found,
            Err(error) => {
                // The queues do not open either: they take nothing, and hours wait for them.
                tracing::error!(error = format!("{error:#}"), "the id of the spool's folder does not read");
                return Ok(());
            }
        };
        noted.check(data_dir, found.as_deref())?;
        if noted.id.is_some() {
            return Ok(());
        }
    } else if noted.is_some() || place != INSIDE {
        let left = noted_folder(data_dir)?;
        let held: u64 = survey(fs, &left)?.iter().map(|survey| survey.records() + survey.missing).sum();
        if held > 0 {
            bail!(
                "the spool noted in {} still holds {held} records; move it to {place} or set spool_dir back",
                data_dir.display()
            );
        }
    }
    let id = identify(fs, &folder);
    if let Err(error) = &id {
        tracing::error!(error = format!("{error:#}"), "the spool's folder takes no id, and so no records");
    }
    Noted { place: place.to_owned(), id: id.ok() }.write(fs, data_dir)
}

/// Returns the id of the folder, and gives it one where it has none.
fn identify(fs: &dyn FileSystem, folder: &Path) -> Result<String> {
    if let Some(id) = ID.read(folder)? {
        return Ok(id);
    }
    fs.create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let id = uuid::Uuid::new_v4().simple().to_string();
    ID.write(fs, folder, &id)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use twice_log::fs::RealFs;

    use super::*;

    struct Site {
        data: tempfile::TempDir,
        disk: tempfile::TempDir,
    }

    impl Site {
        fn new() -> Self {
            Self {
                data: tempfile::tempdir().expect("a folder"),
                disk: tempfile::tempdir().expect("a folder"),
            }
        }

        fn spool(&self) -> PathBuf {
            self.disk.path().join("spool")
        }

        fn start(&self) -> Result<()> {
            let config = SpoolConfig { spool_dir: Some(self.spool()), ..SpoolConfig::default() };
            note_folder(&RealFs, self.data.path(), &config)
        }
    }

    #[test]
    fn a_disk_that_is_not_mounted_is_no_empty_spool() {
        let site = Site::new();
        site.start().expect("the first start");
        site.start().expect("and the next");
        assert_eq!(noted_folder(site.data.path()).expect("read"), site.spool());
        let away = site.disk.path().join("away");
        std::fs::rename(site.spool(), &away).expect("unmounted");
        for _ in 0..2 {
            let refused = site.start().expect_err("the folder is another").to_string();
            assert!(refused.contains("mount the disk"), "{refused}");
            assert!(noted_folder(site.data.path()).is_err(), "a command neither bills without it");
            let _ = std::fs::create_dir(site.spool());
        }
        std::fs::remove_dir_all(site.spool()).expect("removed");
        std::fs::rename(&away, site.spool()).expect("mounted");
        site.start().expect("it is back");
    }

    #[test]
    fn a_lost_disk_is_given_up_by_whoever_removes_the_note() {
        let site = Site::new();
        site.start().expect("the first start");
        std::fs::remove_dir_all(site.spool()).expect("lost");
        assert!(site.start().is_err());
        std::fs::remove_file(NOTE.path(site.data.path())).expect("decided");
        site.start().expect("begins anew");
        site.start().expect("and goes on");
    }

    #[test]
    fn a_note_from_before_there_were_ids_is_completed() {
        let site = Site::new();
        NOTE.write(&RealFs, site.data.path(), &site.spool().display().to_string()).expect("noted");
        site.start().expect("a start");
        assert!(Noted::read(site.data.path()).expect("read").expect("noted").id.is_some());
    }
}
