//! The suite that every backend of [`ClickLog`] passes: its contract, as checks that panic with what broke.
//!
//! A backend's test implements [`LogUnderTest`] and calls [`run`]. Each check takes a new, empty log, whose first offset
//! is 0. What survives power loss is each backend's own to test: it depends on the file layer beneath.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{AppendRecord, ClickLog, OffsetBounds};
use crate::error::{Error, Result};
use crate::event::{LogOffset, PartitionId, Topic};

const TOPIC: Topic = Topic::AdClicks;
/// A wait that should end at once and does not is a failure after this long; nothing else depends on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes logs of the backend that the suite tests.
#[async_trait]
pub trait LogUnderTest: Send + Sync {
    /// Returns whether `trim` forgets records; a backend with rules of its own forgets nothing when asked.
    fn trims(&self) -> bool {
        true
    }

    /// Returns a new, empty log of at least two partitions, whose retention units, where it trims, are small enough that
    /// 2 MB in one partition fill several.
    async fn create(&self) -> Arc<dyn ClickLog>;

    /// Closes the log and opens it again.
    async fn reopen(&self, log: Arc<dyn ClickLog>) -> Arc<dyn ClickLog>;
}

/// Runs every check, each on a log of its own.
///
/// # Panics
/// With what broke the contract.
pub async fn run(backend: &dyn LogUnderTest) {
    an_empty_log_has_equal_bounds(backend).await;
    records_read_back_in_order_with_contiguous_offsets(backend).await;
    partitions_and_topics_are_separate(backend).await;
    reading_outside_the_bounds_is_refused(backend).await;
    a_read_is_bounded_and_gives_one_record_at_least(backend).await;
    a_wait_ends_with_the_record_it_waited_for(backend).await;
    concurrent_appends_keep_the_order_of_each_call(backend).await;
    a_large_batch_reads_back_in_full(backend).await;
    a_reopened_log_goes_on_where_it_stood(backend).await;
    if backend.trims() {
        trimming_never_takes_more_than_asked(backend).await;
    } else {
        trimming_takes_nothing(backend).await;
    }
    an_impossible_append_stores_nothing(backend).await;
    a_log_that_ends_before_what_was_noted_takes_nothing_more(backend).await;
}

/// Reads everything from `from` to the end, checking each offset.
///
/// # Panics
/// If a read fails, gives nothing before the end, or skips an offset.
pub async fn read_all(
    log: &dyn ClickLog,
    topic: Topic,
    partition: PartitionId,
    from: LogOffset,
    bytes_max: usize,
) -> Vec<Bytes> {
    let end = bounds(log, topic, partition).await.end;
    let (mut next, mut all) = (from, Vec::new());
    while next < end {
        let batch = log.read(topic, partition, next, bytes_max).await.expect("readable");
        assert!(!batch.records.is_empty(), "nothing read at {next}, below the end {end}");
        for (offset, bytes) in batch.records {
            assert_eq!(offset, next, "offsets are contiguous");
            next = next.next();
            all.push(bytes);
        }
    }
    all
}

async fn bounds(log: &dyn ClickLog, topic: Topic, partition: PartitionId) -> OffsetBounds {
    log.bounds(topic, partition).await.expect("bounds")
}

fn record(partition: u32, bytes: impl Into<Bytes>) -> AppendRecord {
    AppendRecord { partition: PartitionId(partition), bytes: bytes.into() }
}

fn numbered(partition: u32, numbers: std::ops::Range<u32>, bytes_each: usize) -> Vec<AppendRecord> {
    numbers.map(|number| record(partition, numbered_bytes(number, bytes_each))).collect()
}

fn numbered_bytes(number: u32, bytes_each: usize) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(bytes_each.max(4), number as u8);
    bytes
}

async fn append(log: &dyn ClickLog, records: Vec<AppendRecord>) {
    log.append(TOPIC, records).await.expect("appended");
}

async fn an_empty_log_has_equal_bounds(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    assert!(log.partitions() >= 2, "the suite needs two partitions");
    for topic in Topic::ALL {
        for partition in (0..log.partitions()).map(PartitionId) {
            let bounds = bounds(log.as_ref(), topic, partition).await;
            assert_eq!(bounds, OffsetBounds { earliest: LogOffset(0), end: LogOffset(0) });
            let batch = log.read(topic, partition, LogOffset(0), 1_000).await.expect("readable");
            assert!(batch.records.is_empty());
        }
    }
    log.append(TOPIC, Vec::new()).await.expect("an append of nothing is done at once");
}

async fn records_read_back_in_order_with_contiguous_offsets(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    for round in 0..20 {
        append(log.as_ref(), numbered(0, round * 10..(round + 1) * 10, 40)).await;
    }
    append(log.as_ref(), vec![record(0, Bytes::new())]).await;
    let read = read_all(log.as_ref(), TOPIC, PartitionId(0), LogOffset(0), 500).await;
    let mut expected: Vec<Vec<u8>> = (0..200).map(|number| numbered_bytes(number, 40)).collect();
    expected.push(Vec::new());
    assert_eq!(read, expected);
    let middle = read_all(log.as_ref(), TOPIC, PartitionId(0), LogOffset(137), 1).await;
    assert_eq!(middle, expected[137..], "a read may begin anywhere");
}

