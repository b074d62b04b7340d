//! The errors of the stores, split by what the caller must do.

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of the stores.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed; the caller retries or answers without it.
    #[error("database: {action}")]
    Database {
        action: &'static str,
        #[source]
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date. The operator restores the file or installs a newer build.
    #[error("database migration")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// The window store failed; the caller publishes again.
    #[error("window store: {action}")]
    Windows {
        action: &'static str,
        #[source]
        source: sled::Error,
    },
    /// A stored value does not read. The operator restores the file; nothing is guessed.
    #[error("{what} in the store is damaged: {reason}")]
    Damage { what: String, reason: String },
    /// The request contradicts what is stored (HTTP 409).
    #[error("{reason}")]
    Conflict { reason: String },
    /// The thing does not exist (HTTP 404).
    #[error("{what} does not exist")]
    NotFound { what: String },
    /// A cursor is not one this store gave out (HTTP 422).
    #[error("cursor is not valid; leave it out to start from the first page")]
    Cursor,
    /// `as_of` lies in the future (HTTP 422).
    #[error("as_of lies in the future")]
    AsOfInFuture,
}
