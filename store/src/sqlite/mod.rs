//! Billing, campaigns, modes and imports in one SQLite file.
//!
//! Guarantee: what a method stored is durable when it returns (WAL with `synchronous = FULL`, checked at open), all of it
//! or nothing (one `BEGIN IMMEDIATE` transaction a method), and published versions never change (G-4, G-6).
//! Words: *writer* = the one connection that writes, behind a mutex; *readers* = a small pool of connections that cannot
//! write; *settled* = the last moment whose `as_of` answer is fixed.
//! Flow: a write waits for the writer, begins, reads facts, decides in memory, writes, commits. A read opens one
//! transaction on a reader, so every statement of it sees the same state.

mod open;

use std::sync::Arc;

use sqlx::{SqliteConnection, SqlitePool};
use tokio::sync::Mutex;
use twice_log::Clock;

/// The stores of one SQLite file. Cheap to clone; clones share the writer.
#[derive(Clone)]
pub struct SqliteStore {
    /// SQLite lets one connection write at a time; waiting here is fair and costs no busy polling.
    writer: Arc<Mutex<SqliteConnection>>,
    readers: SqlitePool,
    clock: Arc<dyn Clock>,
}