async fn partitions_and_topics_are_separate(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    append(log.as_ref(), vec![record(0, "a"), record(1, "b"), record(0, "c")]).await;
    log.append(Topic::FraudVerdicts, vec![record(1, "d")]).await.expect("appended");
    let zero = read_all(log.as_ref(), TOPIC, PartitionId(0), LogOffset(0), 100).await;
    let one = read_all(log.as_ref(), TOPIC, PartitionId(1), LogOffset(0), 100).await;
    let verdicts = read_all(log.as_ref(), Topic::FraudVerdicts, PartitionId(1), LogOffset(0), 100).await;
    assert_eq!((zero, one, verdicts), (vec!["a".into(), "c".into()], vec!["b".into()], vec!["d".into()]));
    assert_eq!(bounds(log.as_ref(), Topic::FraudVerdicts, PartitionId(0)).await.end, LogOffset(0));
}

async fn reading_outside_the_bounds_is_refused(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    append(log.as_ref(), numbered(0, 0..3, 10)).await;
    let at_end =
        log.read(TOPIC, PartitionId(0), LogOffset(3), 100).await.expect("the end itself may be read");
    assert!(at_end.records.is_empty());
    for outside in [LogOffset(-1), LogOffset(4)] {
        let refused = log.read(TOPIC, PartitionId(0), outside, 100).await.expect_err("outside");
        assert!(matches!(refused, Error::OutOfRange { offset, .. } if offset == outside), "{refused}");
    }
}

async fn a_read_is_bounded_and_gives_one_record_at_least(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    append(log.as_ref(), numbered(0, 0..100, 1_000)).await;
    let one = log.read(TOPIC, PartitionId(0), LogOffset(0), 1).await.expect("readable").records;
    assert!(!one.is_empty() && one.len() < 100);
    let some = log.read(TOPIC, PartitionId(0), LogOffset(0), 10_000).await.expect("readable").records;
    assert!((5..=40).contains(&some.len()), "about 10 of 1 000 bytes each, not {}", some.len());
}

async fn a_wait_ends_with_the_record_it_waited_for(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    append(log.as_ref(), numbered(0, 0..1, 10)).await;
    log.wait_for(TOPIC, PartitionId(0), LogOffset(0)).await.expect("it is there already");
    let waiting = {
        let log = log.clone();
        tokio::spawn(async move {
            log.wait_for(TOPIC, PartitionId(0), LogOffset(2)).await?;
            log.read(TOPIC, PartitionId(0), LogOffset(2), 100).await
        })
    };
    append(log.as_ref(), numbered(1, 0..5, 10)).await;
    append(log.as_ref(), numbered(0, 1..2, 10)).await;
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "offset 2 is not there yet");
    append(log.as_ref(), numbered(0, 2..3, 10)).await;
    let read = tokio::time::timeout(PATIENCE, waiting).await.expect("woken").expect("no panic");
    let read: Result<_> = read.map(|batch| batch.records);
    assert_eq!(read.expect("readable"), [(LogOffset(2), Bytes::from(numbered_bytes(2, 10)))]);
}

