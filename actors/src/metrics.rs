//! Names of the metrics of the stream path and the archiver, and what they mean.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Records of a partition not applied yet. Label `partition`.
pub const LAG_RECORDS: &str = "twice_stream_lag_records";
/// Copies applied.
pub const APPLIED_TOTAL: &str = "twice_stream_applied_total";
/// Copies counted into a window.
pub const COUNTED_TOTAL: &str = "twice_stream_counted_total";
/// Copies not counted because their window had closed or their hour was sealed.
pub const LATE_TOTAL: &str = "twice_stream_late_total";
/// Copies not counted because another copy stands before them.
pub const DUPLICATES_TOTAL: &str = "twice_stream_duplicates_total";
/// Records that do not decode.
pub const UNDECODABLE_TOTAL: &str = "twice_stream_undecodable_total";
/// Copies skipped because they killed their partition twice.
pub const SKIPPED_TOTAL: &str = "twice_stream_skipped_total";
/// Restarts of a partition from its checkpoint.
pub const PARTITION_RESTARTS_TOTAL: &str = "twice_stream_partition_restarts_total";
/// Holes in the log that were read again.
pub const HOLES_TOTAL: &str = "twice_stream_holes_total";
/// Time of one checkpoint, from snapshot to commit.
pub const CHECKPOINT_SECONDS: &str = "twice_stream_checkpoint_seconds";
/// Bytes written by one checkpoint.
pub const CHECKPOINT_BYTES: &str = "twice_stream_checkpoint_bytes";
/// Memory of the dedup sets. Label `partition`.
pub const DEDUP_BYTES: &str = "twice_stream_dedup_bytes";
/// Campaigns in memory. Label `partition`.
pub const CAMPAIGNS_ACTIVE: &str = "twice_stream_campaigns_active";
/// Campaigns at rest in the checkpoint store. Label `partition`.
pub const CAMPAIGNS_RESTING: &str = "twice_stream_campaigns_resting";
/// Campaigns that left memory.
pub const CAMPAIGNS_RESTED_TOTAL: &str = "twice_stream_campaigns_rested_total";
/// Campaigns that a click brought back from the checkpoint store.
pub const CAMPAIGNS_WOKEN_TOTAL: &str = "twice_stream_campaigns_woken_total";
/// Copies read from the archive because the log no longer holds them.
pub const REBUILT_TOTAL: &str = "twice_stream_rebuilt_total";
/// Dedup entries dropped before their time.
pub const DEDUP_DROPPED_TOTAL: &str = "twice_stream_dedup_dropped_total";
/// Time of one publish of changed windows.
pub const PUBLISH_SECONDS: &str = "twice_stream_publish_seconds";
/// Time from a click's arrival until its window was published, since the start. Label `quantile`.
pub const FRESHNESS_ARRIVAL_SECONDS: &str = "twice_stream_freshness_arrival_seconds";
/// Time from a click's own time until its window was published, since the start. Label `quantile`.
pub const FRESHNESS_EVENT_SECONDS: &str = "twice_stream_freshness_event_seconds";
/// For how long something counted is not in the window store. Label `partition`.
pub const UNSHOWN_SECONDS: &str = "twice_stream_unshown_seconds";
/// Publishes that failed and are tried again.
pub const PUBLISH_FAILURES_TOTAL: &str = "twice_stream_publish_failures_total";
/// Hours sealed. Label `complete`.
pub const SEALS_TOTAL: &str = "twice_stream_seals_total";
/// Time from the arrival of the first click that may have used up a budget until `exhausted` was stored.
pub const BUDGET_DECISION_SECONDS: &str = "twice_budget_decision_seconds";
/// Decisions stored. Labels `state`, `cause`.
pub const BUDGET_DECISIONS_TOTAL: &str = "twice_budget_decisions_total";
/// Decisions stored and not in the hot log's topic yet.
pub const BUDGET_UNPUBLISHED: &str = "twice_budget_unpublished";
/// Campaigns whose budget of today is used up.
pub const BUDGET_EXHAUSTED_CAMPAIGNS: &str = "twice_budget_exhausted_campaigns";
/// Strict campaigns whose spend is not known.
pub const BUDGET_UNKNOWN_CAMPAIGNS: &str = "twice_budget_unknown_campaigns";
/// Spend of today above budgets. Label `currency`.
pub const BUDGET_OVERSPEND_MICROS: &str = "twice_budget_overspend_micros";
/// Reads and writes of budgets that failed and are tried again.
pub const BUDGET_STORE_FAILURES_TOTAL: &str = "twice_budget_store_failures_total";
/// Records of a partition not archived yet. Labels `topic`, `partition`.
pub const UNARCHIVED_RECORDS: &str = "twice_archiver_unarchived_records";
/// Age of the oldest record not archived yet. Labels `topic`, `partition`.
pub const UNARCHIVED_AGE_SECONDS: &str = "twice_archiver_unarchived_age_seconds";
/// Manifests put.
pub const MANIFESTS_TOTAL: &str = "twice_archiver_manifests_total";
/// Rows archived.
pub const ARCHIVED_ROWS_TOTAL: &str = "twice_archiver_rows_total";
/// 1 while archiving fails, 0 while it works. Labels `topic`, `partition`.
pub const ARCHIVE_FAILING: &str = "twice_archiver_failing";
/// Data files that went to the secondary bucket.
pub const SECONDARY_FILES_TOTAL: &str = "twice_archiver_secondary_files_total";
/// Archive writes that failed and are tried again.
pub const ARCHIVE_FAILURES_TOTAL: &str = "twice_archiver_failures_total";

