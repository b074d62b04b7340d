//! Where a partition that lost its state goes on from, when the log no longer holds all it has to count: the archive.
//!
//! Guarantee: hours that are neither sealed nor older than a week get the counts of a partition that never lost its
//! state. What cannot be had is said: the hours it may concern are incomplete (G-5).
//!
//! Bound: a rebuild without any checkpoint does not go back to offset 0. The seal of a closed hour stands in the archive
//! and is never made again, so its copies matter only where an identity of an open hour may be among them: within the
//! dedup horizon. So reading begins with the first manifest that holds a copy of the first hour to be counted, or of the
//! hours within the horizon below it. Hours before that are closed to counting: a count from a part of an hour would
//! replace a full one. An hour unsealed for a week is not coming back either: no click of it is taken any more (CR-7).
//! With a checkpoint, though an old one, nothing is left to choose: reading begins where it ends.

use std::collections::{BTreeSet, VecDeque};

use async_trait::async_trait;
use twice_log::archive::layout::ChainKey;
use twice_log::archive::{Archive, FileEntry, FileKind, Manifest, StoredManifest, StoredSeal};
use twice_log::event::HOUR_MS;
use twice_log::{ClickCopy, Generation, Hour, LogOffset, PartitionId, Topic, UtcMillis, Watermark};

use crate::campaign::StreamRules;

/// Hours left unsealed for longer are not rebuilt.
const REBUILT_HOURS_MAX: i64 = 7 * 24;

/// The archive as a partition that rebuilds its state needs it.
#[async_trait]
pub trait ClickHistory: Send + Sync + 'static {
    /// Returns every manifest of a partition's clicks in order, links checked.
    async fn manifests(
        &self,
        generation: Generation,
        partition: PartitionId,
    ) -> twice_log::Result<Vec<StoredManifest>>;

    /// Returns the copies in one data file, in any order.
    async fn clicks(&self, entry: &FileEntry) -> twice_log::Result<Vec<ClickCopy>>;
}

#[async_trait]
impl ClickHistory for Archive {
    async fn manifests(
        &self,
        generation: Generation,
        partition: PartitionId,
    ) -> twice_log::Result<Vec<StoredManifest>> {
        let chain = ChainKey { topic: Topic::AdClicks, generation, partition };
        Archive::manifests(self, chain, None).await
    }

    async fn clicks(&self, entry: &FileEntry) -> twice_log::Result<Vec<ClickCopy>> {
        self.read_clicks(entry, None).await
    }
}

/// Manifests to read before the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArchivedRange {
    /// First offset wanted.
    pub(super) from: LogOffset,
    /// In order; the first holds `from`, the last reaches into the log.
    pub(super) manifests: VecDeque<Manifest>,
}

/// Where to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Beginning {
    pub(super) applied_end: LogOffset,
    pub(super) watermark: Watermark,
    /// Hours up to this one are not rebuilt.
    pub(super) lost_through: Option<Hour>,
    pub(super) archived: Option<ArchivedRange>,
}

/// What a partition without all of its history knows.
pub(super) struct Remains<'a> {
    pub(super) manifests: Vec<StoredManifest>,
    pub(super) seals: &'a [StoredSeal],
    /// First offset in the log.
    pub(super) earliest: LogOffset,
    pub(super) rules: StreamRules,
    pub(super) disorder_ms: i64,
}

