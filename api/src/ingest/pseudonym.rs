//! Pseudonyms of users and hashes of addresses, made at the door before anything is stored.
//!
//! Guarantee: a key is durable on disk before a pseudonym made with it is used, so no restart gives a user a second
//! pseudonym within a month. Words: *month key* = 32 random bytes for one UTC month of event time, in `YYYY-MM.key`;
//! *destroyed* = the marker `YYYY-MM.destroyed` exists: clicks of that month store `user_id` empty for ever.
//! Flow: [`PseudonymKeys::loaded`] once a request, or [`PseudonymKeys::load`] where a month is not in memory yet, then
//! [`KeySet::pseudonym`] a click.

mod destroy;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Datelike, NaiveDate};
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};
use twice_log::event::IpHash;
use twice_log::{UserId, UtcMillis};

use crate::error::{Error, Result};

pub use destroy::MonthOfKeys;

const KEY_BYTES: usize = 32;
const SALT_FILE: &str = "ip.salt";

/// One UTC month, counted from year 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Month(i32);

impl Month {
    fn of(time: UtcMillis) -> Self {
        let date = DateTime::from_timestamp_millis(time.epoch_ms()).unwrap_or_default();
        Self(date.year() * 12 + date.month0() as i32) // month0 is 0 to 11
    }

    fn start(self) -> UtcMillis {
        let month = self.0.rem_euclid(12) as u32 + 1;
        let midnight = NaiveDate::from_ymd_opt(self.0.div_euclid(12), month, 1)
            .and_then(|date| date.and_hms_opt(0, 0, 0))
            .map_or(i64::MAX, |midnight| midnight.and_utc().timestamp_millis());
        UtcMillis::clamped(midnight)
    }

    fn next(self) -> Self {
        Self(self.0 + 1)
    }

    fn file_stem(self) -> String {
        format!("{:04}-{:02}", self.0.div_euclid(12), self.0.rem_euclid(12) + 1)
    }
}

/// Key of one month, ready to use.
#[derive(Clone)]
enum MonthKey {
    /// HMAC with the key already absorbed: a pseudonym then costs two compressions.
    Live(Arc<Hmac<Sha256>>),
    Destroyed,
}

/// The keys of one request: those of every month its clicks may lie in.
pub(crate) struct KeySet {
    /// (first moment, first moment after, key), in order of time.
    months: Vec<(UtcMillis, UtcMillis, MonthKey)>,
}

impl KeySet {
    /// Returns the pseudonym of `user` at `event_time`; empty for no user, and where the month's key is destroyed.
    ///
    /// HMAC-SHA-256 under the month key, first 16 bytes, base64url without padding: 22 characters. `event_time` MUST
    /// lie in a month the set was made for; elsewhere there is no key and the pseudonym is empty.
    pub fn pseudonym(&self, user: &UserId, event_time: UtcMillis) -> UserId {
        let after = self.months.partition_point(|(start, ..)| *start <= event_time);
        let key = after.checked_sub(1).map(|at| &self.months[at]).filter(|(_, end, _)| event_time < *end);
        debug_assert!(key.is_some(), "the door's limits bound the months of keys");
        match key {
            Some((_, _, MonthKey::Live(keyed))) if !user.is_empty() => {
                let mut hmac = Hmac::<Sha256>::clone(keyed);
                hmac.update(user.as_str().as_bytes());
                let digest = hmac.finalize().into_bytes();
                let mut text = [0; 22]; // 16 bytes without padding, on the stack: one of these a click
                let written = URL_SAFE_NO_PAD.encode_slice(first_16(&digest), &mut text).unwrap_or(0);
                // Base64 is visible ASCII and 22 bytes long: always an identifier.
                let text = std::str::from_utf8(&text[..written]).unwrap_or_default();
                UserId::new(text).unwrap_or_default()
            }
            _ => UserId::default(),
        }
    }
}

/// The folder of month keys and the address salt.
pub struct PseudonymKeys {
    directory: PathBuf,
    /// SHA-256 with the salt already absorbed.
    salted: Sha256,
    months: RwLock<BTreeMap<Month, MonthKey>>,
    /// Held while a key is read or made, so that a month never gets two.
    making: Mutex<()>,
}

