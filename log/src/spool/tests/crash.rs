//! Power cuts at every sync point of a queue that is filled and drained at once (G-1).

use super::*;
use crate::fs::{ForgetfulFs, Unsynced};

const ENTRIES: u32 = 60;

/// What a gateway and a drainer knew when the power was cut.
#[derive(Default)]
struct Known {
    /// Numbers whose append resolved.
    acknowledged: Vec<u32>,
    /// Numbers the log had acknowledged.
    in_log: Vec<u32>,
}

/// Appends in threes and drains in between, until done or the first failure.
async fn work(forgetful: &ForgetfulFs, folder: &Path, known: &mut Known) {
    let queue = open(Arc::new(forgetful.clone()), folder).await;
    for first in (0..ENTRIES).step_by(3) {
        let entries: Vec<Entry> = (first..first + 3).map(entry).collect();
        if queue.append(&entries).await.is_err() {
            return;
        }
        known.acknowledged.extend(first..first + 3);
        if first.is_multiple_of(2) {
            let Ok(peeked) = queue.peek(300).await else { return };
            known.in_log.extend(peeked.entries.iter().map(number));
            if queue.advance(peeked).await.is_err() {
                return;
            }
        }
    }
}

async fn check(known: &mut Known, left: &Path, what: &str) {
    let queue = open_real(left).await;
    let status = queue.status();
    assert_eq!((status.trouble, status.missing), (None, 0), "{what}");
    let drained = drain_all(&queue).await;
    assert!(drained.is_sorted_by(|one, next| one < next), "in order, none twice within one drain, {what}");
    known.in_log.extend(drained);
    let times = times(&known.in_log);
    for number in &known.acknowledged {
        let times = times.get(number).copied().unwrap_or(0);
        assert!((1..=2).contains(&times), "{number} reached the log {times} times, {what}");
    }
}

#[tokio::test]
async fn a_cut_at_every_sync_point_loses_nothing_acknowledged() {
    let mut cut_at = 0;
    loop {
        cut_at += 1;
        let root = tempfile::tempdir().expect("a folder");
        let forgetful = ForgetfulFs::new(root.path()).expect("opened");
        forgetful.stop_at_sync_point(cut_at);
        let mut known = Known::default();
        work(&forgetful, &root.path().join("spool"), &mut known).await;
        let ended = forgetful.sync_points() < cut_at;
        for unsynced in [Unsynced::Lost, Unsynced::Some { seed: cut_at }] {
            let left = tempfile::tempdir().expect("a folder");
            forgetful.crash_into(left.path(), unsynced).expect("cut");
            let mut known = Known { acknowledged: known.acknowledged.clone(), in_log: known.in_log.clone() };
            check(&mut known, &left.path().join("spool"), &format!("cut at {cut_at}, {unsynced:?}")).await;
        }
        if ended {
            assert!(cut_at > 50, "the test passed only {cut_at} sync points");
            return;
        }
    }
}

#[tokio::test]
async fn a_failed_sync_breaks_the_queue_and_mending_it_loses_nothing_acknowledged() {
    for failing in (12..60).step_by(3) {
        let root = tempfile::tempdir().expect("a folder");
        let forgetful = ForgetfulFs::new(root.path()).expect("opened");
        let queue = open(Arc::new(forgetful.clone()), &root.path().join("spool")).await;
        forgetful.fail_sync_point(forgetful.sync_points() + failing);
        let (mut acknowledged, mut in_log) = (Vec::new(), Vec::new());
        for number_next in 0..ENTRIES {
            match queue.append(&[entry(number_next)]).await {
                Ok(()) => acknowledged.push(number_next),
                Err(_) => assert!(queue.mend().await, "{:?}", queue.status().trouble),
            }
            if number_next.is_multiple_of(4) {
                let Ok(peeked) = queue.peek(200).await else {
                    assert!(queue.mend().await);
                    continue;
                };
                in_log.extend(peeked.entries.iter().map(number));
                if queue.advance(peeked).await.is_err() {
                    assert!(queue.mend().await);
                }
            }
        }
        in_log.extend(drain_all(&queue).await);
        let times = times(&in_log);
        for number in &acknowledged {
            assert!(times.contains_key(number), "{number} is lost, sync {failing}");
        }
        assert!(acknowledged.len() as u32 + 1 >= ENTRIES, "one failure refuses one append");
    }
}

#[tokio::test]
async fn a_full_disk_lets_the_queue_be_drained_once_and_frees_its_segments() {
    let root = tempfile::tempdir().expect("a folder");
    let forgetful = ForgetfulFs::new(root.path()).expect("opened");
    let folder = root.path().join("spool");
    let queue = open(Arc::new(forgetful.clone()), &folder).await;
    for number in 0..100 {
        queue.append(&[entry(number)]).await.expect("appended");
    }
    let segments = || std::fs::read_dir(folder.join("000001/ad-clicks/0/0")).map(Iterator::count);
    let before = segments().expect("listed");
    forgetful.fail_writes(true);
    let peeked = queue.peek(500).await.expect("peeked");
    let mut drained: Vec<u32> = peeked.entries.iter().map(number).collect();
    queue.advance(peeked).await.expect("the log has them, noted or not");
    queue.append(&[entry(100)]).await.expect_err("no room: it breaks");
    forgetful.fail_writes(false);
    assert!(queue.mend().await, "{:?}", queue.status().trouble);
    forgetful.fail_writes(true);
    drained.extend(drain_all(&queue).await);
    assert!(drained.is_sorted_by(|one, next| one < next), "none twice");
    assert!((0..100).all(|number| drained.contains(&number)), "and none lost");
    assert!(segments().expect("listed") < before, "room again");
    forgetful.fail_writes(false);
    queue.append(&[entry(101)]).await.expect("appended");
    assert_eq!(drain_all(&queue).await, [101]);
}

#[tokio::test]
async fn a_full_disk_refuses_and_counts_nothing_that_is_not_there() {
    let root = tempfile::tempdir().expect("a folder");
    let forgetful = ForgetfulFs::new(root.path()).expect("opened");
    let queue = open(Arc::new(forgetful.clone()), &root.path().join("spool")).await;
    queue.append(&[entry(1)]).await.expect("appended");
    forgetful.fail_writes(true);
    queue.append(&[entry(2)]).await.expect_err("a full disk");
    assert_eq!(queue.status().records, 2, "nobody knows about the second");
    assert!(queue.append(&[entry(3)]).await.is_err(), "broken until it is opened again");
    forgetful.fail_writes(false);
    assert!(queue.mend().await);
    assert_eq!(queue.status().records, 1);
    queue.append(&[entry(4)]).await.expect("room again");
    assert_eq!(drain_all(&queue).await, [1, 4]);
}
