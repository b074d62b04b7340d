//! The identities one campaign has seen, with the event time of each copy, for as long as they can decide anything.
//!
//! Guarantee: [`DedupSet::is_duplicate`] answers CR-3's stream rule exactly, as long as nothing was dropped early.
//! Words: *group* = entries of five minutes of event time, dropped whole; *chunk* = the entries new since the last
//! checkpoint, as stored; *floor* = newest event time that decides nothing any more.
//! Layout: a group maps 16 bytes of id to 4 bytes of time, 21 bytes a slot; an id with several event times in one group
//! keeps the others apart, as that is rare.

use std::hash::{Hash, Hasher};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use twice_log::{ClickId, UtcMillis};

/// Event time a group spans. Shorter frees memory sooner; longer means fewer look-ups a copy (horizon / span + 1).
pub const GROUP_MS: i64 = 300_000;

/// A click id as a key: aligned to bytes, so that a slot of key and time takes 20 bytes and not 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IdKey(pub(super) [u8; 16]);

impl Hash for IdKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.0));
    }
}

/// One remembered copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DedupEntry {
    pub click_id: ClickId,
    pub event_time: UtcMillis,
}

/// Entries dropped before their time: what they could have decided is for the caller to mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DroppedEntries {
    pub entries: u64,
    pub earliest: UtcMillis,
    pub latest: UtcMillis,
}

impl DroppedEntries {
    /// Returns both together.
    pub fn and(&self, other: &Self) -> Self {
        Self {
            entries: self.entries + other.entries,
            earliest: self.earliest.min(other.earliest),
            latest: self.latest.max(other.latest),
        }
    }
}

#[derive(Debug)]
struct Group {
    start_ms: i64,
    earliest_ms: i64,
    latest_ms: i64,
    entries: u64,
    /// Event time of the id's first copy, as milliseconds after `start_ms`.
    first_times: HashMap<IdKey, u32>,
    /// Event times of its further copies, where they differ.
    other_times: HashMap<IdKey, Vec<u32>>,
}

impl Group {
    fn new(start_ms: i64) -> Self {
        Self {
            start_ms,
            earliest_ms: i64::MAX,
            latest_ms: i64::MIN,
            entries: 0,
            first_times: HashMap::new(),
            other_times: HashMap::new(),
        }
    }

    fn holds_within(&self, id: &IdKey, event_ms: i64, horizon_ms: i64) -> bool {
        let is_near = |time: &u32| (self.start_ms + i64::from(*time) - event_ms).abs() <= horizon_ms;
        match self.first_times.get(id) {
            None => false,
            Some(first) if is_near(first) => true,
            Some(_) if self.other_times.is_empty() => false,
            Some(_) => self.other_times.get(id).is_some_and(|times| times.iter().any(is_near)),
        }
    }

    /// Takes an entry in; returns whether it was new.
    fn insert(&mut self, id: IdKey, event_ms: i64) -> bool {
        let time = (event_ms - self.start_ms) as u32; // below GROUP_MS
        let is_new = match self.first_times.entry(id) {
            Entry::Vacant(slot) => {
                slot.insert(time);
                true
            }
            Entry::Occupied(slot) if *slot.get() == time => false,
            Entry::Occupied(_) => {
                let times = self.other_times.entry(id).or_default();
                let is_new = !times.contains(&time);
                if is_new {
                    times.push(time);
                }
                is_new
            }
        };
        self.entries += u64::from(is_new);
        self.earliest_ms = self.earliest_ms.min(event_ms);
        self.latest_ms = self.latest_ms.max(event_ms);
        is_new
    }

    fn bytes(&self) -> usize {
        let others = self.other_times.len() * (2 * size_of::<u32>() + size_of::<IdKey>());
        size_of::<Self>() + self.first_times.allocation_size() + self.other_times.allocation_size() + others
    }
}

/// The dedup set of one campaign.
#[derive(Debug)]
pub struct DedupSet {
    horizon_ms: i64,
    /// In order of start. Few: the horizon both ways spans five.
    groups: Vec<Group>,
    /// New since the last checkpoint, in order of arrival.
    unsaved: Vec<DedupEntry>,
}

impl DedupSet {
    /// Starts an empty set.
    pub fn new(horizon_ms: i64) -> Self {
        Self { horizon_ms, groups: Vec::new(), unsaved: Vec::new() }
    }

    /// Returns whether another copy of the identity lies within the horizon, and remembers this one.
    ///
    /// An entry at or below `floor` decides nothing any more and is not kept.
    pub fn check_and_insert(&mut self, entry: DedupEntry, floor: Option<UtcMillis>) -> bool {
        let duplicate = self.is_duplicate(&entry);
        if floor.is_none_or(|floor| entry.event_time > floor) && self.insert(entry) {
            self.unsaved.push(entry);
        }
        duplicate
    }

    /// Returns whether another copy of the identity lies within the horizon.
    pub fn is_duplicate(&self, entry: &DedupEntry) -> bool {
        let id = IdKey(*entry.click_id.as_bytes());
        let event_ms = entry.event_time.epoch_ms();
        let (from, to) = (event_ms - self.horizon_ms, event_ms + self.horizon_ms);
        self.groups
            .iter()
            .filter(|group| group.latest_ms >= from && group.earliest_ms <= to)
            .any(|group| group.holds_within(&id, event_ms, self.horizon_ms))
    }

    /// Takes back an entry a checkpoint held.
    pub fn restore(&mut self, entry: DedupEntry) {
        self.insert(entry);
    }

