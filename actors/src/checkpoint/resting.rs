//! A campaign at rest: its state is in the checkpoint store alone, and memory keeps what the partition must know of it.
//!
//! Guarantee: the totals tell a missing window or chunk when the campaign is loaded again.

use twice_log::{Hour, UtcMillis};

use super::entry::EntryTotals;

/// What memory keeps of a campaign at rest: about a hundred bytes, where its state would take kilobytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resting {
    /// Clicks counted of each hour that has windows, in order: what a seal says.
    hours: Box<[(Hour, u64)]>,
    /// Newest event time of the oldest stored dedup chunk: it expires when the floor is there.
    next_expiry: Option<UtcMillis>,
    /// Its windows and chunks in the store.
    totals: EntryTotals,
}

impl Resting {
    /// Takes in a stored window; windows come in order of time.
    pub fn add_window(&mut self, start: UtcMillis, clicks: u64, sum: u64) {
        self.totals.add(sum);
        let hour = start.hour();
        match self.hours.last_mut() {
            Some((last, counted)) if *last == hour => *counted += clicks,
            _ => {
                let mut hours = std::mem::take(&mut self.hours).into_vec();
                hours.push((hour, clicks));
                self.hours = hours.into_boxed_slice();
            }
        }
    }

    /// Takes in a stored dedup chunk with its newest event time.
    pub fn add_chunk(&mut self, latest: UtcMillis, sum: u64) {
        self.totals.add(sum);
        self.next_expiry = Some(self.next_expiry.map_or(latest, |earliest| earliest.min(latest)));
    }

    /// Returns the clicks counted of each hour that has windows, in order.
    pub fn hours(&self) -> &[(Hour, u64)] {
        &self.hours
    }

    /// Returns the newest event time of the oldest dedup chunk.
    pub fn next_expiry(&self) -> Option<UtcMillis> {
        self.next_expiry
    }

    /// Returns how many windows and chunks are stored, and the sum of their hashes.
    pub fn totals(&self) -> EntryTotals {
        self.totals
    }

    /// Returns whether nothing is stored that could still decide or count: the campaign may be forgotten.
    pub fn is_over(&self) -> bool {
        self.totals.entries == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_add_up_by_hour_and_the_earliest_chunk_expires_first() {
        let at = |minutes: i64| UtcMillis::clamped(minutes * 60_000);
        let mut resting = Resting::default();
        assert!(resting.is_over());
        for (start, clicks) in [(at(58), 2), (at(59), 3), (at(60), 5)] {
            resting.add_window(start, clicks, 1);
        }
        resting.add_chunk(at(70), 1);
        resting.add_chunk(at(65), 1);
        assert_eq!(resting.hours(), [(at(0).hour(), 5), (at(60).hour(), 5)]);
        assert_eq!(resting.next_expiry(), Some(at(65)));
        assert_eq!(resting.totals().entries, 5);
        assert!(!resting.is_over());
    }
}
