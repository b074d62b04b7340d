//! One call of append: its records, encoded into parts that fit a frame each, and its outcome.
//!
//! The caller's thread encodes, so that the one commit thread only copies.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::frame::{LENGTH_BYTES_MAX, RECORD_BYTES_MAX, put_record};
use crate::error::{Error, Result};
use crate::event::PartitionId;
use crate::hot::AppendRecord;

/// One call of append, which ends when all its parts did.
pub(super) struct Append {
    parts_left: AtomicUsize,
    outcome: Mutex<Option<oneshot::Sender<Result<()>>>>,
}

impl Append {
    fn new(parts: usize) -> (Arc<Self>, oneshot::Receiver<Result<()>>) {
        let (sender, receiver) = oneshot::channel();
        let outcome = Mutex::new(Some(sender));
        (Arc::new(Self { parts_left: AtomicUsize::new(parts), outcome }), receiver)
    }

    /// Notes that one part is durable; the last one resolves the append.
    pub(super) fn part_stored(&self) {
        if self.parts_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.resolve(Ok(()));
        }
    }

    /// Ends the append, unless it ended before.
    pub(super) fn resolve(&self, outcome: Result<()>) {
        let sender = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            let _ = sender.send(outcome); // whoever waited may have gone
        }
    }
}

/// Records of one append in one partition that go into one frame.
pub(super) struct Part {
    /// Index of the partition among those of all topics.
    pub slot: usize,
    /// Encoded records.
    pub payload: Vec<u8>,
    pub records: u32,
    pub append: Arc<Append>,
}

/// Encodes records into parts of at most `frame_bytes_max` bytes, in their order within each partition.
///
/// # Errors
/// `Config` if a record is too large, or names a partition that `slot_of` refuses.
pub(super) fn encode(
    records: &[AppendRecord],
    frame_bytes_max: usize,
    slot_of: impl Fn(PartitionId) -> Result<usize>,
) -> Result<(Vec<Part>, oneshot::Receiver<Result<()>>)> {
    let record_bytes_max = RECORD_BYTES_MAX.min(frame_bytes_max - LENGTH_BYTES_MAX);
    let mut encoded: Vec<(usize, Vec<u8>, u32)> = Vec::new();
    let mut newest_part_of: Vec<Option<usize>> = Vec::new(); // by slot
    for record in records {
        let slot = slot_of(record.partition)?;
        let bytes = record.bytes.len();
        if bytes > record_bytes_max {
            return Err(Error::Config {
                reason: format!(
                    "a record of {bytes} bytes is too large; at most {record_bytes_max} are stored"
                ),
            });
        }
        if newest_part_of.len() <= slot {
            newest_part_of.resize(slot + 1, None);
        }
        let newest = newest_part_of[slot];
        let fitting =
            newest.filter(|part| encoded[*part].1.len() + LENGTH_BYTES_MAX + bytes <= frame_bytes_max);
        let part = fitting.unwrap_or(encoded.len());
        if part == encoded.len() {
            encoded.push((slot, Vec::new(), 0));
            newest_part_of[slot] = Some(part);
        }
        put_record(&mut encoded[part].1, &record.bytes);
        encoded[part].2 += 1;
    }
    let (append, outcome) = Append::new(encoded.len());
    let part = |(slot, payload, records)| Part { slot, payload, records, append: append.clone() };
    Ok((encoded.into_iter().map(part).collect(), outcome))
}
