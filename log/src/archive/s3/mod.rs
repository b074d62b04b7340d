//! The archive in a bucket of S3, or of a server that speaks its language.
//!
//! Guarantee: nothing is put before the bucket has refused a second put of one key (`fence`): manifests, seals and runs
//! rest on that. No secret is a setting: credentials come from the `AWS_…` variables, a web identity, or the metadata
//! service of a container or machine, and appear in no message.
//! Words: *location* = bucket and prefix, `s3://BUCKET/PREFIX`.
//! Flow: `open` builds the clients (`build`), tries the fence, and turns a refusal into what to do about it (`trouble`). A
//! server that does not answer does not keep the node from serving: the fence is tried again before the first put.

mod build;
mod fence;
mod location;
#[cfg(test)]
mod tests;
mod trouble;

use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::Archive;
use crate::error::{Error, Result};

pub(super) use fence::Fence;
pub use location::{LocationError, S3Location};

/// Settings of an archive on S3. Without `archive`, the others have no effect.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
pub struct S3Config {
    /// Bucket of the archive, as s3://BUCKET or s3://BUCKET/PREFIX. Left out, the archive is a folder in the data folder.
    #[arg(long, value_name = "URL")]
    pub archive: Option<S3Location>,
    /// Second bucket, which takes data files while the first goes on refusing them. Manifests name it, so it must stay
    /// readable for as long as they do. Default: none.
    #[arg(long, value_name = "URL")]
    pub archive_secondary: Option<S3Location>,
    /// How long the first bucket must refuse data files before the second takes them, and how long it is then left alone.
    /// Shorter puts more files into the second during brief outages. 1_000 to 86_400_000, default 60_000.
    #[arg(long, default_value_t = S3Config::default().archive_secondary_after_ms, value_name = "MS")]
    pub archive_secondary_after_ms: u64,
    /// Address of the S3 server, such as https://s3.example.com; http:// is allowed and not encrypted. Default: Amazon's.
    #[arg(long, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket. Default: AWS_REGION, else us-east-1.
    #[arg(long, value_name = "NAME")]
    pub s3_region: Option<String>,
    /// Address of the second bucket's server. Default: that of the first.
    #[arg(long, value_name = "URL")]
    pub s3_secondary_endpoint: Option<String>,
    /// Region of the second bucket. Default: that of the first.
    #[arg(long, value_name = "NAME")]
    pub s3_secondary_region: Option<String>,
    /// Whether the bucket stands in the path of requests, or else in the name of the host. Default: in the path with
    /// --s3-endpoint, in the host's name without.
    #[arg(long, action = ArgAction::Set, value_name = "BOOL")]
    pub s3_path_style: Option<bool>,
    /// Encryption that each put asks the server for. Default: none asked, the bucket's own applies.
    #[arg(long, value_enum, value_name = "ALGORITHM")]
    pub s3_encryption: Option<Encryption>,
    /// Key of aws:kms. Default: the account's own.
    #[arg(long, value_name = "KEY")]
    pub s3_kms_key_id: Option<String>,
    /// Longest wait for one request with its body; large files go in parts of 8 MiB. Shorter notices an outage sooner,
    /// and fails on slow links. 1_000 to 600_000, default 30_000.
    #[arg(long, default_value_t = S3Config::default().s3_request_timeout_ms, value_name = "MS")]
    pub s3_request_timeout_ms: u64,
    /// Longest wait for a connection. 100 to 60_000, default 5_000.
    #[arg(long, default_value_t = S3Config::default().s3_connect_timeout_ms, value_name = "MS")]
    pub s3_connect_timeout_ms: u64,
    /// Times a request is tried again by itself, before the archiver hears of it and waits with a backoff of its own.
    /// 0 to 20, default 4.
    #[arg(long, default_value_t = S3Config::default().s3_retries_max, value_name = "COUNT")]
    pub s3_retries_max: u32,
    /// No try of a request begins later than this after its first. 0 to 240_000 (credentials and signatures grow old),
    /// default 30_000.
    #[arg(long, default_value_t = S3Config::default().s3_retry_timeout_ms, value_name = "MS")]
    pub s3_retry_timeout_ms: u64,
    /// First pause between tries; the next are drawn between it and twice the one before. 1 to 10_000, default 100.
    #[arg(long, default_value_t = S3Config::default().s3_retry_pause_ms, value_name = "MS")]
    pub s3_retry_pause_ms: u64,
    /// Longest pause between tries. At least the first, default 5_000.
    #[arg(long, default_value_t = S3Config::default().s3_retry_pause_ms_max, value_name = "MS")]
    pub s3_retry_pause_ms_max: u64,
    /// Data files above this size are put in parts. 5 MiB to 4 GiB, default 16 MiB.
    #[arg(long, default_value_t = S3Config::default().s3_parts_above_bytes, value_name = "BYTES")]
    pub s3_parts_above_bytes: u64,
    /// How long a start waits for the server before the node serves without it. A wrong bucket, key or clock stops the
    /// start whatever this says. 0 to 600_000, default 10_000.
    #[arg(long, default_value_t = S3Config::default().s3_start_wait_ms, value_name = "MS")]
    pub s3_start_wait_ms: u64,
}

/// What a put asks the server to encrypt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Encryption {
    /// Keys of the server.
    #[value(name = "AES256")]
    Aes256,
    /// Keys of the key management service.
    #[value(name = "aws:kms")]
    AwsKms,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            archive: None,
            archive_secondary: None,
            archive_secondary_after_ms: 60_000,
            s3_endpoint: None,
            s3_region: None,
            s3_secondary_endpoint: None,
            s3_secondary_region: None,
            s3_path_style: None,
            s3_encryption: None,
            s3_kms_key_id: None,
            s3_request_timeout_ms: 30_000,
            s3_connect_timeout_ms: 5_000,
            s3_retries_max: 4,
            s3_retry_timeout_ms: 30_000,
            s3_retry_pause_ms: 100,
            s3_retry_pause_ms_max: 5_000,
            s3_parts_above_bytes: 16 << 20,
            s3_start_wait_ms: 10_000,
        }
    }
}

