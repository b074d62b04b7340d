//! The frame: all records of one group commit in one partition.
//!
//! Layout, little endian: `magic u32, payload length u32, CRC32C u32, record count u32, base offset i64`, then the
//! payload: of each record its length as a varint (LEB128, at most 5 bytes) and its bytes. The CRC covers the header
//! without itself, the payload, and first the segment's seed, so that a frame is valid in its own segment only.

use bytes::Bytes;

use crate::event::LogOffset;

/// Bytes of a frame's header.
pub(super) const FRAME_HEADER_BYTES: usize = 24;
/// Largest payload of a frame. A larger append is spread over several group commits.
pub(super) const FRAME_PAYLOAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest record.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes that a record's length takes.
pub(super) const LENGTH_BYTES_MAX: usize = 5;

/// First bytes of a frame.
pub(super) const FRAME_MAGIC: [u8; 4] = [0xC7, b'2', b'F', 0x9E];

/// A decoded frame header whose numbers are plausible. Only [`FrameHeader::matches`] says that the frame is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub payload_bytes: usize,
    pub records: u32,
    pub base: LogOffset,
    crc: u32,
}

impl FrameHeader {
    /// Decodes a header; the error is the reason why it is none.
    pub(super) fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, &'static str> {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..4] != FRAME_MAGIC {
            return Err("no frame begins here");
        }
        let (payload_bytes, crc, records) = (number(4) as usize, number(8), number(12));
        let base = i64::from(number(16)) | (i64::from(number(20)) << 32);
        if payload_bytes > FRAME_PAYLOAD_BYTES_MAX {
            return Err("the frame's length is impossible");
        }
        if records == 0 || records as usize > payload_bytes {
            return Err("the frame's record count is impossible");
        }
        if base < 0 || base.checked_add(i64::from(records)).is_none() {
            return Err("the frame's offset is impossible");
        }
        Ok(Self { payload_bytes, records, base: LogOffset(base), crc })
    }

    /// Returns the offset after the frame's last record.
    pub(super) fn end(&self) -> LogOffset {
        LogOffset(self.base.0 + i64::from(self.records))
    }

    /// Returns the bytes of the whole frame.
    pub(super) fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload_bytes
    }

    /// Returns whether `frame`, which begins with this header, is whole and belongs to the segment of `seed`.
    pub(super) fn matches(&self, frame: &[u8], seed: u32) -> bool {
        frame.len() >= self.frame_bytes() && crc_of(&frame[..self.frame_bytes()], seed) == self.crc
    }
}

fn crc_of(frame: &[u8], seed: u32) -> u32 {
    let crc = crc32c::crc32c(&seed.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &frame[..8]);
    crc32c::crc32c_append(crc, &frame[12..])
}

/// Appends one record to a payload.
pub(super) fn put_record(payload: &mut Vec<u8>, record: &[u8]) {
    debug_assert!(record.len() <= RECORD_BYTES_MAX, "checked by the append");
    let mut length = record.len();
    while length >= 0x80 {
        payload.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    payload.push(length as u8);
    payload.extend_from_slice(record);
}

/// Returns a frame over payloads that hold `records` records in all, the first at `base`.
pub(super) fn encode_frame<'a>(
    payloads: impl Iterator<Item = &'a [u8]>,
    payload_bytes: usize,
    records: u32,
    base: LogOffset,
    seed: u32,
) -> Bytes {
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + payload_bytes);
    frame.extend_from_slice(&FRAME_MAGIC);
    frame.extend_from_slice(&(payload_bytes as u32).to_le_bytes()); // bounded by FRAME_PAYLOAD_BYTES_MAX
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&records.to_le_bytes());
    frame.extend_from_slice(&base.0.to_le_bytes());
    payloads.for_each(|payload| frame.extend_from_slice(payload));
    debug_assert_eq!(frame.len(), FRAME_HEADER_BYTES + payload_bytes);
    let crc = crc_of(&frame, seed);
    frame[8..12].copy_from_slice(&crc.to_le_bytes());
    Bytes::from(frame)
}

/// The records of a whole frame's payload, in order, as slices of it. An error is the reason why they do not add up.
pub(super) struct Records {
    payload: Bytes,
    at: usize,
    left: u32,
}

impl Records {
    pub(super) fn new(payload: Bytes, records: u32) -> Self {
        Self { payload, at: 0, left: records }
    }

    fn record(&mut self) -> Option<Bytes> {
        let mut length = 0_usize;
        for shift in 0..LENGTH_BYTES_MAX {
            let byte = *self.payload.get(self.at)?;
            self.at += 1;
            length |= usize::from(byte & 0x7f) << (7 * shift);
            if byte & 0x80 == 0 {
                let start = self.at;
                self.at = start.checked_add(length).filter(|end| *end <= self.payload.len())?;
                return Some(self.payload.slice(start..self.at));
            }
        }
        None
    }
}

impl Iterator for Records {
    type Item = Result<Bytes, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let rest = self.payload.len() - self.at;
            self.at = self.payload.len();
            return (rest > 0).then_some(Err("bytes follow the frame's last record"));
        }
        self.left -= 1;
        let record = self.record().ok_or("a record's length does not fit its frame");
        if record.is_err() {
            (self.left, self.at) = (0, self.payload.len());
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(records: &[&[u8]], base: i64, seed: u32) -> Bytes {
        let mut payload = Vec::new();
        records.iter().for_each(|record| put_record(&mut payload, record));
        let (length, count) = (payload.len(), records.len() as u32);
        encode_frame(std::iter::once(payload.as_slice()), length, count, LogOffset(base), seed)
    }

    fn header(frame: &[u8]) -> Result<FrameHeader, &'static str> {
        FrameHeader::decode(frame[..FRAME_HEADER_BYTES].try_into().expect("long enough"))
    }

    #[test]
    fn a_frame_reads_back_its_records() {
        let long = vec![7; 300];
        let frame = frame(&[b"one", b"", &long], 41, 9);
        let header = header(&frame).expect("a header");
        assert!(header.matches(&frame, 9));
        assert_eq!((header.base, header.end()), (LogOffset(41), LogOffset(44)));
        let records: Result<Vec<Bytes>, _> = Records::new(frame.slice(FRAME_HEADER_BYTES..), 3).collect();
        assert_eq!(records.expect("whole"), [&b"one"[..], b"", &long]);
    }

    #[test]
    fn no_flipped_bit_and_no_other_segment_goes_unseen() {
        let frame = frame(&[b"one", b"two"], 5, 9);
        assert!(!header(&frame).expect("a header").matches(&frame, 8));
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!header(&flipped).is_ok_and(|header| header.matches(&flipped, 9)), "bit {bit}");
        }
    }

    #[test]
    fn lengths_that_do_not_add_up_are_errors_and_end_the_records() {
        for (payload, records) in
            [(&b"\x05abc"[..], 1), (b"\x01ab", 1), (b"\xff\xff\xff\xff\xff", 1), (b"", 1)]
        {
            let read: Vec<_> = Records::new(Bytes::from_static(payload), records).take(5).collect();
            assert!(read.len() < 5 && read.last().expect("one").is_err(), "{payload:?}");
        }
    }

    // Stored logs hold these bytes: a failure here means that old logs would be read wrongly.
    #[test]
    fn the_bytes_of_a_frame_do_not_drift() {
        let hex: String = frame(&[b"ab"], 258, 7).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "c732469e03000000cac5bc1b010000000201000000000000026162");
    }
}
