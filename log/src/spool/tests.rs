//! The queue against a model and against power cuts, and the fall-back over a log that fails, hangs or is busy.

mod crash;
mod fallback;
mod model;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::event::{PartitionId, Topic, UtcMillis};
use crate::fs::{FileSystem, RealFs};

const SEGMENT_BYTES: u64 = 4096;

fn config() -> QueueConfig {
    QueueConfig { name: "spool", bytes_max: 1 << 20, segment_bytes: SEGMENT_BYTES }
}

fn entry(number: u32) -> Entry {
    let topic = if number.is_multiple_of(3) { Topic::FraudVerdicts } else { Topic::AdClicks };
    let arrival_time = UtcMillis::clamped(1_000 * i64::from(number));
    let bytes = Bytes::from(format!("{number:06}{}", "x".repeat(number as usize % 150)));
    Entry { topic, partition: PartitionId(number % 4), arrival_time, bytes }
}

fn number(entry: &Entry) -> u32 {
    let text = std::str::from_utf8(&entry.bytes[..6]).expect("text");
    text.parse().expect("a number")
}

async fn open(fs: Arc<dyn FileSystem>, folder: &Path) -> SpoolQueue {
    SpoolQueue::open(fs, folder.to_path_buf(), config()).await
}

async fn open_real(folder: &Path) -> SpoolQueue {
    open(Arc::new(RealFs), folder).await
}

/// Drains all that is held, in order.
async fn drain_all(queue: &SpoolQueue) -> Vec<u32> {
    let mut drained = Vec::new();
    loop {
        let peeked = queue.peek(500).await.expect("peeked");
        if peeked.entries.is_empty() {
            return drained;
        }
        drained.extend(peeked.entries.iter().map(number));
        queue.advance(peeked).await.expect("advanced");
    }
}

fn times(numbers: &[u32]) -> HashMap<u32, u32> {
    let mut times = HashMap::new();
    numbers.iter().for_each(|number| *times.entry(*number).or_default() += 1);
    times
}

