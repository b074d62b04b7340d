//! The state of one campaign: windows, identities seen and tallies, advanced only by log offsets.
//!
//! Guarantee: each copy is judged once (G-2): what lies at or below the state's own offset is skipped. No I/O, no clock:
//! the same copies and seals give the same state.
//! The same state counts for the stream and, in a replay, for the bill; what differs is its [`Counting`].
//! Words: *late* = the copy's minute had closed, or its hour is sealed; *unpublished*, *unsaved* = changed since the
//! real-time store, or the last checkpoint, took it.
//! Flow: apply -> take_windows -> snapshot; close_hours once an hour is sealed.

use std::collections::BTreeMap;

use twice_log::{CampaignId, ClickCopy, Hour, LogOffset, UtcMillis};
use twice_store::windows::{Fence, WindowRow};

use super::counting::{Counting, Outcome};
use super::dedup::{DedupEntry, DedupSet, DroppedEntries, OldestGroup};
use super::rules::StreamRules;
use super::window::Window;
use crate::budget::{Touched, TouchedBy};
use crate::checkpoint::{
    CampaignMeta, CampaignSnapshot, CheckpointNumber, EntryKind, LoadedCampaign, Resting, StoredEntry,
};

/// First offset not counted of each sealed hour: copies of the hour at or above it are late.
pub type SealEnds = BTreeMap<Hour, LogOffset>;

/// What became of the copies of one campaign since it was first seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tallies {
    pub counted: u64,
    pub duplicates: u64,
    pub late: u64,
}

impl Tallies {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Counted => self.counted += 1,
            Outcome::Duplicate | Outcome::Conflict => self.duplicates += 1,
            Outcome::Late => self.late += 1,
            Outcome::Remembered | Outcome::Replayed => {}
        }
    }
}

impl std::ops::AddAssign for Tallies {
    fn add_assign(&mut self, other: Self) {
        self.counted += other.counted;
        self.duplicates += other.duplicates;
        self.late += other.late;
    }
}

/// Clicks of one hour, counted when it was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedHour {
    pub hour: Hour,
    pub counted: u64,
}

/// The windows of one campaign, and which of them changed.
#[derive(Debug, Default)]
pub struct StreamCounts {
    /// By start of the minute.
    windows: BTreeMap<UtcMillis, Window>,
    unpublished: Vec<UtcMillis>,
    unsaved: Vec<UtcMillis>,
}

/// What the checkpoint store holds of one campaign.
#[derive(Debug, Default)]
pub struct StreamSaved {
    /// Dedup chunks, with the newest event time of each.
    chunks: Vec<(UtcMillis, StoredEntry)>,
    meta: Option<StoredEntry>,
    /// Entries of closed hours that the next checkpoint makes superfluous.
    superseded: Vec<(UtcMillis, StoredEntry)>,
}

/// The state of one campaign, which counts for the stream unless it says otherwise.
#[derive(Debug)]
pub struct CampaignState<C: Counting = StreamRules> {
    campaign: CampaignId,
    rules: C,
    /// Highest place applied; `None` before the first.
    applied: Option<C::Place>,
    tallies: Tallies,
    counts: C::Counts,
    seen: C::Seen,
    saved: C::Saved,
    changed: bool,
}

impl<C: Counting> CampaignState<C> {
    /// Starts a campaign that was never seen.
    pub fn new(campaign: CampaignId, rules: C) -> Self {
        Self {
            campaign,
            applied: None,
            tallies: Tallies::default(),
            counts: C::Counts::default(),
            seen: rules.nothing_seen(),
            saved: C::Saved::default(),
            changed: false,
            rules,
        }
    }

    /// Returns the campaign.
    pub fn campaign(&self) -> &CampaignId {
        &self.campaign
    }

    /// Returns how it counts.
    pub fn rules(&self) -> &C {
        &self.rules
    }

    /// Returns what it counted.
    pub fn counts(&self) -> &C::Counts {
        &self.counts
    }

    /// Returns what became of every copy so far.
    pub fn tallies(&self) -> Tallies {
        self.tallies
    }

    /// Judges one copy.
    #[inline]
    pub fn apply_copy(&mut self, copy: C::Copy, ends: &C::Ends) -> Outcome {
        let place = C::place(&copy);
        if self.applied.is_some_and(|applied| place <= applied) {
            return Outcome::Replayed;
        }
        let outcome = self.rules.judge(&mut self.seen, &copy, ends);
        self.rules.count(&mut self.counts, copy, outcome);
        self.tallies.add(outcome);
        self.applied = Some(place);
        self.changed = true;
        outcome
    }
}

impl Counting for StreamRules {
    type Copy = ClickCopy;
    type Place = LogOffset;
    type Ends = SealEnds;
    type Seen = DedupSet;
    type Counts = StreamCounts;
    type Saved = StreamSaved;

    fn nothing_seen(&self) -> DedupSet {
        DedupSet::new(self.dedup_ms())
    }

    fn place(copy: &ClickCopy) -> LogOffset {
        copy.position.offset
    }

