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
use twice_log::archive::layout::{ChainKey, manifest_folder, parse_manifest_path};
use twice_log::archive::{Archive, FileEntry, FileKind, Manifest, StoredManifest, StoredSeal};
use twice_log::event::HOUR_MS;
use twice_log::{ClickCopy, Generation, Hour, LogOffset, PartitionId, Topic, UtcMillis, Watermark};

use crate::campaign::StreamRules;

/// Hours left unsealed for longer are not rebuilt.
const REBUILT_HOURS_MAX: i64 = 7 * 24;

/// Clicks are dated ahead of their arrival by less: the bound of the setting, twice.
const AHEAD_HOURS_MAX: i64 = 2 * 24;

/// Which manifests are wanted: a chain may be years long. Where none lies so low, all are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestsFrom {
    /// From the one that holds this offset on.
    Offset(LogOffset),
    /// Those that reach into this much event time below the newest, and the one before them.
    Recent { ms: i64 },
}

/// The archive as a partition that rebuilds its state needs it.
#[async_trait]
pub trait ClickHistory: Send + Sync + 'static {
    /// Returns manifests of a partition's clicks in order up to the last, links checked.
    async fn manifests(
        &self,
        generation: Generation,
        partition: PartitionId,
        from: ManifestsFrom,
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
        from: ManifestsFrom,
    ) -> twice_log::Result<Vec<StoredManifest>> {
        let chain = ChainKey { topic: Topic::AdClicks, generation, partition };
        let objects = self.list(&manifest_folder(chain), None).await?;
        let firsts = objects.iter().filter_map(|object| parse_manifest_path(object.location.as_ref()));
        let firsts: Vec<LogOffset> = firsts.map(|(_, first)| first).collect(); // paths sort by offset
        let below = match from {
            ManifestsFrom::Offset(from) => firsts.partition_point(|first| *first <= from),
            ManifestsFrom::Recent { ms } => below_recent(self, chain, &firsts, ms).await?,
        };
        let begin = below.checked_sub(1).and_then(|last_below| firsts.get(last_below)).copied();
        let Some(begin) = begin else { return Archive::manifests(self, chain, None).await };
        let Some(first) = self.manifest(chain, begin).await? else {
            return Archive::manifests(self, chain, None).await; // says what is wrong
        };
        let mut found = vec![first];
        found.extend(Archive::manifests(self, chain, Some(begin)).await?);
        Ok(found)
    }

    async fn clicks(&self, entry: &FileEntry) -> twice_log::Result<Vec<ClickCopy>> {
        match self.read_clicks(entry, None).await {
            // Retention deletes hours that are final: they are sealed, and nothing of them is counted again here.
            Err(twice_log::Error::Deleted { .. }) => Ok(Vec::new()),
            read => read,
        }
    }
}

/// Returns how many manifests end `ms` of event time or more below the newest. They carry the highest time so far, so a
/// few reads find the place.
async fn below_recent(
    archive: &Archive,
    chain: ChainKey,
    firsts: &[LogOffset],
    ms: i64,
) -> twice_log::Result<usize> {
    let Some(last) = firsts.last() else { return Ok(0) };
    let Some(newest) = highest_time(archive, chain, *last).await? else { return Ok(0) };
    let (mut low, mut high) = (0, firsts.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match highest_time(archive, chain, firsts[middle]).await? <= Some(newest.plus_ms(-ms)) {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    Ok(low)
}

async fn highest_time(
    archive: &Archive,
    chain: ChainKey,
    first: LogOffset,
) -> twice_log::Result<Option<UtcMillis>> {
    let stored = archive.manifest(chain, first).await?;
    Ok(stored.and_then(|stored| stored.manifest.highest_time))
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
    /// Returns which manifests are needed to go on from `applied_end`, or to begin without a checkpoint.
    pub(super) fn manifests_from(applied_end: Option<LogOffset>, rules: StreamRules) -> ManifestsFrom {
        let begin_ms = (REBUILT_HOURS_MAX + AHEAD_HOURS_MAX) * HOUR_MS + rules.dedup_ms();
        applied_end.map_or(ManifestsFrom::Recent { ms: begin_ms }, ManifestsFrom::Offset)
    }

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
        // Of what lies before the manifests at hand nothing is known but that it is older.
        let has_more = self.manifests.first().is_some_and(|first| first.manifest.first > LogOffset(0));
        let lost_through = hours.range(..counted_from).next_back().copied();
        let lost_through = lost_through.or_else(|| has_more.then(|| counted_from.plus(-1)));
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
    use std::fs;
    use std::sync::Arc;

    use twice_log::archive::layout::manifest_path;
    use twice_log::archive::{CountingSettings, Seal};
    use twice_log::event::{PARTITION_HASH_NAME, Sha256Hex};
    use twice_log::fs::RealFs;

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
    fn what_lies_before_the_manifests_at_hand_is_lost() {
        let seals: Vec<StoredSeal> = (0..8).map(seal).collect();
        let beginning = remains(day().split_off(8), &seals, 950).begin().expect("the archive has it all");
        assert_eq!((beginning.applied_end, beginning.lost_through), (LogOffset(800), Some(hour(7))));
    }

    #[actix::test]
    async fn manifests_are_read_from_the_offset_or_the_time_that_is_needed_on() {
        let directory = tempfile::tempdir().expect("directory");
        let archive = Archive::open_local(Arc::new(RealFs), directory.path()).expect("archive");
        let mut previous = None;
        for StoredManifest { mut manifest, .. } in day() {
            manifest.previous_sha256 = previous;
            manifest.files[0].rows = 100;
            let bytes = serde_json::to_vec(&manifest).expect("encodes");
            let path = directory.path().join(manifest_path(manifest.chain(), manifest.first));
            fs::create_dir_all(path.parent().expect("below a folder")).expect("create");
            fs::write(path, &bytes).expect("write");
            previous = Some(Sha256Hex::of(&bytes));
        }
        let firsts = async |from: ManifestsFrom| {
            let read = ClickHistory::manifests(&archive, Generation(0), PartitionId(0), from).await;
            let first = |stored: &StoredManifest| stored.manifest.first.0;
            read.expect("manifests").iter().map(first).collect::<Vec<_>>()
        };
        assert_eq!(firsts(ManifestsFrom::Offset(LogOffset(799))).await, [700, 800, 900]);
        assert_eq!(firsts(ManifestsFrom::Offset(LogOffset(800))).await, [800, 900]);
        assert_eq!(firsts(ManifestsFrom::Offset(LogOffset(0))).await.len(), 10);
        assert_eq!(firsts(ManifestsFrom::Recent { ms: 2 * HOUR_MS }).await, [700, 800, 900]);
        assert_eq!(firsts(ManifestsFrom::Recent { ms: 100 * HOUR_MS }).await.len(), 10);
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
