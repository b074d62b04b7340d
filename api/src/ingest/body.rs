//! Reads a request body: its media type, its content encoding, and its bytes under one limit.
//!
//! Guarantee: no body occupies more than the limit, compressed or not. Decoders run over the whole compressed body
//! with a counted output, and not chunk by chunk as it arrives, because 64 KiB of zstd may unpack to gigabytes before a
//! count between chunks sees them.

use std::io::Read;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use actix_web::web;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use super::batch::Format;
use crate::config::ApiConfig;
use crate::edge::body_error;
use crate::error::{Error, Result};

/// Largest back-reference window of zstd accepted: 8 MiB, which RFC 8878 asks every decoder to support.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Compressed bodies above this size are unpacked off the arbiter.
const UNPACK_INLINE_BYTES_MAX: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

/// Reads the whole body, unpacked, and its format.
///
/// # Errors
/// `TooLarge`, `BodyTimeout`, `UnsupportedMediaType`, and `BadRequest` for a body that does not unpack.
pub(crate) async fn read_body(
    request: &HttpRequest,
    payload: web::Payload,
    config: &ApiConfig,
) -> Result<(Format, Bytes)> {
    let format = format_of(request)?;
    Ok((format, read_bytes(request, payload, config).await?))
}

/// Reads the whole body, unpacked, whatever it holds.
///
/// # Errors
/// As [`read_body`], but for the format.
pub(super) async fn read_bytes(
    request: &HttpRequest,
    payload: web::Payload,
    config: &ApiConfig,
) -> Result<Bytes> {
    let encoding = encoding_of(request)?;
    let limit = config.body_bytes_max as usize;
    let announced: Option<u64> = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse().ok());
    if announced.is_some_and(|announced| announced > limit as u64) {
        return Err(too_large(limit));
    }
    let timeout_ms = config.body_timeout_ms;
    let gathered = tokio::time::timeout(Duration::from_millis(timeout_ms.into()), gather(payload, limit));
    let packed = gathered.await.map_err(|_| Error::BodyTimeout { timeout_ms })??;
    match encoding {
        Encoding::Identity => Ok(packed),
        _ if packed.len() <= UNPACK_INLINE_BYTES_MAX => unpack(encoding, &packed, limit),
        _ => web::block(move || unpack(encoding, &packed, limit))
            .await
            .map_err(|source| Error::Internal { what: "unpacking", source: Some(Box::new(source)) })?,
    }
}

async fn gather(mut payload: web::Payload, limit: usize) -> Result<Bytes> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| body_error(&error))?;
        let gathered = first.as_ref().map_or(0, Bytes::len) + rest.len();
        if gathered + chunk.len() > limit {
            return Err(too_large(limit));
        }
        match first {
            None => first = Some(chunk), // most bodies are one chunk, and are not copied
            Some(_) => rest.extend_from_slice(&chunk),
        }
    }
    let first = first.unwrap_or_default();
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

fn unpack(encoding: Encoding, packed: &[u8], limit: usize) -> Result<Bytes> {
    let mut body = Vec::with_capacity(packed.len().saturating_mul(4).min(limit));
    let counted = limit as u64 + 1;
    let read = match encoding {
        Encoding::Identity => return Ok(Bytes::copy_from_slice(packed)),
        Encoding::Gzip => flate2::read::MultiGzDecoder::new(packed).take(counted).read_to_end(&mut body),
        Encoding::Zstd => zstd::stream::read::Decoder::with_buffer(packed).and_then(|mut decoder| {
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            decoder.take(counted).read_to_end(&mut body)
        }),
    };
    read.map_err(|error| {
        let detail = format!("the body does not unpack as {}: {error}", encoding.name());
        Error::BadRequest { detail }
    })?;
    if body.len() > limit { Err(too_large(limit)) } else { Ok(body.into()) }
}

impl Encoding {
    fn name(self) -> &'static str {
        match self {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
            Encoding::Zstd => "zstd",
        }
    }
}

fn too_large(limit: usize) -> Error {
    Error::TooLarge { limit: limit as u64, unit: "bytes (after decompression)" }
}

fn encoding_of(request: &HttpRequest) -> Result<Encoding> {
    let mut found = Encoding::Identity;
    let named = request.headers().get_all(CONTENT_ENCODING);
    for value in named.flat_map(|value| value.to_str().unwrap_or("?").split(',')) {
        let encoding = match value.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => continue,
            "gzip" | "x-gzip" => Encoding::Gzip,
            "zstd" => Encoding::Zstd,
            other => {
                let detail = format!("content encoding {other:?} is not read here; use gzip, zstd or none");
                return Err(Error::UnsupportedMediaType { detail });
            }
        };
        if found != Encoding::Identity {
            let detail = "a body packed twice is not read here".to_owned();
            return Err(Error::UnsupportedMediaType { detail });
        }
        found = encoding;
    }
    Ok(found)
}

/// Returns the format a body claims. Form and plain text are refused, also because browsers send those to any
/// address without asking it first.
pub(super) fn format_of(request: &HttpRequest) -> Result<Format> {
    let Some(value) = request.headers().get(CONTENT_TYPE) else { return Ok(Format::Json) };
    match essence_of(value).as_str() {
        "application/json" => Ok(Format::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Format::Ndjson),
        other => {
            let detail = format!(
                "content type {other:?} is not read here; send application/json (one object or an array) or \
                 application/x-ndjson (one object a line)"
            );
            Err(Error::UnsupportedMediaType { detail })
        }
    }
}

/// Returns a media type without its parameters, in lower case.
pub(super) fn essence_of(value: &HeaderValue) -> String {
    value.to_str().unwrap_or("?").split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("writes");
        encoder.finish().expect("ends")
    }

    #[test]
    fn packed_bodies_unpack_up_to_the_limit_and_not_a_byte_further() {
        let body = vec![b' '; 1_000];
        for (encoding, packed) in
            [(Encoding::Gzip, gzip(&body)), (Encoding::Zstd, zstd::encode_all(&body[..], 3).expect("packs"))]
        {
            assert_eq!(unpack(encoding, &packed, 1_000).expect("fits"), body);
            assert!(matches!(unpack(encoding, &packed, 999), Err(Error::TooLarge { limit: 999, .. })));
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0; 256 << 20];
        for (encoding, packed) in [
            (Encoding::Gzip, gzip(&zeros)),
            (Encoding::Zstd, zstd::encode_all(&zeros[..], 3).expect("packs")),
        ] {
            assert!(packed.len() < 1 << 20);
            assert!(matches!(unpack(encoding, &packed, 1 << 20), Err(Error::TooLarge { .. })));
        }
    }

    #[test]
    fn a_cut_or_foreign_body_does_not_unpack() {
        let packed = gzip(b"[]");
        assert!(matches!(
            unpack(Encoding::Gzip, &packed[..packed.len() - 1], 99),
            Err(Error::BadRequest { .. })
        ));
        assert!(matches!(unpack(Encoding::Zstd, &packed, 99), Err(Error::BadRequest { .. })));
    }

    #[test]
    fn several_gzip_members_are_one_body() {
        let packed = [gzip(b"[1,"), gzip(b"2]")].concat();
        assert_eq!(unpack(Encoding::Gzip, &packed, 99).expect("unpacks"), b"[1,2]"[..]);
    }
}
