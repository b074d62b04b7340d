//! The archiver on a file layer that forgets what was not synced, cut at every sync point (G-1, G-3).

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::error::Result;
use crate::fs::{ForgetfulFs, Unsynced};

const FLUSH_ENDS: [u64; 3] = [40, 90, 150];

/// Archives three flushes and returns the ends of those that came back as done.
async fn archive_three_flushes(fs: &ForgetfulFs, root: &Path) -> Vec<u64> {
    let mut done = Vec::new();
    let _: Result<()> = async {
        let archive = Archive::open_local(Arc::new(fs.clone()), &root.join("archive"))?;
        let settings = ArchiverSettings::default();
        let fail_points = FailPoints::default();
        let mut archiver =
            PartitionArchiver::open(archive, CLICKS, PARTITIONS, settings, fail_points).await?;
        for end in FLUSH_ENDS {
            push_until(&mut archiver, end);
            archiver.flush().await?;
            done.push(end);
        }
        Ok(())
    }
    .await;
    done
}

async fn cut_and_check(nth: u64, unsynced: Unsynced) {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().canonicalize().expect("resolves");
    let fs = ForgetfulFs::new(&root).expect("opens");
    fs.stop_at_sync_point(nth);
    let done = archive_three_flushes(&fs, &root).await;
    fs.crash(unsynced).expect("crashes");

    // What is left counts as durable now; no real sync, so that the test can afford every point.
    let left = ForgetfulFs::new(&root).expect("opens");
    let archive = Archive::open_local(Arc::new(left), &root.join("archive")).expect("opens");
    let end = archive.head(CLICKS).await.expect("a sound head").map_or(0, |head| head.end().0 as u64);
    // Reads every file of every manifest and compares them with the naive model: whole files, no hole.
    assert_archived(&archive, end).await;
    assert!(end >= done.last().copied().unwrap_or(0), "cut at {nth}: a flush that returned is lost");
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 200);
    archiver.flush().await.expect("flushes");
    assert_archived(&archive, 200).await;
}

#[tokio::test]
async fn a_cut_at_any_sync_point_loses_no_returned_flush_and_leaves_no_manifest_without_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().canonicalize().expect("resolves");
    let fs = ForgetfulFs::new(&root).expect("opens");
    assert_eq!(archive_three_flushes(&fs, &root).await, FLUSH_ENDS);
    let sync_points = fs.sync_points();
    assert!(sync_points > 20, "the run has {sync_points} sync points");
    for nth in 1..=sync_points + 1 {
        cut_and_check(nth, Unsynced::Lost).await;
        cut_and_check(nth, Unsynced::Some { seed: nth }).await;
    }
}
