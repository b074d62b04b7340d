//! Reads a request body: its media type, its content encoding, and its bytes under one limit.
//!
//! Guarantee: no body occupies more than the limit, compressed or not, and all bodies together no more than theirs: each
//! takes its bytes from [`BodyMemory`] as they come and as they are unpacked, and holds them until its request ends. Decoders run over the whole compressed body
//! with a counted output, and not chunk by chunk as it arrives, because 64 KiB of zstd may unpack to gigabytes before a
//! count between chunks sees them.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use actix_web::web;
use actix_web::{HttpMessage, HttpRequest};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::batch::Format;
use crate::config::ApiConfig;
use crate::edge::body_error;
use crate::error::{Error, Result};
use crate::server::ApiState;

/// Largest back-reference window of zstd accepted: 8 MiB, which RFC 8878 asks every decoder to support.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Compressed bodies above this size are unpacked off the arbiter.
const UNPACK_INLINE_BYTES_MAX: usize = 16 << 10;

/// Bodies that unpack to more than this are unpacked off the arbiter: about half a millisecond of work.
const UNPACKED_INLINE_BYTES_MAX: usize = 256 << 10;
/// What memory for bodies is counted in.
const BLOCK_BYTES: usize = 1 << 10;
/// Blocks that an unpacked body takes at a time.
const STEP_BLOCKS: u32 = 256;

/// The memory there is for bodies of all requests.
#[derive(Debug, Clone)]
pub(crate) struct BodyMemory(Arc<Semaphore>);

/// Memory a body has taken; free again when the request ends.
#[derive(Debug)]
struct Taken {
    memory: BodyMemory,
    retry_after_s: u32,
    blocks: Option<OwnedSemaphorePermit>,
}

impl BodyMemory {
    pub fn new(bytes_max: u64) -> Self {
        // Bounded by the setting's bound.
        Self(Arc::new(Semaphore::new((bytes_max / BLOCK_BYTES as u64) as usize)))
    }

    fn take(&self, retry_after_s: u32) -> Taken {
        Taken { memory: self.clone(), retry_after_s, blocks: None }
    }
}

