//! Reads records from a segment's file: a large piece at a time, each frame checked, records as slices of the piece.

use bytes::{Bytes, BytesMut};

use super::frame::{FRAME_HEADER_BYTES, FrameHeader, Records};
use super::partition::{FileRange, Taker};
use crate::error::{Error, Result};
use crate::event::LogOffset;
use crate::fs::{FileSystem, read_full_at};
use crate::hot::ReadBatch;

/// Least and most bytes of a piece. The least holds what lies between two index entries; the most bounds memory.
const PIECE_BYTES_MIN: usize = 128 * 1024;
const PIECE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Reads records from `from` on, within one segment. Blocks on the disk.
///
/// # Errors
/// `Damage` naming file and position where a frame is wrong; `Io`.
pub(super) fn read_records(
    fs: &dyn FileSystem,
    range: &FileRange,
    from: LogOffset,
    bytes_max: usize,
) -> Result<ReadBatch> {
    let file = fs.open(&range.path, false).map_err(Error::io("open", &range.path))?;
    let seed = range.id.seed();
    let mut taker = Taker::new(from, bytes_max);
    let (mut at, mut expected) = (range.at, range.base);
    let mut piece_bytes =
        bytes_max.saturating_add(PIECE_BYTES_MIN / 2).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX);
    while at < range.until {
        let left = usize::try_from(range.until - at).unwrap_or(usize::MAX);
        let mut piece = BytesMut::zeroed(piece_bytes.min(left));
        let read = read_full_at(file.as_ref(), &mut piece, at).map_err(Error::io("read", &range.path))?;
        if read < piece.len() {
            return Err(Error::damage(&range.path, at + read as u64, "the file ends before its last record"));
        }
        let mut rest = piece.freeze();
        while !rest.is_empty() && !taker.is_full() {
            let damage = |reason| Error::damage(&range.path, at, reason);
            let header = match rest.first_chunk::<FRAME_HEADER_BYTES>() {
                Some(bytes) => FrameHeader::decode(bytes).map_err(damage)?,
                None if rest.len() == left_at(range, at) => {
                    return Err(damage("a frame's header is cut short"));
                }
                None => break,
            };
            if header.frame_bytes() > left_at(range, at) {
                return Err(damage("the frame's length passes the end of what was written"));
            }
            if header.frame_bytes() > rest.len() {
                piece_bytes = piece_bytes.max(header.frame_bytes());
                break;
            }
            let frame: Bytes = rest.split_to(header.frame_bytes());
            if !header.matches(&frame, seed) {
                return Err(damage("the frame's checksum is wrong"));
            }
            if header.base != expected {
                return Err(damage("the frame's offset does not follow the one before"));
            }
            let records = Records::new(frame.slice(FRAME_HEADER_BYTES..), header.records);
            taker.take(header.base, records).map_err(damage)?;
            at += frame.len() as u64;
            expected = header.end();
        }
        if !taker.batch.records.is_empty() {
            break;
        }
    }
    Ok(taker.batch)
}

fn left_at(range: &FileRange, at: u64) -> usize {
    usize::try_from(range.until.saturating_sub(at)).unwrap_or(usize::MAX)
}
