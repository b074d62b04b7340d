//! Power cuts at every sync point, over the file layer that forgets what was not synced (G-1).

use std::collections::HashSet;

use tempfile::TempDir;

use super::*;
use crate::fs::{ForgetfulFs, Unsynced};

const TASKS: u32 = 4;
const APPENDS: u32 = 12;

fn open_on(forgetful: &ForgetfulFs, directory: &Path) -> Result<EmbeddedLog> {
    EmbeddedLog::open(Arc::new(forgetful.clone()), directory, small(), FailPoints::default())
}

fn forgetful() -> (TempDir, ForgetfulFs, PathBuf) {
    let root = tempfile::tempdir().expect("a directory");
    let forgetful = ForgetfulFs::new(root.path()).expect("opened");
    let directory = root.path().join("log");
    (root, forgetful, directory)
}

/// Appends from several tasks at once until done or the first error each; returns what was acknowledged.
async fn append_under_load(log: EmbeddedLog) -> HashSet<String> {
    let log = Arc::new(log);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for append in 0..APPENDS {
                    let texts: Vec<String> = (0..6)
                        .map(|index| format!("{task}:{:04}:{}", append * 6 + index, "x".repeat(90)))
                        .collect();
                    let batch = texts.iter().enumerate().map(|(index, text)| AppendRecord {
                        partition: PartitionId(index as u32 % 2),
                        bytes: text.clone().into(),
                    });
                    if log.append(TOPIC, batch.collect()).await.is_err() {
                        break;
                    }
                    acknowledged.extend(texts);
                }
                acknowledged
            })
        })
        .collect();
    let mut acknowledged = HashSet::new();
    for task in tasks {
        acknowledged.extend(task.await.expect("no panic"));
    }
    acknowledged
}

/// Checks that all acknowledged records are there, none twice, in each task's order; returns all that is there.
async fn check(log: &EmbeddedLog, acknowledged: &HashSet<String>, what: &str) -> Vec<String> {
    let mut all = Vec::new();
    for partition in [0, 1].map(PartitionId) {
        let bounds = log.bounds(TOPIC, partition).await.expect("bounds");
        let read = read_all(log, TOPIC, partition, bounds.earliest, 2_000).await;
        let read: Vec<String> =
            read.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
        for task in 0..TASKS {
            let own: Vec<&String> =
                read.iter().filter(|text| text.starts_with(&format!("{task}:"))).collect();
            assert!(own.is_sorted_by(|one, next| one < next), "order of task {task}, {what}");
        }
        all.extend(read);
    }
    let unique: HashSet<String> = all.iter().cloned().collect();
    assert_eq!(unique.len(), all.len(), "no record twice, {what}");
    let lost: Vec<&String> = acknowledged.difference(&unique).collect();
    assert!(lost.is_empty(), "{} acknowledged records lost, {what}: {:?}", lost.len(), lost.first());
    all
}

/// Reopens what a cut left: twice, the second time after another cut, as what a reader saw must stay.
async fn check_after_cut(
    forgetful: &ForgetfulFs,
    acknowledged: &HashSet<String>,
    unsynced: Unsynced,
    what: &str,
) {
    let left = tempfile::tempdir().expect("a directory");
    let directory = left.path().join("log");
    forgetful.crash_into(left.path(), unsynced).expect("cut");
    let again = ForgetfulFs::new(left.path()).expect("opened");
    let log = open_on(&again, &directory).unwrap_or_else(|error| panic!("{what}: {error}"));
    let seen = check(&log, acknowledged, what).await;
    again.crash(Unsynced::Lost).expect("cut");
    drop(log);
    let log = open(&directory, small()).unwrap_or_else(|error| panic!("{what}, second cut: {error}"));
    assert_eq!(check(&log, acknowledged, what).await, seen, "{what}: what was read once stays");
    append_text(&log, "goes on").await.expect("appended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_at_every_sync_point_loses_and_doubles_no_acknowledged_record() {
    let mut cut_at = 0;
    loop {
        cut_at += 1;
        let (_root, forgetful, directory) = forgetful();
        forgetful.stop_at_sync_point(cut_at);
        let acknowledged = match open_on(&forgetful, &directory) {
            Ok(log) => append_under_load(log).await,
            Err(_) => HashSet::new(),
        };
        let finished = forgetful.sync_points() < cut_at;
        assert!(!finished || acknowledged.len() as u32 == TASKS * APPENDS * 6);
        for unsynced in [Unsynced::Lost, Unsynced::Some { seed: cut_at }, Unsynced::Some { seed: !cut_at }] {
            let what = format!("cut at sync point {cut_at}, {unsynced:?}");
            check_after_cut(&forgetful, &acknowledged, unsynced, &what).await;
        }
        if finished {
            break;
        }
    }
    assert!(cut_at > 50, "the load passes many sync points, not {cut_at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_failed_sync_what_a_restart_shows_is_durable() {
    let mut failing = 0;
    loop {
        let (_root, forgetful, directory) = forgetful();
        let log = open_on(&forgetful, &directory).expect("opened");
        failing += 1;
        forgetful.fail_sync_point(forgetful.sync_points() + failing);
        let last = forgetful.sync_points() + failing;
        let acknowledged = append_under_load(log).await;
        if forgetful.sync_points() < last {
            break;
        }
        // The process restarts over the same page cache, which still shows what the failed sync lost.
        let log = open_on(&forgetful, &directory).expect("opened again");
        let what = format!("failed sync {failing} after the open");
        let mut seen = check(&log, &acknowledged, &what).await;
        append_text(&log, "after the restart").await.expect("appended");
        seen.push("after the restart".to_owned());
        forgetful.crash(Unsynced::Lost).expect("cut");
        drop(log);
        let log = open(&directory, small()).expect("opened after the cut");
        check(&log, &seen.into_iter().collect(), &what).await;
    }
    assert!(failing > 20, "many syncs failed, not {failing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_within_a_trim_leaves_no_hole() {
    for cut_after in 1.. {
        let (_root, forgetful, directory) = forgetful();
        let log = open_on(&forgetful, &directory).expect("opened");
        for number in 0..60 {
            append_text(&log, &format!("{number:0300}")).await.expect("appended");
        }
        let before = forgetful.sync_points();
        forgetful.stop_at_sync_point(before + cut_after);
        let trimmed = log.trim(TOPIC, ZERO, LogOffset(45)).await;
        for seed in 0..4 {
            let left = tempfile::tempdir().expect("a directory");
            forgetful.crash_into(left.path(), Unsynced::Some { seed }).expect("cut");
            let log = open(&left.path().join("log"), small()).expect("no hole");
            let earliest = log.bounds(TOPIC, ZERO).await.expect("bounds").earliest;
            assert!(earliest <= LogOffset(45));
            assert_eq!(texts(&log).await.len() as i64, 60 - earliest.0);
        }
        if trimmed.is_ok() {
            assert!(cut_after > 3, "several segments were trimmed");
            break;
        }
    }
}
