//! What a server's refusal means, and what to do about it.

use crate::error::Error;

/// A refusal that trying again does not cure: text the server answers with, and the advice.
const ADVICE: &[(&[&str], &str)] = &[
    (&["NoSuchBucket"], "the bucket does not exist; create it, or correct --archive and --s3-endpoint"),
    (
        &["RequestTimeTooSkewed", "RequestExpired"],
        "this machine's clock differs too much from the server's; set it (NTP) and start again",
    ),
    (
        &["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "NotSignedUp"],
        "the credentials are wrong or have ended; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    ),
    (
        &["169.254.169.254", "169.254.170.2", "MissingAccessKeyId", "MissingSecretAccessKey"],
        "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role gives them",
    ),
    (
        &["PermanentRedirect", "AuthorizationHeaderMalformed", "incorrectly configured region"],
        "the bucket is in another region; correct --s3-region",
    ),
    (
        &["AccessDenied", "403 Forbidden", "AllAccessDisabled"],
        "access is denied; the key needs s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject and \
         s3:AbortMultipartUpload on what is in it (docs/s3.md)",
    ),
    (
        &["KMS.", "InvalidEncryptionAlgorithm", "ServerSideEncryptionConfigurationNotFound"],
        "the encryption asked for is refused; check --s3-encryption and --s3-kms-key-id",
    ),
    (
        &["501 Not Implemented", "NotImplemented"],
        "the server does not know put-if-absent (If-None-Match), which manifests need; use one that does",
    ),
];

/// Returns the error to report: `Config` with advice where trying again cures nothing, `ObjectStore` otherwise.
pub(super) fn of(action: &'static str, path: &str, source: object_store::Error) -> Error {
    let text = chain(&source);
    let advice = ADVICE.iter().find(|(signs, _)| signs.iter().any(|sign| text.contains(sign)));
    match advice {
        Some((_, advice)) => Error::Config {
            reason: format!("the archive's bucket: {advice}. The server said: {}", short(&text)),
        },
        None => Error::ObjectStore { action, path: path.to_owned(), source },
    }
}

/// Returns the message with those of its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Many layers repeat the one below.
        let layer = error.to_string();
        if !text.contains(&layer) {
            text.push_str(": ");
            text.push_str(&layer);
        }
        cause = error.source();
    }
    text
}

/// Shortens an answer to what an operator reads.
fn short(text: &str) -> String {
    const CHARACTERS_MAX: usize = 400;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn what_no_retry_cures_stops_the_start_with_advice() {
        for (said, advised) in [
            ("404 Not Found: <Code>NoSuchBucket</Code>", "create it"),
            ("403 Forbidden: <Code>RequestTimeTooSkewed</Code>", "clock"),
            ("403 Forbidden: <Code>InvalidAccessKeyId</Code>", "AWS_ACCESS_KEY_ID"),
            ("403 Forbidden: <Code>AccessDenied</Code>", "s3:PutObject"),
            ("error sending request for url (http://169.254.169.254/latest/api/token)", "no credentials"),
            (
                "Received redirect without LOCATION, this normally indicates an incorrectly configured region",
                "--s3-region",
            ),
        ] {
            let error = of("put", "probe", answer(said));
            assert!(
                matches!(&error, Error::Config { reason } if reason.contains(advised)),
                "{said}: {error}"
            );
        }
    }

    #[test]
    fn what_passes_by_itself_is_tried_again() {
        for said in [
            "error sending request: connection refused",
            "503 Service Unavailable: SlowDown",
            "operation timed out",
        ] {
            assert!(matches!(of("put", "probe", answer(said)), Error::ObjectStore { .. }), "{said}");
        }
    }
}
