//! What a partition knows of hours: which are sealed and where, and which may miss something. Pure.
//!
//! Words: *sealed* = copies of the hour at or above the seal's end are late; *incomplete* = the stream's count of the
//! hour may differ from what the rules say (G-5), because history, a dedup entry or a copy was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use twice_log::archive::{Seal, StoredSeal};
use twice_log::{Hour, LogOffset, UtcMillis};

use crate::campaign::{DroppedEntries, SealEnds, StreamRules};
use crate::checkpoint::SealRecord;

/// Hours sealed and hours incomplete of one partition.
#[derive(Debug)]
pub(super) struct HourLedger {
    rules: StreamRules,
    seals: BTreeMap<Hour, SealRecord>,
    incomplete: BTreeSet<Hour>,
    incomplete_through: Option<Hour>,
    /// Rebuilt whenever a seal changes; handed to every campaign with every batch.
    ends: Arc<SealEnds>,
}

impl HourLedger {
    pub(super) fn new(
        rules: StreamRules,
        seals: Vec<SealRecord>,
        incomplete: Vec<Hour>,
        incomplete_through: Option<Hour>,
    ) -> Self {
        let mut ledger = Self {
            rules,
            seals: seals.into_iter().map(|record| (record.hour, record)).collect(),
            incomplete: incomplete.into_iter().collect(),
            incomplete_through,
            ends: Arc::default(),
        };
        ledger.rebuild_ends();
        ledger
    }

    /// Returns where each sealed hour ends.
    pub(super) fn ends(&self) -> Arc<SealEnds> {
        self.ends.clone()
    }

    pub(super) fn record(&self, hour: Hour) -> Option<&SealRecord> {
        self.seals.get(&hour)
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &SealRecord> {
        self.seals.values()
    }

    pub(super) fn incomplete_through(&self) -> Option<Hour> {
        self.incomplete_through
    }

    /// Returns the unsealed hours known to miss something, in order.
    pub(super) fn incomplete_hours(&self) -> Vec<Hour> {
        self.incomplete.iter().copied().collect()
    }

    pub(super) fn is_complete(&self, hour: Hour) -> bool {
        !self.incomplete.contains(&hour) && self.incomplete_through.is_none_or(|through| hour > through)
    }

    /// Notes that history is missing which may have held copies of every hour up to `through`.
    pub(super) fn lose_history(&mut self, through: Hour) {
        self.incomplete_through = self.incomplete_through.max(Some(through));
        self.rebuild_ends();
    }

    /// Marks the unsealed hours that dropped dedup entries could have decided at `watermark`.
    pub(super) fn mark_dropped(&mut self, dropped: &DroppedEntries, watermark: Option<UtcMillis>) {
        let reach_ms = self.rules.dedup_ms();
        // What is late already is not counted, whatever the entries would have said.
        let from = Some(dropped.earliest.plus_ms(-reach_ms)).max(self.rules.late_below(watermark));
        self.mark_between(from.unwrap_or(dropped.earliest), dropped.latest.plus_ms(reach_ms));
    }

    /// Marks the unsealed hours that a copy nobody applied could have decided: its own, and its horizon's.
    pub(super) fn mark_skipped(&mut self, event_time: UtcMillis) {
        let reach_ms = self.rules.dedup_ms();
        self.mark_between(event_time.plus_ms(-reach_ms), event_time.plus_ms(reach_ms));
    }

    fn mark_between(&mut self, from: UtcMillis, to: UtcMillis) {
        let mut hour = from.hour();
        while hour <= to.hour() {
            if !self.seals.contains_key(&hour) {
                self.incomplete.insert(hour);
            }
            hour = hour.plus(1);
        }
    }

    /// Takes in a seal made here, not yet in the archive.
    pub(super) fn seal(&mut self, seal: Seal) {
        self.insert(SealRecord { hour: seal.hour, end: seal.end, seal: Some(seal) });
        self.rebuild_ends();
    }

    /// Takes in the seals that stand in the archive; each wins over one made here.
    pub(super) fn adopt<'a>(&mut self, stored: impl IntoIterator<Item = &'a StoredSeal>) {
        for StoredSeal { seal, .. } in stored {
            if self.seals.get(&seal.hour).is_some_and(|record| record.end != seal.end) {
                tracing::warn!(hour = %seal.hour, partition = %seal.partition, end = %seal.end,
                    "the archive holds another seal of the hour, which stands");
            }
            self.insert(SealRecord { hour: seal.hour, end: seal.end, seal: None });
        }
        self.rebuild_ends(); // once: there may be years of seals
    }