    /// Lateness first: it depends on record and seal alone, while the dedup set forgets what only late copies ask for.
    #[inline]
    fn judge(&self, seen: &mut DedupSet, copy: &ClickCopy, seals: &SealEnds) -> Outcome {
        let event_time = copy.click.event_time;
        let entry = DedupEntry { click_id: copy.click.click_id, event_time };
        // Late copies are remembered too: a later copy of the identity is a duplicate of them.
        let duplicate = seen.check_and_insert(entry, self.dedup_floor(copy.watermark));
        let sealed_at = if seals.is_empty() { None } else { seals.get(&event_time.hour()) };
        if self.is_late(copy.watermark, event_time)
            || sealed_at.is_some_and(|end| copy.position.offset >= *end)
        {
            Outcome::Late
        } else if duplicate {
            Outcome::Duplicate
        } else {
            Outcome::Counted
        }
    }

    #[inline]
    fn count(&self, counts: &mut StreamCounts, copy: ClickCopy, outcome: Outcome) {
        if outcome == Outcome::Counted {
            counts.count(copy);
        }
    }
}

impl StreamCounts {
    fn count(&mut self, copy: ClickCopy) {
        let start = copy.click.event_time.minute_start();
        let window = self.windows.entry(start).or_default();
        window.count(copy.click);
        if !std::mem::replace(&mut window.unpublished, true) {
            self.unpublished.push(start);
        }
        if !std::mem::replace(&mut window.unsaved, true) {
            self.unsaved.push(start);
        }
    }
}

/// Returns offset, minute and the rest of what a decision says of a click.
fn facts_of(copy: &ClickCopy) -> (LogOffset, UtcMillis, TouchedBy) {
    let (event_time, first_arrival) = (copy.click.event_time, copy.click.arrival_time);
    let by = TouchedBy { first_arrival, position: copy.position, event_time };
    (copy.position.offset, event_time.minute_start(), by)
}

impl CampaignState {
    /// Takes back the state a checkpoint held.
    ///
    /// Every window counts as unpublished: the process may have died between checkpoint and publish.
    pub fn restore(loaded: LoadedCampaign, rules: StreamRules) -> Self {
        let mut state = Self::new(loaded.campaign, rules);
        if let Some((meta, stored)) = loaded.meta {
            state.applied = Some(meta.applied);
            state.tallies = meta.tallies;
            state.saved.meta = Some(stored);
        }
        for (start, mut window, stored) in loaded.windows {
            window.unpublished = true;
            window.stored = Some(stored);
            state.counts.unpublished.push(start);
            state.counts.windows.insert(start, window);
        }
        for (entries, stored) in loaded.chunks {
            let latest = entries.iter().map(|entry| entry.event_time).max();
            entries.into_iter().for_each(|entry| state.seen.restore(entry));
            state.saved.chunks.extend(latest.map(|latest| (latest, stored)));
        }
        state
    }

    /// Returns the windows held, by start of their minute.
    pub fn windows(&self) -> &BTreeMap<UtcMillis, Window> {
        &self.counts.windows
    }

    /// Judges copies in offset order. `begin` is told each copy's offset before it is touched.
    pub fn apply(
        &mut self,
        copies: Vec<ClickCopy>,
        seals: &SealEnds,
        mut begin: impl FnMut(&ClickCopy),
    ) -> Tallies {
        let mut tallies = Tallies::default();
        let mut watermark = None;
        for copy in copies {
            begin(&copy);
            watermark = copy.watermark.max(watermark);
            tallies.add(self.apply_copy(copy, seals));
        }
        self.expire(watermark);
        tallies
    }

    /// Judges copies as [`CampaignState::apply`] does, and says which minutes were counted into.
    pub fn apply_watched(
        &mut self,
        copies: Vec<ClickCopy>,
        seals: &SealEnds,
        begin: impl FnMut(&ClickCopy),
    ) -> (Tallies, Option<Touched>) {
        // What a click is counted into is not known before it is judged: its facts are kept until then.
        let facts: Vec<(LogOffset, UtcMillis, TouchedBy)> = copies.iter().map(facts_of).collect();
        let before = self.applied;
        let tallies = self.apply(copies, seals, begin);
        if tallies.counted == 0 {
            return (tallies, None);
        }
        let mut touched = Touched::default();
        for (_, start, by) in
            facts.into_iter().filter(|(offset, ..)| before.is_none_or(|before| *offset > before))
        {
            // A minute of copies that were not counted is told with the value it has: nothing new.
            if let Some(window) = self.counts.windows.get(&start) {
                touched.minutes.insert(start, window.clicks);
                touched.clicks = Some(touched.clicks.map_or(by, |earlier| earlier.then(by)));
            }
        }
        (tallies, Some(touched))
    }

    /// Forgets identities that decide nothing any more at `watermark`.
    pub fn expire(&mut self, watermark: Option<UtcMillis>) {
        self.seen.expire(self.rules.dedup_floor(watermark));
    }

    /// Drops the dedup groups that start at or before `start`, to save memory; `None` if there are none.
    pub fn drop_oldest_dedup(&mut self, start: UtcMillis) -> Option<DroppedEntries> {
        self.seen.drop_oldest(start)
    }

