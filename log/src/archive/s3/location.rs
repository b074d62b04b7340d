//! Where a bucket is, as text: `s3://BUCKET/PREFIX`, and the address of a server.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A bucket and the prefix below which the archive lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct S3Location {
    bucket: String,
    /// Without slashes at its ends; empty for the whole bucket.
    prefix: String,
}

/// Why a text is no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error("must read s3://BUCKET or s3://BUCKET/PREFIX")]
    Scheme,
    #[error("bucket {bucket:?} must have 3 to 63 lower-case letters, digits, dots and hyphens")]
    Bucket { bucket: String },
    #[error("prefix {prefix:?} has an empty or relative step, or a character that needs escaping")]
    Prefix { prefix: String },
}

impl S3Location {
    /// Returns the bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Returns the prefix, empty for the whole bucket.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl FromStr for S3Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let rest = text.strip_prefix("s3://").ok_or(LocationError::Scheme)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_plain) {
            return Err(LocationError::Bucket { bucket: bucket.to_owned() });
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_step = |step: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-=".contains(&byte);
            !step.is_empty() && step != "." && step != ".." && step.bytes().all(allowed)
        };
        if !prefix.is_empty() && !prefix.split('/').all(is_step) {
            return Err(LocationError::Prefix { prefix: prefix.to_owned() });
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(formatter, "s3://{}{slash}{}", self.bucket, self.prefix)
    }
}

impl TryFrom<String> for S3Location {
    type Error = LocationError;

    fn try_from(text: String) -> Result<Self, LocationError> {
        text.parse()
    }
}

impl From<S3Location> for String {
    fn from(location: S3Location) -> Self {
        location.to_string()
    }
}

/// Checks the address of a server, and returns what is wrong with it.
pub(super) fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let host = ["https://", "http://"].iter().find_map(|scheme| endpoint.strip_prefix(scheme));
    match host {
        // Named first, so that the message does not repeat the secret.
        Some(host) if host.contains('@') => {
            Err("has a user or key in it; give credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                .to_owned())
        }
        Some(host) if !host.is_empty() && !host.contains(['?', '#', ' ']) => Ok(()),
        _ => Err(format!("is {endpoint:?}; it must read http://HOST:PORT or https://HOST")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_reads_back_as_it_was_written() {
        for text in ["s3://clicks", "s3://my.archive-1/a/b=c"] {
            assert_eq!(text.parse::<S3Location>().expect("a location").to_string(), text);
        }
        let slash: S3Location = "s3://clicks/a/".parse().expect("a location");
        assert_eq!((slash.bucket(), slash.prefix()), ("clicks", "a"));
    }

    #[test]
    fn what_is_no_location_is_refused() {
        for text in [
            "clicks",
            "/data",
            "http://clicks",
            "s3://",
            "s3://ab",
            "s3://Clicks",
            "s3://clicks/a//b",
            "s3://clicks/../b",
            "s3://clicks/a b",
        ] {
            assert!(text.parse::<S3Location>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_endpoint_with_a_key_in_it_is_refused_without_repeating_it() {
        let reason = check_endpoint("https://user:secret@host").expect_err("refused");
        assert!(reason.contains("AWS_ACCESS_KEY_ID") && !reason.contains("secret"), "{reason}");
        assert!(check_endpoint("host:9000").is_err());
        assert!(check_endpoint("http://127.0.0.1:9000").is_ok());
    }
}
