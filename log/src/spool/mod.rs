//! The spool: where the gateway keeps records while the log is down or slow, and the spill queue of records over a limit.
//!
//! Guarantee (G-1): a record that [`Spooling::append`] returned `Ok` for is durable, in the log or in one of the queues,
//! and a queue gives it up only when the log has it. It may reach the log twice, never zero times: identity dedup (CR-1)
//! absorbs the second copy.
//! Words: *spooled* = in the queue for outages; *spilled* = in the queue for clicks over a limit; *held* = in either;
//! *drained* = appended to the log by [`Spooling::drain`].
//! Flow: append -> log, under a deadline and a circuit breaker -> spool where that fails -> drain, in the order in which
//! they came, at a bounded rate -> the queue's position, durable -> whole segments removed.
//!
//! New records go to the log at once when it is back, beside those that drain: their order among identities does not
//! matter, and of one identity the copy that reaches the log first wins (CR-1). docs/adr/0009-spool.md says why.

mod config;
mod drain;
mod entry;
mod holdings;
mod position;
mod queue;
mod shares;
mod spooling;
mod survey;
#[cfg(test)]
mod tests;

pub use config::SpoolConfig;
pub use entry::Entry;
pub use queue::{QueueConfig, QueueStatus, SegmentCopy, SpoolQueue, strike_off};
pub use spooling::{Held, Route, Spooling, Stored};
pub use survey::{Survey, survey};

/// Reads the bytes of a queue's position, for fuzz targets.
pub(crate) fn read_position(bytes: &[u8]) {
    if let Some(position) = position::parse(bytes) {
        assert!(position.0 >= 0);
    }
}

/// Joins an error and its causes into one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