    /// Returns the memory of the dedup set in bytes.
    pub fn dedup_bytes(&self) -> u64 {
        self.seen.bytes()
    }

    /// Returns the oldest dedup entries: what expires next.
    pub fn oldest_dedup(&self) -> Option<OldestGroup> {
        self.seen.oldest_group()
    }

    /// Takes the windows changed since the last call (every window with `all`), as absolute values under `fence`.
    pub fn take_windows(&mut self, fence: Fence, all: bool) -> Vec<WindowRow> {
        if all {
            self.counts.unpublished = self.counts.windows.keys().copied().collect();
        }
        let mut rows = Vec::with_capacity(self.counts.unpublished.len());
        for start in self.counts.unpublished.drain(..) {
            if let Some(window) = self.counts.windows.get_mut(&start) {
                window.unpublished = false;
                rows.push(window.row(&self.campaign, start, fence));
            }
        }
        rows
    }

    /// Forgets the windows of sealed hours, and returns what they had counted.
    ///
    /// The caller has published them before, and sealed the hours, so that no copy of them is counted again.
    pub fn close_hours(&mut self, hours: &[Hour]) -> Vec<ClosedHour> {
        let mut closed = Vec::new();
        for hour in hours {
            let starts: Vec<UtcMillis> =
                self.counts.windows.range(hour.start()..hour.end()).map(|(start, _)| *start).collect();
            let mut counted = 0;
            for start in starts {
                if let Some(window) = self.counts.windows.remove(&start) {
                    debug_assert!(!window.unpublished, "windows are published before they are forgotten");
                    counted += window.clicks;
                    self.saved.superseded.extend(window.stored.map(|stored| (start, stored)));
                    self.changed = true;
                }
            }
            if counted > 0 {
                closed.push(ClosedHour { hour: *hour, counted });
            }
        }
        closed
    }

    /// Returns the hours that have windows, in order.
    pub fn hours(&self) -> Vec<Hour> {
        let mut hours: Vec<Hour> = self.counts.windows.keys().map(|start| start.hour()).collect();
        hours.dedup();
        hours
    }

    /// Returns the newest event time of the oldest dedup chunk stored: it expires when the floor is there.
    pub fn next_expiry(&self) -> Option<UtcMillis> {
        self.saved.chunks.iter().map(|(latest, _)| *latest).min()
    }

    /// Returns what memory must keep when this state is dropped; `None` if the store does not hold all of it.
    ///
    /// The caller makes sure that the last snapshot is committed and the windows taken last are published.
    pub fn resting(&self) -> Option<Resting> {
        let is_stored = !self.changed && self.saved.superseded.is_empty() && !self.seen.has_unsaved();
        if !is_stored || !self.counts.unpublished.is_empty() {
            return None;
        }
        let mut resting = Resting::default();
        for (latest, stored) in &self.saved.chunks {
            resting.add_chunk(*latest, stored.sum);
        }
        for (start, window) in &self.counts.windows {
            resting.add_window(*start, window.clicks, window.stored?.sum);
        }
        Some(resting)
    }

    /// Encodes what changed since the last snapshot as entries numbered `checkpoint`, and names what they supersede.
    ///
    /// `floor` is the checkpoint's: chunks at or below it are dropped whole.
    pub fn snapshot(&mut self, checkpoint: CheckpointNumber, floor: Option<UtcMillis>) -> CampaignSnapshot {
        let mut snapshot = CampaignSnapshot::new(self.campaign.clone(), checkpoint);
        for (start, stored) in self.saved.superseded.drain(..) {
            snapshot.supersede(EntryKind::Window(start), Some(stored));
        }
        self.saved.chunks.retain(|(latest, stored)| {
            let lives = floor.is_none_or(|floor| *latest > floor);
            if !lives {
                snapshot.supersede(EntryKind::DedupChunk, Some(*stored));
            }
            lives
        });
        if std::mem::replace(&mut self.changed, false) {
            self.snapshot_changes(&mut snapshot, floor);
        }
        snapshot.next_expiry = self.next_expiry();
        snapshot
    }

    fn snapshot_changes(&mut self, snapshot: &mut CampaignSnapshot, floor: Option<UtcMillis>) {
        for start in self.counts.unsaved.drain(..) {
            if let Some(window) = self.counts.windows.get_mut(&start) {
                window.unsaved = false;
                let stored = snapshot.put_window(start, window);
                snapshot.supersede(EntryKind::Window(start), window.stored.replace(stored));
            }
        }
        let mut entries = self.seen.take_unsaved();
        entries.retain(|entry| floor.is_none_or(|floor| entry.event_time > floor));
        if let Some(latest) = entries.iter().map(|entry| entry.event_time).max() {
            self.saved.chunks.push((latest, snapshot.put_chunk(&entries)));
        }
        if let Some(applied) = self.applied {
            let stored = snapshot.put_meta(CampaignMeta { applied, tallies: self.tallies });
            snapshot.supersede(EntryKind::Meta, self.saved.meta.replace(stored));
        }
    }
}
