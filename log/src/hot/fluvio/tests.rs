//! Reading against answers that leave things out, ends that go down, and the budget; no server is needed.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use fluvio::dataplane::link::ErrorCode;
use fluvio::dataplane::record::{Batch, RawRecords};

use super::batch::tests::over_the_wire;
use super::read::{Fetch, Fetched};
use super::*;
use crate::event::UtcMillis;

const SLOT: Slot = Slot { topic: Topic::AdClicks, partition: PartitionId(0) };

/// A partition of ten batches of ten records, served in answers that a test shapes.
#[derive(Default)]
struct Served {
    /// Taken one a fetch: what to do with the batches from the offset on. Empty: everything whole.
    faults: Mutex<VecDeque<Fault>>,
    fetches: Mutex<Vec<(LogOffset, u32)>>,
    reopened: Mutex<u32>,
}

#[derive(Clone, Copy)]
enum Fault {
    LeaveOutTheFirst,
    LeaveOutTheSecond,
    ChangeTheFirst,
    ChangeTheSecond,
}

fn value(offset: i64) -> Bytes {
    format!("record {offset}").into()
}

fn stored() -> Vec<Batch<RawRecords>> {
    let batch = |number: i64| {
        let records: Vec<Bytes> = (number * 10..number * 10 + 10).map(value).collect();
        let mut batch = batch::batches_of(records.iter(), 1 << 20, UtcMillis::clamped(7)).remove(0);
        batch.base_offset = number * 10;
        batch
    };
    (0..10).map(batch).collect()
}

fn change(batch: &mut Batch<RawRecords>) {
    let mut bytes = batch.records().0.to_vec();
    bytes[12] ^= 0x40;
    *batch.mut_records() = RawRecords(bytes.into());
}

#[async_trait]
impl Fetch for Served {
    async fn fetch(&self, from: LogOffset, bytes_max: u32) -> Result<Fetched> {
        self.fetches.lock().expect("no panic").push((from, bytes_max));
        let mut batches: Vec<_> =
            stored().into_iter().filter(|batch| batch.get_last_offset() >= from.0).collect();
        if batches.is_empty() {
            let objection = (from.0 > 100).then(|| ErrorCode::Other("beyond the end".to_owned()));
            return Ok(Fetched { batches, objection });
        }
        let fault = self.faults.lock().expect("no panic").pop_front();
        match fault {
            Some(Fault::LeaveOutTheFirst) => drop(batches.remove(0)),
            Some(Fault::LeaveOutTheSecond) => drop(batches.remove(1)),
            _ => {}
        }
        let mut batches = over_the_wire(batches, bytes_max as usize);
        match fault {
            Some(Fault::ChangeTheFirst) => change(&mut batches[0]),
            Some(Fault::ChangeTheSecond) => change(&mut batches[1]),
            _ => {}
        }
        Ok(Fetched { batches, objection: None })
    }

    async fn reopen(&self) {
        *self.reopened.lock().expect("no panic") += 1;
    }
}

fn reader(faults: &[Fault], fetch_bytes_max: u32) -> Reader<Served> {
    let served = Served { faults: Mutex::new(faults.iter().copied().collect()), ..Served::default() };
    Reader::new(SLOT, served, fetch_bytes_max, Arc::default())
}

/// Reads to the end and checks each offset and record.
async fn read_all(reader: &Reader<Served>, from: i64, bytes_max: usize) -> i64 {
    let mut next = from;
    while let Found::Records(records) = reader.read(LogOffset(next), bytes_max).await.expect("readable") {
        assert!(!records.is_empty());
        for (offset, bytes) in records {
            assert_eq!((offset.0, &bytes), (next, &value(next)));
            next += 1;
        }
    }
    next
}

#[tokio::test]
async fn answers_cut_inside_batches_lose_no_record() {
    let mut cut_at_sizes = 0;
    for fetch_bytes_max in 61..700 {
        let reader = reader(&[], fetch_bytes_max);
        assert_eq!(read_all(&reader, 0, 100).await, 100);
        assert_eq!(reader.counters.holes(), 0);
        cut_at_sizes += u32::from(reader.counters.batches_cut() > 0);
    }
    assert!(cut_at_sizes > 400, "at most sizes an answer ends inside a batch, not at {cut_at_sizes} alone");
}

#[tokio::test]
async fn a_read_may_begin_inside_a_batch_and_goes_on_from_what_was_fetched() {
    let reader = reader(&[], 1 << 20);
    assert_eq!(read_all(&reader, 37, 25).await, 100);
    let fetches = reader.source.fetches.lock().expect("no panic").clone();
    assert_eq!(fetches.len(), 2, "one for the records, one for the end: {fetches:?}");
}

