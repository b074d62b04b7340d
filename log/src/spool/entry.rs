//! One held record: where it is to go, when it came, and its bytes.
//!
//! Layout, little endian: `version u8, topic u8, partition u32, arrival_time i64`, then the record as the log stores it.

use bytes::{BufMut, Bytes, BytesMut};

use crate::event::{PartitionId, Topic, UtcMillis, record};

const VERSION: u8 = 1;
/// Bytes before the record.
pub(super) const ENTRY_HEADER_BYTES: usize = 14;

/// A record that waits to be appended to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub topic: Topic,
    pub partition: PartitionId,
    /// When the gateway took it in: an hour waits for it by this time (G-3).
    pub arrival_time: UtcMillis,
    pub bytes: Bytes,
}

impl Entry {
    /// Wraps a record of the log, with the arrival time that stands in it.
    pub fn new(topic: Topic, partition: PartitionId, bytes: Bytes) -> Self {
        // One that does not tell counts as the oldest of all: an hour rather waits for it in vain.
        let arrival_time = record::arrival_time(&bytes).unwrap_or(UtcMillis::clamped(0));
        Self { topic, partition, arrival_time, bytes }
    }

    /// Returns the bytes that the queue stores.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(ENTRY_HEADER_BYTES + self.bytes.len());
        out.put_u8(VERSION);
        out.put_u8(code(self.topic));
        out.put_u32_le(self.partition.0);
        out.put_i64_le(self.arrival_time.epoch_ms());
        out.put_slice(&self.bytes);
        out.freeze()
    }

    /// Reads what [`Entry::encode`] wrote; the error is the reason why it is none.
    pub fn decode(stored: &Bytes) -> Result<Self, &'static str> {
        let Some(header) = stored.first_chunk::<ENTRY_HEADER_BYTES>() else {
            return Err("a held record is shorter than its header");
        };
        let [version, topic, p0, p1, p2, p3, arrival @ ..] = *header;
        if version != VERSION {
            return Err("a held record's version is unknown to this build");
        }
        let topic = Topic::ALL.into_iter().find(|known| code(*known) == topic);
        let arrival_time = UtcMillis::new(i64::from_le_bytes(arrival));
        Ok(Self {
            topic: topic.ok_or("a held record names an unknown topic")?,
            partition: PartitionId(u32::from_le_bytes([p0, p1, p2, p3])),
            arrival_time: arrival_time.map_err(|_| "a held record's arrival time is impossible")?,
            bytes: stored.slice(ENTRY_HEADER_BYTES..),
        })
    }

    /// Returns the bytes it takes in the queue, nearly.
    pub(super) fn stored_bytes(&self) -> u64 {
        (ENTRY_HEADER_BYTES + 2 + self.bytes.len()) as u64
    }
}

// Written down, not derived from the order in the enum: stored queues hold these numbers.
fn code(topic: Topic) -> u8 {
    match topic {
        Topic::AdClicks => 1,
        Topic::FraudVerdicts => 2,
        Topic::BudgetDecisions => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            topic: Topic::FraudVerdicts,
            partition: PartitionId(258),
            arrival_time: UtcMillis::clamped(1_736_942_400_123),
            bytes: Bytes::from_static(b"record"),
        }
    }

    #[test]
    fn an_entry_reads_back_whole() {
        assert_eq!(Entry::decode(&entry().encode()), Ok(entry()));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic() {
        let stored = entry().encode();
        for length in 0..ENTRY_HEADER_BYTES {
            assert!(Entry::decode(&stored.slice(..length)).is_err());
        }
        for (at, byte) in [(0, 9), (1, 0), (1, 77), (13, 0x7f)] {
            let mut wrong = stored.to_vec();
            wrong[at] = byte;
            assert!(Entry::decode(&Bytes::from(wrong)).is_err(), "{byte} at {at}");
        }
    }

    // Stored queues hold these bytes.
    #[test]
    fn the_bytes_of_an_entry_do_not_drift() {
        let hex: String = entry().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            format!("0102{}{:016x}{}", "02010000", 1_736_942_400_123_i64.swap_bytes(), "7265636f7264")
        );
    }
}
