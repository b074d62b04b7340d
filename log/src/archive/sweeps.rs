//! Records of sweeps: up to where stored verdicts were looked at for hours that are billed already (CR-9, CR-10).
//!
//! Guarantee: a record is put when the run of every hour its sweep touched has ended, and not before, and names the hours
//! whose run failed; so what lies below the newest record's ends needs no second look, after any crash. Records are
//! numbered from 1, each put once.

use serde::{Deserialize, Serialize};

use super::{Archive, layout};
use crate::error::{Error, Result};
use crate::event::{Generation, Hour, LogOffset, PartitionId, UtcMillis};

/// The end up to which one partition's verdicts were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweptEnd {
    pub generation: Generation,
    pub partition: PartitionId,
    pub end: LogOffset,
}

/// One finished sweep, put if absent as `sweeps/{seq:08}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepRecord {
    pub seq: u32,
    /// When it looked: rates and clicks recorded later are left to the next one.
    pub begun_at: UtcMillis,
    pub verdict_ends: Vec<SweptEnd>,
    /// Verdicts it looked at, and those of them whose click was not found: any later run of its hour finds it.
    pub verdicts: u64,
    pub verdicts_without_click: u64,
    /// Hours it had run again.
    pub hours: Vec<Hour>,
    /// Hours whose run failed: the next sweep has them run, whatever else it finds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owed: Vec<Hour>,
    /// Hours of this and every earlier sweep with events that came too late: what they would be counted from is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Hour>,
}

impl Archive {
    /// Puts the record of a sweep if its number is free; returns the one that stands.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails; `ArchiveDamage` if what stands is no record of this number.
    pub async fn put_sweep(&self, record: &SweepRecord) -> Result<SweepRecord> {
        let path = layout::sweep_path(record.seq);
        let (stored, _) = self.put_json(&path, record).await?;
        checked(path, record.seq, stored)
    }

    /// Returns the newest sweep's record, or `None` before the first.
    ///
    /// # Errors
    /// `ArchiveDamage` if a number is missing or an object is no such record.
    pub async fn newest_sweep(&self) -> Result<Option<SweepRecord>> {
        let count = self.list(layout::SWEEPS_FOLDER, None).await?.len();
        let Ok(seq @ 1..) = u32::try_from(count) else { return Ok(None) };
        let path = layout::sweep_path(seq);
        match self.get_json(&path).await? {
            Some((record, _)) => checked(path, seq, record).map(Some),
            None => Err(Error::ArchiveDamage { path, reason: "is missing".to_owned() }),
        }
    }
}

fn checked(path: String, seq: u32, record: SweepRecord) -> Result<SweepRecord> {
    if record.seq == seq {
        Ok(record)
    } else {
        Err(Error::ArchiveDamage { path, reason: "is not the object its path says".to_owned() })
    }
}
