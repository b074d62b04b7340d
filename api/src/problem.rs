//! Errors as a client sees them: RFC 9457 problem documents.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::Error;

/// Media type of a problem document.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// What went wrong, in a form both programs and people read (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Stable name of the kind of problem: `urn:count-twice:problem:{kind}`.
    #[serde(rename = "type")]
    #[schema(example = "urn:count-twice:problem:too-large")]
    pub kind: String,
    /// The kind in words.
    pub title: &'static str,
    /// HTTP status.
    pub status: u16,
    /// What is wrong with this request, and what to do about it.
    pub detail: String,
}

impl Problem {
    /// Builds the problem document of `error`.
    pub fn of(error: &Error) -> Self {
        let (status, name, title) = error.classify();
        // The cause of an internal error goes to the log, not to the client: it may name paths and settings.
        let detail = match error {
            Error::Internal { .. } => {
                "the server failed; its log has the cause under the request id".to_owned()
            }
            other => other.to_string(),
        };
        Self { kind: format!("urn:count-twice:problem:{name}"), title, status: status.as_u16(), detail }
    }
}

impl actix_web::ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        self.classify().0
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        match self {
            Error::Overloaded { retry_after_s }
            | Error::TooManyRequests { retry_after_s, .. }
            | Error::Unavailable { retry_after_s, .. } => {
                response.insert_header((RETRY_AFTER, retry_after_s.to_string()));
            }
            Error::MethodNotAllowed { allow } => {
                response.insert_header((ALLOW, allow.as_str()));
            }
            Error::Unauthorized { .. } => {
                response.insert_header((WWW_AUTHENTICATE, "Bearer"));
            }
            _ => {}
        }
        let body = serde_json::to_vec(&Problem::of(self)).unwrap_or_default();
        response.content_type(PROBLEM_JSON).body(body)
    }
}
