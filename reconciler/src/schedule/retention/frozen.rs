//! Which hours can no longer be counted, because something they would read was deleted.

use std::collections::BTreeSet;

use twice_log::Hour;
use twice_log::archive::{Archive, Grave, TombstoneKey, is_stray, layout};

use crate::error::{Error, Result};

/// Verdicts that arrived more hours before an hour than this are not asked by its runs (CR-10).
const VERDICT_HOURS_BEFORE: i64 = 24;

/// How far deletions reach, for hours from a first one on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reach {
    horizon: i64,
    /// Hours with tombstones.
    clicks: BTreeSet<Hour>,
    verdicts: BTreeSet<Hour>,
    settled: BTreeSet<Hour>,
}

impl Reach {
    /// Reads what concerns hours from `from` on, counted with a horizon of so many hours. Lists keys alone, and only
    /// those of about these hours: tombstones of seven years are many.
    ///
    /// # Errors
    /// `Log` if the archive does not answer, or an object among the tombstones is none.
    pub async fn read(archive: &Archive, from: Hour, horizon_hours: u32) -> Result<Self> {
        let horizon = i64::from(horizon_hours);
        let clicks = buried(archive, Grave::AdClicks, from.plus(-horizon)).await?;
        let verdicts = buried(archive, Grave::FraudVerdicts, from.plus(-VERDICT_HOURS_BEFORE)).await?;
        let settled = settled_hours(archive, from).await?;
        Ok(Self { horizon, clicks, verdicts, settled })
    }

    /// Returns why a run of the hour cannot be made; `None` where it can.
    pub fn why(&self, hour: Hour) -> Option<String> {
        self.why_unreadable(hour).or_else(|| {
            let path = layout::settled_path(hour);
            self.settled
                .contains(&hour)
                .then(|| format!("its bill was settled for good by retention ({path})"))
        })
    }

    /// Returns what of the files that a run of the hour reads was deleted.
    fn why_unreadable(&self, hour: Hour) -> Option<String> {
        let around = hour.plus(-self.horizon)..=hour.plus(self.horizon);
        if let Some(gone) = self.clicks.range(around).next() {
            let tombstone = path(Grave::AdClicks, *gone);
            return Some(format!(
                "clicks of {gone}, which it reads, were deleted under retention ({tombstone})"
            ));
        }
        if let Some(gone) = self.verdicts.range(hour.plus(-VERDICT_HOURS_BEFORE)..).next() {
            let tombstone = path(Grave::FraudVerdicts, *gone);
            let reason = format!(
                "verdicts that arrived in {gone}, which it reads, were deleted under retention ({tombstone})"
            );
            return Some(reason);
        }
        None
    }

    /// Refuses to read again what a run of the hour has read, where something of it is deleted.
    ///
    /// # Errors
    /// `Frozen`, with the reason.
    pub fn check_readable(&self, hour: Hour) -> Result<()> {
        self.why_unreadable(hour).map_or(Ok(()), |reason| Err(Error::Frozen { hour, reason }))
    }

    /// Refuses to count an hour that is frozen.
    ///
    /// # Errors
    /// `Frozen`, with the reason.
    pub fn check(&self, hour: Hour) -> Result<()> {
        self.why(hour).map_or(Ok(()), |reason| Err(Error::Frozen { hour, reason }))
    }

    /// Returns whether clicks of the hour were deleted.
    pub fn has_buried_clicks(&self, hour: Hour) -> bool {
        self.clicks.contains(&hour)
    }

    /// Returns whether the hour's bill is in the archive for good.
    pub fn is_settled(&self, hour: Hour) -> bool {
        self.settled.contains(&hour)
    }
}

fn path(grave: Grave, hour: Hour) -> String {
    layout::tombstone_path(TombstoneKey { grave, hour, number: 1 })
}

/// Lists the hours from `from` on that have a tombstone of this kind.
async fn buried(archive: &Archive, grave: Grave, from: Hour) -> Result<BTreeSet<Hour>> {
    // Behind every key of the hour before, whatever its number.
    let after = format!("{}/{}.z", layout::tombstone_folder(grave), from.plus(-1));
    let mut hours = BTreeSet::new();
    for object in archive.list(&layout::tombstone_folder(grave), Some(&after)).await? {
        let path = object.location.to_string();
        match layout::parse_tombstone_path(&path) {
            Some((key, _)) => hours.insert(key.hour),
            None if is_stray(&object) => continue,
            None => {
                return Err(Error::ArchiveDamage { path, reason: "is no tombstone's path".to_owned() });
            }
        };
    }
    Ok(hours)
}

/// Lists the settled hours from `from` on.
async fn settled_hours(archive: &Archive, from: Hour) -> Result<BTreeSet<Hour>> {
    let after = layout::settled_path(from.plus(-1));
    let mut hours = BTreeSet::new();
    for object in archive.list(layout::SETTLED_FOLDER, Some(&after)).await? {
        let path = object.location.to_string();
        match layout::parse_settled_path(&path) {
            Some(hour) => hours.insert(hour),
            None if is_stray(&object) => continue,
            None => {
                return Err(Error::ArchiveDamage { path, reason: "is no settled hour's path".to_owned() });
            }
        };
    }
    Ok(hours)
}
