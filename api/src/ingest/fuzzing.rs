//! The bodies of `POST /v1/clicks` as functions from bytes to nothing, for fuzz targets and for the tests that run their
//! corpus. No part of the public interface.
//!
//! Guarantee: none panics; clicks come out numbered from 0 without a gap, and no more than are allowed.

use bytes::Bytes;
use twice_log::event::json::AgeLimits;
use twice_log::{ClickId, UtcMillis};

use super::batch::Format;
use super::shape::Shape;

const RECORDS_MAX: u32 = 64;

/// An Arrow IPC stream.
pub fn arrow_body(bytes: &[u8]) {
    body(&Shape::Arrow, bytes);
}

/// CloudEvents, one and many.
pub fn cloudevents(bytes: &[u8]) {
    body(&Shape::Event, bytes);
    body(&Shape::Events, bytes);
}

/// Objects, arrays and lines.
pub fn click_batch(bytes: &[u8]) {
    body(&Shape::Clicks(Format::Json), bytes);
    body(&Shape::Clicks(Format::Ndjson), bytes);
}

fn body(shape: &Shape, bytes: &[u8]) {
    let now = UtcMillis::clamped(1_736_942_400_000); // 2025-01-15T12:00:00Z
    let mut next = 0;
    let mut take = |index: u32, parsed: super::batch::Parsed<super::shape::Incoming<'_>>| {
        assert_eq!(index, next, "numbered without a gap");
        next += 1;
        if let Ok(incoming) = parsed
            && let Ok(click) =
                incoming.click.validate(now, || ClickId::derived("fuzz"), &AgeLimits::default())
        {
            assert!(!click.campaign_id.as_str().is_empty());
        }
    };
    let read = shape.read(&Bytes::copy_from_slice(bytes), "key", RECORDS_MAX, &mut take);
    assert!(next <= RECORDS_MAX, "no more than allowed");
    assert!(read.is_err() || next > 0, "a body without records is refused");
}
