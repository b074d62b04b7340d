//! The end of a month's key: after it, nobody can tell whose pseudonyms those of the month are.
//!
//! Guarantee: the marker is durable before the key is touched, so no crash leaves a month without both, and a later click of
//! the month stores no user and mints no key. A destruction that a crash cut short is finished when the folder is opened.
//! Limits: the key's bytes are overwritten in place, synced and unlinked; a drive that moves blocks, a snapshot, a copy or a
//! backup may still hold them. Flow: marker -> out of memory -> overwrite, sync -> unlink -> sync the folder.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::PoisonError;

use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use twice_log::UtcMillis;

use super::{KEY_BYTES, Month, MonthKey, PseudonymKeys, key_file, sync_directory, write_durably};
use crate::error::{Error, Result};

/// What stands of one month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonthOfKeys {
    /// `YYYY-MM`.
    pub month: String,
    /// `None`: its key is there.
    pub destroyed_at: Option<UtcMillis>,
}

/// What a marker says.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    destroyed_at: UtcMillis,
}

impl Month {
    /// Reads `YYYY-MM`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let (year, number): (i32, i32) = (year.parse().ok()?, month.parse().ok()?);
        let month = Self(year.checked_mul(12)?.checked_add(number - 1)?);
        (month.file_stem() == text).then_some(month)
    }
}

impl PseudonymKeys {
    /// Lists the months that have, or had, a key in this folder, in order; beside a node as well. Blocks.
    ///
    /// # Errors
    /// [`Error::KeyFile`] where the folder does not read.
    pub fn list(directory: &Path) -> Result<Vec<MonthOfKeys>> {
        let mut found: Vec<MonthOfKeys> = Vec::new();
        for name in names(directory)? {
            if let Some(month) = name.strip_suffix(".key").filter(|stem| Month::parse(stem).is_some()) {
                if !directory.join(format!("{month}.destroyed")).exists() {
                    found.push(MonthOfKeys { month: month.to_owned(), destroyed_at: None });
                }
            } else if let Some(month) =
                name.strip_suffix(".destroyed").filter(|stem| Month::parse(stem).is_some())
            {
                let marker = fs::read(directory.join(&name)).map_err(key_file("read", directory))?;
                // Markers put by hand may be empty; that they are there is what counts.
                let marker: Option<Marker> = serde_json::from_slice(&marker).ok();
                let at = marker.map_or(UtcMillis::clamped(0), |marker| marker.destroyed_at);
                found.push(MonthOfKeys { month: month.to_owned(), destroyed_at: Some(at) });
            }
        }
        found.sort_by(|left, right| left.month.cmp(&right.month));
        Ok(found)
    }

    /// Destroys the key of a month, `YYYY-MM`, also where it never had one. Destroying it again changes nothing. Blocks.
    ///
    /// # Errors
    /// [`Error::Unprocessable`] for no month; [`Error::KeyFile`] where a step fails: the next start goes on with it.
    pub fn destroy(&self, month: &str, now: UtcMillis) -> Result<()> {
        let Some(month) = Month::parse(month) else {
            return Err(Error::unprocessable(format!("{month} is no month; write it as 2025-01")));
        };
        self.destroy_month(month, now)
    }

    /// Destroys the keys of months that ended `retention_ms` ago or longer; returns them. Blocks.
    ///
    /// # Errors
    /// As for [`PseudonymKeys::destroy`].
    pub fn destroy_expired(&self, now: UtcMillis, retention_ms: i64) -> Result<Vec<String>> {
        let mut destroyed = Vec::new();
        for live in Self::list(&self.directory)?.into_iter().filter(|month| month.destroyed_at.is_none()) {
            if let Some(month) = Month::parse(&live.month)
                && month.next().start().plus_ms(retention_ms) <= now
            {
                self.destroy_month(month, now)?;
                destroyed.push(live.month);
            }
        }
        Ok(destroyed)
    }

    fn destroy_month(&self, month: Month, now: UtcMillis) -> Result<()> {
        // Nobody reads or makes a key meanwhile.
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let stem = month.file_stem();
        let marker = self.directory.join(format!("{stem}.destroyed"));
        if !marker.try_exists().map_err(key_file("look for", &marker))? {
            let text = serde_json::to_vec(&Marker { destroyed_at: now }).unwrap_or_default();
            let name = format!("{stem}.destroyed");
            write_durably(&self.directory, &name, &text).map_err(key_file("write", &marker))?;
        }
        // From here on no new request has the key; one under way ends with it.
        self.months.write().unwrap_or_else(PoisonError::into_inner).insert(month, MonthKey::Destroyed);
        wipe_month(&self.directory, &stem)
    }
}

/// Finishes destructions that a crash cut short between marker and unlink.
pub(super) fn finish(directory: &Path) -> Result<()> {
    for name in names(directory)? {
        if let Some(stem) = name.strip_suffix(".destroyed").filter(|stem| Month::parse(stem).is_some()) {
            wipe_month(directory, stem)?;
        }
    }
    Ok(())
}

