//! What a queue holds, counted: records, bytes, and how many arrived in which second; of clicks also by partition.
//!
//! Guarantee: a record is counted before its bytes can be stored and until the log has it, so whoever asks whether
//! records from before a moment are held is never told no too early (G-3).

use std::collections::BTreeMap;

use super::entry::Entry;
use crate::event::{PartitionId, Topic, UtcMillis};

const SECOND_MS: i64 = 1000;

#[derive(Debug, Default, Clone)]
pub(super) struct Holdings {
    pub records: u64,
    pub bytes: u64,
    /// Start of the second of arrival, epoch ms -> records. Not by millisecond: an hour's outage would take megabytes.
    seconds: BTreeMap<i64, u64>,
    /// The same of clicks alone, by partition.
    clicks: BTreeMap<(PartitionId, i64), u64>,
}

impl Holdings {
    pub(super) fn add<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) {
        for entry in entries {
            self.records += 1;
            self.bytes += entry.stored_bytes();
            *self.seconds.entry(second(entry)).or_default() += 1;
            if entry.topic == Topic::AdClicks {
                *self.clicks.entry((entry.partition, second(entry))).or_default() += 1;
            }
        }
    }

    pub(super) fn remove<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) {
        for entry in entries {
            self.records = self.records.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(entry.stored_bytes());
            take_one(&mut self.seconds, second(entry));
            if entry.topic == Topic::AdClicks {
                take_one(&mut self.clicks, (entry.partition, second(entry)));
            }
        }
    }

    /// Returns when the oldest record arrived, rounded down to the second.
    pub(super) fn oldest(&self) -> Option<UtcMillis> {
        self.seconds.first_key_value().map(|(second, _)| UtcMillis::clamped(*second))
    }

    /// Returns when the oldest click of a partition arrived, rounded down to the second.
    pub(super) fn oldest_click(&self, partition: PartitionId) -> Option<UtcMillis> {
        let of_partition = self.clicks.range((partition, i64::MIN)..=(partition, i64::MAX));
        of_partition.map(|((_, second), _)| UtcMillis::clamped(*second)).next()
    }

    /// Returns how many records arrived before `instant`; of its own second, all.
    pub(super) fn before(&self, instant: UtcMillis) -> u64 {
        self.seconds.range(..instant.epoch_ms()).map(|(_, count)| count).sum()
    }
}

fn take_one<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

fn second(entry: &Entry) -> i64 {
    entry.arrival_time.epoch_ms().div_euclid(SECOND_MS) * SECOND_MS
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn at(ms: i64) -> Entry {
        let (topic, partition) = (Topic::AdClicks, PartitionId(0));
        Entry { topic, partition, arrival_time: UtcMillis::clamped(ms), bytes: Bytes::new() }
    }

    #[test]
    fn the_oldest_goes_on_only_when_all_of_its_second_are_gone() {
        let mut holdings = Holdings::default();
        holdings.add(&[at(2_500), at(1_999), at(1_000)]);
        assert_eq!(holdings.oldest(), Some(UtcMillis::clamped(1_000)));
        assert_eq!(holdings.before(UtcMillis::clamped(1_000)), 0);
        assert_eq!(holdings.before(UtcMillis::clamped(1_001)), 2, "rather too many than too few");
        holdings.remove(&[at(1_000)]);
        assert_eq!(holdings.oldest(), Some(UtcMillis::clamped(1_000)));
        holdings.remove(&[at(1_999)]);
        assert_eq!(holdings.oldest(), Some(UtcMillis::clamped(2_000)));
        holdings.remove(&[at(2_500)]);
        assert_eq!((holdings.records, holdings.bytes, holdings.oldest()), (0, 0, None));
    }

    #[test]
    fn the_oldest_click_is_that_of_the_partition_asked_for_and_no_verdict() {
        let mut holdings = Holdings::default();
        let verdict = Entry { topic: Topic::FraudVerdicts, ..at(1_000) };
        let other = Entry { partition: PartitionId(1), ..at(5_500) };
        holdings.add(&[verdict.clone(), at(9_000), other.clone()]);
        let oldest = |holdings: &Holdings| [0, 1, 2].map(|number| holdings.oldest_click(PartitionId(number)));
        let at_ms = |ms| Some(UtcMillis::clamped(ms));
        assert_eq!(oldest(&holdings), [at_ms(9_000), at_ms(5_000), None]);
        holdings.remove(&[verdict, other]);
        assert_eq!(oldest(&holdings), [at_ms(9_000), None, None]);
    }
}
