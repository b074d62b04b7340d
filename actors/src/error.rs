//! The errors of the stream path and the archiver, split by what the caller must do.

use std::path::PathBuf;

use twice_log::{CampaignId, Hour, LogOffset, PartitionId};

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Try again later: nothing is broken.
    Retry,
    /// The partition's memory can no longer be trusted: drop it and start from the last checkpoint.
    Restart,
    /// Stored bytes are wrong: move them aside and rebuild from the log.
    Damage,
    /// The machine or the configuration must change first.
    Fatal,
}

/// Errors of the stream path and the archiver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log failed; its own kind says what to do.
    #[error("log")]
    Log(#[from] twice_log::Error),
    /// A store failed; the rows are kept and published again.
    #[error("store")]
    Store(#[from] twice_store::Error),
    /// A campaign's actor died while it applied `offset`. The partition starts again from its checkpoint.
    #[error("the actor of campaign {campaign} died in partition {partition}, at offset {offset:?}")]
    CampaignDied { partition: PartitionId, campaign: CampaignId, offset: Option<LogOffset> },
    /// sled failed. The partition starts again from its last checkpoint.
    #[error("checkpoint store: {action}")]
    Checkpoint {
        action: &'static str,
        #[source]
        source: sled::Error,
    },
    /// An entry of the checkpoint store does not say what it must. The folder is moved aside.
    #[error("checkpoint of partition {partition} is damaged: {reason}")]
    CheckpointDamage { partition: PartitionId, reason: String },
    /// The checkpoint folder cannot be used and is not damaged: locked, not permitted, or the disk is full.
    #[error(
        "checkpoint folder {} cannot be opened; check that no other process uses it, its permissions and free space",
        path.display()
    )]
    CheckpointFolder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The folder holds checkpoints of another log layout.
    #[error("checkpoint folder {} belongs to {found}, and the log has {expected}; give each log its own folder", path.display())]
    Layout { path: PathBuf, found: String, expected: String },
    /// The log ends before what the checkpoint reflects: records were lost. The operator restores the log.
    #[error(
        "the log of partition {partition} ends at {end}, before offset {applied} that was counted already: put the log's \
         data back, or, if it is gone for good, start again with a new data folder"
    )]
    LogWentBackwards { partition: PartitionId, applied: LogOffset, end: LogOffset },
    /// The archive does not hold what its manifests say, and the state cannot be rebuilt from it. The partition goes on
    /// from the log alone and marks hours incomplete.
    #[error(
        "the state of partition {partition} cannot be rebuilt from the archive; restore the file it names"
    )]
    HistoryDamaged {
        partition: PartitionId,
        #[source]
        source: twice_log::Error,
    },
    /// The partition does not exist in this log, or this process does not own it.
    #[error("partition {partition} is not run here")]
    UnknownPartition { partition: PartitionId },
    /// A seal that was put is no longer in the archive. The operator restores the archive; the hour is not sealed again.
    #[error("the seal of hour {hour} of partition {partition} is no longer in the archive; restore it")]
    SealVanished { partition: PartitionId, hour: Hour },
    /// The last windows could not be published before the stop; the next start publishes them.
    #[error("partition {partition} stopped before its last windows were published")]
    NotPublished { partition: PartitionId },
    /// The actor was stopped; the caller asks after the restart.
    #[error("the stream path is stopped")]
    Stopped,
    /// A thread could not be started or ended early.
    #[error("{what} did not start")]
    Thread {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// A background task ended by a panic. The partition starts again from its checkpoint.
    #[error("a background task ended early: {what}")]
    TaskDied { what: &'static str },
    /// A setting is out of bounds.
    #[error("{setting} is {value}; it must lie between {min} and {max}")]
    Config { setting: &'static str, value: u64, min: u64, max: u64 },
}

impl Error {
    /// Returns what the caller does about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Log(error) => match error.kind() {
                twice_log::ErrorKind::Retry | twice_log::ErrorKind::Conflict => ErrorKind::Retry,
                twice_log::ErrorKind::Damage | twice_log::ErrorKind::Fatal => ErrorKind::Fatal,
            },
            Error::Store(_) | Error::NotPublished { .. } => ErrorKind::Retry,
            Error::CampaignDied { .. }
            | Error::Checkpoint { .. }
            | Error::HistoryDamaged { .. }
            | Error::TaskDied { .. } => ErrorKind::Restart,
            Error::CheckpointDamage { .. } => ErrorKind::Damage,
            Error::CheckpointFolder { .. }
            | Error::Layout { .. }
            | Error::LogWentBackwards { .. }
            | Error::UnknownPartition { .. }
            | Error::SealVanished { .. }
            | Error::Stopped
            | Error::Thread { .. }
            | Error::Config { .. } => ErrorKind::Fatal,
        }
    }

    /// Returns the message with those of its causes.
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }
}