/// Overwrites and unlinks what there is of a month's key, its unfinished file included.
fn wipe_month(directory: &Path, stem: &str) -> Result<()> {
    let mut wiped = false;
    for name in [format!("{stem}.key"), format!("{stem}.key.tmp")] {
        let path = directory.join(name);
        match wipe(&path) {
            Ok(()) => wiped = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::KeyFile { action: "destroy", path, source }),
        }
    }
    match wiped {
        true => sync_directory(directory).map_err(key_file("sync", directory)),
        false => Ok(()),
    }
}

fn wipe(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(KEY_BYTES).clamp(KEY_BYTES, 4096);
    let mut noise = vec![0; length];
    SysRng.try_fill_bytes(&mut noise).map_err(io::Error::other)?;
    file.write_all(&noise)?;
    file.sync_all()?;
    drop(file);
    fs::remove_file(path)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = || key_file("list", directory);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed())? {
        names.push(entry.map_err(failed())?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use twice_log::UserId;

    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn time(text: &str) -> UtcMillis {
        text.parse().expect("valid time")
    }

    fn pseudonym(keys: &PseudonymKeys, at: UtcMillis) -> UserId {
        let user = UserId::new("u_7").expect("valid user");
        let spans = [(at, at)];
        let set = keys.loaded(&spans).unwrap_or_else(|| keys.load(&spans).expect("keys"));
        set.pseudonym(&user, at)
    }

    #[test]
    fn a_destroyed_month_has_no_user_at_once_and_after_a_restart_and_no_new_key() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = PseudonymKeys::open(folder.path()).expect("opens");
        let (january, february) = (time("2025-01-15T12:00:00Z"), time("2025-02-15T12:00:00Z"));
        let kept = pseudonym(&keys, february);
        assert!(!pseudonym(&keys, january).is_empty());
        keys.destroy("2025-01", time("2026-03-01T00:00:00Z")).expect("destroyed");
        assert!(pseudonym(&keys, january).is_empty(), "also where the key was in memory");
        let again = PseudonymKeys::open(folder.path()).expect("opens");
        assert!(pseudonym(&again, january).is_empty());
        assert_eq!(pseudonym(&again, february), kept, "another month's users stay who they are");
        assert!(!folder.path().join("2025-01.key").exists());
        again.destroy("2025-01", time("2026-04-01T00:00:00Z")).expect("again");
        let months = PseudonymKeys::list(folder.path()).expect("lists");
        let january = months.first().expect("january");
        assert_eq!(
            (january.month.as_str(), january.destroyed_at),
            ("2025-01", Some(time("2026-03-01T00:00:00Z")))
        );
        assert_eq!(months.get(1).map(|month| month.destroyed_at), Some(None));
    }

    #[test]
    fn a_death_between_marker_and_unlink_is_finished_at_the_next_start() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = PseudonymKeys::open(folder.path()).expect("opens");
        let january = time("2025-01-15T12:00:00Z");
        pseudonym(&keys, january);
        drop(keys);
        // As after a death at each place: marker alone durable; key half overwritten; unfinished file of a key.
        fs::write(folder.path().join("2025-01.destroyed"), b"").expect("marker");
        fs::write(folder.path().join("2025-01.key.tmp"), b"half").expect("unfinished");
        let again = PseudonymKeys::open(folder.path()).expect("opens");
        assert!(
            !folder.path().join("2025-01.key").exists() && !folder.path().join("2025-01.key.tmp").exists()
        );
        assert!(pseudonym(&again, january).is_empty());
    }

    #[test]
    fn a_death_before_the_marker_destroys_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = PseudonymKeys::open(folder.path()).expect("opens");
        let january = time("2025-01-15T12:00:00Z");
        let before = pseudonym(&keys, january);
        fs::write(folder.path().join("2025-01.destroyed.tmp"), b"{}").expect("unfinished marker");
        let again = PseudonymKeys::open(folder.path()).expect("opens");
        assert_eq!(pseudonym(&again, january), before);
    }

    #[test]
    fn months_expire_so_long_after_their_end() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = PseudonymKeys::open(folder.path()).expect("opens");
        for at in ["2025-01-15T12:00:00Z", "2025-02-15T12:00:00Z", "2025-03-15T12:00:00Z"] {
            pseudonym(&keys, time(at));
        }
        let end = time("2025-02-01T00:00:00Z");
        assert!(
            keys.destroy_expired(end.plus_ms(400 * DAY_MS - 1), 400 * DAY_MS).expect("looked").is_empty()
        );
        assert_eq!(
            keys.destroy_expired(end.plus_ms(428 * DAY_MS), 400 * DAY_MS).expect("done"),
            ["2025-01", "2025-02"]
        );
        assert!(keys.destroy_expired(end.plus_ms(428 * DAY_MS), 400 * DAY_MS).expect("done").is_empty());
        assert!(folder.path().join("2025-03.key").exists());
    }

    #[test]
    fn what_is_no_month_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = PseudonymKeys::open(folder.path()).expect("opens");
        for text in ["", "2025", "2025-13", "2025-1", "../x", "ip.salt", "2025-00"] {
            assert!(keys.destroy(text, time("2026-01-01T00:00:00Z")).is_err(), "{text}");
        }
    }
}
