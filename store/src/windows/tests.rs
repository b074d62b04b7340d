use std::path::Path;

use twice_log::{AdId, CampaignId, Generation, Hour, LogOffset, UserId, UtcMillis};

use super::*;
use crate::error::Error;

const CACHE_BYTES: u64 = 8 << 20;
/// 2025-01-15T12:00:00Z
const NOON_MS: i64 = 1_736_942_400_000;
const MINUTE_MS: i64 = 60_000;

fn campaign(name: &str) -> CampaignId {
    CampaignId::new(name).expect("valid id")
}

fn minute(number: i64) -> UtcMillis {
    UtcMillis::clamped(NOON_MS + number * MINUTE_MS)
}

fn noon() -> Hour {
    minute(0).hour()
}

fn fence(lease_epoch: u64, generation: u32, applied: i64) -> Fence {
    Fence { lease_epoch, generation: Generation(generation), applied: LogOffset(applied) }
}

fn row(name: &str, at_minute: i64, fence: Fence, clicks: u64) -> WindowRow {
    let mut users = UserSketch::default();
    (0..clicks).for_each(|number| users.insert(&UserId::new(format!("u_{number}")).expect("valid id")));
    let ad = |name: &str, clicks| AdCounts {
        ad_id: AdId::new(name).expect("valid id"),
        clicks,
        users: users.clone(),
    };
    let ads = vec![ad("", clicks / 2), ad("ad_9", clicks - clicks / 2)];
    let campaign_id = campaign(name);
    WindowRow { campaign_id, window_start: minute(at_minute), fence, clicks, users, ads }
}

async fn open(folder: &Path) -> SledWindows {
    SledWindows::open(folder, CACHE_BYTES).await.expect("opens")
}

async fn read_all(windows: &SledWindows, name: &str) -> Vec<WindowRow> {
    windows.read(&campaign(name), minute(-100_000), minute(100_000)).await.expect("reads")
}

#[tokio::test]
async fn rows_read_back_in_time_order_and_within_the_range() {
    let folder = tempfile::tempdir().expect("folder");
    let windows = open(folder.path()).await;
    let all: Vec<WindowRow> = [-61, -1, 0, 1, 59, 60, 600]
        .map(|number| row("camp_1", number, fence(1, 0, 7), 200 + number.unsigned_abs() % 7))
        .to_vec();
    let mut shuffled = all.clone();
    shuffled.rotate_left(3);
    windows.publish(shuffled).await.expect("publishes");
    // Ids that begin alike must not mix.
    for name in ["camp_", "camp_10", "camp_1x", "camp_2"] {
        windows.publish(vec![row(name, 0, fence(1, 0, 7), 3)]).await.expect("publishes");
    }
    assert_eq!(read_all(&windows, "camp_1").await, all);
    let middle = windows.read(&campaign("camp_1"), minute(0), minute(60)).await.expect("reads");
    assert_eq!(middle, all[2..5]);
    assert!(windows.read(&campaign("camp_1"), minute(2), minute(2)).await.expect("reads").is_empty());
    assert!(read_all(&windows, "nobody").await.is_empty());
}

#[tokio::test]
async fn only_a_higher_fence_replaces_a_row() {
    let folder = tempfile::tempdir().expect("folder");
    let windows = open(folder.path()).await;
    // (fence, clicks, clicks shown afterwards)
    let steps = [
        (fence(1, 0, 10), 5, 5),
        (fence(1, 0, 10), 6, 5),
        (fence(1, 0, 9), 7, 5),
        (fence(1, 0, 11), 8, 8),
        (fence(1, 1, 0), 9, 9),
        (fence(1, 0, 99), 10, 9),
        (fence(2, 0, 0), 11, 11),
        (fence(1, 9, 99), 12, 11),
    ];
    for (fence, clicks, shown) in steps {
        windows.publish(vec![row("camp", 0, fence, clicks)]).await.expect("publishes");
        assert_eq!(read_all(&windows, "camp").await[0].clicks, shown, "after {fence:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_writers_at_once_the_highest_fence_stays() {
    let folder = tempfile::tempdir().expect("folder");
    let windows = open(folder.path()).await;
    // Each round all writers meet at one row; a writer that gives up after a lost race shows within a few rounds.
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (windows, barrier) = (&windows, &barrier);
            scope.spawn(move || {
                for round in 0..600 {
                    let applied = (round + writer) % 4;
                    barrier.wait();
                    windows.publish_row(&row("camp", round, fence(1, 0, applied), 1)).expect("publishes");
                }
            });
        }
    });
    let rows = read_all(&windows, "camp").await;
    assert_eq!(rows.len(), 600);
    assert!(rows.iter().all(|row| row.fence.applied.0 == 3));
}

