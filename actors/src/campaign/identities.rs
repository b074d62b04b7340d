//! The identities of one campaign as a bill remembers them: of each the hours of its copies, first copy first.
//!
//! Guarantee: [`BilledIdentities::check_and_insert`] answers CR-3 by hours exactly: copies come in order of position, so the
//! order in which an identity's entries stand is that of their positions, and the first one within the horizon is the
//! winner. Only the first copy of an hour is kept: a later one of the same hour is within the same horizons and never first.
//! Layout: one map from 16 bytes of id to 10 bytes of hour and payload hash, 27 bytes a slot; what else is known of an
//! identity with copies in several hours stands apart, as that is rare. One look-up a copy, whatever the horizon.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry as Slot;

use super::dedup::IdKey;

/// The first copy of one hour of one identity. Bytes, so that a slot is not padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    hour: [u8; 2],
    payload: [u8; 8],
}

impl Entry {
    fn new(hour: u16, payload_hash: i64) -> Self {
        Self { hour: hour.to_ne_bytes(), payload: payload_hash.to_ne_bytes() }
    }

    fn is_within(&self, hour: u16, horizon: u16) -> bool {
        u16::from_ne_bytes(self.hour).abs_diff(hour) <= horizon
    }

    fn payload_hash(&self) -> i64 {
        i64::from_ne_bytes(self.payload)
    }
}

/// Identities with the hours of their copies. Hours count from one that the caller chose.
#[derive(Debug, Default)]
pub struct BilledIdentities {
    first: HashMap<IdKey, Entry>,
    /// Further hours, in order of position.
    others: HashMap<IdKey, Vec<Entry>>,
}

impl BilledIdentities {
    /// Remembers a copy, and returns the payload hash of the lowest copy within `horizon` hours that stands before it.
    #[inline]
    pub fn check_and_insert(
        &mut self,
        click_id: [u8; 16],
        hour: u16,
        payload_hash: i64,
        horizon: u16,
    ) -> Option<i64> {
        let id = IdKey(click_id);
        let entry = Entry::new(hour, payload_hash);
        match self.first.entry(id) {
            Slot::Vacant(slot) => {
                slot.insert(entry);
                None
            }
            Slot::Occupied(slot) => {
                let first = *slot.get();
                if first.hour == entry.hour {
                    return Some(first.payload_hash());
                }
                let others = self.others.entry(id).or_default();
                let mut before = std::iter::once(&first).chain(others.iter());
                let winner = before.find(|other| other.is_within(hour, horizon)).map(Entry::payload_hash);
                if others.iter().all(|other| other.hour != entry.hour) {
                    others.push(entry);
                }
                winner
            }
        }
    }

    /// Returns how many identities are remembered.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// Returns whether none is.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_horizon_is_inclusive_in_both_directions_and_counts_hours() {
        for horizon in [1_u16, 3, 24] {
            let mut set = BilledIdentities::default();
            assert_eq!(set.check_and_insert([1; 16], 100, 7, horizon), None);
            assert_eq!(set.check_and_insert([2; 16], 100, 8, horizon), None);
            assert_eq!(set.check_and_insert([1; 16], 100 + horizon, 9, horizon), Some(7));
            assert_eq!(set.check_and_insert([2; 16], 100 - horizon, 9, horizon), Some(8));
            let mut set = BilledIdentities::default();
            assert_eq!(set.check_and_insert([1; 16], 100, 7, horizon), None);
            assert_eq!(set.check_and_insert([1; 16], 101 + horizon, 8, horizon), None);
            assert_eq!(set.check_and_insert([1; 16], 99 - horizon, 8, horizon), None);
        }
    }

    #[test]
    fn the_winner_is_the_first_within_the_horizon_not_the_nearest() {
        let mut set = BilledIdentities::default();
        for (hour, payload) in [(10, 1), (12, 2), (11, 3)] {
            set.check_and_insert([1; 16], hour, payload, 0);
        }
        assert_eq!(set.check_and_insert([1; 16], 11, 9, 1), Some(1));
        assert_eq!(set.check_and_insert([1; 16], 13, 9, 1), Some(2));
        assert_eq!(set.check_and_insert([1; 16], 12, 9, 0), Some(2));
        assert_eq!(set.check_and_insert([1; 16], 14, 9, 0), None);
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn an_entry_takes_no_padding() {
        assert_eq!(size_of::<(IdKey, Entry)>(), 26);
    }
}