impl Remains<'_> {
    /// Goes on from a checkpoint that ends at `applied_end`, below the log; `None` if the archive does not reach the log.
    pub(super) fn go_on(&self, applied_end: LogOffset, watermark: Watermark) -> Option<Beginning> {
        let archived = self.range_from(applied_end)?;
        Some(Beginning { applied_end, watermark, lost_through: None, archived: Some(archived) })
    }

    /// Begins without any checkpoint; `None` if the archive does not reach the log.
    pub(super) fn begin(&self) -> Option<Beginning> {
        let last = self.manifests.last().filter(|last| last.end() >= self.earliest)?;
        let newest = last.manifest.highest_time;
        let late_below = self.rules.late_below(Watermark::new(newest, self.disorder_ms).at_next());
        let hours: BTreeSet<Hour> = self.manifests.iter().flat_map(click_hours).collect();
        let sealed: BTreeSet<Hour> = self.seals.iter().map(|stored| stored.seal.hour).collect();
        let oldest = newest.map(|newest| newest.hour().plus(-REBUILT_HOURS_MAX));
        let open = hours.difference(&sealed).copied().find(|hour| Some(*hour) >= oldest);
        // What is in the log alone is not late at the archive's end.
        let counted_from = open.into_iter().chain(late_below.map(|time| time.hour())).min();
        let Some(counted_from) = counted_from else {
            // Archived, and not one click among it.
            return self.begin_at(LogOffset(0), None);
        };
        let horizon_hours = self.rules.dedup_ms().div_euclid(HOUR_MS) + 1;
        let read_from = counted_from.plus(-horizon_hours);
        let first = self.manifests.iter().find(|stored| click_hours(stored).any(|hour| hour >= read_from));
        let applied_end = first.map_or(last.end(), |stored| stored.manifest.first);
        let lost_through = hours.range(..counted_from).next_back().copied();
        self.begin_at(applied_end, lost_through)
    }

    fn begin_at(&self, applied_end: LogOffset, lost_through: Option<Hour>) -> Option<Beginning> {
        let before = self.manifests.iter().take_while(|stored| stored.end() <= applied_end).last();
        let highest = before.and_then(|stored| stored.manifest.highest_time);
        let watermark = Watermark::new(highest, self.disorder_ms);
        let archived = match applied_end < self.earliest {
            true => Some(self.range_from(applied_end)?),
            false => None,
        };
        Some(Beginning { applied_end, watermark, lost_through, archived })
    }

    fn range_from(&self, from: LogOffset) -> Option<ArchivedRange> {
        let needed = |stored: &&StoredManifest| stored.end() > from && stored.manifest.first < self.earliest;
        let manifests: VecDeque<Manifest> =
            self.manifests.iter().filter(needed).map(|stored| stored.manifest.clone()).collect();
        let reaches = manifests.front().is_some_and(|first| first.first <= from)
            && manifests.back().is_some_and(|last| last.last.next() >= self.earliest);
        reaches.then_some(ArchivedRange { from, manifests })
    }
}

fn click_hours(stored: &StoredManifest) -> impl Iterator<Item = Hour> {
    let clicks = stored.manifest.files.iter().filter(|file| file.kind == FileKind::Clicks);
    clicks.filter_map(|file| file.hour)
}