#[tokio::test]
async fn hours_are_listed_and_removed_whole() {
    let folder = tempfile::tempdir().expect("folder");
    let windows = open(folder.path()).await;
    let rows = [-60, 0, 59, 60, 6_000].map(|number| row("camp", number, fence(1, 0, 1), 1));
    windows.publish(rows.to_vec()).await.expect("publishes");
    windows.publish(vec![row("other", 0, fence(1, 0, 1), 1)]).await.expect("publishes");
    let hours = windows.hours().await.expect("lists");
    assert_eq!(hours, [noon().plus(-1), noon(), noon().plus(1), noon().plus(100)]);
    windows.remove_hours(&[noon(), noon().plus(100), noon().plus(500)]).await.expect("removes");
    assert_eq!(windows.hours().await.expect("lists"), [noon().plus(-1), noon().plus(1)]);
    assert_eq!(read_all(&windows, "camp").await.len(), 2);
    assert!(read_all(&windows, "other").await.is_empty());
}

#[tokio::test]
async fn flushed_rows_are_there_after_a_reopen() {
    let folder = tempfile::tempdir().expect("folder");
    let windows = open(folder.path()).await;
    windows.publish(vec![row("camp", 0, fence(3, 0, 4), 500)]).await.expect("publishes");
    windows.flush().await.expect("flushes");
    drop(windows);
    let windows = open(folder.path()).await;
    assert_eq!(read_all(&windows, "camp").await, [row("camp", 0, fence(3, 0, 4), 500)]);
}

#[tokio::test]
async fn a_held_folder_stops_with_advice_and_stays_in_place() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("windows");
    let _held = open(&path).await;
    let refused = SledWindows::open(&path, CACHE_BYTES).await.expect_err("is held");
    assert!(
        matches!(&refused, Error::Open { advice, .. } if advice.contains("another process")),
        "{refused}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 1);
}

#[tokio::test]
async fn a_folder_that_is_a_file_stops_with_advice() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("windows");
    std::fs::write(&path, b"not a folder").expect("writes");
    let refused = SledWindows::open(&path, CACHE_BYTES).await.expect_err("is a file");
    assert!(matches!(refused, Error::Open { .. }));
    assert!(path.is_file());
}

#[tokio::test]
async fn a_damaged_folder_is_moved_aside_and_an_empty_one_works() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("windows");
    for round in 1..=2 {
        let windows = open(&path).await;
        assert!(windows.hours().await.expect("lists").is_empty());
        windows.publish(vec![row("camp", 0, fence(1, 0, 1), 300)]).await.expect("publishes");
        windows.flush().await.expect("flushes");
        drop(windows);
        // sled reads its settings first; these are none.
        std::fs::write(path.join("conf"), b"segment_size: nonsense").expect("writes");
        let again = open(&path).await;
        assert!(folder.path().join(format!("windows.damaged-{round}")).join("db").exists());
        drop(again);
    }
}

#[test]
fn a_changed_byte_of_key_or_value_is_found() {
    let stored = row("camp", 7, fence(1, 2, 3), 300);
    let key = encoding::key_of(&stored);
    let value = encoding::encode(&key, &stored);
    assert_eq!(encoding::decode(&key, &value).expect("reads"), stored);
    assert_eq!(encoding::decode_fence(&key, &value).expect("reads"), stored.fence);
    for place in (0..value.len()).step_by(13).chain(0..64) {
        let mut changed = value.clone();
        changed[place] ^= 1;
        assert!(encoding::decode(&key, &changed).is_err(), "byte {place}");
    }
    let other_key = encoding::key_of(&row("camp", 8, fence(1, 2, 3), 300));
    assert!(encoding::decode(&other_key, &value).is_err());
    for length in 0..value.len() {
        assert!(encoding::decode(&key, &value[..length]).is_err());
        assert!(encoding::decode_fence(&key, &value[..length]).is_err());
    }
}

#[tokio::test]
async fn a_damaged_row_is_an_error_until_the_stream_publishes_it_again() {
    let folder = tempfile::tempdir().expect("folder");
    let windows = open(folder.path()).await;
    let whole = row("camp", 0, fence(1, 0, 5), 9);
    windows.publish(vec![whole.clone()]).await.expect("publishes");
    windows.damage_for_test(&whole);
    let refused = windows.read(&campaign("camp"), minute(0), minute(1)).await.expect_err("is damaged");
    assert!(matches!(refused, Error::Damage { .. }));
    windows.publish(vec![whole.clone()]).await.expect("publishes");
    assert_eq!(read_all(&windows, "camp").await, [whole]);
}
