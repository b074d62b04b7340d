//! Names of the metrics this crate records; [`describe`] registers their meaning.

use metrics::{Unit, describe_counter, describe_histogram};

/// Clicks and verdicts acknowledged as durable; label `kind`.
pub const ACCEPTED_TOTAL: &str = "twice_ingest_accepted_total";
/// Clicks and verdicts refused at the door; labels `kind`, `code` (CR-7).
pub const REJECTED_TOTAL: &str = "twice_ingest_rejected_total";
/// Clicks and verdicts the sender was asked to send again; label `kind`.
pub const RETRY_TOTAL: &str = "twice_ingest_retry_total";
/// Time from the whole body to the durable append; label `kind`.
pub const ACKNOWLEDGE_SECONDS: &str = "twice_ingest_acknowledge_seconds";
/// Time to answer a request; labels `route`, `method`, `status`.
pub const REQUEST_SECONDS: &str = "twice_http_request_seconds";

/// Registers the meaning and unit of every metric with the recorder in force.
pub fn describe() {
    describe_counter!(ACCEPTED_TOTAL, Unit::Count, "records acknowledged as durable");
    describe_counter!(REJECTED_TOTAL, Unit::Count, "records refused at the door, by reason");
    describe_counter!(RETRY_TOTAL, Unit::Count, "records the sender was asked to send again");
    describe_histogram!(ACKNOWLEDGE_SECONDS, Unit::Seconds, "whole body received to durable append");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "time to answer a request");
}