impl PseudonymKeys {
    /// Opens the folder, making it and the address salt where they do not exist. Blocks.
    ///
    /// # Errors
    /// [`Error::KeyFile`] where the folder cannot be used, [`Error::KeyDamaged`] where a file has the wrong length.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let directory = directory.into();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(key_file("create", &directory))?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent).map_err(key_file("sync", parent))?;
        }
        destroy::finish(&directory)?;
        let salt = read_or_make(&directory, SALT_FILE)?;
        let months = RwLock::default();
        Ok(Self { directory, salted: Sha256::new_with_prefix(salt), months, making: Mutex::new(()) })
    }

    /// Returns the keys of every month that one of `spans` (both ends included) touches, if all are in memory.
    pub(crate) fn loaded(&self, spans: &[(UtcMillis, UtcMillis)]) -> Option<KeySet> {
        let loaded = self.months.read().unwrap_or_else(PoisonError::into_inner);
        let months = months_of(spans)
            .into_iter()
            .map(|month| Some((month.start(), month.next().start(), loaded.get(&month)?.clone())))
            .collect::<Option<Vec<_>>>()?;
        Some(KeySet { months })
    }

    /// Returns the keys of every month that one of `spans` touches, reading or making those not in memory. Blocks.
    ///
    /// # Errors
    /// As [`PseudonymKeys::open`].
    pub(crate) fn load(&self, spans: &[(UtcMillis, UtcMillis)]) -> Result<KeySet> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let mut months = Vec::new();
        for month in months_of(spans) {
            let loaded = self.months.read().unwrap_or_else(PoisonError::into_inner).get(&month).cloned();
            let key = match loaded {
                Some(key) => key,
                None => self.load_month(month)?,
            };
            months.push((month.start(), month.next().start(), key));
        }
        Ok(KeySet { months })
    }

    /// Returns the stored form of a sender's address: salted SHA-256, first 16 bytes.
    pub(crate) fn ip_hash(&self, address: IpAddr) -> IpHash {
        let mut hasher = self.salted.clone();
        match address.to_canonical() {
            IpAddr::V4(address) => hasher.update(address.octets()),
            IpAddr::V6(address) => hasher.update(address.octets()),
        }
        first_16(&hasher.finalize())
    }

    fn load_month(&self, month: Month) -> Result<MonthKey> {
        let stem = month.file_stem();
        let marker = self.directory.join(format!("{stem}.destroyed"));
        let key = if marker.try_exists().map_err(key_file("look for", &marker))? {
            MonthKey::Destroyed
        } else {
            // HMAC fills a key shorter than its block with zeros.
            let mut block = [0; 64];
            block[..KEY_BYTES].copy_from_slice(&read_or_make(&self.directory, &format!("{stem}.key"))?);
            MonthKey::Live(Arc::new(Hmac::<Sha256>::new(&block.into())))
        };
        self.months.write().unwrap_or_else(PoisonError::into_inner).insert(month, key.clone());
        Ok(key)
    }
}

fn months_of(spans: &[(UtcMillis, UtcMillis)]) -> BTreeSet<Month> {
    let mut months = BTreeSet::new();
    let mut covered = UtcMillis::clamped(i64::MIN)..UtcMillis::clamped(i64::MIN);
    for (from, to) in spans {
        if covered.contains(from) && covered.contains(to) {
            continue; // thousands of hours of an import lie in the same few months
        }
        let last = Month::of(*to);
        months.extend(std::iter::successors(Some(Month::of(*from)), |month| {
            Some(month.next()).filter(|next| *next <= last)
        }));
        covered = last.start()..last.next().start();
    }
    months
}

fn first_16(digest: &[u8]) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&digest[..16]); // a SHA-256 digest has 32 bytes
    first
}

