//! The closed segments of a queue, for whoever copies them elsewhere.

use bytes::Bytes;

use super::{PARTITION, SpoolQueue, TOPIC, open};
use crate::error::{Error, Result};
use crate::event::LogOffset;
use crate::fs::read_file;
use crate::hot::embedded::salvage_segment;
use crate::spool::entry::Entry;

/// A closed segment, which never changes again and is removed once it is drained.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentCopy {
    /// `{epoch:06}-{base offset:020}`: unique in the life of a queue's folder.
    pub name: String,
    pub base: LogOffset,
    pub path: std::path::PathBuf,
}

impl SpoolQueue {
    /// Returns the epoch that is open and the first offset of it that the log does not have; `None` while it is broken.
    pub fn drained_to(&self) -> Option<(u32, LogOffset)> {
        let active = self.active().ok()?;
        let epoch = active.folder.file_name()?.to_str()?.parse().ok()?;
        Some((epoch, active.position()))
    }

    /// Returns the closed segments that hold records which are not drained, oldest first.
    ///
    /// # Errors
    /// `Stopped` while it is broken; `Io`.
    pub async fn closed_segments(&self) -> Result<Vec<SegmentCopy>> {
        let active = self.active()?;
        let epoch =
            active.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let segments = active.log.segments().await?;
        let own =
            segments.into_iter().filter(|segment| segment.topic == TOPIC && segment.partition == PARTITION);
        let closed = own.filter(|segment| segment.end.is_some_and(|end| end > active.position()));
        Ok(closed
            .map(|segment| SegmentCopy {
                name: format!("{epoch}-{:020}", segment.base.0),
                base: segment.base,
                path: crate::hot::embedded::segment_path(&active.folder, TOPIC, PARTITION, segment.base),
            })
            .collect())
    }

    /// Reads a closed segment's bytes; `None` if it was drained meanwhile.
    ///
    /// # Errors
    /// `Io`.
    pub async fn read_segment(&self, segment: &SegmentCopy) -> Result<Option<Bytes>> {
        let (fs, path) = (self.fs.clone(), segment.path.clone());
        open::blocking(move || match read_file(fs.as_ref(), &path) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        })
        .await
    }
}

impl SegmentCopy {
    /// Reads the epoch and the base offset out of a name.
    pub fn parse(name: &str) -> Option<(u32, LogOffset)> {
        let (epoch, base) = name.split_once('-')?;
        Some((epoch.parse().ok()?, LogOffset(base.parse().ok()?)))
    }

    /// Returns the entries of a segment's bytes, and how many records do not read.
    pub fn entries(base: LogOffset, bytes: &Bytes) -> (Vec<Entry>, u64) {
        let (records, missing) = salvage_segment(TOPIC, PARTITION, base, bytes);
        let entries: Vec<Entry> = records.iter().filter_map(|record| Entry::decode(record).ok()).collect();
        let unread = (records.len() - entries.len()) as u64;
        (entries, missing + unread)
    }
}
