//! The archiver over a store that fails: what a put of unknown outcome, a refusing bucket or a large file leave behind.

use std::time::Duration;

use super::faulty::{Fault, FaultyStore};
use super::*;
use crate::archive::Bucket;
use crate::error::{Error, ErrorKind};

const AT_ONCE: Duration = Duration::ZERO;
const NEVER: Duration = Duration::from_secs(86_400);

/// An archive over `primary`, with `secondary` after the primary has refused for `after`.
fn two_buckets(primary: &FaultyStore, secondary: &FaultyStore, after: Duration) -> Archive {
    Archive::new(Arc::new(primary.clone()), "first").with_secondary(
        Arc::new(secondary.clone()),
        "second",
        after,
    )
}

async fn buckets_of_files(archive: &Archive) -> Vec<String> {
    let manifests = archive.manifests(CLICKS, None).await.expect("a whole chain");
    let files = manifests.iter().flat_map(|stored| &stored.manifest.files);
    files.map(|file| file.bucket.clone()).collect()
}

async fn data_files(archive: &Archive) -> usize {
    let mut found = 0;
    for folder in ["clicks", "verdicts", "quarantine"] {
        found += archive.list(folder, None).await.expect("lists").len();
    }
    found
}

#[tokio::test]
async fn a_flush_tried_again_puts_the_same_files_and_leaves_none_without_a_manifest() {
    for (prefix, fault) in [
        ("manifests", Fault::Refuse),
        ("manifests", Fault::LoseAnswer),
        ("quarantine", Fault::Refuse),
        ("clicks", Fault::LoseAnswer),
    ] {
        let store = FaultyStore::default();
        let archive = Archive::new(Arc::new(store.clone()), "first");
        let mut archiver = archiver(&archive).await;
        push_until(&mut archiver, 500);
        store.fail(prefix, fault);
        // An answer that was lost is found at the next try.
        let ends: &[u64] = if fault == Fault::Refuse { &[600, 700, 800] } else { &[800] };
        for end in ends {
            let error = archiver.flush().await.expect_err("the store fails");
            assert_eq!(error.kind(), ErrorKind::Retry, "{prefix} {fault:?}: {error}");
            push_until(&mut archiver, *end);
        }
        assert_eq!(archiver.rows(), 800);
        store.heal();
        let batch = archiver.flush().await.expect("flushes").expect("a manifest");
        assert_eq!(batch.manifest.last, LogOffset(499), "what was set aside, whatever came since");
        assert_eq!(archiver.rows(), 300);
        let rest = archiver.flush().await.expect("flushes").expect("a manifest");
        assert_eq!((rest.manifest.first, rest.manifest.last), (LogOffset(500), LogOffset(799)));
        assert_archived(&archive, 800).await;
        let named = batch.manifest.files.len() + rest.manifest.files.len();
        assert_eq!(data_files(&archive).await, named, "{prefix} {fault:?} left files no manifest names");
    }
}

#[tokio::test]
async fn files_already_put_are_not_put_again() {
    let store = FaultyStore::default();
    let archive = Archive::new(Arc::new(store.clone()), "first");
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 500);
    store.fail("manifests", Fault::Refuse);
    archiver.flush().await.expect_err("the manifest is refused");
    let puts = store.puts();
    archiver.flush().await.expect_err("the manifest is refused");
    assert_eq!(store.puts(), puts + 1, "the manifest alone is tried again");
}

#[tokio::test]
async fn a_primary_that_refuses_data_files_is_relieved_by_the_secondary_and_the_manifest_says_so() {
    let (primary, secondary) = (FaultyStore::default(), FaultyStore::default());
    let archive = two_buckets(&primary, &secondary, AT_ONCE);
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 300);
    archiver.flush().await.expect("flushes");
    primary.fail("clicks", Fault::Refuse);
    primary.fail("quarantine", Fault::Refuse);
    push_until(&mut archiver, 600);
    archiver.flush().await.expect("the secondary takes the files, the primary the manifest");
    primary.heal();
    push_until(&mut archiver, 900);
    archiver.flush().await.expect("flushes");

    let buckets = buckets_of_files(&archive).await;
    assert!(buckets.contains(&"first".to_owned()) && buckets.contains(&"second".to_owned()), "{buckets:?}");
    assert_eq!(buckets.last().map(String::as_str), Some("first"), "back to the primary once it takes files");
    assert_archived(&archive, 900).await;
    let second = Archive::new(Arc::new(secondary), "second");
    assert!(
        second.list("manifests", None).await.expect("lists").is_empty(),
        "manifests go to the primary only"
    );
}