fn read_or_make(directory: &Path, name: &str) -> Result<[u8; KEY_BYTES]> {
    let path = directory.join(name);
    match fs::read(&path) {
        Ok(bytes) => {
            let length = bytes.len();
            bytes.try_into().map_err(|_| Error::KeyDamaged { path, bytes: length, expected: KEY_BYTES })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; KEY_BYTES];
            let filled = SysRng.try_fill_bytes(&mut key).map_err(io::Error::other);
            filled.map_err(key_file("draw random bytes for", &path))?;
            write_durably(directory, name, &key).map_err(key_file("write", &path))?;
            Ok(key)
        }
        Err(source) => Err(Error::KeyFile { action: "read", path, source }),
    }
}

/// Writes a file so that after any crash it is there whole or not at all.
fn write_durably(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.tmp"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

fn key_file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::KeyFile { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn time(text: &str) -> UtcMillis {
        text.parse().expect("valid time")
    }

    fn user(text: &str) -> UserId {
        UserId::new(text).expect("valid user")
    }

    #[test]
    fn a_pseudonym_is_the_same_after_a_restart_and_differs_by_month() {
        let folder = tempfile::tempdir().expect("folder");
        let (january, february) = (time("2025-01-31T23:59:59.999Z"), time("2025-02-01T00:00:00Z"));
        let pseudonym = |event_time| {
            let keys = PseudonymKeys::open(folder.path().join("keys")).expect("opens");
            assert!(keys.loaded(&[(january, february)]).is_none());
            let set = keys.load(&[(january, february)]).expect("keys");
            assert!(keys.loaded(&[(january, february)]).is_some());
            set.pseudonym(&user("u_7"), event_time)
        };
        assert_eq!(pseudonym(january), pseudonym(january));
        assert_ne!(pseudonym(january), pseudonym(february));
        assert_eq!(pseudonym(january).as_str().len(), 22);
        assert_ne!(pseudonym(january).as_str(), "u_7");
    }

    #[test]
    fn a_destroyed_month_and_an_absent_user_give_no_pseudonym() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("2025-01.destroyed"), b"").expect("marker");
        let keys = PseudonymKeys::open(folder.path()).expect("opens");
        let (january, february) = (time("2025-01-15T12:00:00Z"), time("2025-02-15T12:00:00Z"));
        let set = keys.load(&[(january, february)]).expect("keys");
        assert!(set.pseudonym(&user("u_7"), january).is_empty());
        assert!(!set.pseudonym(&user("u_7"), february).is_empty());
        assert!(set.pseudonym(&UserId::default(), february).is_empty());
        assert!(!folder.path().join("2025-01.key").exists(), "a destroyed month gets no new key");
    }

    #[test]
    fn key_files_are_for_the_owner_alone_and_leave_no_temporary_file() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = PseudonymKeys::open(folder.path().join("keys")).expect("opens");
        let now = time("2025-01-15T12:00:00Z");
        keys.load(&[(now, now)]).expect("keys");
        let mut names: Vec<String> = Vec::new();
        for entry in fs::read_dir(folder.path().join("keys")).expect("lists") {
            let entry = entry.expect("entry");
            assert_eq!(entry.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        assert_eq!(names, ["2025-01.key", "ip.salt"]);
    }

    #[test]
    fn a_cut_key_file_is_damage_and_never_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = PseudonymKeys::open(folder.path()).expect("opens");
        fs::write(folder.path().join("2025-01.key"), b"short").expect("cut file");
        let now = time("2025-01-15T12:00:00Z");
        assert!(matches!(keys.load(&[(now, now)]), Err(Error::KeyDamaged { bytes: 5, .. })));
        assert_eq!(fs::read(folder.path().join("2025-01.key")).expect("reads"), b"short");
    }

    #[test]
    fn addresses_hash_alike_however_they_are_written() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = PseudonymKeys::open(folder.path()).expect("opens");
        let plain: IpAddr = "192.0.2.7".parse().expect("address");
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().expect("address");
        assert_eq!(keys.ip_hash(plain), keys.ip_hash(mapped));
        assert_ne!(keys.ip_hash(plain), keys.ip_hash("192.0.2.8".parse().expect("address")));
    }
}
