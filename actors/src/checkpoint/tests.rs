//! Checkpoints through crashes at every step, folders put back, loss and damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use hashbrown::HashMap;
use proptest::prelude::*;
use twice_log::archive::CountingSettings;
use twice_log::fail::FailPoints;
use twice_log::{CampaignId, ClickCopy, Generation, Hour, LogOffset, PartitionId, Watermark};
use twice_store::windows::Fence;

use super::{
    CheckpointBatch, CheckpointLayout, CheckpointNumber, CheckpointReader, CheckpointStore, CheckpointWriter,
    Commit, LoadedCheckpoint, Resting,
};
use crate::campaign::{CampaignState, ClosedHour, SealEnds, StreamRules};
use crate::error::{Error, Result};
use crate::testing::{
    Counts, NOON_MS, Planned, clicks, copies, files_below, hour_counts, naive_counts, plans, state_counts,
};

const CACHE_BYTES: u64 = 16 << 20;
const PARTITION: PartitionId = PartitionId(0);
const GENERATION: Generation = Generation(0);

fn open(folder: &Path) -> Result<CheckpointStore> {
    CheckpointStore::open(folder, CheckpointLayout::new(GENERATION, 1), CACHE_BYTES)
}

fn writer(folder: &Path) -> CheckpointWriter {
    // sled gives its lock back in the background, a moment after the last handle is dropped.
    let is_held = |error: &Error| format!("{error:?}").contains("could not acquire lock");
    let opened = (0..500).map(|_| open(folder)).find(|opened| {
        let held = opened.as_ref().is_err_and(is_held);
        if held {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        !held
    });
    let store = opened.expect("the lock is given back").expect("opens");
    store.partition(PARTITION, FailPoints::default()).expect("partition")
}

/// A partition without its actors: states, watermark and offset.
struct Simulated {
    rules: StreamRules,
    states: BTreeMap<CampaignId, CampaignState>,
    resting: HashMap<CampaignId, Resting>,
    shed: Vec<CampaignId>,
    reader: CheckpointReader,
    watermark: Watermark,
    applied_end: LogOffset,
}

impl Simulated {
    fn new(writer: &CheckpointWriter, loaded: Option<LoadedCheckpoint>) -> Self {
        let settings = CountingSettings::default();
        let rules = StreamRules::new(&settings);
        let highest = loaded.as_ref().and_then(|loaded| loaded.commit.highest_time);
        let applied_end = loaded.as_ref().map_or(LogOffset(0), |loaded| loaded.commit.applied_end);
        Self {
            rules,
            states: BTreeMap::new(),
            resting: loaded.map(|loaded| loaded.resting).unwrap_or_default(),
            shed: Vec::new(),
            reader: writer.reader(),
            watermark: Watermark::new(highest, settings.disorder_ms),
            applied_end,
        }
    }

    fn wake(&mut self, campaign: &CampaignId) {
        if let Some(wanted) = self.resting.remove_entry(campaign) {
            for loaded in self.reader.campaigns(&[wanted]).expect("the campaign reads") {
                self.states.insert(campaign.clone(), CampaignState::restore(loaded, self.rules));
            }
        }
    }

    /// Lets every campaign rest that may.
    fn rest(&mut self) {
        let fence = Fence { lease_epoch: 0, generation: GENERATION, applied: self.applied_end };
        let resting = &mut self.resting;
        self.states.retain(|campaign, state| {
            state.take_windows(fence, false);
            let left = state.resting().map(|rests| resting.insert(campaign.clone(), rests));
            left.is_none()
        });
    }

    /// Counts of every campaign, those at rest included.
    fn counts(&mut self) -> Counts {
        let resting: Vec<CampaignId> = self.resting.keys().cloned().collect();
        resting.iter().for_each(|campaign| self.wake(campaign));
        state_counts(self.states.values())
    }

    fn written(&mut self) {
        // What the checkpoint left of them; the store is asked anew, as a restart would.
        let left = self.reader.clone();
        for campaign in std::mem::take(&mut self.shed) {
            let rests = left.summary(&campaign).expect("reads");
            if !rests.is_over() {
                self.resting.insert(campaign, rests);
            }
        }
    }

    fn apply(&mut self, copies: &[ClickCopy], seals: &SealEnds) {
        for copy in copies {
            assert_eq!(copy.watermark, self.watermark.at_next(), "the watermark goes on where it stood");
            self.watermark.advance(&copy.click);
            let campaign = copy.click.campaign_id.clone();
            self.wake(&campaign);
            let rules = self.rules;
            let state =
                self.states.entry(campaign.clone()).or_insert_with(|| CampaignState::new(campaign, rules));
            state.apply(vec![copy.clone()], seals, |_| {});
            self.applied_end = copy.position.offset.next();
        }
    }

    fn close(&mut self, hour: Hour) -> BTreeMap<CampaignId, u64> {
        let fence = Fence { lease_epoch: 0, generation: GENERATION, applied: self.applied_end };
        let mut counts = BTreeMap::new();
        for (campaign, state) in &mut self.states {
            state.take_windows(fence, false);
            let closed = state.close_hours(&[hour]);
            counts.extend(closed.iter().map(|ClosedHour { counted, .. }| (campaign.clone(), *counted)));
        }
        let shed = self.resting.extract_if(|campaign, rests| {
            let closed = rests.hours().iter().find(|(of, _)| *of == hour);
            counts.extend(closed.map(|(_, counted)| (campaign.clone(), *counted)));
            closed.is_some()
        });
        self.shed.extend(shed.map(|(campaign, _)| campaign));
        counts
    }

    fn batch(&mut self, checkpoint: CheckpointNumber, retired_hours: Vec<Hour>) -> CheckpointBatch {
        let dedup_floor = self.rules.dedup_floor(self.watermark.at_next());
        let over = |rests: &Resting| {
            rests.is_over() || rests.next_expiry().is_some_and(|at| Some(at) <= dedup_floor)
        };
        self.shed.extend(self.resting.extract_if(|_, rests| over(rests)).map(|(campaign, _)| campaign));
        let snapshots = self.states.values_mut().map(|state| state.snapshot(checkpoint, dedup_floor));
        let snapshots = snapshots.collect();
        let commit = Commit {
            checkpoint,
            generation: GENERATION,
            partition: PARTITION,
            applied_end: self.applied_end,
            highest_time: self.watermark.highest(),
            settings: CountingSettings::default(),
            dedup_floor,
            retired_hours,
            entries: 0,
            entries_sum: 0,
            incomplete_through: None,
            incomplete_hours: Vec::new(),
            seals: Vec::new(),
        };
        CheckpointBatch { commit, snapshots, shed: self.shed.clone() }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

/// Copies of the folder, as kill -9 would have left it, taken between the steps of each checkpoint.
struct Crashes {
    folder: PathBuf,
    copies: Vec<PathBuf>,
}

impl Crashes {
    fn here(&mut self) {
        let copy = self.folder.with_extension(format!("crash-{}", self.copies.len()));
        copy_folder(&self.folder, &copy);
        self.copies.push(copy);
    }

    /// The steps of `CheckpointWriter::write`, with a crash between any two.
    fn write(&mut self, writer: &mut CheckpointWriter, batch: &CheckpointBatch) {
        writer.write_entries(batch).expect("entries");
        self.here();
        writer.flush().expect("flush");
        self.here();
        writer.write_commit(batch).expect("commit");
        self.here();
        writer.flush().expect("flush");
        self.here();
        writer.remove_superseded(batch).expect("deletions");
        self.here();
    }
}

/// Loads a folder, replays what follows its checkpoint, and returns the counts.
fn resume(folder: &Path, copies: &[ClickCopy], seals: &SealEnds) -> (u64, Counts) {
    let mut writer = writer(folder);
    let loaded = writer.load(GENERATION).expect("loads");
    let number = loaded.as_ref().map_or(0, |loaded| loaded.commit.checkpoint.0);
    if let Some(loaded) = &loaded {
        let metas = writer.tree.scan_prefix(b"M").count() as u64;
        let commits = 1;
        assert_eq!(
            writer.tree.len() as u64,
            loaded.commit.entries + metas + commits,
            "nothing else is left in the tree"
        );
        assert_eq!(metas, loaded.resting.len() as u64, "a campaign with nothing left has no meta record");
    }
    let mut simulated = Simulated::new(&writer, loaded);
    let from = usize::try_from(simulated.applied_end.0).expect("not negative");
    simulated.apply(&copies[from..], seals);
    (number, simulated.counts())
}

fn without(counts: &Counts, hour: Hour) -> Counts {
    counts
        .iter()
        .filter(|((_, start), _)| start.hour() != hour)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_at_any_step_recounts_the_same(plans in plans(160), size in 12..50_usize) {
        let directory = tempfile::tempdir().expect("directory");
        let settings = CountingSettings::default();
        let eleven = Hour::from_since_epoch(NOON_MS / 3_600_000 - 1);
        let copies = copies(&clicks(&plans, NOON_MS - 1_500_000), &settings);
        let mut crashes = Crashes { folder: directory.path().join("checkpoints"), copies: Vec::new() };
        let mut writer = writer(&crashes.folder);
        crashes.here();
        let loaded = writer.load(GENERATION).expect("loads");
        let mut simulated = Simulated::new(&writer, loaded);
        let mut seals = SealEnds::new();
        let sealing = copies.len() / size / 2;
        let mut closed = BTreeMap::new();
        for (index, batch) in copies.chunks(size).enumerate() {
            simulated.apply(batch, &seals);
            let mut retired = Vec::new();
            if index == sealing {
                closed = simulated.close(eleven);
                seals.insert(eleven, simulated.applied_end);
                retired.push(eleven);
            }
            let batch = simulated.batch(writer.next_number(), retired);
            crashes.write(&mut writer, &batch);
            simulated.written();
            if index % 3 != 2 {
                simulated.rest();
            }
        }
        prop_assert_eq!(without(&simulated.counts(), eleven), without(&naive_counts(&copies, &seals, &settings), eleven));
        drop((simulated, writer));
        let expected = naive_counts(&copies, &seals, &settings);
        prop_assert_eq!(&closed, &hour_counts(&expected, eleven));
        let mut number_before = 0;
        for folder in &crashes.copies {
            let (number, counts) = resume(folder, &copies, &seals);
            prop_assert!(number >= number_before, "a commit does not go away again");
            number_before = number;
            prop_assert_eq!(without(&counts, eleven), without(&expected, eleven));
            if number <= sealing as u64 {
                prop_assert_eq!(counts, expected.clone()); // before the hour was closed its windows are still there
            }
        }
        prop_assert_eq!(number_before, copies.len().div_ceil(size) as u64);
    }
}

fn some_copies() -> Vec<ClickCopy> {
    let plan = |number: u32| Planned {
        campaign: (number % 3) as u8,
        identity: (number % 200) as u8,
        ad: 0,
        user: (number % 7) as u8,
        age_ms: 0,
        step_ms: 3_000,
    };
    let plans: Vec<Planned> = (0..300).map(plan).collect();
    copies(&clicks(&plans, NOON_MS), &CountingSettings::default())
}

/// Writes two checkpoints of 100 copies each and returns the folder's writer.
fn two_checkpoints(folder: &Path) -> CheckpointWriter {
    let mut writer = writer(folder);
    let loaded = writer.load(GENERATION).expect("loads");
    let mut simulated = Simulated::new(&writer, loaded);
    for batch in some_copies()[..200].chunks(100) {
        simulated.apply(batch, &SealEnds::new());
        let batch = simulated.batch(writer.next_number(), Vec::new());
        writer.write(batch).expect("writes");
    }
    writer
}

#[test]
fn entries_above_the_last_commit_are_deleted_before_anything_is_applied() {
    let directory = tempfile::tempdir().expect("directory");
    let folder = directory.path().join("checkpoints");
    let mut first = two_checkpoints(&folder);
    let loaded = first.load(GENERATION).expect("loads");
    let mut simulated = Simulated::new(&first, loaded);
    simulated.apply(&some_copies()[200..], &SealEnds::new());
    let batch = simulated.batch(first.next_number(), Vec::new());
    let written = first.write_entries(&batch).expect("entries");
    assert!(written.entries > 0);
    first.flush().expect("flush");
    let before = first.tree.len();
    drop((simulated, first));

    let mut second = writer(&folder);
    let loaded = second.load(GENERATION).expect("loads").expect("two checkpoints");
    assert_eq!(loaded.commit.checkpoint, CheckpointNumber(2));
    assert_eq!(second.tree.len() as u64, before as u64 - written.entries);
}

#[test]
fn a_folder_that_was_removed_is_rebuilt_from_the_log() {
    let directory = tempfile::tempdir().expect("directory");
    let folder = directory.path().join("checkpoints");
    drop(two_checkpoints(&folder));
    fs::remove_dir_all(&folder).expect("remove");
    let copies = some_copies();
    let (number, counts) = resume(&folder, &copies, &SealEnds::new());
    assert_eq!(number, 0);
    assert_eq!(counts, naive_counts(&copies, &SealEnds::new(), &CountingSettings::default()));
}

#[test]
fn a_changed_entry_is_damage() {
    let directory = tempfile::tempdir().expect("directory");
    let mut writer = two_checkpoints(&directory.path().join("checkpoints"));
    for prefix in [b"C", b"D", b"M", b"W"] {
        let (key, value) = writer.tree.scan_prefix(prefix).last().expect("an entry").expect("reads");
        let mut changed = value.to_vec();
        changed[0] ^= 1;
        writer.tree.insert(&key, changed).expect("write");
        let error = writer.load(GENERATION).expect_err("damaged");
        assert!(matches!(error, Error::CheckpointDamage { .. }), "{error}");
        writer.tree.insert(&key, value).expect("write");
    }
    assert!(writer.load(GENERATION).expect("whole again").is_some());
}

#[test]
fn a_missing_entry_is_damage() {
    let directory = tempfile::tempdir().expect("directory");
    let mut writer = two_checkpoints(&directory.path().join("checkpoints"));
    for prefix in [b"D", b"W"] {
        let (key, value) = writer.tree.scan_prefix(prefix).last().expect("an entry").expect("reads");
        writer.tree.remove(&key).expect("remove");
        assert!(matches!(writer.load(GENERATION), Err(Error::CheckpointDamage { .. })));
        writer.tree.insert(&key, value).expect("write");
    }
}

#[test]
fn a_damaged_folder_is_moved_aside_and_begun_anew() {
    let directory = tempfile::tempdir().expect("directory");
    let folder = directory.path().join("checkpoints");
    drop(two_checkpoints(&folder));
    let store = open(&folder).expect("opens");
    let reason = Error::CheckpointDamage { partition: PARTITION, reason: "a test says so".to_owned() };
    let store = store.replace_damaged(CACHE_BYTES, &reason).expect("begun anew");
    let mut writer = store.partition(PARTITION, FailPoints::default()).expect("partition");
    assert!(writer.load(GENERATION).expect("loads").is_none());
    assert!(directory.path().join("checkpoints-damaged-1").is_dir());
}

#[test]
fn bytes_overwritten_in_the_file_never_change_a_count() {
    let copies = some_copies();
    let expected = naive_counts(&copies, &SealEnds::new(), &CountingSettings::default());
    let directory = tempfile::tempdir().expect("directory");
    let whole = directory.path().join("whole");
    drop(two_checkpoints(&whole));
    let length = fs::metadata(whole.join("db")).expect("the file").len();
    for place in 0..8 {
        let folder = directory.path().join(format!("damaged-{place}"));
        copy_folder(&whole, &folder);
        let mut bytes = fs::read(folder.join("db")).expect("read");
        let at = usize::try_from(length * place / 8).expect("fits");
        let end = (at + 4_096).min(bytes.len());
        bytes[at..end].fill(0xA5);
        fs::write(folder.join("db"), bytes).expect("write");
        assert_eq!(recovered(&folder, &copies), expected, "damage at byte {at}");
    }
}

/// Opens a folder that a change was made to, recounts from whatever is found, and returns the counts.
fn recovered(folder: &Path, copies: &[ClickCopy]) -> Counts {
    let mut store = open(folder).expect("opens, or is moved aside");
    let mut writer = store.partition(PARTITION, FailPoints::default()).expect("partition");
    let loaded = match writer.load(GENERATION) {
        Err(reason @ Error::CheckpointDamage { .. }) => {
            drop(writer);
            store = store.replace_damaged(CACHE_BYTES, &reason).expect("begun anew");
            writer = store.partition(PARTITION, FailPoints::default()).expect("partition");
            writer.load(GENERATION).expect("loads")
        }
        loaded => loaded.expect("loads"),
    };
    let mut simulated = Simulated::new(&writer, loaded);
    let from = usize::try_from(simulated.applied_end.0).expect("not negative");
    simulated.apply(&copies[from..], &SealEnds::new());
    simulated.counts()
}

#[test]
fn any_byte_flipped_or_file_removed_never_changes_a_count() {
    let copies = some_copies();
    let expected = naive_counts(&copies, &SealEnds::new(), &CountingSettings::default());
    let directory = tempfile::tempdir().expect("directory");
    let whole = directory.path().join("whole");
    drop(two_checkpoints(&whole));
    for file in files_below(&whole) {
        let name = file.strip_prefix(&whole).expect("below").to_owned();
        let length = usize::try_from(fs::metadata(&file).expect("the file").len()).expect("fits");
        for place in 0..6 {
            let folder = directory.path().join("changed");
            copy_folder(&whole, &folder);
            if place == 5 {
                fs::remove_file(folder.join(&name)).expect("remove");
            } else if length > 0 {
                let mut bytes = fs::read(folder.join(&name)).expect("read");
                bytes[(length - 1) * place / 4] ^= 0x10;
                fs::write(folder.join(&name), bytes).expect("write");
            }
            let counts = recovered(&folder, &copies);
            assert_eq!(counts, expected, "{} changed at place {place}", name.display());
            fs::remove_dir_all(&folder).expect("remove");
        }
    }
}

#[test]
fn a_lost_meta_record_changes_no_count() {
    let directory = tempfile::tempdir().expect("directory");
    let folder = directory.path().join("checkpoints");
    let mut writer = two_checkpoints(&folder);
    let (key, _) = writer.tree.scan_prefix(b"M").last().expect("an entry").expect("reads");
    writer.tree.remove(&key).expect("remove");
    let loaded = writer.load(GENERATION).expect("loads");
    let mut simulated = Simulated::new(&writer, loaded);
    let copies = some_copies();
    simulated.apply(&copies[200..], &SealEnds::new());
    assert_eq!(simulated.counts(), naive_counts(&copies, &SealEnds::new(), &CountingSettings::default()));
}

#[test]
fn a_campaign_at_rest_that_lost_an_entry_is_damage() {
    let directory = tempfile::tempdir().expect("directory");
    let mut writer = two_checkpoints(&directory.path().join("checkpoints"));
    let loaded = writer.load(GENERATION).expect("loads").expect("two checkpoints");
    for prefix in [b"D", b"W"] {
        let (key, value) = writer.tree.scan_prefix(prefix).last().expect("an entry").expect("reads");
        writer.tree.remove(&key).expect("remove");
        let wanted: Vec<_> = loaded.resting.clone().into_iter().collect();
        assert!(matches!(writer.reader().campaigns(&wanted), Err(Error::CheckpointDamage { .. })));
        writer.tree.insert(&key, value).expect("write");
        assert_eq!(writer.reader().campaigns(&wanted).expect("whole again").len(), wanted.len());
    }
}

#[test]
fn a_folder_of_another_log_is_refused() {
    let directory = tempfile::tempdir().expect("directory");
    drop(open(directory.path()).expect("opens"));
    let other = CheckpointStore::open(directory.path(), CheckpointLayout::new(GENERATION, 2), CACHE_BYTES);
    assert!(matches!(other, Err(Error::Layout { .. })));
}

#[test]
fn a_folder_in_use_stops_with_advice_and_is_not_moved() {
    let directory = tempfile::tempdir().expect("directory");
    let folder = directory.path().join("checkpoints");
    let _held = open(&folder).expect("opens");
    let error = open(&folder).expect_err("held");
    assert!(error.to_string().contains("no other process"), "{error}");
    assert!(!directory.path().join("checkpoints-damaged-1").exists());
}
