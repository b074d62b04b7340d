//! The state of one campaign: windows, identities seen and tallies, advanced only by log offsets.
//!
//! Guarantee: each copy is judged once (G-2): what lies at or below the state's own offset is skipped. No I/O, no clock:
//! the same copies and seals give the same state.
//! Words: *late* = the copy's minute had closed, or its hour is sealed; *unpublished*, *unsaved* = changed since the
//! real-time store, or the last checkpoint, took it.
//! Flow: apply -> take_windows -> snapshot; close_hours once an hour is sealed.

use std::collections::BTreeMap;

use twice_log::{CampaignId, ClickCopy, Hour, LogOffset, UtcMillis};
use twice_store::windows::{Fence, WindowRow};

use super::dedup::{DedupEntry, DedupSet, DroppedEntries, OldestGroup};
use super::rules::StreamRules;
use super::window::Window;
use crate::checkpoint::{
    CampaignMeta, CampaignSnapshot, CheckpointNumber, EntryKind, LoadedCampaign, Resting, StoredEntry,
};

/// First offset not counted of each sealed hour: copies of the hour at or above it are late.
pub type SealEnds = BTreeMap<Hour, LogOffset>;

/// What became of one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Counted into its window.
    Counted,
    /// Not counted: another copy of the identity stands before it, within the horizon.
    Duplicate,
    /// Not counted: its window had closed, or its hour is sealed. The batch path counts it.
    Late,
    /// Applied before; nothing changed.
    Replayed,
}

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
            Outcome::Duplicate => self.duplicates += 1,
            Outcome::Late => self.late += 1,
            Outcome::Replayed => {}
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

/// The state of one campaign.
#[derive(Debug)]
pub struct CampaignState {
    campaign: CampaignId,
    rules: StreamRules,
    /// Highest offset applied; `None` before the first.
    applied: Option<LogOffset>,
    tallies: Tallies,
    /// By start of the minute.
    windows: BTreeMap<UtcMillis, Window>,
    unpublished: Vec<UtcMillis>,
    unsaved: Vec<UtcMillis>,
    dedup: DedupSet,
    /// Dedup chunks in the checkpoint store, with the newest event time of each.
    chunks: Vec<(UtcMillis, StoredEntry)>,
    stored_meta: Option<StoredEntry>,
    /// Entries of closed hours that the next checkpoint makes superfluous.
    superseded: Vec<(UtcMillis, StoredEntry)>,
    changed: bool,
}

impl CampaignState {
    /// Starts a campaign that was never seen.
    pub fn new(campaign: CampaignId, rules: StreamRules) -> Self {
        Self {
            campaign,
            rules,
            applied: None,
            tallies: Tallies::default(),
            windows: BTreeMap::new(),
            unpublished: Vec::new(),
            unsaved: Vec::new(),
            dedup: DedupSet::new(rules.dedup_ms()),
            chunks: Vec::new(),
            stored_meta: None,
            superseded: Vec::new(),
            changed: false,
        }
    }

    /// Takes back the state a checkpoint held.
    ///
    /// Every window counts as unpublished: the process may have died between checkpoint and publish.
    pub fn restore(loaded: LoadedCampaign, rules: StreamRules) -> Self {
        let mut state = Self::new(loaded.campaign, rules);
        if let Some((meta, stored)) = loaded.meta {
            state.applied = Some(meta.applied);
            state.tallies = meta.tallies;
            state.stored_meta = Some(stored);
        }
        for (start, mut window, stored) in loaded.windows {
            window.unpublished = true;
            window.stored = Some(stored);
            state.unpublished.push(start);
            state.windows.insert(start, window);
        }
        for (entries, stored) in loaded.chunks {
            let latest = entries.iter().map(|entry| entry.event_time).max();
            entries.into_iter().for_each(|entry| state.dedup.restore(entry));
            state.chunks.extend(latest.map(|latest| (latest, stored)));
        }
        state
    }

    /// Returns the campaign.
    pub fn campaign(&self) -> &CampaignId {
        &self.campaign
    }

    /// Returns what became of every copy so far.
    pub fn tallies(&self) -> Tallies {
        self.tallies
    }