    fn insert(&mut self, entry: DedupEntry) -> bool {
        let event_ms = entry.event_time.epoch_ms();
        let start_ms = event_ms.div_euclid(GROUP_MS) * GROUP_MS;
        let index = match self.groups.binary_search_by_key(&start_ms, |group| group.start_ms) {
            Ok(index) => index,
            Err(index) => {
                self.groups.insert(index, Group::new(start_ms));
                index
            }
        };
        self.groups[index].insert(IdKey(*entry.click_id.as_bytes()), event_ms)
    }

    /// Drops every group whose entries decide nothing any more.
    pub fn expire(&mut self, floor: Option<UtcMillis>) {
        if let Some(floor) = floor
            && self.groups.first().is_some_and(|group| group.latest_ms <= floor.epoch_ms())
        {
            self.groups.retain(|group| group.latest_ms > floor.epoch_ms());
        }
    }

    /// Drops the groups that start at or before `start`, though they may decide something; `None` if there are none.
    pub fn drop_oldest(&mut self, start: UtcMillis) -> Option<DroppedEntries> {
        let count = self.groups.partition_point(|group| group.start_ms <= start.epoch_ms());
        let dropped = self.groups.drain(..count).map(|group| DroppedEntries {
            entries: group.entries,
            earliest: UtcMillis::clamped(group.earliest_ms),
            latest: UtcMillis::clamped(group.latest_ms),
        });
        dropped.reduce(|all, one| all.and(&one))
    }

    /// Takes the entries new since the last call: the chunk of the next checkpoint.
    pub fn take_unsaved(&mut self) -> Vec<DedupEntry> {
        std::mem::take(&mut self.unsaved)
    }

    /// Returns whether entries are new since the last checkpoint.
    pub fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Returns the start of the oldest group, and the newest event time in it.
    pub fn oldest_group(&self) -> Option<OldestGroup> {
        self.groups.first().map(|group| OldestGroup {
            start: UtcMillis::clamped(group.start_ms),
            latest: UtcMillis::clamped(group.latest_ms),
        })
    }

    /// Returns the bytes of memory the set takes.
    pub fn bytes(&self) -> u64 {
        let groups: usize = self.groups.iter().map(Group::bytes).sum();
        (groups + self.unsaved.capacity() * size_of::<DedupEntry>()) as u64
    }
}

/// The oldest entries of a set: what expires, or is dropped, next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldestGroup {
    pub start: UtcMillis,
    pub latest: UtcMillis,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HORIZON_MS: i64 = 600_000;

    fn entry(name: &str, epoch_ms: i64) -> DedupEntry {
        DedupEntry { click_id: ClickId::derived(name), event_time: UtcMillis::clamped(epoch_ms) }
    }

    #[test]
    fn the_horizon_is_inclusive_in_both_directions() {
        for base in [0, GROUP_MS - 1, 7 * GROUP_MS + 17] {
            let mut set = DedupSet::new(HORIZON_MS);
            assert!(!set.check_and_insert(entry("a", base), None));
            assert!(set.is_duplicate(&entry("a", base + HORIZON_MS)));
            assert!(!set.is_duplicate(&entry("a", base + HORIZON_MS + 1)));
            assert!(set.is_duplicate(&entry("a", base - HORIZON_MS)));
            assert!(!set.is_duplicate(&entry("a", base - HORIZON_MS - 1)));
            assert!(!set.is_duplicate(&entry("b", base)));
        }
    }

    #[test]
    fn each_event_time_of_an_id_is_remembered() {
        let mut set = DedupSet::new(1_000);
        for time in [0, 100_000, 200_000] {
            assert!(!set.check_and_insert(entry("a", time), None));
        }
        for time in [500, 100_999, 200_000] {
            assert!(set.is_duplicate(&entry("a", time)));
        }
        assert!(!set.is_duplicate(&entry("a", 150_000)));
    }

    #[test]
    fn groups_are_dropped_whole_once_nothing_in_them_decides() {
        let mut set = DedupSet::new(HORIZON_MS);
        set.check_and_insert(entry("a", 0), None);
        set.check_and_insert(entry("b", GROUP_MS - 1), None);
        set.expire(Some(UtcMillis::clamped(GROUP_MS - 2)));
        assert!(set.is_duplicate(&entry("a", 0)));
        set.expire(Some(UtcMillis::clamped(GROUP_MS - 1)));
        assert!(!set.is_duplicate(&entry("a", 0)));
    }

    #[test]
    fn dropping_the_oldest_says_what_was_dropped() {
        let mut set = DedupSet::new(HORIZON_MS);
        set.check_and_insert(entry("a", 5), None);
        set.check_and_insert(entry("b", GROUP_MS + 7), None);
        let oldest = set.oldest_group().expect("two groups");
        let dropped = set.drop_oldest(oldest.start).expect("one group");
        assert_eq!((dropped.entries, dropped.earliest.epoch_ms(), dropped.latest.epoch_ms()), (1, 5, 5));
        assert!(set.is_duplicate(&entry("b", GROUP_MS)));
        assert_eq!(set.drop_oldest(UtcMillis::clamped(0)), None);
    }

    #[test]
    fn a_copy_equal_to_one_remembered_is_not_saved_again() {
        let mut set = DedupSet::new(HORIZON_MS);
        for _ in 0..3 {
            set.check_and_insert(entry("a", 5), None);
        }
        assert_eq!(set.take_unsaved(), vec![entry("a", 5)]);
        assert!(!set.has_unsaved());
    }
}
