//! Reads what can still be read of a damaged partition, for a caller that keeps the files and stores the rest anew.
//!
//! The log itself never goes on past damage: its offsets are what checkpoints and manifests stand on. A queue of records
//! that were acknowledged and are yet to be appended may: each record that reads is one that is not lost.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::frame::{FRAME_HEADER_BYTES, FrameHeader, Records};
use super::partition::PartitionKey;
use super::recover::segment_ids;
use super::segment::{SEGMENT_HEADER_BYTES, SegmentId};
use crate::error::{Error, Result};
use crate::event::{Generation, LogOffset, PartitionId, Topic};
use crate::fs::{FileSystem, read_file};

/// What was read of a damaged partition.
#[derive(Debug)]
pub(crate) struct Salvage {
    /// (offset, bytes), offsets ascending and at or above the one asked for.
    pub records: Vec<(LogOffset, Bytes)>,
    /// Records that do not read, up to where the newest segment begins or the last frame that reads ends.
    pub missing: u64,
    /// The offset after the last one that was read or counted.
    pub end: LogOffset,
}

/// Reads every whole frame of partition 0 of `topic`, from offset `from` on, or from the oldest segment's first where that
/// is not known or was trimmed. Holds all its records in memory.
///
/// # Errors
/// `Io`. Bytes that are no frame are no error here.
pub(crate) fn salvage(
    fs: &dyn FileSystem,
    directory: &Path,
    topic: Topic,
    from: Option<LogOffset>,
) -> Result<Salvage> {
    let key = key(topic, PartitionId(0));
    let own = key.directory(directory);
    let ids = segment_ids(fs, key, &own)?;
    // Segments are removed once they are wholly given up, whether or not that could be noted.
    let mut next = from.max(ids.first().map(|id| id.base)).unwrap_or(LogOffset(0));
    let mut salvage = Salvage { records: Vec::new(), missing: 0, end: LogOffset(0) };
    for id in ids {
        let path = id.path(&own);
        let bytes = Bytes::from(read_file(fs, &path).map_err(Error::io("read", &path))?);
        // Where a segment begins says how many the ones before it held.
        salvage.missing += u64::try_from(id.base.0 - next.0).unwrap_or(0);
        next = next.max(id.base);
        take_frames(&bytes, &id, &mut next, &mut salvage);
    }
    salvage.end = next;
    Ok(salvage)
}

/// Reads every whole frame of a segment's bytes; returns the records and how many between them do not read.
pub(crate) fn salvage_segment(
    topic: Topic,
    partition: PartitionId,
    base: LogOffset,
    bytes: &Bytes,
) -> (Vec<Bytes>, u64) {
    let (mut next, mut salvage) = (base, Salvage { records: Vec::new(), missing: 0, end: LogOffset(0) });
    take_frames(bytes, &key(topic, partition).segment(base), &mut next, &mut salvage);
    (salvage.records.into_iter().map(|(_, record)| record).collect(), salvage.missing)
}

/// Returns where the segment of generation 0 that begins at `base` lies in the log of `directory`.
pub(crate) fn segment_path(
    directory: &Path,
    topic: Topic,
    partition: PartitionId,
    base: LogOffset,
) -> PathBuf {
    let key = key(topic, partition);
    key.segment(base).path(&key.directory(directory))
}

fn key(topic: Topic, partition: PartitionId) -> PartitionKey {
    PartitionKey { topic, generation: Generation(0), partition }
}

fn take_frames(bytes: &Bytes, id: &SegmentId, next: &mut LogOffset, salvage: &mut Salvage) {
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some((found, header)) = next_frame(bytes, id, at, *next) {
        at = found + header.frame_bytes();
        if header.end() <= *next {
            continue;
        }
        salvage.missing += u64::try_from(header.base.0 - next.0).unwrap_or(0);
        let payload = bytes.slice(found + FRAME_HEADER_BYTES..at);
        let records = (header.base.0..).zip(Records::new(payload, header.records));
        let whole = records.filter_map(|(offset, record)| Some((LogOffset(offset), record.ok()?)));
        salvage.records.extend(whole.filter(|(offset, _)| *offset >= *next));
        *next = header.end();
    }
}

/// Returns the first whole frame at or after `from`, where a frame with offset `next` would begin, or one before it.
///
/// A damaged frame's records may hold bytes that look like a whole one: a frame that goes farther than the bytes before it
/// allow (no record takes less than one) is such bytes. Believed, it would make every frame behind it look like an old one.
fn next_frame(bytes: &[u8], id: &SegmentId, from: usize, next: LogOffset) -> Option<(usize, FrameHeader)> {
    let last = bytes.len().checked_sub(FRAME_HEADER_BYTES)?;
    (from..=last).find_map(|at| {
        let header = bytes[at..at + FRAME_HEADER_BYTES].try_into().ok()?;
        let header = FrameHeader::decode(header).ok()?;
        let possible = header.base.0 <= next.0.max(id.base.0).saturating_add((at - from) as i64);
        (possible && header.matches(&bytes[at..], id.seed())).then_some((at, header))
    })
}

#[cfg(test)]
mod tests {
    use super::super::frame::{encode_frame, put_record};
    use super::*;

    fn frame(record: &[u8], base: i64) -> Bytes {
        let mut payload = Vec::new();
        put_record(&mut payload, record);
        let seed = key(Topic::AdClicks, PartitionId(0)).segment(LogOffset(0)).seed();
        encode_frame([&payload[..]].into_iter(), payload.len(), 1, LogOffset(base), seed)
    }

    // Found by a fuzz target: times stand in records, and a sender may choose them so that they read as an offset.
    #[test]
    fn a_frame_that_a_damaged_record_feigns_hides_none_behind_it() {
        let feigned = frame(b"x", 1_736_942_400_123);
        let mut damaged = frame(&feigned, 0).to_vec();
        damaged[8] ^= 1;
        let segment =
            [&[0; SEGMENT_HEADER_BYTES][..], &damaged, &frame(b"one", 1), &frame(b"two", 2)].concat();
        let (records, missing) =
            salvage_segment(Topic::AdClicks, PartitionId(0), LogOffset(0), &Bytes::from(segment));
        assert_eq!((records, missing), (vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")], 1));
    }
}
