//! Billing, campaigns, modes and imports in one SQLite file.
//!
//! Guarantee: what a method stored is durable when it returns (WAL with `synchronous = FULL`, checked at open), all of it
//! or nothing (one `BEGIN IMMEDIATE` transaction a method), and published versions never change (G-4, G-6).
//! Words: *writer* = the one connection that writes, behind a mutex; *readers* = a small pool of connections that cannot
//! write; *settled* = the last moment whose `as_of` answer is fixed (`settle`).
//! Flow: a write waits for the writer, begins, reads facts, decides in memory, writes, commits. A read opens one
//! transaction on a reader, so every statement of it sees the same state.

mod billing;
mod campaigns;
mod columns;
mod commit;
mod corrections;
mod cursor;
mod imports;
mod insert;
mod modes;
mod open;
mod rebuilding;
mod restore;
mod settle;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use sqlx::{Connection, Sqlite, SqliteConnection, SqlitePool, Transaction};
use tokio::sync::{Mutex, MutexGuard};
use twice_log::Clock;

use crate::error::{Error, Result};

/// Most rows a page holds, whatever was asked for; memory of a read is bounded by it.
pub(crate) const PAGE_ROWS_MAX: u32 = 10_000;

/// The stores of one SQLite file. Cheap to clone; clones share the writer.
#[derive(Clone)]
pub struct SqliteStore {
    /// SQLite lets one connection write at a time; waiting here is fair and costs no busy polling.
    writer: Arc<Mutex<SqliteConnection>>,
    readers: SqlitePool,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Waits for the writer. Dropping a transaction begun on it takes everything back.
    async fn writer(&self) -> MutexGuard<'_, SqliteConnection> {
        self.writer.lock().await
    }

    /// Begins a read: every statement of it sees the state of its first one.
    async fn begin_read(&self) -> Result<Transaction<'static, Sqlite>> {
        self.readers.begin().await.map_err(database("begin a read"))
    }
}

/// Begins a write and takes the file's write lock at once, so that facts read in it cannot change before its commit.
async fn begin_write(writer: &mut SqliteConnection) -> Result<Transaction<'_, Sqlite>> {
    writer.begin_with("BEGIN IMMEDIATE").await.map_err(database("begin a write"))
}

fn database(action: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |source| Error::Database { action, source }
}
