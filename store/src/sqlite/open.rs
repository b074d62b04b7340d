//! Opening the file: settings, their check, migrations, and advice where it cannot be opened.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqlSafeStr, SqliteConnection};
use tokio::sync::Mutex;
use twice_log::Clock;

use super::SqliteStore;
use crate::error::{Error, Result};

/// How long a connection waits for another process's lock, as a copy or a checkpoint by an operator's tool takes it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Queries at once. Readers never wait for the writer in WAL mode; more of them only compete for the two cores.
const READERS_MAX: u32 = 4;
/// `PRAGMA synchronous` as a number: 2 is FULL.
const SYNCHRONOUS_FULL: i64 = 2;

/// SQLite's primary result codes that say what an operator must do.
const SQLITE_BUSY: u8 = 5;
const SQLITE_READONLY: u8 = 8;
const SQLITE_CORRUPT: u8 = 11;
const SQLITE_FULL: u8 = 13;
const SQLITE_CANTOPEN: u8 = 14;
const SQLITE_NOTADB: u8 = 26;

impl SqliteStore {
    /// Opens the file, creates it if absent, and brings its schema up to date.
    ///
    /// The clock decides `committed_at` and what lies in the future (G-6).
    ///
    /// # Errors
    /// `Open` with advice if the file cannot be written, is held by another process, or does not take WAL and
    /// `synchronous = FULL`; `Migration` if its schema is not one this build knows.
    pub async fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        Self::open_with(path, options, clock).await
    }

    /// Opens the file for reading alone, also beside the process that writes it. Nothing in the folder is changed but
    /// SQLite's own `-shm` and `-wal` files, and not even those where the folder cannot be written to.
    ///
    /// Writes are refused, and `as_of` reads at moments not yet settled with them.
    ///
    /// # Errors
    /// `Open` if the file is not there, cannot be read, or has the schema of another build.
    pub async fn open_read_only(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT);
        let opened = match SqliteConnection::connect_with(&options).await {
            Ok(mut connection) => schema_version(&mut connection).await.map(|version| (connection, version)),
            Err(error) => Err(error),
        };
        // SQLite reads a WAL file of a folder it cannot write to only if told that nobody else writes it either.
        let (options, (writer, version)) = match opened {
            Ok(opened) => (options, opened),
            Err(error) if !matches!(code_of(&error), Some(SQLITE_CANTOPEN | SQLITE_READONLY)) => {
                return Err(refused(path, error));
            }
            Err(_) => {
                let options = options.immutable(true);
                let refuse = |error: sqlx::Error| refused(path, error);
                let mut connection = SqliteConnection::connect_with(&options).await.map_err(refuse)?;
                let version = schema_version(&mut connection).await.map_err(refuse)?;
                (options, (connection, version))
            }
        };
        let known = migrator().iter().map(|migration| migration.version).max().unwrap_or(0);
        if version != known {
            let advice = format!(
                "its schema is version {version} and this build reads version {known}; start a node of this build on it \
                 once, or use the build that wrote it"
            );
            return Err(Error::Open { path: path.to_owned(), advice, source: None });
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options)
            .await
            .map_err(|error| refused(path, error))?;
        Ok(Self { writer: Arc::new(Mutex::new(writer)), readers, clock, guard: None })
    }

    pub(super) async fn open_with(
        path: &Path,
        options: SqliteConnectOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let refuse = |error: sqlx::Error| refused(path, error);
        let mut writer = SqliteConnection::connect_with(&options).await.map_err(refuse)?;
        check_durability(path, &mut writer).await?;
        check_writable(&mut writer).await.map_err(refuse)?;
        migrator().run(&mut writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options.create_if_missing(false).pragma("query_only", "ON"))
            .await
            .map_err(refuse)?;
        Ok(Self { writer: Arc::new(Mutex::new(writer)), readers, clock, guard: None })
    }

    /// Ends the readers. The file is consistent without it, after a kill too; what was committed is durable already.
    pub async fn close(&self) {
        self.readers.close().await;
    }
}

/// Returns the newest migration that was applied.
async fn schema_version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(connection).await
}

/// Returns the migrations. Listed here rather than by sqlx's macro, which would compile a second copy of sqlx for the
/// compiler's own use and add minutes to a first build. A file once released is never edited: its checksum is stored.
fn migrator() -> Migrator {
    let files = [
        (1, "first", include_str!("../../migrations/sqlite/0001_first.sql")),
        (2, "restated", include_str!("../../migrations/sqlite/0002_restated.sql")),
        (3, "keys", include_str!("../../migrations/sqlite/0003_keys.sql")),
        (4, "limits", include_str!("../../migrations/sqlite/0004_limits.sql")),
        (5, "budgets", include_str!("../../migrations/sqlite/0005_budgets.sql")),
    ];
    let migrations = files.map(|(version, description, sql)| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(migrations.to_vec())
}

/// Reads the settings back: a file system or an older writer may refuse them without an error, and a bill that a power
/// cut takes back is worse than a node that does not start.
async fn check_durability(path: &Path, connection: &mut SqliteConnection) -> Result<()> {
    let refuse = |error: sqlx::Error| refused(path, error);
    let journal: String =
        sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await.map_err(refuse)?;
    let synchronous: i64 =
        sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *connection).await.map_err(refuse)?;
    if journal == "wal" && synchronous == SYNCHRONOUS_FULL {
        return Ok(());
    }
    let advice = format!(
        "it runs with journal_mode {journal} and synchronous {synchronous}, and billing needs wal and {SYNCHRONOUS_FULL} \
         (FULL); put the data directory on a local file system that supports shared memory"
    );
    Err(Error::Open { path: path.to_owned(), advice, source: None })
}

/// Writes and takes it back. A file without write permission is opened read-only without an error, `BEGIN IMMEDIATE`
/// passes on it too, and the first commit would fail instead.
async fn check_writable(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("PRAGMA user_version = 1").execute(&mut *transaction).await?;
    transaction.rollback().await
}

/// Returns SQLite's primary result code.
fn code_of(error: &sqlx::Error) -> Option<u8> {
    let sqlx::Error::Database(database) = error else { return None };
    database.code().and_then(|code| code.parse::<u32>().ok()).map(|code| (code & 0xff) as u8)
}

fn refused(path: &Path, error: sqlx::Error) -> Error {
    let advice = match code_of(&error) {
        Some(SQLITE_READONLY) => {
            "the file or its folder is read-only; give the node's user write permission to both"
        }
        Some(SQLITE_CANTOPEN) => {
            "the folder does not exist or is closed to the node's user; create it or give access"
        }
        Some(SQLITE_BUSY) => "another process holds its write lock; stop that process first",
        Some(SQLITE_FULL) => "the disk is full; free some space",
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => {
            "it is damaged or no SQLite file; restore it from a copy, or move it away and run `twice rebuild billing`"
        }
        _ => "see the cause below",
    };
    Error::Open { path: path.to_owned(), advice: advice.to_owned(), source: Some(Box::new(error)) }
}
