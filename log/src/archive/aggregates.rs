//! Aggregates of a billed hour in the archive: Parquet files named by their bytes, and one list of them a run.
//!
//! Guarantee: a run's list is put after every file it names and never changes, so whoever has the list can read the
//! files. Runs that count the same write the same files. Words: *level* = what one row sums up. The columns are in
//! `twice_store::aggregates`, as the sketch of users is.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::store::object_path;
use super::{Archive, BillingPath, PutOutcome, layout};
use crate::error::{Error, Result};
use crate::event::{CampaignId, Hour, Sha256Hex};

/// What one row of aggregates sums up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AggregateLevel {
    /// One minute of one ad.
    AdMinutes,
    /// The hour of one ad.
    AdHours,
    /// The hour of one campaign; `ad_id` is null.
    CampaignHours,
}

impl AggregateLevel {
    /// Every level.
    pub const ALL: [AggregateLevel; 3] =
        [AggregateLevel::AdMinutes, AggregateLevel::AdHours, AggregateLevel::CampaignHours];

    /// Returns the name as it stands in paths and lists.
    pub fn name(self) -> &'static str {
        match self {
            AggregateLevel::AdMinutes => "ad-minutes",
            AggregateLevel::AdHours => "ad-hours",
            AggregateLevel::CampaignHours => "campaign-hours",
        }
    }
}

/// Names a run: `{path}/{hour}/{seq:06}`, as rows carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunKey {
    pub path: BillingPath,
    pub hour: Hour,
    pub seq: u32,
}

impl fmt::Display for RunKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{:06}", self.path, self.hour, self.seq)
    }
}

/// The text names no run.
#[derive(Debug, thiserror::Error)]
#[error("is not PATH/HOUR/NUMBER")]
pub struct RunKeyError;

impl FromStr for RunKey {
    type Err = RunKeyError;
    fn from_str(text: &str) -> Result<Self, RunKeyError> {
        let mut parts = text.split('/');
        let path = parts.next().and_then(BillingPath::from_name);
        let hour = parts.next().and_then(|hour| hour.parse().ok());
        let seq = parts.next().and_then(|seq| seq.parse().ok());
        let key = path.zip(hour).zip(seq).map(|((path, hour), seq)| Self { path, hour, seq });
        // Only our own form counts.
        key.filter(|key| key.to_string() == text).ok_or(RunKeyError)
    }
}

/// One file of aggregates. A campaign's rows may go on in the next file of the same level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AggregateFile {
    pub level: AggregateLevel,
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
    pub sha256: Sha256Hex,
    /// Lowest campaign in the file.
    pub campaign_first: CampaignId,
    /// Highest campaign in the file, inclusive.
    pub campaign_last: CampaignId,
}

/// The files one run wrote, by level and campaign; put if absent as `aggregates/{path}/{hour}/{seq:06}.json` before
/// the run commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AggregateSet {
    pub path: BillingPath,
    pub hour: Hour,
    pub seq: u32,
    /// Empty where no campaign has a copy in the hour.
    pub files: Vec<AggregateFile>,
}

impl Archive {
    /// Puts a file of aggregates if it is not there. Two runs that count the same meet here, and the first one's stands.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails; `ArchiveDamage` if other bytes stand at its path.
    pub async fn put_aggregate_file(&self, path: &str, bytes: Bytes) -> Result<()> {
        match self.put_if_absent(path, bytes.clone()).await? {
            PutOutcome::Exists(stored) if stored != bytes => Err(Error::ArchiveDamage {
                path: path.to_owned(),
                reason: "is there with other bytes than its name says; move it away and run the hour again"
                    .to_owned(),
            }),
            PutOutcome::Put | PutOutcome::Exists(_) => Ok(()),
        }
    }

    /// Puts a run's list of files if it has none; returns the one that stands. MUST be called after the files are put.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails; `ArchiveDamage` if what stands is not the list of this run.
    pub async fn put_aggregate_set(&self, set: &AggregateSet) -> Result<AggregateSet> {
        let key = RunKey { path: set.path, hour: set.hour, seq: set.seq };
        let path = layout::aggregate_set_path(key);
        let (stored, _) = self.put_json(&path, set).await?;
        checked(&path, key, stored)
    }

    /// Returns a run's list of files; `None` if it wrote none.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails; `ArchiveDamage` if what stands is not the list of this run.
    pub async fn aggregate_set(&self, key: RunKey) -> Result<Option<AggregateSet>> {
        let path = layout::aggregate_set_path(key);
        let found = self.get_json(&path).await?;
        found.map(|(stored, _)| checked(&path, key, stored)).transpose()
    }

    /// Returns byte ranges of an object, `None` if it is not there.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails or a range lies outside the object.
    pub async fn get_ranges(
        &self,
        path: &str,
        ranges: &[std::ops::Range<u64>],
    ) -> Result<Option<Vec<Bytes>>> {
        match self.store().get_ranges(&object_path(path)?, ranges).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if super::store::is_absent(&error) => Ok(None),
            Err(source) => Err(super::store::store_error("get ranges of", path, source)),
        }
    }
}

fn checked(path: &str, key: RunKey, set: AggregateSet) -> Result<AggregateSet> {
    if (set.path, set.hour, set.seq) == (key.path, key.hour, key.seq) {
        Ok(set)
    } else {
        Err(Error::ArchiveDamage {
            path: path.to_owned(),
            reason: "is not the object its path says".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_as_its_rows_name_it() {
        let key =
            RunKey { path: BillingPath::Lambda, hour: "2025-01-15T12".parse().expect("valid hour"), seq: 3 };
        assert_eq!(key.to_string(), "lambda/2025-01-15T12/000003");
        assert_eq!(key.to_string().parse::<RunKey>().expect("a name"), key);
        for other in ["lambda/2025-01-15T12/3", "lambda/2025-01-15T12", "x/2025-01-15T12/000003", ""] {
            assert!(other.parse::<RunKey>().is_err(), "{other}");
        }
    }
}
