//! Billing, campaigns, modes, imports and keys in one SQLite file.
//!
//! Guarantee: what a method stored is durable when it returns (WAL with `synchronous = FULL`, checked at open), all of it
//! or nothing (one `BEGIN IMMEDIATE` transaction a method), and published versions never change (G-4, G-6).
//! Words: *writer* = the one connection that writes, behind a mutex; *readers* = a small pool of connections that cannot
//! write; *settled* = the last moment whose `as_of` answer is fixed (`settle`).
//! Flow: a write waits for the writer, begins, reads facts, decides in memory, writes, commits. A read opens one
//! transaction on a reader, so every statement of it sees the same state.

mod billing;
mod budgets;
mod campaigns;
mod columns;
mod commit;
mod corrections;
mod cursor;
mod guard;
mod imports;
mod insert;
mod keys;
mod limits;
mod modes;
mod open;
mod rebuilding;
mod restore;
mod settle;
#[cfg(test)]
mod tests;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, Sqlite, SqliteConnection, SqlitePool, Transaction};
use tokio::sync::{Mutex, MutexGuard};
use twice_log::Clock;
use twice_log::breaker::BreakerState;

use self::guard::{Access, Guard};
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
    /// `None`: patient.
    guard: Option<Arc<Guard>>,
}

/// The connection that writes, ours until this is dropped.
struct Writer<'a> {
    connection: MutexGuard<'a, SqliteConnection>,
    guard: Option<&'a Guard>,
}

impl Deref for Writer<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for Writer<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Returns the same store for those who must not wait long: what does not begin within `limit` fails, and is not
    /// asked for a while where that goes on.
    #[must_use]
    pub fn bounded(&self, limit: Duration) -> Self {
        Self { guard: Some(Arc::new(Guard::new(limit))), ..self.clone() }
    }

    /// Returns what the breakers of a bounded store do with the next call; nothing of a patient one.
    pub fn breakers(&self) -> Vec<(&'static str, BreakerState)> {
        self.guard.iter().flat_map(|guard| guard.states()).collect()
    }

    /// Returns what a bounded store lately failed to do; `None` while it answers.
    pub fn trouble(&self) -> Option<&'static str> {
        match self.guard.as_ref().map(|guard| guard.troubled())? {
            (true, _) => Some("reads are not answered in time; answers are preliminary"),
            (false, true) => Some("writes are not answered in time; changes are refused"),
            (false, false) => None,
        }
    }

    /// Asks a bounded store that lately did not answer whether it answers again: without requests nobody would notice. A
    /// patient store is not asked.
    pub async fn probe(&self) {
        let Some((reads, writes)) = self.guard.as_ref().map(|guard| guard.troubled()) else { return };
        // What comes of it is in the breakers.
        if reads {
            drop(self.begin_read().await);
        }
        if writes && let Ok(mut writer) = self.writer().await {
            drop(begin_write(&mut writer).await);
        }
    }

    /// Waits for the writer. Dropping a transaction begun on it takes everything back.
    async fn writer(&self) -> Result<Writer<'_>> {
        let guard = self.guard.as_deref();
        let connection = match guard {
            None => self.writer.lock().await,
            Some(guard) => guard.turn(self.writer.lock()).await?,
        };
        Ok(Writer { connection, guard })
    }

    /// Begins a read: every statement of it sees the state of its first one.
    async fn begin_read(&self) -> Result<Transaction<'static, Sqlite>> {
        let failed = database("begin a read");
        let Some(guard) = &self.guard else { return self.readers.begin().await.map_err(failed) };
        let begin = async {
            let mut transaction = self.readers.begin().await.map_err(&failed)?;
            // The lock is taken by the first statement alone: here, so that it is waited for within the bound.
            let touch = sqlx::query("SELECT 1 FROM sqlite_schema LIMIT 1");
            touch.fetch_optional(&mut *transaction).await.map_err(&failed)?;
            Ok(transaction)
        };
        guard.begin(Access::Read, begin).await
    }
}

/// Begins a write and takes the file's write lock at once, so that facts read in it cannot change before its commit.
async fn begin_write<'w>(writer: &'w mut Writer<'_>) -> Result<Transaction<'w, Sqlite>> {
    let guard = writer.guard;
    let connection: &'w mut SqliteConnection = &mut writer.connection;
    let begin = async { connection.begin_with("BEGIN IMMEDIATE").await.map_err(database("begin a write")) };
    match guard {
        None => begin.await,
        Some(guard) => guard.begin(Access::Write, begin).await,
    }
}

fn database(action: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |source| Error::Database { action, source }
}