/// Describes every metric to the installed recorder. Call once at start.
pub fn describe() {
    describe_gauge!(LAG_RECORDS, Unit::Count, "Records of a partition not applied yet");
    describe_counter!(APPLIED_TOTAL, Unit::Count, "Copies applied");
    describe_counter!(COUNTED_TOTAL, Unit::Count, "Copies counted into a window");
    describe_counter!(LATE_TOTAL, Unit::Count, "Copies late for the stream");
    describe_counter!(DUPLICATES_TOTAL, Unit::Count, "Copies that repeat an earlier one");
    describe_counter!(UNDECODABLE_TOTAL, Unit::Count, "Records that do not decode");
    describe_counter!(SKIPPED_TOTAL, Unit::Count, "Copies skipped because they killed their partition twice");
    describe_counter!(PARTITION_RESTARTS_TOTAL, Unit::Count, "Restarts of a partition from its checkpoint");
    describe_counter!(HOLES_TOTAL, Unit::Count, "Holes in the log that were read again");
    describe_histogram!(CHECKPOINT_SECONDS, Unit::Seconds, "Time of one checkpoint, snapshot to commit");
    describe_histogram!(CHECKPOINT_BYTES, Unit::Bytes, "Bytes written by one checkpoint");
    describe_gauge!(DEDUP_BYTES, Unit::Bytes, "Memory of the dedup sets");
    describe_gauge!(CAMPAIGNS_ACTIVE, Unit::Count, "Campaigns in memory");
    describe_gauge!(CAMPAIGNS_RESTING, Unit::Count, "Campaigns at rest in the checkpoint store");
    describe_counter!(CAMPAIGNS_RESTED_TOTAL, Unit::Count, "Campaigns that left memory");
    describe_counter!(CAMPAIGNS_WOKEN_TOTAL, Unit::Count, "Campaigns that a click brought back");
    describe_counter!(REBUILT_TOTAL, Unit::Count, "Copies read from the archive to rebuild state");
    describe_counter!(DEDUP_DROPPED_TOTAL, Unit::Count, "Dedup entries dropped before their time");
    describe_histogram!(PUBLISH_SECONDS, Unit::Seconds, "Time of one publish of changed windows");
    describe_gauge!(FRESHNESS_ARRIVAL_SECONDS, Unit::Seconds, "Arrival of a click until it is visible");
    describe_gauge!(FRESHNESS_EVENT_SECONDS, Unit::Seconds, "Time of a click until it is visible");
    describe_gauge!(UNSHOWN_SECONDS, Unit::Seconds, "Time since something counted is not visible");
    describe_counter!(PUBLISH_FAILURES_TOTAL, Unit::Count, "Publishes that failed and are tried again");
    describe_counter!(SEALS_TOTAL, Unit::Count, "Hours sealed");
    describe_histogram!(
        BUDGET_DECISION_SECONDS,
        Unit::Seconds,
        "Time from the arrival of the first click that may have used up a budget until exhausted was stored"
    );
    describe_counter!(BUDGET_DECISIONS_TOTAL, Unit::Count, "Budget decisions stored");
    describe_gauge!(BUDGET_UNPUBLISHED, Unit::Count, "Budget decisions not in the log's topic yet");
    describe_gauge!(BUDGET_EXHAUSTED_CAMPAIGNS, Unit::Count, "Campaigns whose budget of today is used up");
    describe_gauge!(BUDGET_UNKNOWN_CAMPAIGNS, Unit::Count, "Strict campaigns whose spend is not known");
    describe_gauge!(BUDGET_OVERSPEND_MICROS, Unit::Count, "Spend of today above budgets, in millionths");
    describe_counter!(BUDGET_STORE_FAILURES_TOTAL, Unit::Count, "Reads and writes of budgets that failed");
    describe_gauge!(UNARCHIVED_RECORDS, Unit::Count, "Records not archived yet");
    describe_gauge!(UNARCHIVED_AGE_SECONDS, Unit::Seconds, "Age of the oldest record not archived yet");
    describe_counter!(MANIFESTS_TOTAL, Unit::Count, "Manifests put");
    describe_counter!(ARCHIVED_ROWS_TOTAL, Unit::Count, "Rows archived");
    describe_gauge!(ARCHIVE_FAILING, Unit::Count, "1 while archiving fails");
    describe_counter!(SECONDARY_FILES_TOTAL, Unit::Count, "Data files put into the secondary bucket");
    describe_counter!(ARCHIVE_FAILURES_TOTAL, Unit::Count, "Archive writes that failed and are tried again");
}
