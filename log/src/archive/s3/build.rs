//! Builds the client of one bucket from the settings and the environment.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::{Encryption, S3Config, S3Location, fault};
use crate::error::Result;

/// Each pause between tries is drawn from the first pause up to this times the one before.
const BACKOFF_BASE: f64 = 2.0;

/// Returns the store of the bucket at `location`.
pub(super) fn store(
    config: &S3Config,
    location: &S3Location,
    endpoint: Option<&str>,
    region: Option<&str>,
) -> Result<Arc<dyn ObjectStore>> {
    let s3 = builder(config, location, endpoint, region)?.build().map_err(|error| {
        fault(format!("cannot use {location}: {error}; check the s3_ settings and the AWS_ variables"))
    })?;
    Ok(if location.prefix().is_empty() {
        Arc::new(s3)
    } else {
        Arc::new(PrefixStore::new(s3, location.prefix()))
    })
}

fn builder(
    config: &S3Config,
    location: &S3Location,
    endpoint: Option<&str>,
    region: Option<&str>,
) -> Result<AmazonS3Builder> {
    let milliseconds = Duration::from_millis;
    let from_environment = AmazonS3Builder::from_env();
    let environment_endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .iter()
        .find_map(|key| from_environment.get_config_value(key));
    let endpoint = endpoint.map(str::to_owned).or(environment_endpoint);
    let allows_http = endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let is_path_style = config.s3_path_style.unwrap_or(endpoint.is_some());
    let client = ClientOptions::new()
        .with_timeout(milliseconds(config.s3_request_timeout_ms))
        .with_connect_timeout(milliseconds(config.s3_connect_timeout_ms))
        .with_allow_http(allows_http);
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: milliseconds(config.s3_retry_pause_ms),
            max_backoff: milliseconds(config.s3_retry_pause_ms_max),
            base: BACKOFF_BASE,
        },
        max_retries: config.s3_retries_max as usize,
        retry_timeout: milliseconds(config.s3_retry_timeout_ms),
    };
    let mut builder = from_environment
        .with_bucket_name(location.bucket())
        .with_client_options(client)
        .with_retry(retry)
        .with_virtual_hosted_style_request(!is_path_style)
        // Whatever the environment says: without the condition there is no fence.
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    if let Some(endpoint) = endpoint {
        let address = if is_path_style { endpoint } else { with_bucket(&endpoint, location.bucket()) };
        // The key that wins over the other.
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, address);
    }
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    encrypted(config, builder)
}

/// Puts the bucket into the host's name.
fn with_bucket(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) => format!("{scheme}://{bucket}.{host}"),
        None => endpoint.to_owned(),
    }
}

fn encrypted(config: &S3Config, builder: AmazonS3Builder) -> Result<AmazonS3Builder> {
    let key = |name: &str| -> Result<AmazonS3ConfigKey> {
        name.parse().map_err(|error| fault(format!("the client has no setting {name}: {error}")))
    };
    let algorithm = match config.s3_encryption {
        None => return Ok(builder),
        Some(Encryption::Aes256) => "AES256",
        Some(Encryption::AwsKms) => "sse:kms", // the client's own name of it
    };
    let builder = builder.with_config(key("aws_server_side_encryption")?, algorithm);
    match &config.s3_kms_key_id {
        Some(id) => Ok(builder.with_config(key("aws_sse_kms_key_id")?, id)),
        None => Ok(builder),
    }
}
