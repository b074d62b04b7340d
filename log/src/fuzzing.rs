//! The decoders of this crate as functions from bytes to nothing, for fuzz targets and for the tests that run their corpus.
//!
//! Guarantee: none panics, whatever the bytes; what decodes comes out the same when it is encoded and decoded again; no
//! decoder hands out more than it was given. Each function checks that itself. No part of the public interface.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::archive::{Manifest, RunInputs, RunResult, Seal};
use crate::event::json::{AgeLimits, JsonClick, JsonVerdict};
use crate::event::record::{arrival_time, decode_click, decode_verdict, encode_click, encode_verdict};
use crate::event::{Click, ClickId, UtcMillis, Verdict};
pub use crate::hot::embedded::fuzzing::log_segment;
pub use crate::hot::fluvio::fuzzing::fluvio_value;
use crate::spool::Entry;

/// Longest identifier.
const ID_BYTES_MAX: usize = 64;

/// 2025-01-15T12:00:00Z.
fn now() -> UtcMillis {
    UtcMillis::clamped(1_736_942_400_000)
}

/// A click as JSON, up to the record that is stored.
pub fn click_json(bytes: &[u8]) {
    let Ok(click) = serde_json::from_slice::<JsonClick<'_>>(bytes) else { return };
    let limits = AgeLimits::default();
    let checked = click.validate(now(), || ClickId::derived("fuzz"), &limits);
    assert_eq!(checked, click.clone().into_owned().validate(now(), || ClickId::derived("fuzz"), &limits));
    if let Ok(click) = checked {
        let ids = [
            click.campaign_id.as_str(),
            click.ad_id.as_str(),
            click.user_id.as_str(),
            click.publisher_id.as_str(),
        ];
        assert!(!ids[0].is_empty() && ids.iter().all(|id| id.len() <= ID_BYTES_MAX));
        let age_ms = now().epoch_ms() - click.event_time.epoch_ms();
        assert!(age_ms >= -limits.future_ms_max && limits.past_ms_max.is_none_or(|max| age_ms <= max));
        click_comes_back(&click);
    }
}

/// A verdict as JSON, up to the record that is stored.
pub fn verdict_json(bytes: &[u8]) {
    let Ok(verdict) = serde_json::from_slice::<JsonVerdict<'_>>(bytes) else { return };
    if let Ok(verdict) = verdict.validate(now()) {
        assert!(
            !verdict.campaign_id.as_str().is_empty() && verdict.campaign_id.as_str().len() <= ID_BYTES_MAX
        );
        verdict_comes_back(&verdict);
    }
}

/// A stored record of any schema version.
pub fn record(bytes: &[u8]) {
    let arrived = arrival_time(bytes);
    if let Ok(click) = decode_click(bytes) {
        assert_eq!(arrived, Some(click.arrival_time));
        click_comes_back(&click);
    }
    if let Ok(verdict) = decode_verdict(bytes) {
        assert_eq!(arrived, Some(verdict.arrival_time));
        verdict_comes_back(&verdict);
    }
}

fn click_comes_back(click: &Click) {
    let mut encoded = Vec::new();
    encode_click(click, &mut encoded);
    assert_eq!(decode_click(&encoded).as_ref(), Ok(click));
}

fn verdict_comes_back(verdict: &Verdict) {
    let mut encoded = Vec::new();
    encode_verdict(verdict, &mut encoded);
    assert_eq!(decode_verdict(&encoded).as_ref(), Ok(verdict));
}

/// The JSON objects of the archive: manifest, seal, inputs and result of a run.
pub fn manifest(bytes: &[u8]) {
    object::<Manifest>(bytes);
    object::<Seal>(bytes);
    object::<RunInputs>(bytes);
    object::<RunResult>(bytes);
}

fn object<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(object) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec(&object);
    let again = written.as_deref().map(serde_json::from_slice::<T>);
    assert!(matches!(&again, Ok(Ok(again)) if *again == object), "{object:?} comes back as {again:?}");
}

/// An entry of the spool.
pub fn spool(bytes: &[u8]) {
    let stored = Bytes::copy_from_slice(bytes);
    if let Ok(entry) = Entry::decode(&stored) {
        assert_eq!(entry.encode(), stored, "one entry, one form");
    }
    // What the gateway hands the spool is a record whose place alone is known.
    let entry = Entry::new(crate::Topic::AdClicks, crate::PartitionId(3), stored);
    assert_eq!(Entry::decode(&entry.encode()).as_ref(), Ok(&entry));
    crate::spool::read_position(bytes);
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
    fn no_input_of_the_corpus_breaks_a_json_click() {
        run("click_json", super::click_json);
    }

    #[test]
    fn no_input_of_the_corpus_breaks_a_json_verdict() {
        run("verdict_json", super::verdict_json);
    }

    #[test]
    fn no_input_of_the_corpus_breaks_a_record() {
        run("record", super::record);
    }

    #[test]
    fn no_input_of_the_corpus_breaks_an_object_of_the_archive() {
        run("manifest", super::manifest);
    }

    #[test]
    fn no_input_of_the_corpus_breaks_a_segment() {
        run("log_segment", super::log_segment);
    }

    #[test]
    fn no_input_of_the_corpus_breaks_a_batch_of_fluvio() {
        run("fluvio_value", super::fluvio_value);
    }

    #[test]
    fn no_input_of_the_corpus_breaks_an_entry_of_the_spool() {
        run("spool", super::spool);
    }
}
