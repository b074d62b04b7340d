//! Segments for fuzz targets: bytes as they come, and whole segments that are damaged in one place.

use std::io;
use std::path::Path;

use bytes::Bytes;

use super::frame::{FRAME_MAGIC, encode_frame, put_record};
use super::partition::PartitionKey;
use super::salvage::salvage_segment;
use super::scan::{Check, Tail, Walk, Window, check_header, tail_from, walk_from_start, walk_on};
use super::segment::SegmentId;
use crate::event::{Generation, LogOffset, PartitionId, Topic};
use crate::fs::File;

const BASE: LogOffset = LogOffset(7);
/// Bytes at the end of the input that say what is damaged.
const DAMAGE_BYTES: usize = 4;

/// Walks, looks for a torn tail, and salvages.
///
/// An odd first byte: the rest are the frames of a segment as they come. An even one: the rest is cut into records, those
/// into frames, and one byte of the segment is changed or its end cut off. Then no record may come out that was not put
/// in, all before the damage must, and salvage must find those behind it too.
pub fn log_segment(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    if first % 2 == 1 {
        let segment = [&id().header()[..], rest].concat();
        walk(&segment);
        let (records, _) = salvage(&segment);
        assert!(records.iter().map(Bytes::len).sum::<usize>() <= rest.len());
        return;
    }
    let Some((records, damage)) = rest.split_last_chunk::<DAMAGE_BYTES>() else { return };
    if records.windows(FRAME_MAGIC.len()).any(|bytes| bytes == FRAME_MAGIC) {
        return; // a record that holds a frame of this very segment can feign one; `scan` says what keeps that away
    }
    let made = Made::from(records, usize::from(first >> 1 & 7) + 1);
    let (whole, tail) = walk(&made.segment);
    assert_eq!((whole.end, tail), (LogOffset(BASE.0 + made.records.len() as i64), Tail::Clean));
    assert_eq!(salvage(&made.segment), (made.records.clone(), 0));
    made.damaged(*damage);
}

struct Made {
    segment: Vec<u8>,
    records: Vec<Bytes>,
    /// (position after the frame, records up to there).
    frames: Vec<(usize, usize)>,
}

impl Made {
    /// Each record has its length in one byte before it; `a_frame` of them make a frame.
    fn from(mut bytes: &[u8], a_frame: usize) -> Self {
        let mut records = Vec::new();
        while let Some((length, rest)) = bytes.split_first() {
            let (record, rest) = rest.split_at(usize::from(*length).min(rest.len()));
            records.push(Bytes::copy_from_slice(record));
            bytes = rest;
        }
        let mut made = Self { segment: id().header().to_vec(), records, frames: Vec::new() };
        let mut before = 0;
        for some in made.records.chunks(a_frame) {
            let mut payload = Vec::new();
            some.iter().for_each(|record| put_record(&mut payload, record));
            let base = LogOffset(BASE.0 + before as i64);
            let frame =
                encode_frame([&payload[..]].into_iter(), payload.len(), some.len() as u32, base, id().seed());
            made.segment.extend_from_slice(&frame);
            before += some.len();
            made.frames.push((made.segment.len(), before));
        }
        made
    }

    fn damaged(mut self, [how, at0, at1, change]: [u8; DAMAGE_BYTES]) {
        let header = id().header().len();
        let body = self.segment.len() - header;
        if body == 0 {
            return;
        }
        let at = header + usize::from(u16::from_le_bytes([at0, at1])) % body;
        let cut = how % 2 == 0;
        if cut {
            self.segment.truncate(at);
        } else {
            self.segment[at] ^= change.max(1);
        }
        let before =
            self.frames.iter().take_while(|(end, _)| *end <= at).last().map_or(0, |(_, records)| *records);
        let (walked, tail) = walk(&self.segment);
        assert_eq!(walked.end, LogOffset(BASE.0 + before as i64), "the walk ends at the damage");
        let hit = self.frames.iter().position(|(end, _)| *end > at).unwrap_or(self.frames.len());
        let behind = if cut { &[] } else { self.frames.get(hit + 1..).unwrap_or_default() };
        assert_eq!(matches!(tail, Tail::FrameAt(_)), !behind.is_empty(), "damage is told from a torn tail");
        let (salvaged, missing) = salvage(&self.segment);
        let upto = self.frames.get(hit).map_or(self.records.len(), |(_, records)| *records);
        let mut expected = self.records[..before].to_vec();
        if !behind.is_empty() {
            expected.extend_from_slice(&self.records[upto..]);
            assert_eq!(missing, (upto - before) as u64);
        }
        assert_eq!(salvaged, expected, "salvage finds what reads");
    }
}

fn id() -> SegmentId {
    PartitionKey { topic: Topic::AdClicks, generation: Generation(0), partition: PartitionId(0) }
        .segment(BASE)
}

fn salvage(segment: &[u8]) -> (Vec<Bytes>, u64) {
    salvage_segment(Topic::AdClicks, PartitionId(0), BASE, &Bytes::copy_from_slice(segment))
}

fn walk(segment: &[u8]) -> (Walk, Tail) {
    let file = Memory(segment);
    let path = Path::new("segment");
    // The file is memory: it has no error to give.
    let steps = || -> crate::Result<(Walk, Tail)> {
        let mut window = Window::new(&file, path)?;
        assert_eq!(check_header(&mut window, &id())?, Ok(()));
        let mut walk = walk_from_start(&id());
        walk_on(&mut window, &id(), &mut walk, Check::Whole, None)?;
        let tail = tail_from(&mut window, &id(), walk.position, walk.end)?;
        Ok((walk, tail))
    };
    let (walk, tail) = steps().unwrap_or_else(|error| panic!("a file in memory failed: {error}"));
    assert!(walk.position <= segment.len() as u64 && walk.end >= BASE);
    (walk, tail)
}

struct Memory<'a>(&'a [u8]);

// The trait asks for 'static nowhere; only reading is used.
impl File for Memory<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let count = buffer.len().min(self.0.len() - from);
        buffer[..count].copy_from_slice(&self.0[from..from + count]);
        Ok(count)
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn preallocate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
