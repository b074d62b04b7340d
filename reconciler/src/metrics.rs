//! Names of the metrics of the batch path.

/// Hours committed, by `outcome`.
pub const HOURS_RECONCILED_TOTAL: &str = "twice_reconciler_hours_reconciled_total";
/// Attempts that failed.
pub const ATTEMPTS_FAILED_TOTAL: &str = "twice_reconciler_attempts_failed_total";
/// Duration of one recompute.
pub const RECOMPUTE_SECONDS: &str = "twice_reconciler_recompute_seconds";
/// Peak resident memory of the newest recompute.
pub const RECOMPUTE_RSS_PEAK_BYTES: &str = "twice_reconciler_recompute_rss_peak_bytes";
/// Copies read by the newest recompute.
pub const RECOMPUTE_ROWS: &str = "twice_reconciler_recompute_rows";
/// Recompute processes that were killed, probably for want of memory, and followed by one with smaller slices.
pub const RECOMPUTE_MEMORY_RETRIES_TOTAL: &str = "twice_reconciler_recompute_memory_retries_total";
/// Hours that wait to be closed.
pub const HOURS_WAITING: &str = "twice_reconciler_hours_waiting";
/// Hours that are due and wait for records which have not reached the log (G-3).
pub const HOURS_HELD_UP: &str = "twice_reconciler_hours_held_up";
/// Absolute unexplained clicks of the newest run of an hour, summed (G-5: one is a page).
pub const UNEXPLAINED_CLICKS: &str = "twice_reconciler_unexplained_clicks";
/// Billable clicks without a rate in the newest run (CR-6: an alert).
pub const UNPRICED_CLICKS: &str = "twice_reconciler_unpriced_clicks";
/// Partitions the newest run found unsealed.
pub const UNSEALED_PARTITIONS: &str = "twice_reconciler_unsealed_partitions";

/// Duration of one replay.
pub const REPLAY_SECONDS: &str = "twice_reconciler_replay_seconds";
/// Peak resident memory of the newest replay.
pub const REPLAY_RSS_PEAK_BYTES: &str = "twice_reconciler_replay_rss_peak_bytes";
/// Copies read by the newest replay.
pub const REPLAY_ROWS: &str = "twice_reconciler_replay_rows";
/// Rows of the newest kappa run that lambda counted differently on the same inputs (G-7: one is a bug).
pub const KAPPA_LAMBDA_DIFFERING_ROWS_TOTAL: &str = "twice_reconciler_kappa_lambda_differing_rows_total";

/// Sweeps for later events of billed hours, by `outcome`.
pub const SWEEPS_TOTAL: &str = "twice_reconciler_sweeps_total";
/// Verdicts of the newest sweep whose click was not found.
pub const VERDICTS_WITHOUT_CLICK: &str = "twice_reconciler_verdicts_without_click";

/// Billed hours with later clicks, verdicts or rates that can no longer be counted: what came too late is in no bill.
pub const RESTATEMENTS_REFUSED_HOURS: &str = "twice_reconciler_restatements_refused_hours";

/// Data files removed under retention.
pub const RETENTION_DELETED_FILES_TOTAL: &str = "twice_retention_deleted_files_total";
/// Rows of data files that retention has buried.
pub const RETENTION_DELETED_ROWS_TOTAL: &str = "twice_retention_deleted_rows_total";
/// Bytes of data files that retention has buried.
pub const RETENTION_DELETED_BYTES_TOTAL: &str = "twice_retention_deleted_bytes_total";
/// Expired hours whose files stay, by the newest pass.
pub const RETENTION_HOURS_KEPT: &str = "twice_retention_hours_kept";
/// Passes of retention that failed.
pub const RETENTION_FAILED_TOTAL: &str = "twice_retention_failed_total";

/// Copies by which preliminary and billed of the newest hour differ, by `cause` (G-5).
pub const DIVERGENCE_CLICKS: &str = "twice_reconciler_divergence_clicks";
/// Late, late duplicate and unexplained clicks of the newest hour, as a share of its billed ones.
pub const DIVERGENCE_RATIO: &str = "twice_reconciler_divergence_ratio";

/// Describes every metric to the recorder that is installed.
pub fn describe() {
    metrics::describe_counter!(HOURS_RECONCILED_TOTAL, "hours committed, by outcome");
    metrics::describe_counter!(ATTEMPTS_FAILED_TOTAL, "attempts to close an hour that failed");
    metrics::describe_counter!(
        RECOMPUTE_MEMORY_RETRIES_TOTAL,
        "recompute processes killed and followed by smaller ones"
    );
    metrics::describe_histogram!(RECOMPUTE_SECONDS, metrics::Unit::Seconds, "duration of one recompute");
    metrics::describe_gauge!(
        RECOMPUTE_RSS_PEAK_BYTES,
        metrics::Unit::Bytes,
        "peak memory of the newest recompute"
    );
    metrics::describe_gauge!(RECOMPUTE_ROWS, "copies read by the newest recompute");
    metrics::describe_histogram!(REPLAY_SECONDS, metrics::Unit::Seconds, "duration of one replay");
    metrics::describe_gauge!(REPLAY_RSS_PEAK_BYTES, metrics::Unit::Bytes, "peak memory of the newest replay");
    metrics::describe_gauge!(REPLAY_ROWS, "copies read by the newest replay");
    metrics::describe_counter!(
        KAPPA_LAMBDA_DIFFERING_ROWS_TOTAL,
        "rows that kappa and lambda count differently"
    );
    metrics::describe_gauge!(HOURS_WAITING, "hours that wait to be closed");
    metrics::describe_gauge!(HOURS_HELD_UP, "hours due that wait for records which have not reached the log");
    metrics::describe_gauge!(UNEXPLAINED_CLICKS, "unexplained clicks of the newest run");
    metrics::describe_gauge!(UNPRICED_CLICKS, "billable clicks without a rate in the newest run");
    metrics::describe_counter!(SWEEPS_TOTAL, "sweeps for later events of billed hours, by outcome");
    metrics::describe_gauge!(
        VERDICTS_WITHOUT_CLICK,
        "verdicts of the newest sweep whose click was not found"
    );
    metrics::describe_gauge!(
        RESTATEMENTS_REFUSED_HOURS,
        "billed hours with later events that can no longer be counted"
    );
    metrics::describe_counter!(RETENTION_DELETED_FILES_TOTAL, "data files removed under retention");
    metrics::describe_counter!(RETENTION_DELETED_ROWS_TOTAL, "rows of the data files buried");
    metrics::describe_counter!(
        RETENTION_DELETED_BYTES_TOTAL,
        metrics::Unit::Bytes,
        "bytes of the data files buried"
    );
    metrics::describe_gauge!(RETENTION_HOURS_KEPT, "expired hours whose files stay");
    metrics::describe_counter!(RETENTION_FAILED_TOTAL, "passes of retention that failed");
    metrics::describe_gauge!(DIVERGENCE_CLICKS, "copies by which the newest hour differs, by cause");
    metrics::describe_gauge!(DIVERGENCE_RATIO, "share of the newest hour's clicks that differ");
    metrics::describe_gauge!(UNSEALED_PARTITIONS, "partitions the newest run found unsealed");
}