impl Taken {
    /// Takes what is missing for a body of so many bytes, packed or unpacked.
    ///
    /// # Errors
    /// `Overloaded` if other bodies have it.
    fn grow(&mut self, bytes: usize) -> Result<()> {
        let wanted = u32::try_from(bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
        let has = self.blocks.as_ref().map_or(0, |blocks| blocks.num_permits());
        let missing = wanted.saturating_sub(u32::try_from(has).unwrap_or(u32::MAX));
        if missing == 0 {
            return Ok(());
        }
        let more = self.memory.0.clone().try_acquire_many_owned(missing);
        let more = more.map_err(|_| Error::Overloaded { retry_after_s: self.retry_after_s })?;
        match &mut self.blocks {
            Some(blocks) => blocks.merge(more),
            None => self.blocks = Some(more),
        }
        Ok(())
    }

    /// Gives back what a body of so many bytes does not need.
    fn shrink(&mut self, bytes: usize) {
        let Some(blocks) = &mut self.blocks else { return };
        let spare = blocks.num_permits().saturating_sub(bytes.div_ceil(BLOCK_BYTES));
        drop(blocks.split(spare));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

/// Reads the whole body, unpacked, and its format.
///
/// # Errors
/// `TooLarge`, `BodyTimeout`, `UnsupportedMediaType`, `Overloaded` where other bodies have the memory, and `BadRequest` for a
/// body that does not unpack.
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
    let memory = request.app_data::<web::Data<ApiState>>().map(|state| state.bodies.clone());
    let no_state = || Error::Internal { what: "finding the server's state", source: None };
    let mut taken = memory.ok_or_else(no_state)?.take(config.retry_after_s);
    let timeout = Duration::from_millis(timeout_ms.into());
    let gathered = tokio::time::timeout(timeout, gather(payload, limit, &mut taken));
    let packed = gathered.await.map_err(|_| Error::BodyTimeout { timeout_ms })??;
    let (body, taken) = unpacked(encoding, packed, limit, taken).await?;
    request.extensions_mut().insert(taken);
    Ok(body)
}

/// Unpacks a body, the larger ones off the arbiter: how large one is shows only while it is unpacked.
async fn unpacked(
    encoding: Encoding,
    packed: Bytes,
    limit: usize,
    mut taken: Taken,
) -> Result<(Bytes, Taken)> {
    if encoding == Encoding::Identity {
        return Ok((packed, taken));
    }
    if packed.len() <= UNPACK_INLINE_BYTES_MAX {
        let inline = limit.min(UNPACKED_INLINE_BYTES_MAX);
        match unpack(encoding, &packed, inline, &mut taken) {
            Err(Error::TooLarge { .. }) if inline < limit => {}
            done => return Ok((done?, taken)),
        }
    }
    let done = web::block(move || unpack(encoding, &packed, limit, &mut taken).map(|body| (body, taken)));
    done.await.map_err(|source| Error::Internal { what: "unpacking", source: Some(Box::new(source)) })?
}

async fn gather(mut payload: web::Payload, limit: usize, taken: &mut Taken) -> Result<Bytes> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| body_error(&error))?;
        let gathered = first.as_ref().map_or(0, Bytes::len) + rest.len();
        if gathered + chunk.len() > limit {
            return Err(too_large(limit));
        }
        taken.grow(gathered + chunk.len())?;
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

fn unpack(encoding: Encoding, packed: &[u8], limit: usize, taken: &mut Taken) -> Result<Bytes> {
    match encoding {
        Encoding::Identity => Ok(Bytes::copy_from_slice(packed)),
        Encoding::Gzip => read_within(flate2::read::MultiGzDecoder::new(packed), encoding, limit, taken),
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)
                .map_err(|error| does_not_unpack(encoding, &error))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| does_not_unpack(encoding, &error))?;
            read_within(decoder, encoding, limit, taken)
        }
    }
}

/// Reads to the end, taking memory a step ahead of what is read.
fn read_within(mut from: impl Read, encoding: Encoding, limit: usize, taken: &mut Taken) -> Result<Bytes> {
    let step = STEP_BLOCKS as usize * BLOCK_BYTES;
    let mut body = Vec::new();
    loop {
        let wanted = (body.len() + step).min(limit + 1);
        taken.grow(wanted)?;
        let missing = (wanted - body.len()) as u64;
        let read = from.by_ref().take(missing).read_to_end(&mut body);
        let read = read.map_err(|error| does_not_unpack(encoding, &error))?;
        if body.len() > limit {
            return Err(too_large(limit));
        }
        if (read as u64) < missing {
            taken.shrink(body.len());
            return Ok(body.into());
        }
    }
}

fn does_not_unpack(encoding: Encoding, error: &std::io::Error) -> Error {
    Error::bad_request(format!("the body does not unpack as {}: {error}", encoding.name()))
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

    fn unpack(encoding: Encoding, packed: &[u8], limit: usize) -> Result<Bytes> {
        super::unpack(encoding, packed, limit, &mut BodyMemory::new(1 << 30).take(1))
    }

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

    #[test]
    fn bodies_share_their_memory_and_give_it_back() {
        let memory = BodyMemory::new(1 << 20);
        let zeros = zstd::encode_all(&vec![0; 700 << 10][..], 3).expect("packs");
        let mut first = memory.take(1);
        assert!(super::unpack(Encoding::Zstd, &zeros, 1 << 20, &mut first).is_ok());
        let second = super::unpack(Encoding::Zstd, &zeros, 1 << 20, &mut memory.take(1));
        assert!(matches!(second, Err(Error::Overloaded { .. })), "together they are more than there is");
        drop(first);
        assert!(super::unpack(Encoding::Zstd, &zeros, 1 << 20, &mut memory.take(1)).is_ok());
    }
}
