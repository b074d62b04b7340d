//! The errors of the HTTP face, split by what the client or the operator must do.

use std::path::PathBuf;

use actix_web::http::StatusCode;

use crate::ports::PortError;

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Errors of the HTTP face. Those of a request become problem documents; the last three stop the node at start-up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be read (400). The client corrects it.
    #[error("{detail}")]
    BadRequest { detail: String },
    /// The request has no key that is known, unexpired and unrevoked (401). The client sends a valid one.
    #[error("{detail}")]
    Unauthorized { detail: String },
    /// The key does not allow this (403). The client asks an administrator for one that does.
    #[error("{detail}")]
    Forbidden { detail: String },
    /// The thing does not exist (404).
    #[error("{what} does not exist")]
    NotFound { what: String },
    /// The path exists, not with this method (405).
    #[error("this path answers {allow} only")]
    MethodNotAllowed { allow: String },
    /// The client sent its body too slowly (408). It sends again.
    #[error("the body did not arrive within {timeout_ms} ms")]
    BodyTimeout { timeout_ms: u32 },
    /// The client sent its body slower than a connection is kept for (408). It sends again.
    #[error("the body came too slowly")]
    BodyTooSlow,
    /// The head of the request is larger than allowed (431). The client sends fewer or shorter headers.
    #[error("path, query and headers hold more than the {limit} bytes allowed")]
    HeadTooLarge { limit: usize },
    /// The request contradicts what is stored (409).
    #[error("{reason}")]
    Conflict { reason: String },
    /// The body is larger than allowed (413). The client sends smaller ones.
    #[error("the request holds more than the {limit} {unit} allowed; split it")]
    TooLarge { limit: u64, unit: &'static str },
    /// The body's type or encoding is not one this path reads (415).
    #[error("{detail}")]
    UnsupportedMediaType { detail: String },
    /// The request reads but cannot be answered as it stands (422). The client corrects it.
    #[error("{detail}")]
    Unprocessable { detail: String },
    /// The key sent more than its limit (429). The client waits and sends again.
    #[error("{detail}")]
    TooManyRequests { detail: String, retry_after_s: u32 },
    /// Too much is asked at once (503). The client waits and asks again.
    #[error("too many requests are being answered; ask again later")]
    Overloaded { retry_after_s: u32 },
    /// A part this answer needs is down (503). The client waits and asks again.
    #[error("{what} is not available; ask again later")]
    Unavailable {
        what: &'static str,
        retry_after_s: u32,
        #[source]
        source: Option<Cause>,
    },
    /// A stored value is damaged or a part broke its contract (500). The operator reads the log.
    #[error("{what} failed")]
    Internal {
        what: &'static str,
        #[source]
        source: Option<Cause>,
    },
    /// A setting is out of its bounds. The operator corrects it.
    #[error("{setting} is {value}; it must lie between {lowest} and {highest}")]
    Config { setting: &'static str, value: i64, lowest: i64, highest: i64 },
    /// A setting does not read or fit another. The operator corrects it.
    #[error("{setting}: {reason}")]
    Setting { setting: &'static str, reason: String },
    /// A certificate or its key cannot be used. The operator replaces the file.
    #[error("{action} {}", path.display())]
    Tls {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Option<Cause>,
    },
    /// A key file cannot be read or written. The operator repairs the folder.
    #[error("{action} {}", path.display())]
    KeyFile {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A key file does not hold what it must. The operator restores it; a new key would break pseudonyms in two.
    #[error("{} holds {bytes} bytes, a key has {expected}; restore the file", path.display())]
    KeyDamaged { path: PathBuf, bytes: usize, expected: usize },
}

impl Error {
    /// Returns the HTTP status, the stable name of the problem and its title.
    pub(crate) fn classify(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Error::BadRequest { .. } => (StatusCode::BAD_REQUEST, "bad-request", "Request cannot be read"),
            Error::Unauthorized { .. } => (StatusCode::UNAUTHORIZED, "unauthorized", "No valid API key"),
            Error::Forbidden { .. } => (StatusCode::FORBIDDEN, "forbidden", "The key does not allow this"),
            Error::TooManyRequests { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "too-many-requests", "Over the limit")
            }
            Error::NotFound { .. } => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Error::MethodNotAllowed { .. } => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed")
            }
            Error::HeadTooLarge { .. } => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head-too-large", "Headers too large")
            }
            Error::BodyTimeout { .. } | Error::BodyTooSlow => {
                (StatusCode::REQUEST_TIMEOUT, "timeout", "Body came too slowly")
            }
            Error::Conflict { .. } => (StatusCode::CONFLICT, "conflict", "Contradicts what is stored"),
            Error::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Request too large"),
            Error::UnsupportedMediaType { .. } => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Media type not supported")
            }
            Error::Unprocessable { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", "Request cannot be answered")
            }
            Error::Overloaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many requests"),
            Error::Unavailable { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Temporarily unavailable")
            }
            Error::Internal { .. }
            | Error::Config { .. }
            | Error::Setting { .. }
            | Error::Tls { .. }
            | Error::KeyFile { .. }
            | Error::KeyDamaged { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Server failure"),
        }
    }

    /// Builds [`Error::BadRequest`].
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Error::BadRequest { detail: detail.into() }
    }

    /// Builds [`Error::Unprocessable`].
    pub(crate) fn unprocessable(detail: impl Into<String>) -> Self {
        Error::Unprocessable { detail: detail.into() }
    }

    /// Builds [`Error::Unavailable`] with its cause.
    pub(crate) fn unavailable(what: &'static str, retry_after_s: u32, source: impl Into<Cause>) -> Self {
        Error::Unavailable { what, retry_after_s, source: Some(source.into()) }
    }

    /// Turns an error of a store into what the client must do about it.
    pub(crate) fn of_store(what: &'static str, retry_after_s: u32, error: twice_store::Error) -> Self {
        use twice_store::Error as Store;
        match error {
            Store::Conflict { reason } => Error::Conflict { reason },
            Store::NotFound { what } => Error::NotFound { what },
            Store::Cursor | Store::AsOfInFuture => Error::unprocessable(error.to_string()),
            Store::Damage { .. } => Error::Internal { what, source: Some(Box::new(error)) },
            other => Error::unavailable(what, retry_after_s, other),
        }
    }

    /// Turns an error of a port into what the client must do about it.
    pub(crate) fn of_port(what: &'static str, retry_after_s: u32, error: PortError) -> Self {
        match error {
            PortError::NotFound { what } => Error::NotFound { what },
            PortError::Conflict { reason } => Error::Conflict { reason },
            PortError::Refused { reason } => Error::Unprocessable { detail: reason },
            other @ PortError::Unavailable { .. } => Error::unavailable(what, retry_after_s, other),
        }
    }
}