#[tokio::test]
async fn before_its_time_the_secondary_takes_nothing() {
    let (primary, secondary) = (FaultyStore::default(), FaultyStore::default());
    let archive = two_buckets(&primary, &secondary, NEVER);
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 300);
    primary.fail("clicks", Fault::Refuse);
    for _ in 0..3 {
        archiver.flush().await.expect_err("the primary refuses");
    }
    assert_eq!(secondary.puts(), 0);
    primary.heal();
    archiver.flush().await.expect("flushes");
    assert!(buckets_of_files(&archive).await.iter().all(|bucket| bucket == "first"));
}

#[tokio::test]
async fn a_file_in_both_buckets_counts_once_from_the_one_its_manifest_names() {
    let (primary, secondary) = (FaultyStore::default(), FaultyStore::default());
    let archive = two_buckets(&primary, &secondary, AT_ONCE);
    let mut first = archiver(&archive).await;
    push_until(&mut first, 300);
    primary.fail("clicks", Fault::LoseAnswer);
    primary.fail("manifests", Fault::Refuse);
    first.flush().await.expect_err("the manifest is refused");
    drop(first); // dies with files in both buckets and no manifest
    primary.heal();
    let mut second = archiver(&archive).await;
    push_until(&mut second, 300);
    second.flush().await.expect("flushes");
    assert!(buckets_of_files(&archive).await.iter().all(|bucket| bucket == "first"));
    assert_archived(&archive, 300).await;
}

#[tokio::test]
async fn a_file_of_a_bucket_this_archive_does_not_know_is_missing_with_advice() {
    let (primary, secondary) = (FaultyStore::default(), FaultyStore::default());
    let archive = two_buckets(&primary, &secondary, AT_ONCE);
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 100);
    primary.fail("clicks", Fault::Refuse);
    let stored = archiver.flush().await.expect("flushes").expect("a manifest");
    let file = stored.manifest.files.iter().find(|file| file.bucket == "second").expect("a file");
    assert_eq!(archive.bucket_of(file), Bucket::Secondary);
    let alone = Archive::new(Arc::new(primary), "first");
    let error = alone.read_bytes(file).await.expect_err("missing").to_string();
    assert!(error.contains("bucket second") && error.contains("--archive-secondary"), "{error}");
}

#[tokio::test]
async fn a_large_file_goes_in_parts_and_reads_back_whole() {
    let store = FaultyStore::default();
    let archive = Archive::new(Arc::new(store.clone()), "first").with_parts_above(10_000);
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 2_000);
    archiver.flush().await.expect("flushes");
    assert!(store.multiparts() > 0);
    assert_archived(&archive, 2_000).await;

    // More than one part, and a second put of the same file.
    let bytes: bytes::Bytes = (0..20_000_000_u32).map(|byte| byte as u8).collect::<Vec<u8>>().into();
    for _ in 0..2 {
        archive.put_data(Bucket::Primary, "clicks/large.parquet", &bytes).await.expect("puts");
    }
    assert!(archive.get("clicks/large.parquet").await.expect("reads") == Some(bytes.clone()));
    let other = bytes.slice(1..);
    let refused = archive.put_data(Bucket::Primary, "clicks/large.parquet", &other).await;
    assert!(matches!(refused, Err(Error::ArchiveDamage { .. })), "nothing is overwritten");
}

#[tokio::test]
async fn a_put_refused_as_existing_where_nothing_is_may_be_tried_again() {
    let store = FaultyStore::default();
    let archive = Archive::new(Arc::new(store.clone()), "first");
    store.fail("seals", Fault::Conflict);
    let error = archive.put_if_absent("seals/x.json", "x".into()).await.expect_err("a conflict");
    assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    store.heal();
    archive.put_if_absent("seals/x.json", "x".into()).await.expect("puts");
}
