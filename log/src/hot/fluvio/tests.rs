//! Reading against answers that leave things out, ends that go down or grow, appends that wait, and the budget; no server is
//! needed.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use fluvio::dataplane::link::ErrorCode;
use fluvio::dataplane::record::{BATCH_FILE_HEADER_SIZE, Batch, RawRecords};
use fluvio_spu_schema::server::fetch_offset::FetchOffsetsRequest;

use super::batch::tests::over_the_wire;
use super::read::{Fetch, Fetched};
use super::*;
use crate::event::{UtcMillis, WallClock};

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

/// A partition that others write to: the batches of each answer in turn, and one more for ever after.
struct Growing {
    answers: Mutex<VecDeque<usize>>,
    fetches: Mutex<u32>,
}

/// Ten records, always of the same size.
fn ten(first: i64) -> Batch<RawRecords> {
    let records = vec![Bytes::from_static(b"a record"); 10];
    let mut batch = batch::batches_of(records.iter(), 1 << 20, UtcMillis::clamped(7)).remove(0);
    batch.base_offset = first;
    batch
}

#[async_trait]
impl Fetch for Growing {
    async fn fetch(&self, from: LogOffset, _bytes_max: u32) -> Result<Fetched> {
        *self.fetches.lock().expect("no panic") += 1;
        let count = self.answers.lock().expect("no panic").pop_front().unwrap_or(1);
        let batches = (0..count).map(|number| ten(from.0 + number as i64 * 10)).collect();
        Ok(Fetched { batches, objection: None })
    }

    async fn reopen(&self) {}
}

/// Looks for the end with room for three batches; returns it with the fetches that took.
async fn end_of_growing(answers: &[usize]) -> (Result<LogOffset>, u32) {
    let source = Growing { answers: Mutex::new(answers.iter().copied().collect()), fetches: Mutex::new(0) };
    let bytes_max = (BATCH_FILE_HEADER_SIZE + ten(0).records().0.len()) * 3;
    let end = poll::stored_end(&source, SLOT, LogOffset(20), bytes_max as u32).await;
    let fetches = *source.fetches.lock().expect("no panic");
    (end, fetches)
}

#[tokio::test]
async fn the_end_of_a_partition_under_load_is_found_and_not_chased() {
    // At rest; with writers who never stop; behind full answers; in a segment file that begins where another ends.
    for (answers, end, fetches) in
        [(&[0][..], 20, 1), (&[], 40, 2), (&[3, 3], 100, 4), (&[1, 3, 2, 0], 80, 3)]
    {
        let (found, taken) = end_of_growing(answers).await;
        assert_eq!((found.expect("found"), taken), (LogOffset(end), fetches), "{answers:?}");
    }
    let (never, _) = end_of_growing(&[3; 1_000]).await;
    assert!(matches!(never, Err(Error::Unavailable { .. })), "full for ever: {never:?}");
}

#[tokio::test]
async fn an_open_without_a_cluster_named_is_an_error_and_no_panic() {
    let nameless = FluvioConfig { profile_file: Some("/absent/config".into()), ..FluvioConfig::default() };
    let endpoint = Some("127.0.0.1:1".to_owned());
    let tls_in_part = FluvioConfig { endpoint, tls_ca: Some("ca.pem".into()), ..FluvioConfig::default() };
    for (config, advice) in [(nameless, "--fluvio-endpoint"), (tls_in_part, "fluvio_tls_key")] {
        let error = FluvioLog::open(&config, 1, Arc::new(WallClock)).await.err().expect("no cluster");
        assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(advice), "{error}");
    }
}

/// A cluster at an address where nobody listens.
fn nowhere() -> Arc<Cluster> {
    let config = FluvioConfig { endpoint: Some("127.0.0.1:1".to_owned()), ..FluvioConfig::default() };
    let target = config.cluster().expect("named");
    Arc::new(Cluster::new(&config, target, tokio::runtime::Handle::current()))
}

const APPEND_TIMEOUT: Duration = Duration::from_millis(300);

fn appender(queue: mpsc::UnboundedReceiver<Part>) -> (Appender, Arc<FluvioCounters>) {
    let counters = Arc::<FluvioCounters>::default();
    let appender = Appender {
        link: Link::new(nowhere(), SLOT),
        rules: AppendRules {
            batch_bytes_max: 1 << 20,
            linger: Duration::ZERO,
            isolation: Isolation::ReadUncommitted,
            request_timeout: Duration::from_secs(1),
            append_timeout: APPEND_TIMEOUT,
        },
        queue,
        tips: Tips::new(1),
        counters: counters.clone(),
        clock: Arc::new(WallClock),
    };
    (appender, counters)
}

fn part(since: tokio::time::Instant) -> (Part, oneshot::Receiver<Result<()>>) {
    let (outcome, resolved) = oneshot::channel();
    let room = Budget::new(100).take(10).expect("room");
    (Part { records: vec![Bytes::from_static(b"a")], bytes: 10, since, outcome, _room: room }, resolved)
}

#[tokio::test]
async fn what_waited_too_long_in_the_queue_is_answered_and_what_nobody_waits_for_is_passed_over() {
    let (sender, queue) = mpsc::unbounded_channel();
    let (appender, counters) = appender(queue);
    let long_ago = tokio::time::Instant::now().checked_sub(APPEND_TIMEOUT * 2).expect("not the first second");
    let (late, late_outcome) = part(long_ago);
    let (left, _) = part(tokio::time::Instant::now()); // its receiver is gone
    for part in [late, left] {
        assert!(sender.send(part).is_ok());
    }
    drop(sender);
    appender.run().await;
    let error = late_outcome.await.expect("answered").expect_err("not stored");
    let Error::AppendUnknown { source } = &error else { panic!("another error: {error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(counters.append_retries(), 0, "nothing was sent");
}

#[tokio::test]
async fn the_time_of_an_append_runs_from_its_call_and_not_from_the_first_attempt() {
    let (sender, queue) = mpsc::unbounded_channel();
    let (appender, counters) = appender(queue);
    let now = tokio::time::Instant::now();
    let (older, older_outcome) =
        part(now.checked_sub(APPEND_TIMEOUT * 9 / 10).expect("not the first second"));
    let (newer, mut newer_outcome) = part(now + APPEND_TIMEOUT * 100);
    assert!(sender.send(older).is_ok() && sender.send(newer).is_ok());
    let running = tokio::spawn(appender.run());
    let error = older_outcome.await.expect("answered").expect_err("nobody listens");
    assert!(matches!(error, Error::AppendUnknown { .. }), "{error}");
    assert!(newer_outcome.try_recv().is_err(), "one group, and each part its own time");
    while counters.append_retries() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.abort();
}

#[tokio::test]
async fn who_waited_for_a_connection_that_failed_is_answered_without_another_try() {
    let link = Link::new(nowhere(), SLOT);
    let asking = || link.call("read the ends", FetchOffsetsRequest::default());
    let (first, second) = tokio::join!(asking(), asking());
    let text = |outcome: Result<_>| outcome.map(|_| ()).expect_err("nobody listens").to_string();
    let (first, second) = (text(first), text(second));
    assert!(first.contains("ask who leads"), "tried: {first}");
    assert!(second.contains("reach the server of") && second.contains("ask who leads"), "told: {second}");
    let next = text(asking().await);
    assert!(!next.contains("reach the server of"), "whoever asks later tries again: {next}");
}