/// Returns the latest hour that a copy appended before `now` can belong to, rounded up well.
pub(super) fn latest_hour(now: UtcMillis) -> Hour {
    // Event times may lie five minutes ahead of the clock (CR-7).
    now.plus_ms(HOUR_MS).hour()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use twice_log::archive::{CountingSettings, Seal};
    use twice_log::event::{PARTITION_HASH_NAME, Sha256Hex};

    use super::*;

    const NOON: i64 = 482_484; // hours since the epoch

    fn hour(after_noon: i64) -> Hour {
        Hour::from_since_epoch(NOON + after_noon)
    }

    /// A manifest of 100 offsets with copies of the hours given.
    fn manifest(first: i64, hours: &[i64]) -> StoredManifest {
        let file = |after_noon: &i64| FileEntry {
            path: format!("clicks/{after_noon}"),
            bucket: String::new(),
            hour: Some(hour(*after_noon)),
            kind: FileKind::Clicks,
            rows: 1,
            bytes: 1,
            sha256: Sha256Hex::of(b""),
        };
        let newest = hours.iter().max().map(|newest| hour(*newest).start().plus_ms(1_800_000));
        let manifest = Manifest {
            topic: Topic::AdClicks,
            generation: Generation(0),
            partition: PartitionId(0),
            partition_count: 1,
            hash_name: PARTITION_HASH_NAME.to_owned(),
            first: LogOffset(first),
            last: LogOffset(first + 99),
            previous_sha256: None,
            highest_time: newest,
            files: hours.iter().map(file).collect(),
        };
        StoredManifest { manifest, sha256: Sha256Hex::of(b"") }
    }

    fn seal(after_noon: i64) -> StoredSeal {
        let seal = Seal {
            hour: hour(after_noon),
            generation: Generation(0),
            partition: PartitionId(0),
            end: LogOffset(0),
            complete: true,
            counts: BTreeMap::new(),
        };
        StoredSeal { seal, sha256: Sha256Hex::of(b"") }
    }

    fn remains(manifests: Vec<StoredManifest>, seals: &[StoredSeal], earliest: i64) -> Remains<'_> {
        let settings = CountingSettings::default();
        let rules = StreamRules::new(&settings);
        let disorder_ms = settings.disorder_ms;
        Remains { manifests, seals, earliest: LogOffset(earliest), rules, disorder_ms }
    }

    fn day() -> Vec<StoredManifest> {
        (0..10).map(|number| manifest(number * 100, &[number])).collect()
    }

    #[test]
    fn sealed_hours_are_read_only_as_far_as_the_horizon_reaches() {
        let seals: Vec<StoredSeal> = (0..8).map(seal).collect();
        let beginning = remains(day(), &seals, 950).begin().expect("the archive has it all");
        // Open: 8 and 9. Within the horizon of 8: 7.
        assert_eq!(beginning.applied_end, LogOffset(700));
        assert_eq!(beginning.lost_through, Some(hour(7)));
        assert_eq!(beginning.watermark.highest(), Some(hour(6).start().plus_ms(1_800_000)));
        let archived = beginning.archived.expect("below the log");
        assert_eq!((archived.from, archived.manifests.len()), (LogOffset(700), 3));
    }

    #[test]
    fn an_open_hour_is_read_from_its_first_copy_however_far_back() {
        let seals: Vec<StoredSeal> = (0..9).filter(|hour| *hour != 2).map(seal).collect();
        let mut manifests = day();
        manifests[0] = manifest(0, &[0, 1]);
        let beginning = remains(manifests, &seals, 950).begin().expect("the archive has it all");
        assert_eq!(beginning.applied_end, LogOffset(0));
        assert_eq!(beginning.lost_through, Some(hour(1)));
    }

    #[test]
    fn an_hour_left_open_for_more_than_a_week_is_not_read_again() {
        let mut manifests = day();
        manifests.push(manifest(1_000, &[REBUILT_HOURS_MAX + 5]));
        let beginning = remains(manifests, &[], 1_050).begin().expect("the archive has it all");
        assert_eq!(beginning.applied_end, LogOffset(400));
        assert_eq!(beginning.lost_through, Some(hour(4)));
    }

    #[test]
    fn an_archive_that_does_not_reach_the_log_is_no_history() {
        assert_eq!(remains(day(), &[], 1_001).begin(), None);
        assert_eq!(remains(Vec::new(), &[], 1).begin(), None);
        let watermark = Watermark::new(None, 0);
        assert_eq!(remains(day(), &[], 1_001).go_on(LogOffset(300), watermark), None);
        assert!(remains(day(), &[], 1_000).go_on(LogOffset(300), watermark).is_some());
    }

    #[test]
    fn a_checkpoint_goes_on_exactly_where_it_ends() {
        let watermark = Watermark::new(Some(hour(3).start()), 5_000);
        let beginning = remains(day(), &[], 700).go_on(LogOffset(350), watermark).expect("archived");
        assert_eq!((beginning.applied_end, beginning.lost_through), (LogOffset(350), None));
        let archived = beginning.archived.expect("below the log");
        assert_eq!((archived.from, archived.manifests.len()), (LogOffset(350), 4));
    }
}