async fn concurrent_appends_keep_the_order_of_each_call(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    let calls = (0..64_u32).map(|call| {
        let log = log.clone();
        tokio::spawn(async move {
            let records = (0..50).map(|index| record(index % 2, format!("{call}:{index}"))).collect();
            log.append(TOPIC, records).await
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("no panic").expect("appended");
    }
    for partition in [0, 1_u32] {
        let read = read_all(log.as_ref(), TOPIC, PartitionId(partition), LogOffset(0), 2_000).await;
        assert_eq!(read.len(), 64 * 25);
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        for calls in read.chunks(25) {
            let texts: Vec<String> =
                calls.iter().map(|bytes| String::from_utf8_lossy(bytes).into()).collect();
            let call = texts[0].split(':').next().expect("a call").to_owned();
            let expected: Vec<String> =
                (0..25).map(|index| format!("{call}:{}", index * 2 + partition)).collect();
            assert_eq!(texts, expected, "records of one call are contiguous and in order");
            *seen.entry(call).or_default() += 1;
        }
        assert!(seen.len() == 64 && seen.values().all(|count| *count == 1), "each call once");
    }
}

async fn a_large_batch_reads_back_in_full(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    let count = 40_000;
    append(log.as_ref(), numbered(1, 0..count, 100)).await;
    append(log.as_ref(), numbered(1, count..count + 10, 2_000)).await;
    for bytes_max in [64 * 1024, 16 * 1024 * 1024] {
        let read = read_all(log.as_ref(), TOPIC, PartitionId(1), LogOffset(0), bytes_max).await;
        assert_eq!(read.len() as u32, count + 10);
        for (number, bytes) in read.iter().enumerate() {
            assert_eq!(bytes[..4], (number as u32).to_be_bytes(), "the record at offset {number}");
        }
    }
}

async fn a_reopened_log_goes_on_where_it_stood(backend: &dyn LogUnderTest) {
    let mut log = backend.create().await;
    let (generation, partitions) = (log.generation(), log.partitions());
    for round in 0..3 {
        append(log.as_ref(), numbered(0, round * 7..(round + 1) * 7, 50)).await;
        let before = bounds(log.as_ref(), TOPIC, PartitionId(0)).await;
        log = backend.reopen(log).await;
        assert_eq!(bounds(log.as_ref(), TOPIC, PartitionId(0)).await, before);
        assert_eq!((log.generation(), log.partitions()), (generation, partitions));
    }
    let read = read_all(log.as_ref(), TOPIC, PartitionId(0), LogOffset(0), 1_000).await;
    assert_eq!(read, (0..21).map(|number| numbered_bytes(number, 50)).collect::<Vec<_>>());
}

async fn trimming_never_takes_more_than_asked(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    for round in 0..200 {
        append(log.as_ref(), numbered(0, round * 10..(round + 1) * 10, 1_000)).await;
    }
    let end = LogOffset(2_000);
    log.trim(TOPIC, PartitionId(0), LogOffset(1_000)).await.expect("trimmed");
    let trimmed = bounds(log.as_ref(), TOPIC, PartitionId(0)).await;
    assert!(trimmed.earliest > LogOffset(0) && trimmed.earliest <= LogOffset(1_000) && trimmed.end == end);
    let refused = log.read(TOPIC, PartitionId(0), LogOffset(0), 100).await.expect_err("trimmed away");
    assert!(matches!(refused, Error::OutOfRange { earliest, .. } if earliest == trimmed.earliest));
    let log = backend.reopen(log).await;
    assert_eq!(bounds(log.as_ref(), TOPIC, PartitionId(0)).await, trimmed, "what was trimmed stays trimmed");
    let read = read_all(log.as_ref(), TOPIC, PartitionId(0), trimmed.earliest, 100_000).await;
    assert_eq!(read[0], numbered_bytes(trimmed.earliest.0 as u32, 1_000));
    log.trim(TOPIC, PartitionId(0), LogOffset(i64::MAX)).await.expect("trimmed");
    assert_eq!(bounds(log.as_ref(), TOPIC, PartitionId(0)).await.end, end, "trimming moves no end");
    append(log.as_ref(), numbered(0, 2_000..2_001, 10)).await;
    log.wait_for(TOPIC, PartitionId(0), end).await.expect("the next offset is the old end");
}

async fn trimming_takes_nothing(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    append(log.as_ref(), numbered(0, 0..100, 1_000)).await;
    let before = bounds(log.as_ref(), TOPIC, PartitionId(0)).await;
    log.trim(TOPIC, PartitionId(0), LogOffset(50)).await.expect("trimmed");
    assert_eq!(bounds(log.as_ref(), TOPIC, PartitionId(0)).await, before);
    let read = read_all(log.as_ref(), TOPIC, PartitionId(0), LogOffset(0), 10_000).await;
    assert_eq!(read, (0..100).map(|number| numbered_bytes(number, 1_000)).collect::<Vec<_>>());
}

async fn an_impossible_append_stores_nothing(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    let beyond = log.partitions();
    assert!(log.append(TOPIC, vec![record(0, "a"), record(beyond, "b")]).await.is_err());
    let oversized = vec![0; super::embedded::RECORD_BYTES_MAX + 1];
    assert!(log.append(TOPIC, vec![record(0, "a"), record(0, oversized)]).await.is_err());
    assert!(log.read(TOPIC, PartitionId(beyond), LogOffset(0), 1).await.is_err());
    assert_eq!(bounds(log.as_ref(), TOPIC, PartitionId(0)).await.end, LogOffset(0));
}

async fn a_log_that_ends_before_what_was_noted_takes_nothing_more(backend: &dyn LogUnderTest) {
    let log = backend.create().await;
    append(log.as_ref(), vec![record(0, "a"), record(0, "b")]).await;
    for end in [0, 1, 2] {
        log.note_end(TOPIC, PartitionId(0), LogOffset(end)).await.expect("it reaches this far");
    }
    append(log.as_ref(), vec![record(0, "c")]).await;
    let error = log.note_end(TOPIC, PartitionId(0), LogOffset(6)).await.expect_err("it ends at 3");
    let is_told = matches!(error, Error::WentBackwards { known: LogOffset(5), end: LogOffset(3), .. });
    assert!(is_told, "{error}");
    assert!(log.append(TOPIC, vec![record(0, "d")]).await.is_err(), "offset 3 was given out before");
}
