//! From an offset to a place in a segment, about one entry every 64 KiB.

use crate::event::LogOffset;

const INTERVAL_BYTES: u64 = 64 * 1024;

/// Where some frames of a segment begin, in order. The first frame is always among them.
#[derive(Debug, Clone, Default)]
pub(super) struct SparseIndex {
    entries: Vec<(LogOffset, u64)>,
}

impl SparseIndex {
    /// Notes the frame that begins with offset `base` at `position`, unless the entry before is near.
    pub(super) fn add(&mut self, base: LogOffset, position: u64) {
        if self.entries.last().is_none_or(|(_, last)| position >= last + INTERVAL_BYTES) {
            self.entries.push((base, position));
        }
    }

    /// Returns (base, position) of the last noted frame that begins at or below `offset`.
    pub(super) fn lookup(&self, offset: LogOffset) -> Option<(LogOffset, u64)> {
        let after = self.entries.partition_point(|(base, _)| *base <= offset);
        self.entries[..after].last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_finds_the_nearest_entry_at_or_below() {
        let mut index = SparseIndex::default();
        assert_eq!(index.lookup(LogOffset(0)), None);
        for frame in 0..10 {
            index.add(LogOffset(frame * 5), 64 + frame as u64 * 40_000);
        }
        assert_eq!(index.lookup(LogOffset(4)), Some((LogOffset(0), 64)));
        assert_eq!(index.lookup(LogOffset(9)), Some((LogOffset(0), 64)), "40 KB on is too near to be noted");
        assert_eq!(index.lookup(LogOffset(10)), Some((LogOffset(10), 80_064)));
        assert_eq!(index.lookup(LogOffset(999)), Some((LogOffset(40), 320_064)));
    }
}
