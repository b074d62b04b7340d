//! The errors of the log, split by what the caller must do.

use std::path::PathBuf;

use crate::event::record::RecordError;
use crate::event::{LogOffset, PartitionId, Topic, UtcMillis};

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Try again later: nothing is broken.
    Retry,
    /// Another process holds the thing, or went ahead: read it again and go on after it.
    Conflict,
    /// Stored bytes are wrong: stop and show the operator the place.
    Damage,
    /// The machine or the configuration must change first.
    Fatal,
}

/// Errors of the hot log and the archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many bytes wait for the disk or the cluster. The sender waits and sends again; nothing was stored.
    #[error("{waiting_bytes} bytes already wait to be written; send again later")]
    Busy { waiting_bytes: u64 },
    /// The spool holds as much as it may. Nothing was stored; the sender sends again later.
    #[error("the {queue} is full: {bytes} of {bytes_max} bytes")]
    SpoolFull { queue: &'static str, bytes: u64, bytes_max: u64 },
    /// The log did not answer in time. What it does with the records is unknown.
    #[error("the log did not answer within {after_ms} ms")]
    Slow { after_ms: u64 },
    /// The append failed or its outcome is unknown. The sender sends again with the same ids (CR-1 absorbs a copy).
    #[error("append to the log failed and its outcome is unknown")]
    AppendUnknown {
        #[source]
        source: std::sync::Arc<std::io::Error>,
    },
    /// The log takes nothing more: it was closed, or stopped after a failed write or sync, which must not be retried. The
    /// node restarts.
    #[error(
        "the log is closed or stopped after an error that was reported; restart the node once that is mended"
    )]
    Stopped,
    /// A record is missing. The reader reopens the log at `expected`; it never goes on.
    #[error("hole in {topic} partition {partition}: expected offset {expected}, read {read}")]
    Hole { topic: Topic, partition: PartitionId, expected: LogOffset, read: LogOffset },
    /// The log's cluster does not answer, or refused for now. Nothing is lost; the caller tries again.
    #[error("the Fluvio log cannot {action} now: {source}")]
    Unavailable {
        action: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The partition held more records before than it does now. The operator looks; offsets must not be given twice.
    #[error(
        "{topic} partition {partition} held records up to offset {known} before and now ends at {end}: its files or \
         its topic were removed, or a server lost data; stop the node and restore the log's data, or, if it is gone for \
         good, start again with a new data folder (and on Fluvio a new topic prefix)"
    )]
    WentBackwards { topic: Topic, partition: PartitionId, known: LogOffset, end: LogOffset },
    /// The offset was trimmed away or never existed.
    #[error(
        "offset {offset} of {topic} partition {partition} is not in the log, which holds {earliest} to {end}"
    )]
    OutOfRange {
        topic: Topic,
        partition: PartitionId,
        offset: LogOffset,
        earliest: LogOffset,
        end: LogOffset,
    },
    /// Bytes in the middle of a file are wrong. The operator restores the file; nothing is skipped.
    #[error("damage in {} at byte {at}: {reason}; restore this file from a backup, nothing is skipped", path.display())]
    Damage { path: PathBuf, at: u64, reason: String },
    /// Another process writes here.
    #[error("{} is in use by another process; stop it first", path.display())]
    Locked { path: PathBuf },
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The object store failed.
    #[error("object store: {action} {path}")]
    ObjectStore {
        action: &'static str,
        path: String,
        #[source]
        source: object_store::Error,
    },
    /// The object exists already with other bytes: another writer was first. Read it and go on after it.
    #[error("{path} exists already")]
    AlreadyExists { path: String },
    /// An object of the archive does not say what it must.
    #[error("{path}: {reason} (restore it from a copy of the archive; nothing is skipped)")]
    ArchiveDamage { path: String, reason: String },
    /// The file was deleted under retention. What needs it can no longer be done; its bill stands as it is.
    #[error(
        "{path} was deleted under retention on {deleted_at} ({tombstone} says so): what reads it can no longer be counted, \
         and the bill made from it stands"
    )]
    Deleted { path: String, tombstone: String, deleted_at: UtcMillis },
    /// Writing or reading Parquet failed.
    #[error("parquet: {path}")]
    Parquet {
        path: String,
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// Building a column batch failed.
    #[error("arrow")]
    Arrow(#[from] arrow::error::ArrowError),
    /// A record does not decode.
    #[error("record at offset {offset} of {topic} partition {partition}")]
    Record {
        topic: Topic,
        partition: PartitionId,
        offset: LogOffset,
        #[source]
        source: RecordError,
    },
    /// A setting or an earlier layout does not fit.
    #[error("{reason}")]
    Config { reason: String },
}

impl Error {
    /// Returns what turns an I/O error of `action` on `path` into this crate's error.
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Error::Io { action, path: path.to_path_buf(), source }
    }

    /// Returns the error for wrong bytes at `at` of `path`.
    pub(crate) fn damage(path: &std::path::Path, at: u64, reason: impl Into<String>) -> Self {
        Error::Damage { path: path.to_path_buf(), at, reason: reason.into() }
    }

    /// Returns what the caller does about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Busy { .. }
            | Error::SpoolFull { .. }
            | Error::Slow { .. }
            | Error::AppendUnknown { .. }
            | Error::Unavailable { .. }
            | Error::ObjectStore { .. } => ErrorKind::Retry,
            Error::AlreadyExists { .. } => ErrorKind::Conflict,
            Error::Hole { .. }
            | Error::Damage { .. }
            | Error::ArchiveDamage { .. }
            | Error::Parquet { .. }
            | Error::Arrow(_)
            | Error::Record { .. } => ErrorKind::Damage,
            Error::Stopped
            | Error::WentBackwards { .. }
            | Error::OutOfRange { .. }
            | Error::Locked { .. }
            | Error::Io { .. }
            | Error::Deleted { .. }
            | Error::Config { .. } => ErrorKind::Fatal,
        }
    }
}
