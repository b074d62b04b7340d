//! Names of the metrics the node itself records; [`describe`] registers their meaning.

use metrics::{Unit, describe_counter, describe_gauge};

/// Share of the data folder's disk that is free, 0 to 1.
pub const DISK_FREE_SHARE: &str = "twice_disk_free_share";
/// Size of the log's segment files.
pub const LOG_BYTES: &str = "twice_log_bytes";
/// First offset the log still holds. Labels `topic`, `partition`.
pub const LOG_EARLIEST_OFFSET: &str = "twice_log_earliest_offset";
/// Bytes by which the log exceeds `log_bytes_max` because archive or checkpoints lag.
pub const LOG_OVER_LIMIT_BYTES: &str = "twice_log_over_limit_bytes";
/// Segments trimmed.
pub const LOG_TRIMMED_SEGMENTS_TOTAL: &str = "twice_log_trimmed_segments_total";
/// Reads of the Fluvio log that were complete after they had met a hole.
pub const FLUVIO_HOLES_REPAIRED_TOTAL: &str = "twice_fluvio_holes_repaired_total";
/// Time from the start of the node until the stream path had applied what was in the log then.
pub const START_RECOVERY_SECONDS: &str = "twice_start_recovery_seconds";
/// 1 if the process before ended without a graceful stop.
pub const START_AFTER_UNCLEAN_END: &str = "twice_start_after_unclean_end";
/// Requests to store records that were sent to Fluvio again.
pub const FLUVIO_APPEND_RETRIES_TOTAL: &str = "twice_fluvio_append_retries_total";

/// Records that wait in a queue to be appended to the log. Label `queue`: `spool` or `spill`.
pub const SPOOL_RECORDS: &str = "twice_spool_records";
/// Their bytes. Label `queue`.
pub const SPOOL_BYTES: &str = "twice_spool_bytes";
/// Bytes a queue may hold. Label `queue`.
pub const SPOOL_BYTES_MAX: &str = "twice_spool_bytes_max";
/// Time since the oldest record of a queue arrived. Label `queue`.
pub const SPOOL_OLDEST_SECONDS: &str = "twice_spool_oldest_seconds";
/// Records of a queue's damaged files that do not read. Label `queue`.
pub const SPOOL_MISSING_RECORDS: &str = "twice_spool_missing_records";

/// State of a circuit breaker: 0 closed, 1 half open, 2 open. Label `breaker`.
pub const BREAKER_STATE: &str = "twice_breaker_state";
/// By how much the clock is ahead of the time that passed, while it is doubted; 0 while it is believed.
pub const CLOCK_AHEAD_SECONDS: &str = "twice_clock_ahead_seconds";
/// Month keys of pseudonyms destroyed after their time.
pub const PSEUDONYM_KEYS_DESTROYED_TOTAL: &str = "twice_pseudonym_keys_destroyed_total";

/// Registers the meaning and unit of every metric with the recorder in force.
pub fn describe() {
    describe_gauge!(DISK_FREE_SHARE, Unit::Count, "share of the data folder's disk that is free");
    describe_gauge!(LOG_BYTES, Unit::Bytes, "size of the log's segment files");
    describe_gauge!(LOG_EARLIEST_OFFSET, Unit::Count, "first offset the log still holds");
    describe_gauge!(LOG_OVER_LIMIT_BYTES, Unit::Bytes, "bytes of log above its limit that are still needed");
    describe_gauge!(SPOOL_RECORDS, Unit::Count, "records held that are to be appended to the log");
    describe_gauge!(SPOOL_BYTES, Unit::Bytes, "bytes of the records held");
    describe_gauge!(SPOOL_BYTES_MAX, Unit::Bytes, "bytes a queue may hold");
    describe_gauge!(SPOOL_OLDEST_SECONDS, Unit::Seconds, "time since the oldest held record arrived");
    describe_gauge!(
        SPOOL_MISSING_RECORDS,
        Unit::Count,
        "records of a queue's damaged files that do not read"
    );
    describe_gauge!(START_RECOVERY_SECONDS, Unit::Seconds, "start of the node until the stream caught up");
    describe_gauge!(START_AFTER_UNCLEAN_END, Unit::Count, "1 if the process before was killed");
    describe_gauge!(CLOCK_AHEAD_SECONDS, Unit::Seconds, "how far a clock that is doubted is ahead");
    describe_gauge!(BREAKER_STATE, Unit::Count, "0 closed, 1 half open, 2 open");
    describe_counter!(FLUVIO_HOLES_REPAIRED_TOTAL, Unit::Count, "reads complete after they had met a hole");
    describe_counter!(FLUVIO_APPEND_RETRIES_TOTAL, Unit::Count, "requests to store records sent again");
    describe_counter!(PSEUDONYM_KEYS_DESTROYED_TOTAL, Unit::Count, "month keys of pseudonyms destroyed");
    describe_counter!(LOG_TRIMMED_SEGMENTS_TOTAL, Unit::Count, "segments of the log trimmed");
}
