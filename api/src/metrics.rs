//! Names of the metrics this crate records; [`describe`] registers their meaning.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Clicks and verdicts acknowledged as durable; label `kind`.
pub const ACCEPTED_TOTAL: &str = "twice_ingest_accepted_total";
/// Clicks and verdicts refused at the door; labels `kind`, `code` (CR-7).
pub const REJECTED_TOTAL: &str = "twice_ingest_rejected_total";
/// Clicks and verdicts the sender was asked to send again; label `kind`.
pub const RETRY_TOTAL: &str = "twice_ingest_retry_total";
/// Clicks and verdicts acknowledged that went to a queue and not to the log; labels `kind`, `queue`: `spool` or `spill`.
pub const HELD_TOTAL: &str = "twice_ingest_held_total";
/// Time from the whole body to the durable append; label `kind`.
pub const ACKNOWLEDGE_SECONDS: &str = "twice_ingest_acknowledge_seconds";
/// Time to answer a request; labels `route`, `method`, `status`.
pub const REQUEST_SECONDS: &str = "twice_http_request_seconds";
/// Requests without a valid key; label `reason`: `missing`, `unknown` or `ended` (revoked or expired).
pub const UNAUTHORIZED_TOTAL: &str = "twice_http_unauthorized_total";

/// Requests with clicks; labels `tier`, `version`, `outcome`: `accepted`, `limited` (429) or `spilled`.
pub const LIMITS_REQUESTS_TOTAL: &str = "twice_limits_requests_total";
/// Clicks of these requests; the same labels. A request refused before its body was read counts none.
pub const LIMITS_CLICKS_TOTAL: &str = "twice_limits_clicks_total";
/// Limit in force of one key, clicks a second; labels `tier`, `version`. 0 for a version that holds no more.
pub const LIMITS_IN_FORCE: &str = "twice_limits_in_force_clicks_per_second";
/// 1 for the part that is short of room and by which limits are cut; label `signal`.
pub const LIMITS_SHORT: &str = "twice_limits_short";
/// Smoothed p99 of durable appends that the limits follow.
pub const LIMITS_ACKNOWLEDGE_P99_SECONDS: &str = "twice_limits_acknowledge_p99_seconds";
/// Share of requests with clicks that were answered 429 in the last minute.
pub const LIMITS_LIMITED_RATIO: &str = "twice_limits_limited_ratio";
/// Connections open now.
pub const CONNECTIONS: &str = "twice_http_connections";
/// Times certificate or key changed; label `outcome`: `taken` or `refused`.
pub const TLS_RELOADS_TOTAL: &str = "twice_tls_reloads_total";

/// Registers the meaning and unit of every metric with the recorder in force.
pub fn describe() {
    describe_counter!(ACCEPTED_TOTAL, Unit::Count, "records acknowledged as durable");
    describe_counter!(REJECTED_TOTAL, Unit::Count, "records refused at the door, by reason");
    describe_counter!(RETRY_TOTAL, Unit::Count, "records the sender was asked to send again");
    describe_counter!(HELD_TOTAL, Unit::Count, "records acknowledged that went to a queue, not to the log");
    describe_histogram!(ACKNOWLEDGE_SECONDS, Unit::Seconds, "whole body received to durable append");
    describe_counter!(UNAUTHORIZED_TOTAL, Unit::Count, "requests without a valid key, by reason");
    describe_counter!(
        LIMITS_REQUESTS_TOTAL,
        Unit::Count,
        "requests with clicks, by what the limit made of them"
    );
    describe_counter!(LIMITS_CLICKS_TOTAL, Unit::Count, "clicks, by what the limit made of them");
    describe_gauge!(LIMITS_IN_FORCE, Unit::Count, "clicks a second that one key may send");
    describe_gauge!(LIMITS_SHORT, Unit::Count, "1 for the part that is short of room");
    describe_gauge!(LIMITS_ACKNOWLEDGE_P99_SECONDS, Unit::Seconds, "smoothed p99 of durable appends");
    describe_gauge!(LIMITS_LIMITED_RATIO, Unit::Count, "share of requests answered 429 in the last minute");
    describe_gauge!(CONNECTIONS, Unit::Count, "connections open");
    describe_counter!(TLS_RELOADS_TOTAL, Unit::Count, "times the certificate was read again, by outcome");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "time to answer a request");
}
