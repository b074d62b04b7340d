//! The fence against stores that keep it and stores that do not, and the settings.

use std::sync::Arc;

use clap::Parser;

use super::*;
use crate::archive::tests::faulty::{Fault, FaultyStore};
use crate::error::ErrorKind;

fn fenced(store: &FaultyStore) -> Archive {
    Archive::new(Arc::new(store.clone()), "bucket").with_fence(Arc::default())
}

#[tokio::test]
async fn a_store_that_puts_if_absent_is_proven_once_and_again_after_a_restart() {
    let store = FaultyStore::default();
    for _start in 0..2 {
        let archive = fenced(&store);
        let before = store.puts();
        archive.put_if_absent(&format!("runs/{before}"), "x".into()).await.expect("puts");
        archive.put_if_absent(&format!("runs/{before}-b"), "x".into()).await.expect("puts");
        assert!(store.puts() - before <= 4, "at most two probes a start");
    }
}

#[tokio::test]
async fn a_store_that_ignores_the_condition_is_refused_before_anything_is_put() {
    let store = FaultyStore::ignoring_conditions();
    let archive = fenced(&store);
    let error = archive.put_if_absent("manifests/x", "x".into()).await.expect_err("refused");
    assert!(matches!(&error, Error::Config { reason } if reason.contains("If-None-Match")), "{error}");
    assert_eq!(archive.get("manifests/x").await.expect("reads"), None);
}

#[tokio::test]
async fn a_store_that_was_down_is_proven_when_it_is_back() {
    let store = FaultyStore::default();
    let archive = fenced(&store);
    store.fail("probe", Fault::Refuse);
    let error = archive.put_if_absent("runs/x", "x".into()).await.expect_err("down");
    assert_eq!(error.kind(), ErrorKind::Retry);
    store.heal();
    archive.put_if_absent("runs/x", "x".into()).await.expect("puts");
}

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    config: S3Config,
}

fn parsed(flags: &[&str]) -> S3Config {
    let words = ["twice"].iter().chain(flags);
    Command::try_parse_from(words).expect("parses").config
}

#[test]
fn flags_make_settings_and_defaults_stand_where_there_is_none() {
    assert_eq!(parsed(&[]), S3Config::default());
    let config =
        parsed(&["--archive", "s3://clicks/a", "--s3-encryption", "aws:kms", "--s3-kms-key-id", "k"]);
    assert_eq!(config.archive.as_ref().map(ToString::to_string).as_deref(), Some("s3://clicks/a"));
    assert!(config.validate().is_ok());
    let text = serde_json::to_string(&config).expect("JSON");
    assert_eq!(
        serde_json::from_str::<S3Config>(&text).expect("JSON"),
        config,
        "as the child process gets it"
    );
}

#[test]
fn settings_that_do_not_fit_are_named() {
    for (flags, named) in [
        (["--archive", "s3://one", "--archive-secondary", "s3://one/other"], "both in bucket one"),
        (["--archive", "s3://one", "--s3-kms-key-id", "k"], "s3_kms_key_id"),
        (["--archive", "s3://one", "--s3-endpoint", "host:9000"], "s3_endpoint"),
        (["--archive", "s3://one", "--s3-request-timeout-ms", "1"], "s3_request_timeout_ms"),
    ] {
        let error = parsed(&flags).validate().expect_err("does not fit").to_string();
        assert!(error.contains(named), "{error}");
    }
}