#[tokio::test]
async fn what_is_held_survives_a_reopen_in_order_and_drained_segments_are_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = open_real(folder.path()).await;
    for first in (0..200).step_by(10) {
        let entries: Vec<Entry> = (first..first + 10).map(entry).collect();
        queue.append(&entries).await.expect("appended");
    }
    let segments = queue.closed_segments().await.expect("listed").len();
    assert!(segments > 3, "{segments}");
    let peeked = queue.peek(2000).await.expect("peeked");
    let given_up = peeked.entries.len() as u32;
    queue.advance(peeked).await.expect("advanced");
    queue.close();

    let queue = open_real(folder.path()).await;
    assert_eq!(queue.status().records, u64::from(200 - given_up));
    assert_eq!(queue.status().oldest, Some(entry(given_up).arrival_time));
    assert_eq!(drain_all(&queue).await, (given_up..200).collect::<Vec<_>>());
    assert!(queue.closed_segments().await.expect("listed").is_empty());
    let status = queue.status();
    assert_eq!((status.records, status.bytes, status.oldest), (0, 0, None));
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_again_once_it_is_drained() {
    let folder = tempfile::tempdir().expect("a folder");
    let little = QueueConfig { bytes_max: 2_000, ..config() };
    let queue = SpoolQueue::open(Arc::new(RealFs), folder.path().to_path_buf(), little).await;
    let mut taken = 0;
    let refused = loop {
        match queue.append(&[entry(taken)]).await {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, crate::Error::SpoolFull { bytes_max: 2_000, .. }), "{refused}");
    assert_eq!(queue.status().records, u64::from(taken), "what was refused is not counted");
    assert_eq!(drain_all(&queue).await.len(), taken as usize);
    queue.append(&[entry(1)]).await.expect("room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_threads_append_at_once_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = Arc::new(open_real(folder.path()).await);
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let queue = queue.clone();
            tokio::spawn(async move {
                for index in 0..25 {
                    queue.append(&[entry(task * 25 + index)]).await.expect("appended");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let drained = drain_all(&queue).await;
    assert_eq!(times(&drained), times(&(0..200).collect::<Vec<_>>()));
    for task in 0..8 {
        assert!(drained.iter().filter(|number| *number / 25 == task).is_sorted(), "order of one sender");
    }
}

#[tokio::test]
async fn damage_inside_is_named_and_all_that_reads_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = open_real(folder.path()).await;
    for first in (0..150).step_by(5) {
        queue.append(&(first..first + 5).map(entry).collect::<Vec<_>>()).await.expect("appended");
    }
    let segments = queue.closed_segments().await.expect("listed");
    let damaged = segments[1].path.clone();
    queue.close();
    let mut bytes = std::fs::read(&damaged).expect("read");
    bytes[1500] ^= 0x40;
    std::fs::write(&damaged, &bytes).expect("written");

    let queue = open_real(folder.path()).await;
    let missing = queue.status().missing;
    assert_eq!(missing, 5, "one frame of five");
    assert_eq!(queue.held_before(UtcMillis::clamped(0)), Some(0));
    let drained = drain_all(&queue).await;
    assert_eq!(drained.len() as u64, 150 - missing);
    assert!(drained.is_sorted());
    assert!(damaged.exists(), "the damaged file is kept");
    queue.close();

    let queue = open_real(folder.path()).await;
    assert_eq!((queue.status().missing, queue.status().records), (missing, 0), "once, and still said");
    queue.close();
    assert_eq!(strike_off(&RealFs, folder.path()).expect("struck off"), missing);
    assert_eq!(open_real(folder.path()).await.status().missing, 0);
}

#[tokio::test]
async fn damage_of_the_newest_records_is_counted_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = open_real(folder.path()).await;
    for first in (0..15).step_by(5) {
        queue.append(&(first..first + 5).map(entry).collect::<Vec<_>>()).await.expect("appended");
    }
    let files = std::fs::read_dir(folder.path().join("000001/ad-clicks/0/0")).expect("listed");
    let newest = files.map(|file| file.expect("listed").path()).max().expect("a segment");
    let mut bytes = std::fs::read(&newest).expect("read");
    let last = bytes.iter().rposition(|byte| *byte != 0).expect("frames");
    bytes[last - 2] ^= 0x40;
    std::fs::write(&newest, &bytes).expect("written");
    let mut drained = Vec::new();
    while let Ok(peeked) = queue.peek(10_000).await {
        assert!(!peeked.entries.is_empty(), "the damage is met");
        drained.extend(peeked.entries.iter().map(number));
        queue.advance(peeked).await.expect("advanced");
    }
    assert!(queue.mend().await);
    drained.extend(drain_all(&queue).await);
    assert_eq!(drained, (0..10).collect::<Vec<_>>());
    assert_eq!(queue.status().missing, 5, "the hours of those wait for a decision");
}

#[tokio::test]
async fn a_position_that_does_not_read_drains_again_and_one_ahead_of_the_files_hides_nothing_new() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = open_real(folder.path()).await;
    queue.append(&[entry(1), entry(2)]).await.expect("appended");
    assert_eq!(drain_all(&queue).await, [1, 2]);
    queue.close();
    let noted = folder.path().join("000001/DRAINED");
    let text = std::fs::read_to_string(&noted).expect("noted");
    std::fs::write(&noted, "rubbish").expect("written");
    let queue = open_real(folder.path()).await;
    assert_eq!(drain_all(&queue).await, [1, 2], "twice is harmless");
    queue.close();

    assert!(text.starts_with("2 "));
    std::fs::remove_dir_all(folder.path().join("000001/ad-clicks")).expect("removed");
    std::fs::remove_file(folder.path().join("000001/layout.json")).expect("removed");
    let queue = open_real(folder.path()).await;
    queue.append(&[entry(3)]).await.expect("appended");
    assert_eq!(drain_all(&queue).await, [3]);
}
