//! The errors of the batch path, split by what the caller must do.

use twice_log::{Hour, LogOffset, PartitionId, Topic, UtcMillis};

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Try again later: something outside did not answer yet.
    Retry,
    /// Stored bytes or the rules contradict each other: stop and show the operator the place.
    Damage,
    /// The request or the configuration must change first.
    Refuse,
}

/// Errors of the batch path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log or the archive failed; its own kind decides.
    #[error(transparent)]
    Log(#[from] twice_log::Error),
    /// A store failed; the attempt is repeated.
    #[error("store")]
    Store(#[from] twice_store::Error),
    /// Reading or writing an object of the archive failed; the attempt is repeated.
    #[error("archive: {action} {path}")]
    Archive {
        action: &'static str,
        path: String,
        #[source]
        source: object_store::Error,
    },
    /// An object of the archive does not say what it must. The operator restores it.
    #[error("{path}: {reason} (restore it from a copy of the archive; nothing is skipped)")]
    ArchiveDamage { path: String, reason: String },
    /// The manifests did not reach the cutoff in time. The attempt is repeated; nothing is billed.
    #[error(
        "the archive reached offset {reached} of {topic} partition {partition}, and the cutoff is {cutoff}"
    )]
    ArchiveBehind { topic: Topic, partition: PartitionId, reached: LogOffset, cutoff: LogOffset },
    /// Clicks or verdicts from before the hour's closing instant have not reached the log yet (G-3). The schedule waits.
    #[error("waiting for what arrived before {instant}: {detail}")]
    HeldUp { hour: Hour, instant: UtcMillis, detail: String },
    /// The hour is not over, so it cannot be closed yet.
    #[error("hour {hour} ends at {}; it can be reconciled after that", hour.end())]
    HourNotOver { hour: Hour },
    /// The day is not over, so its hours cannot become final yet.
    #[error("day {day} ends at {end}; it can be closed after that")]
    DayNotOver { day: String, end: UtcMillis },
    /// Something a count of the hour would read was deleted under retention: a smaller bill would come of it (G-3). Its bill
    /// stands as it is; the operator settles what came too late outside of it.
    #[error("hour {hour} can no longer be counted: {reason}; its bill stands as it is")]
    Frozen { hour: Hour, reason: String },
    /// The hour has no run that ended (HTTP 404).
    #[error("hour {hour} is not reconciled yet")]
    NotReconciled { hour: Hour },
    /// The query engine failed.
    #[error("query engine: {action}")]
    Engine {
        action: &'static str,
        #[source]
        source: Box<datafusion::error::DataFusionError>,
    },
    /// What the engine answered breaks a rule the counts must keep (CR-5, G-5). A bug or damage: nothing is billed.
    #[error("result of the recompute is contradictory: {reason}")]
    Contradiction { reason: String },
    /// A candidate statement is none that can be run here, has other columns than the bill, or breaks CR-5 (HTTP 422).
    /// Whoever wrote it corrects it.
    #[error("the candidate is refused: {reason}")]
    Candidate { reason: String },
    /// The child process could not be started or spoken to.
    #[error("recompute process: {action}")]
    Process {
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The child process ended without a result.
    #[error("recompute process failed ({status}): {detail}")]
    ChildFailed { status: String, detail: String },
    /// The child process was killed, probably for want of memory, and so were those with smaller slices that followed it.
    /// The attempt is repeated; the operator changes a setting.
    #[error("recompute process was killed ({status}): {detail}")]
    ChildKilled { status: String, detail: String },
    /// The memory limit is too low for even small slices. The operator raises it; nothing was billed.
    #[error(
        "the recompute's memory did not suffice: the limit is {} MiB; set recompute_memory_bytes_max \
         (--recompute-memory-bytes-max) higher, or recompute_threads lower",
        limit_bytes >> 20
    )]
    OutOfMemory { limit_bytes: u64 },
    /// A request between parent and child, or the run's settings, does not read.
    #[error("{what} does not read")]
    Json {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// The run was recorded under rules that neither this build nor the archive has. The operator uses the build of that
    /// time, or restores the object.
    #[error(
        "run {run_id} was counted by rules that this build does not have (it has {present}), and {path}, which should \
         hold them, is not in the archive; use the build the run was made with, or restore that object"
    )]
    RulesMissing { run_id: String, path: String, present: String },
    /// The attempt that several waited for failed; the first of them has the error itself.
    #[error("hour {hour}: {detail}")]
    Attempt { hour: Hour, detail: String },
    /// The schedule counts the hour anew, or did so during a replay of it. Whoever asked for the replay asks again.
    #[error("hour {hour} is counted anew by the schedule; replay it again once that run has ended")]
    Overtaken { hour: Hour },
    /// A setting does not fit.
    #[error("{reason}")]
    Config { reason: String },
    /// The reconciler was stopped.
    #[error("the reconciler is stopped")]
    Stopped,
}

impl Error {
    /// Returns what the caller does about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Log(source) => match source.kind() {
                twice_log::ErrorKind::Retry | twice_log::ErrorKind::Conflict => ErrorKind::Retry,
                twice_log::ErrorKind::Damage => ErrorKind::Damage,
                twice_log::ErrorKind::Fatal => ErrorKind::Refuse,
            },
            Error::Store(_)
            | Error::Archive { .. }
            | Error::ArchiveBehind { .. }
            | Error::HeldUp { .. }
            | Error::Process { .. }
            | Error::ChildFailed { .. }
            | Error::ChildKilled { .. }
            | Error::Engine { .. }
            | Error::Attempt { .. }
            | Error::Overtaken { .. } => ErrorKind::Retry,
            Error::ArchiveDamage { .. }
            | Error::Contradiction { .. }
            | Error::Json { .. }
            | Error::RulesMissing { .. } => ErrorKind::Damage,
            Error::HourNotOver { .. }
            | Error::Frozen { .. }
            | Error::DayNotOver { .. }
            | Error::NotReconciled { .. }
            | Error::Candidate { .. }
            | Error::OutOfMemory { .. }
            | Error::Config { .. }
            | Error::Stopped => ErrorKind::Refuse,
        }
    }

    /// Wraps an engine error with what was being done.
    pub(crate) fn engine(
        action: &'static str,
    ) -> impl FnOnce(datafusion::error::DataFusionError) -> Error + Copy {
        move |source| Error::Engine { action, source: Box::new(source) }
    }
}

/// Writes an error with its causes on one line: what status, progress events and the child's error line show.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let detail = next.to_string();
        if !text.contains(&detail) {
            text.push_str(": ");
            text.push_str(&detail);
        }
        cause = next.source();
    }
    text
}
