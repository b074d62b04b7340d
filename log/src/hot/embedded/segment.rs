//! The segment: one preallocated file of a partition, a header and then frames; zeros follow the last one.
//!
//! Header, 64 bytes, little endian: `magic [8], format version u32, generation u32, partition u32, zero u32, base
//! offset i64, topic [16] padded with zeros, zero [12], CRC32C u32` of the 60 bytes before it. The file is made under
//! another name and renamed when its header is durable, and its directory synced, before the first frame is written:
//! so a wrong header is always damage, and no frame is lost with a directory entry.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::FRAME_HEADER_BYTES;
use crate::error::{Error, Result};
use crate::event::{Generation, LogOffset, PartitionId, Topic};
use crate::fs::{File, FileSystem};

/// Bytes of a segment's header.
pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
/// Smallest segment that settings may ask for.
pub(super) const SEGMENT_BYTES_MIN: u64 = 4096;

const MAGIC: [u8; 8] = *b"TWICESEG";
const FORMAT_VERSION: u32 = 1;
const SUFFIX: &str = ".seg";
const UNFINISHED_EXTENSION: &str = "unfinished";

/// Which segment: enough to name its file and to write its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentId {
    pub topic: Topic,
    pub generation: Generation,
    pub partition: PartitionId,
    pub base: LogOffset,
}

impl SegmentId {
    /// Returns the header's bytes.
    pub(super) fn header(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.generation.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.partition.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.base.0.to_le_bytes());
        let topic = self.topic.name().as_bytes();
        let topic = &topic[..topic.len().min(16)];
        bytes[32..32 + topic.len()].copy_from_slice(topic);
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Returns what goes into the CRC of each frame. It depends on nothing that is read from the file, so that frames
    /// are told from other bytes even below a damaged header.
    pub(super) fn seed(&self) -> u32 {
        crc32c::crc32c(&self.header()[..60])
    }

    /// Returns why `bytes` are not this segment's header.
    pub(super) fn check_header(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let expected = self.header();
        if bytes == expected {
            return Ok(());
        }
        let whole = bytes.len() == SEGMENT_HEADER_BYTES
            && bytes[..8] == MAGIC
            && crc32c::crc32c(&bytes[..60]).to_le_bytes() == bytes[60..];
        match whole {
            true if bytes[8..12] != expected[8..12] => {
                Err("the segment's format version is unknown to this build")
            }
            true => Err("the segment's header names another place than its path"),
            false => Err("the segment's header is damaged"),
        }
    }

    /// Returns the file's path below the partition's directory.
    pub(super) fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{:020}{SUFFIX}", self.base.0))
    }
}

/// Returns the base offset that a segment's file name states; `None` for other files.
pub(super) fn base_of(path: &Path) -> Option<LogOffset> {
    let digits = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().map(LogOffset)
}

/// Returns whether the file is a segment whose creation was cut short.
pub(super) fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == UNFINISHED_EXTENSION)
}

/// The segment that frames are appended to.
pub(super) struct ActiveSegment {
    pub id: SegmentId,
    pub file: Arc<dyn File>,
    pub path: PathBuf,
    /// Where the next frame goes.
    pub position: u64,
    /// Length of the file, which no frame may pass.
    pub capacity: u64,
}

impl ActiveSegment {
    /// Makes the segment's file, its header and its directory entry durable. Replaces a file of the same name, which
    /// must hold no frame.
    pub(super) fn create(
        fs: &dyn FileSystem,
        directory: &Path,
        id: SegmentId,
        capacity: u64,
    ) -> Result<Self> {
        let path = id.path(directory);
        let unfinished = path.with_extension(UNFINISHED_EXTENSION);
        let file = fs.create_new(&unfinished).map_err(Error::io("create", &unfinished))?;
        file.preallocate(capacity).map_err(Error::io("preallocate", &unfinished))?;
        file.write_all_at(&id.header(), 0).map_err(Error::io("write", &unfinished))?;
        file.sync_data().map_err(Error::io("sync", &unfinished))?;
        fs.rename(&unfinished, &path).map_err(Error::io("rename", &unfinished))?;
        fs.sync_dir(directory).map_err(Error::io("sync", directory))?;
        Ok(Self { id, file, path, position: SEGMENT_HEADER_BYTES as u64, capacity })
    }

    /// Returns whether a frame of `payload_bytes` still fits.
    pub(super) fn fits(&self, payload_bytes: usize) -> bool {
        self.position + (FRAME_HEADER_BYTES + payload_bytes) as u64 <= self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SegmentId = SegmentId {
        topic: Topic::FraudVerdicts,
        generation: Generation(1),
        partition: PartitionId(2),
        base: LogOffset(3),
    };

    #[test]
    fn a_header_is_accepted_at_its_own_place_only() {
        assert_eq!(ID.check_header(&ID.header()), Ok(()));
        let others = [
            SegmentId { topic: Topic::AdClicks, ..ID },
            SegmentId { generation: Generation(0), ..ID },
            SegmentId { partition: PartitionId(0), ..ID },
            SegmentId { base: LogOffset(4), ..ID },
        ];
        for other in others {
            let refused = ID.check_header(&other.header()).expect_err("another place");
            assert!(refused.contains("another place"));
            assert_ne!(ID.seed(), other.seed());
        }
    }

    #[test]
    fn no_flipped_bit_of_a_header_goes_unseen() {
        for bit in 0..SEGMENT_HEADER_BYTES * 8 {
            let mut flipped = ID.header();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(ID.check_header(&flipped).is_err(), "bit {bit}");
        }
        assert!(ID.check_header(&[]).is_err());
    }

    // Stored logs hold these bytes: a failure here means that old logs would not be read.
    #[test]
    fn the_bytes_of_a_header_do_not_drift() {
        let hex: String = ID.header().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN_HEADER);
    }
    const GOLDEN_HEADER: &str = "5457494345534547010000000100000002000000000000000300000000000000\
        66726175642d7665726469637473000000000000000000000000000008ff0ec7";

    #[test]
    fn file_names_state_their_base() {
        let path = ID.path(Path::new("log"));
        assert_eq!(path, Path::new("log/00000000000000000003.seg"));
        assert_eq!(base_of(&path), Some(LogOffset(3)));
        for other in ["3.seg", "00000000000000000003", "0000000000000000000x.seg", "99999999999999999999.seg"]
        {
            assert_eq!(base_of(Path::new(other)), None, "{other}");
        }
    }
}