#[tokio::test]
async fn a_hole_is_asked_for_again_at_the_first_missing_offset() {
    let reader =
        reader(&[Fault::LeaveOutTheSecond, Fault::LeaveOutTheFirst, Fault::LeaveOutTheFirst], 1 << 20);
    assert_eq!(read_all(&reader, 0, usize::MAX).await, 100);
    let asked: Vec<i64> =
        reader.source.fetches.lock().expect("no panic").iter().map(|(from, _)| from.0).collect();
    assert_eq!(asked, [0, 10, 10, 10, 100], "the hole at 10 is asked for until it is filled");
    assert_eq!((reader.counters.holes(), reader.counters.holes_repaired()), (3, 1));
    assert_eq!(*reader.source.reopened.lock().expect("no panic"), 2, "each time on a new connection");
}

#[tokio::test]
async fn a_hole_that_stays_is_an_error_and_nothing_is_passed_over() {
    let reader = reader(&[Fault::LeaveOutTheFirst; 50], 1 << 20);
    let error = reader.read(LogOffset(20), 100).await.expect_err("a hole");
    assert!(matches!(error, Error::Hole { expected: LogOffset(20), read: LogOffset(30), .. }), "{error}");
}

#[tokio::test]
async fn changed_bytes_are_damage_at_their_offset_after_what_lies_before_them_was_read() {
    let reader = reader(&[Fault::ChangeTheSecond, Fault::ChangeTheFirst], 1 << 20);
    let Found::Records(before) = reader.read(LogOffset(0), usize::MAX).await.expect("readable") else {
        panic!("ten records lie before the damage");
    };
    assert_eq!(before.len(), 10);
    let error = reader.read(LogOffset(10), usize::MAX).await.expect_err("damage");
    assert!(matches!(error, Error::Damage { at: 10, .. }), "{error}");
}

#[tokio::test]
async fn an_objection_and_the_end_are_told_apart() {
    let reader = reader(&[], 1 << 20);
    assert!(matches!(reader.read(LogOffset(100), 1).await, Ok(Found::End)));
    assert!(matches!(reader.read(LogOffset(101), 1).await, Ok(Found::Refused(_))));
}

#[tokio::test]
async fn an_offset_given_twice_closes_the_partition_and_wakes_who_waits() {
    let tips = Tips::new(1);
    tips.told(SLOT, None, LogOffset(500)).expect("the first answer");
    let waiting = {
        let tips = tips.clone();
        tokio::spawn(async move { tips.wait_for(SLOT, LogOffset(500)).await })
    };
    tokio::task::yield_now().await;
    assert_eq!(tips.waited_for(), [SLOT]);
    let known = tips.known(SLOT).expect("open");
    let error = tips.appended(SLOT, known, LogOffset(3), LogOffset(4)).expect_err("went backwards");
    assert!(error.to_string().contains("records up to offset 499") && error.to_string().contains("restore"));
    assert!(matches!(waiting.await.expect("no panic"), Err(Error::WentBackwards { .. })));
    assert!(matches!(tips.known(SLOT), Err(Error::WentBackwards { .. })));
    let other = Slot { topic: Topic::FraudVerdicts, ..SLOT };
    assert_eq!(tips.known(other).expect("another partition"), None);
}

#[test]
fn a_leader_may_lag_for_a_moment_and_not_for_long() {
    let known = Some(LogOffset(100));
    let patient = Tips::new(1);
    patient.told(SLOT, None, LogOffset(100)).expect("the first answer");
    assert!(matches!(patient.told(SLOT, known, LogOffset(90)), Err(Error::Unavailable { .. })));
    patient.told(SLOT, known, LogOffset(100)).expect("it caught up");
    assert_eq!(patient.known(SLOT).expect("open"), known);

    let impatient = Tips::with_limit(1, Duration::ZERO);
    impatient.told(SLOT, None, LogOffset(100)).expect("the first answer");
    assert!(matches!(impatient.told(SLOT, known, LogOffset(90)), Err(Error::WentBackwards { .. })));
    assert!(
        matches!(impatient.told(SLOT, known, LogOffset(100)), Err(Error::WentBackwards { .. })),
        "for good"
    );
}

#[test]
fn an_answer_older_than_an_acknowledgement_is_no_step_back() {
    let tips = Tips::new(1);
    let known = tips.known(SLOT).expect("open");
    tips.appended(SLOT, known, LogOffset(0), LogOffset(10)).expect("acknowledged");
    tips.told(SLOT, known, LogOffset(5)).expect("asked before the append");
    assert_eq!(tips.known(SLOT).expect("open"), Some(LogOffset(10)));
}

#[test]
fn room_is_given_back_part_by_part_and_a_refusal_takes_none() {
    let budget = Budget::new(100);
    let mut whole = budget.take(60).expect("room");
    let part = whole.split(20);
    assert!(matches!(budget.take(50), Err(Error::Busy { waiting_bytes: 60 })));
    drop(part);
    assert!(budget.take(50).is_ok());
    drop(whole);
    assert!(budget.take(100).is_ok());
}
