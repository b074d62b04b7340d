//! The errors of the stores, split by what the caller must do.

use std::path::PathBuf;

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Try again later, or answer without the store.
    Retry,
    /// The request is wrong or contradicts what is stored: say so to who sent it.
    Refused,
    /// Stored bytes are wrong: stop and show the operator the place.
    Damage,
    /// The machine or the configuration must change first.
    Fatal,
}

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
    /// A store cannot be opened as it must be. The node stops; the operator follows the advice.
    #[error("cannot open {}: {advice}", path.display())]
    Open {
        path: PathBuf,
        advice: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The window store failed; the caller publishes again.
    #[error("window store: {action}")]
    Windows {
        action: &'static str,
        #[source]
        source: sled::Error,
    },
    /// The store did not answer in time, or is not asked because it lately did not. The caller tries again later or answers
    /// without it.
    #[error("{store} does not answer: {reason}")]
    Unanswered { store: &'static str, reason: String },
    /// The archive failed; its own kind decides.
    #[error("archive")]
    Archive(#[from] twice_log::Error),
    /// A stored value does not read. The operator restores the file; nothing is guessed.
    #[error("{what} in the store is damaged: {reason}")]
    Damage { what: String, reason: String },
    /// What was to be stored breaks a rule; a bug of the caller. Nothing of it was stored.
    #[error("refused to store {what}: {reason}")]
    Invalid { what: String, reason: String },
    /// The request contradicts what is stored (HTTP 409).
    #[error("{reason}")]
    Conflict { reason: String },
    /// The thing does not exist (HTTP 404).
    #[error("{what} does not exist")]
    NotFound { what: String },
    /// A replay could not count. The attempt is repeated; nothing was billed.
    #[error("replay: {reason}")]
    Replay { reason: String },
    /// A cursor is not one this store gave out (HTTP 422).
    #[error("cursor is not valid; leave it out to start from the first page")]
    Cursor,
    /// `as_of` lies in the future (HTTP 422).
    #[error("as_of lies in the future")]
    AsOfInFuture,
}

impl Error {
    /// Returns what the caller does about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Database { .. }
            | Error::Windows { .. }
            | Error::Unanswered { .. }
            | Error::Replay { .. } => ErrorKind::Retry,
            Error::Invalid { .. }
            | Error::Conflict { .. }
            | Error::NotFound { .. }
            | Error::Cursor
            | Error::AsOfInFuture => ErrorKind::Refused,
            Error::Archive(source) => match source.kind() {
                twice_log::ErrorKind::Retry | twice_log::ErrorKind::Conflict => ErrorKind::Retry,
                twice_log::ErrorKind::Damage => ErrorKind::Damage,
                twice_log::ErrorKind::Fatal => ErrorKind::Fatal,
            },
            Error::Damage { .. } => ErrorKind::Damage,
            Error::Migration(_) | Error::Open { .. } => ErrorKind::Fatal,
        }
    }
}