    /// Returns the windows held, by start of their minute.
    pub fn windows(&self) -> &BTreeMap<UtcMillis, Window> {
        &self.windows
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

    /// Judges one copy.
    pub fn apply_copy(&mut self, copy: ClickCopy, seals: &SealEnds) -> Outcome {
        let offset = copy.position.offset;
        if self.applied.is_some_and(|applied| offset <= applied) {
            return Outcome::Replayed;
        }
        let outcome = self.judge(&copy, seals);
        if outcome == Outcome::Counted {
            self.count(copy);
        }
        self.tallies.add(outcome);
        self.applied = Some(offset);
        self.changed = true;
        outcome
    }

    /// Lateness first: it depends on record and seal alone, while the dedup set forgets what only late copies ask for.
    fn judge(&mut self, copy: &ClickCopy, seals: &SealEnds) -> Outcome {
        let event_time = copy.click.event_time;
        let entry = DedupEntry { click_id: copy.click.click_id, event_time };
        // Late copies are remembered too: a later copy of the identity is a duplicate of them.
        let duplicate = self.dedup.check_and_insert(entry, self.rules.dedup_floor(copy.watermark));
        let sealed_at = if seals.is_empty() { None } else { seals.get(&event_time.hour()) };
        if self.rules.is_late(copy.watermark, event_time)
            || sealed_at.is_some_and(|end| copy.position.offset >= *end)
        {
            Outcome::Late
        } else if duplicate {
            Outcome::Duplicate
        } else {
            Outcome::Counted
        }
    }

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

    /// Forgets identities that decide nothing any more at `watermark`.
    pub fn expire(&mut self, watermark: Option<UtcMillis>) {
        self.dedup.expire(self.rules.dedup_floor(watermark));
    }

    /// Drops the dedup groups that start at or before `start`, to save memory; `None` if there are none.
    pub fn drop_oldest_dedup(&mut self, start: UtcMillis) -> Option<DroppedEntries> {
        self.dedup.drop_oldest(start)
    }

    /// Returns the memory of the dedup set in bytes.
    pub fn dedup_bytes(&self) -> u64 {
        self.dedup.bytes()
    }

    /// Returns the oldest dedup entries: what expires next.
    pub fn oldest_dedup(&self) -> Option<OldestGroup> {
        self.dedup.oldest_group()
    }

    /// Takes the windows changed since the last call (every window with `all`), as absolute values under `fence`.
    pub fn take_windows(&mut self, fence: Fence, all: bool) -> Vec<WindowRow> {
        if all {
            self.unpublished = self.windows.keys().copied().collect();
        }
        let mut rows = Vec::with_capacity(self.unpublished.len());
        for start in self.unpublished.drain(..) {
            if let Some(window) = self.windows.get_mut(&start) {
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
                self.windows.range(hour.start()..hour.end()).map(|(start, _)| *start).collect();
            let mut counted = 0;
            for start in starts {
                if let Some(window) = self.windows.remove(&start) {
                    debug_assert!(!window.unpublished, "windows are published before they are forgotten");
                    counted += window.clicks;
                    self.superseded.extend(window.stored.map(|stored| (start, stored)));
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
        let mut hours: Vec<Hour> = self.windows.keys().map(|start| start.hour()).collect();
        hours.dedup();
        hours
    }

    /// Returns the newest event time of the oldest dedup chunk stored: it expires when the floor is there.
    pub fn next_expiry(&self) -> Option<UtcMillis> {
        self.chunks.iter().map(|(latest, _)| *latest).min()
    }

    /// Returns what memory must keep when this state is dropped; `None` if the store does not hold all of it.
    ///
    /// The caller makes sure that the last snapshot is committed and the windows taken last are published.
    pub fn resting(&self) -> Option<Resting> {
        let is_stored = !self.changed && self.superseded.is_empty() && !self.dedup.has_unsaved();
        if !is_stored || !self.unpublished.is_empty() {
            return None;
        }
        let mut resting = Resting::default();
        for (latest, stored) in &self.chunks {
            resting.add_chunk(*latest, stored.sum);
        }
        for (start, window) in &self.windows {
            resting.add_window(*start, window.clicks, window.stored?.sum);
        }
        Some(resting)
    }

    /// Encodes what changed since the last snapshot as entries numbered `checkpoint`, and names what they supersede.
    ///
    /// `floor` is the checkpoint's: chunks at or below it are dropped whole.
    pub fn snapshot(&mut self, checkpoint: CheckpointNumber, floor: Option<UtcMillis>) -> CampaignSnapshot {
        let mut snapshot = CampaignSnapshot::new(self.campaign.clone(), checkpoint);
        for (start, stored) in self.superseded.drain(..) {
            snapshot.supersede(EntryKind::Window(start), Some(stored));
        }
        self.chunks.retain(|(latest, stored)| {
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
        for start in self.unsaved.drain(..) {
            if let Some(window) = self.windows.get_mut(&start) {
                window.unsaved = false;
                let stored = snapshot.put_window(start, window);
                snapshot.supersede(EntryKind::Window(start), window.stored.replace(stored));
            }
        }
        let mut entries = self.dedup.take_unsaved();
        entries.retain(|entry| floor.is_none_or(|floor| entry.event_time > floor));
        if let Some(latest) = entries.iter().map(|entry| entry.event_time).max() {
            self.chunks.push((latest, snapshot.put_chunk(&entries)));
        }
        if let Some(applied) = self.applied {
            let stored = snapshot.put_meta(CampaignMeta { applied, tallies: self.tallies });
            snapshot.supersede(EntryKind::Meta, self.stored_meta.replace(stored));
        }
    }
}
