//! The local store as an object store.

use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{CopyMode, CopyOptions, ObjectStore, ObjectStoreExt};

use crate::archive::{Archive, DurableLocal, PutOutcome};
use crate::fs::{ForgetfulFs, RealFs, Unsynced};

fn store(folder: &tempfile::TempDir) -> DurableLocal {
    DurableLocal::open(Arc::new(RealFs), &folder.path().join("archive")).expect("opens")
}

async fn names(store: &DurableLocal) -> Vec<String> {
    let mut names: Vec<String> =
        store.list(None).map_ok(|object| object.location.to_string()).try_collect().await.expect("lists");
    names.sort();
    names
}

#[tokio::test]
async fn objects_are_put_replaced_copied_listed_and_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(&folder);
    let (one, two) = (ObjectPath::from("a/b/one"), ObjectPath::from("a/two"));
    store.put(&one, "1".into()).await.expect("puts");
    store.put(&one, "11".into()).await.expect("replaces");
    let create = CopyOptions::new().with_mode(CopyMode::Create);
    store.copy_opts(&one, &two, create.clone()).await.expect("copies");
    assert!(matches!(
        store.copy_opts(&one, &two, create).await,
        Err(object_store::Error::AlreadyExists { .. })
    ));
    assert_eq!(store.get(&two).await.expect("is there").bytes().await.expect("reads"), "11");
    assert_eq!(names(&store).await, ["a/b/one", "a/two"]);
    store.delete(&one).await.expect("removes");
    assert!(matches!(store.get(&one).await, Err(object_store::Error::NotFound { .. })));
    assert_eq!(names(&store).await, ["a/two"]);
}

#[tokio::test]
async fn parts_become_one_object_at_the_end_and_nothing_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(&folder);
    let path = ObjectPath::from("parts");
    let mut upload = store.put_multipart(&path).await.expect("begins");
    upload.put_part("one ".into()).await.expect("takes a part");
    upload.put_part("two".into()).await.expect("takes a part");
    assert!(names(&store).await.is_empty());
    upload.complete().await.expect("ends");
    assert_eq!(store.get(&path).await.expect("is there").bytes().await.expect("reads"), "one two");
}

#[tokio::test]
async fn unfinished_files_are_never_listed_and_are_gone_after_the_next_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = store(&folder);
    let left = folder.path().join("archive/.unfinished/7");
    std::fs::write(&left, "half").expect("writes");
    assert!(names(&first).await.is_empty());
    assert!(first.list_with_delimiter(None).await.expect("lists").common_prefixes.is_empty());
    assert!(first.put(&ObjectPath::from(".unfinished/8"), "x".into()).await.is_err());
    let _second = store(&folder);
    assert!(!left.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_puts_of_one_path_exactly_one_wins_and_all_see_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let archive = Archive::open_local(Arc::new(RealFs), &folder.path().join("archive")).expect("opens");
    let puts = (0..16).map(|number| {
        let archive = archive.clone();
        tokio::spawn(async move { archive.put_if_absent("race/x", format!("{number}").into()).await })
    });
    let outcomes: Vec<PutOutcome> = futures::future::join_all(puts)
        .await
        .into_iter()
        .map(|outcome| outcome.expect("ends").expect("puts"))
        .collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == PutOutcome::Put).count(), 1);
    let stands = archive.get("race/x").await.expect("reads").expect("is there");
    assert!(
        outcomes
            .iter()
            .all(|outcome| *outcome == PutOutcome::Put || *outcome == PutOutcome::Exists(stands.clone()))
    );
}

#[tokio::test]
async fn a_full_disk_refuses_the_put_and_the_next_one_succeeds() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().canonicalize().expect("resolves");
    let forgetful = ForgetfulFs::new(&root).expect("opens");
    let archive = Archive::open_local(Arc::new(forgetful.clone()), &root.join("archive")).expect("opens");
    forgetful.fail_writes(true);
    assert!(archive.put_if_absent("a/b", "bytes".into()).await.is_err());
    assert_eq!(archive.get("a/b").await.expect("reads"), None);
    forgetful.fail_writes(false);
    assert_eq!(archive.put_if_absent("a/b", "bytes".into()).await.expect("puts"), PutOutcome::Put);
}

#[tokio::test]
async fn after_a_failed_directory_sync_nothing_is_put_and_what_was_not_synced_is_not_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().canonicalize().expect("resolves");
    let forgetful = ForgetfulFs::new(&root).expect("opens");
    let archive = Archive::open_local(Arc::new(forgetful.clone()), &root.join("archive")).expect("opens");
    archive.put_if_absent("a/one", "1".into()).await.expect("puts");
    // The put of a second object syncs its bytes, then its directory: fail the latter.
    forgetful.fail_sync_point(forgetful.sync_points() + 2);
    assert!(archive.put_if_absent("a/two", "2".into()).await.is_err());
    assert!(archive.get("a/two").await.is_err(), "visible, and not durable");
    assert!(archive.put_if_absent("a/two", "2".into()).await.is_err(), "a second sync could lie");
    forgetful.crash(Unsynced::Lost).expect("crashes");
    let archive = Archive::open_local(Arc::new(RealFs), &root.join("archive")).expect("opens");
    assert_eq!(archive.get("a/one").await.expect("reads"), Some("1".into()));
    assert_eq!(archive.get("a/two").await.expect("reads"), None);
}

#[tokio::test]
async fn what_was_read_after_a_kill_survives_the_power_cut_that_follows() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().canonicalize().expect("resolves");
    let forgetful = ForgetfulFs::new(&root).expect("opens");
    let archive = Archive::open_local(Arc::new(forgetful.clone()), &root.join("archive")).expect("opens");
    archive.put_if_absent("a/one", "1".into()).await.expect("puts");
    // Published by a process that died before it synced the directory; its bytes were synced.
    use crate::fs::FileSystem;
    let unfinished = root.join("archive/.unfinished/left");
    let file = forgetful.create_new(&unfinished).expect("creates");
    file.write_all_at(b"2", 0).expect("writes");
    file.sync_data().expect("syncs");
    forgetful.hard_link(&unfinished, &root.join("archive/a/two")).expect("links");
    let archive = Archive::open_local(Arc::new(forgetful.clone()), &root.join("archive")).expect("opens");
    assert_eq!(archive.get("a/two").await.expect("reads"), Some("2".into()));
    forgetful.crash(Unsynced::Lost).expect("crashes");
    let archive = Archive::open_local(Arc::new(RealFs), &root.join("archive")).expect("opens");
    assert_eq!(archive.get("a/two").await.expect("reads"), Some("2".into()));
}
