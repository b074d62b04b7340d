//! The ledger: one row a copy that was sent, with what became of it. The truth that bills are checked against.
//!
//! Guarantee: a row says `acknowledged` only if the node accepted that very copy, and `attempts_unknown` counts every
//! other send of it that the node may or may not have stored. A copy that was never sent has no row.
//! Order: of the copies of one identity that differ, the one with the lowest `sequence` has the lowest position in the log,
//! because a differing copy goes out only after its original was acknowledged. Copies with equal payload have no order.
//! Flow: rows go to `FILE.part-NNNNNN.parquet`, a new part every few seconds, so that a crash of this process loses
//! little; the end of the run joins the parts into `FILE`, with the settings in its metadata.

mod columns;
mod parts;
mod read;
mod shared;
mod write;

pub use columns::{ClickColumns, ClickIdForm, click_fields};
pub use read::{LedgerFile, LedgerRow, RowSink, read_rates, read_rows};
pub use shared::{ATTEMPTS_ANY, Earlier, Worker, forget_sent, join_shared, note_sent_below, read_earlier};
pub use write::{LedgerWriter, Settled, make_room, rates_path, write_rates};

#[cfg(test)]
mod tests;

/// Metadata key: version of the ledger's columns and rules.
pub const KEY_VERSION: &str = "twice.ledger.version";
/// Metadata key: the stream's settings as JSON.
pub const KEY_STREAM: &str = "twice.ledger.stream";
/// Metadata key: how the run ended, as JSON.
pub const KEY_END: &str = "twice.ledger.end";
/// Version written.
pub const VERSION: &str = "1";