    fn insert(&mut self, record: SealRecord) {
        self.incomplete.remove(&record.hour);
        self.seals.insert(record.hour, record);
    }

    /// Forgets seals that are in the archive and whose hours the watermark alone closes; not those of `open` hours, whose
    /// windows go once the seal's end is reached.
    pub(super) fn prune(&mut self, watermark: Option<UtcMillis>, open: &BTreeSet<Hour>) {
        let rules = self.rules;
        let before = self.seals.len();
        self.seals.retain(|hour, record| {
            let is_late = rules.is_late(watermark, hour.end().plus_ms(-1));
            record.seal.is_some() || !is_late || open.contains(hour)
        });
        if self.seals.len() != before {
            self.rebuild_ends();
        }
    }

    /// Where history is missing, no copy of a sealed hour is counted again: a count from less would replace a full one.
    fn rebuild_ends(&mut self) {
        let ends = self.seals.values().map(|record| {
            let is_cut = self.incomplete_through.is_some_and(|through| record.hour <= through);
            (record.hour, if is_cut { LogOffset(0) } else { record.end })
        });
        self.ends = Arc::new(ends.collect());
    }
}

#[cfg(test)]
mod tests {
    use twice_log::archive::CountingSettings;
    use twice_log::event::MINUTE_MS;
    use twice_log::{Generation, PartitionId};

    use super::*;

    fn ledger() -> HourLedger {
        HourLedger::new(StreamRules::new(&CountingSettings::default()), Vec::new(), Vec::new(), None)
    }

    fn hour(number: i64) -> Hour {
        Hour::from_since_epoch(number)
    }

    fn seal(number: i64, end: i64) -> Seal {
        Seal {
            hour: hour(number),
            generation: Generation(0),
            partition: PartitionId(0),
            end: LogOffset(end),
            complete: true,
            counts: BTreeMap::new(),
        }
    }

    #[test]
    fn dropped_entries_mark_every_hour_they_could_decide() {
        let mut ledger = ledger();
        let at = hour(10).start().plus_ms(5 * MINUTE_MS);
        ledger.mark_dropped(&DroppedEntries { entries: 1, earliest: at, latest: at }, None);
        assert_eq!(ledger.incomplete_hours(), vec![hour(9), hour(10)]);
    }

    #[test]
    fn dropped_entries_mark_no_hour_that_the_watermark_closed() {
        let mut ledger = ledger();
        let at = hour(10).start().plus_ms(5 * MINUTE_MS);
        let watermark = Some(hour(10).start().plus_ms(4 * MINUTE_MS));
        ledger.mark_dropped(&DroppedEntries { entries: 1, earliest: at, latest: at }, watermark);
        assert_eq!(ledger.incomplete_hours(), vec![hour(10)]);
    }

    #[test]
    fn a_sealed_hour_is_never_marked_and_a_seal_ends_the_mark() {
        let mut ledger = ledger();
        ledger.seal(seal(9, 5));
        let at = hour(10).start().plus_ms(MINUTE_MS);
        ledger.mark_skipped(at);
        assert_eq!(ledger.incomplete_hours(), vec![hour(10)]);
        ledger.seal(seal(10, 6));
        assert_eq!(ledger.incomplete_hours(), Vec::new());
    }

    #[test]
    fn a_seal_is_kept_until_archived_and_closed_by_the_watermark() {
        let mut ledger = ledger();
        ledger.seal(seal(9, 5));
        let closed = Some(hour(10).start().plus_ms(30_000));
        let none = BTreeSet::new();
        ledger.prune(closed, &none);
        assert!(ledger.record(hour(9)).is_some());
        ledger.adopt([&StoredSeal { sha256: twice_log::event::Sha256Hex::of(b""), seal: seal(9, 5) }]);
        ledger.prune(closed.map(|watermark| watermark.plus_ms(-1)), &none);
        assert!(ledger.record(hour(9)).is_some());
        ledger.prune(closed, &BTreeSet::from([hour(9)]));
        assert!(ledger.record(hour(9)).is_some(), "its windows are still held");
        ledger.prune(closed, &none);
        assert!(ledger.record(hour(9)).is_none());
    }

    #[test]
    fn lost_history_makes_hours_incomplete_and_closes_sealed_ones() {
        let mut ledger = ledger();
        ledger.seal(seal(9, 5));
        ledger.seal(seal(11, 7));
        ledger.lose_history(hour(10));
        assert!(!ledger.is_complete(hour(10)));
        assert!(ledger.is_complete(hour(11)));
        assert_eq!(ledger.ends().get(&hour(9)), Some(&LogOffset(0)));
        assert_eq!(ledger.ends().get(&hour(11)), Some(&LogOffset(7)));
    }
}
