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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// Runs the seeds of a target, and what a search once found.
    fn run(target: &str, decode: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let entries = fs::read_dir(&folder).expect("a corpus");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{target} has seeds");
        for file in files {
            let bytes = fs::read(&file).expect("reads");
            let decoded = std::panic::catch_unwind(|| decode(&bytes));
            assert!(decoded.is_ok(), "{} breaks it", file.display());
        }
    }

    #[test]
    fn no_input_of_the_corpus_breaks_a_batch_of_clicks() {
        run("click_batch", super::click_batch);
    }

    #[test]
    fn no_input_of_the_corpus_breaks_events() {
        run("cloudevents", super::cloudevents);
    }

    #[test]
    fn no_input_of_the_corpus_breaks_an_arrow_stream() {
        run("arrow_body", super::arrow_body);
    }
}