impl S3Config {
    /// Checks every bound, and that the two buckets are two.
    ///
    /// # Errors
    /// `Config` naming the first setting that does not fit.
    pub fn validate(&self) -> Result<()> {
        let bounds = [
            ("archive_secondary_after_ms", self.archive_secondary_after_ms, 1_000, 86_400_000),
            ("s3_request_timeout_ms", self.s3_request_timeout_ms, 1_000, 600_000),
            ("s3_connect_timeout_ms", self.s3_connect_timeout_ms, 100, 60_000),
            ("s3_retries_max", u64::from(self.s3_retries_max), 0, 20),
            ("s3_retry_timeout_ms", self.s3_retry_timeout_ms, 0, 240_000),
            ("s3_retry_pause_ms", self.s3_retry_pause_ms, 1, 10_000),
            ("s3_retry_pause_ms_max", self.s3_retry_pause_ms_max, self.s3_retry_pause_ms, 600_000),
            ("s3_parts_above_bytes", self.s3_parts_above_bytes, 5 << 20, 4 << 30),
            ("s3_start_wait_ms", self.s3_start_wait_ms, 0, 600_000),
        ];
        if let Some((name, value, low, high)) =
            bounds.iter().find(|(_, value, low, high)| value < low || value > high)
        {
            return config(format!("{name} is {value}; it must lie between {low} and {high}"));
        }
        for (name, endpoint) in
            [("s3_endpoint", &self.s3_endpoint), ("s3_secondary_endpoint", &self.s3_secondary_endpoint)]
        {
            if let Some(endpoint) = endpoint {
                location::check_endpoint(endpoint).map_err(|reason| fault(format!("{name} {reason}")))?;
            }
        }
        if self.s3_kms_key_id.is_some() && self.s3_encryption != Some(Encryption::AwsKms) {
            return config("s3_kms_key_id needs s3_encryption aws:kms".to_owned());
        }
        match (&self.archive, &self.archive_secondary) {
            (None, Some(_)) => config("archive_secondary needs archive".to_owned()),
            (Some(first), Some(second)) if first.bucket() == second.bucket() => config(format!(
                "archive and archive_secondary are both in bucket {}; a second bucket that is down with the first is none",
                first.bucket()
            )),
            _ => Ok(()),
        }
    }

    /// Opens the archive for writing. Waits a while for the server, and goes on without it if it does not answer: nothing
    /// is put before it has proven that it can put if absent.
    ///
    /// # Errors
    /// `Config`, saying what to do, if a setting, the bucket, its permissions, the credentials or the clock do not fit, or
    /// if the server overwrites what it should refuse.
    pub async fn open(&self) -> Result<Archive> {
        let archive = self.open_for_reading()?.with_fence(std::sync::Arc::default());
        let wait = Duration::from_millis(self.s3_start_wait_ms);
        match tokio::time::timeout(wait, archive.check_fence()).await {
            Ok(Ok(())) => tracing::info!(
                bucket = archive.bucket(),
                "the archive's bucket answers and can put if absent"
            ),
            Ok(Err(error @ Error::Config { .. })) => return Err(error),
            Ok(Err(error)) => warn_unreachable(archive.bucket(), &trouble::chain(&error)),
            Err(_) => warn_unreachable(archive.bucket(), &format!("no answer within {wait:?}")),
        }
        if let Some(secondary) = &archive.secondary {
            match tokio::time::timeout(wait, fence::try_put(secondary.store.as_ref())).await {
                Ok(Ok(())) => {}
                Ok(Err(error @ Error::Config { .. })) => return Err(error),
                Ok(Err(error)) => warn_unreachable(&secondary.bucket, &trouble::chain(&error)),
                Err(_) => warn_unreachable(&secondary.bucket, &format!("no answer within {wait:?}")),
            }
        }
        Ok(archive)
    }

    /// Opens the archive for reading, without asking the server anything.
    ///
    /// # Errors
    /// `Config` if a setting does not fit or no bucket is named.
    pub fn open_for_reading(&self) -> Result<Archive> {
        self.validate()?;
        let Some(location) = &self.archive else { return config("archive names no bucket".to_owned()) };
        let part_bytes = usize::try_from(self.s3_parts_above_bytes).unwrap_or(usize::MAX);
        let store = build::store(self, location, self.s3_endpoint.as_deref(), self.s3_region.as_deref())?;
        let archive = Archive::new(store, location.bucket()).with_parts_above(part_bytes);
        let Some(location) = &self.archive_secondary else { return Ok(archive) };
        let endpoint = self.s3_secondary_endpoint.as_deref().or(self.s3_endpoint.as_deref());
        let region = self.s3_secondary_region.as_deref().or(self.s3_region.as_deref());
        let store = build::store(self, location, endpoint, region)?;
        let after = Duration::from_millis(self.archive_secondary_after_ms);
        Ok(archive.with_secondary(store, location.bucket(), after))
    }
}

fn warn_unreachable(bucket: &str, error: &str) {
    tracing::warn!(
        bucket,
        error,
        "the bucket does not answer: clicks are taken, and wait in the log until it does"
    );
}

fn fault(reason: String) -> Error {
    Error::Config { reason }
}

fn config<T>(reason: String) -> Result<T> {
    Err(fault(reason))
}
