//! Conformance, limits, layout, locking, closing.

use tempfile::TempDir;

use super::gate::GatedFs;
use super::*;
use crate::fs::ForgetfulFs;
use crate::hot::conformance::{self, LogUnderTest};

struct Embedded {
    directories: TempDir,
    created: Mutex<u32>,
    tail_cache_bytes_max: u64,
}

impl Embedded {
    fn open_number(&self, number: u32) -> Arc<dyn ClickLog> {
        let config = EmbeddedConfig {
            segment_bytes: 256 * 1024,
            tail_cache_bytes_max: self.tail_cache_bytes_max,
            ..small()
        };
        let directory = self.directories.path().join(number.to_string());
        Arc::new(open(&directory, config).expect("opened"))
    }
}

#[async_trait]
impl LogUnderTest for Embedded {
    async fn create(&self) -> Arc<dyn ClickLog> {
        let number = {
            let mut created = self.created.lock().expect("no panic");
            *created += 1;
            *created
        };
        self.open_number(number)
    }

    async fn reopen(&self, log: Arc<dyn ClickLog>) -> Arc<dyn ClickLog> {
        assert_eq!(Arc::strong_count(&log), 1, "dropping it closes it");
        drop(log);
        let number = *self.created.lock().expect("no panic");
        self.open_number(number)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_log_passes_the_suite_from_files_and_from_memory() {
    for tail_cache_bytes_max in [0, 64 * 1024, 64 * 1024 * 1024] {
        let directories = tempfile::tempdir().expect("a directory");
        conformance::run(&Embedded { directories, created: Mutex::new(0), tail_cache_bytes_max }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_past_the_bound_is_busy_and_stores_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let gate = GatedFs::default();
    let config = EmbeddedConfig { waiting_bytes_max: 4096, ..small() };
    let log = EmbeddedLog::open(Arc::new(gate.clone()), directory.path(), config, FailPoints::default());
    let log = Arc::new(log.expect("opened"));
    append_text(&log, "first").await.expect("appended");

    gate.shut();
    let (first, second) = ("a".repeat(1_000), "b".repeat(3_000));
    // Polled once, an append stands in the queue.
    let mut in_flight = Box::pin(append_text(&log, &first));
    assert!(futures::poll!(&mut in_flight).is_pending());
    gate.wait_for_a_sync();
    let mut waiting = Box::pin(append_text(&log, &second));
    assert!(futures::poll!(&mut waiting).is_pending());
    let refused = append_text(&log, &"c".repeat(500)).await;
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    assert_eq!(log.bounds(TOPIC, ZERO).await.expect("bounds").end, LogOffset(1), "nothing unsynced is seen");
    gate.open_gate();
    in_flight.await.expect("appended");
    waiting.await.expect("appended");
    append_text(&log, "last").await.expect("there is room again");
    let firsts: String = texts(&log).await.iter().map(|text| &text[..1]).collect();
    assert_eq!(firsts, "fabl");
}

#[tokio::test]
async fn an_append_that_could_never_wait_is_refused_with_advice() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = EmbeddedConfig { waiting_bytes_max: 4096, segment_bytes: 64 * 1024, ..small() };
    let log = open(directory.path(), config).expect("opened");
    let refused = append_text(&log, &"a".repeat(5_000)).await.expect_err("too large");
    assert!(
        matches!(&refused, Error::Config { reason } if reason.contains("waiting_bytes_max")),
        "{refused}"
    );
}

#[tokio::test]
async fn segments_roll_and_an_append_larger_than_one_spreads_over_several() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = open(directory.path(), small()).expect("opened");
    let expected: Vec<String> = (0..300).map(|number| format!("{number:0100}")).collect();
    log.append(TOPIC, records(0, expected.clone())).await.expect("appended");
    assert!(segments(directory.path()).len() >= 300 * 101 / 4096);
    assert_eq!(texts(&log).await, expected);
    drop(log);
    let log = open(directory.path(), small()).expect("opened");
    assert_eq!(texts(&log).await, expected);
    assert!(segments(directory.path()).iter().all(|path| path.metadata().expect("there").len() == 4096));
}

#[tokio::test]
async fn a_second_writer_is_refused_until_the_first_closed() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = open(directory.path(), small()).expect("opened");
    let refused = open(directory.path(), small()).err().expect("locked");
    assert!(matches!(refused, Error::Locked { .. }), "{refused}");
    first.close();
    let second = open(directory.path(), small()).expect("opened");
    append_text(&second, "of the second").await.expect("appended");
    assert!(matches!(append_text(&first, "late").await, Err(Error::Stopped)));
    assert!(matches!(first.trim(TOPIC, ZERO, LogOffset(1)).await, Err(Error::Stopped)));
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_writes_what_waits() {
    let directory = tempfile::tempdir().expect("a directory");
    let gate = GatedFs::default();
    let log = EmbeddedLog::open(Arc::new(gate.clone()), directory.path(), small(), FailPoints::default());
    let log = Arc::new(log.expect("opened"));
    append_text(&log, "0").await.expect("appended");
    gate.shut();
    let appends: Vec<_> = (1..10)
        .map(|number| {
            let log = log.clone();
            tokio::spawn(async move { append_text(&log, &number.to_string()).await })
        })
        .collect();
    gate.wait_for_a_sync();
    let closing = {
        let log = log.clone();
        tokio::task::spawn_blocking(move || log.close())
    };
    gate.open_gate();
    closing.await.expect("no panic");
    let mut stored = 1;
    for append in appends {
        match append.await.expect("no panic") {
            Ok(()) => stored += 1,
            Err(error) => assert!(matches!(error, Error::Stopped), "{error}"),
        }
    }
    drop(log);
    assert_eq!(texts(&open(directory.path(), small()).expect("opened")).await.len(), stored);
}

#[tokio::test]
async fn another_partition_count_is_refused_with_advice() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(open(directory.path(), small()).expect("opened"));
    let refused = open(directory.path(), EmbeddedConfig { partitions: 3, ..small() }).err().expect("refused");
    assert!(
        matches!(&refused, Error::Config { reason } if reason.contains("set partitions = 2")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_lost_layout_file_beside_segments_is_damage() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(open(directory.path(), small()).expect("opened"));
    let layout = directory.path().join("layout.json");
    std::fs::remove_file(&layout).expect("removed");
    let refused = open(directory.path(), small()).err().expect("refused");
    assert!(matches!(&refused, Error::Damage { path, .. } if *path == layout), "{refused}");
    std::fs::write(&layout, "{}").expect("written");
    assert!(matches!(open(directory.path(), small()), Err(Error::Damage { .. })));
}

#[test]
fn settings_out_of_bounds_are_refused() {
    for config in [
        EmbeddedConfig { partitions: 0, ..small() },
        EmbeddedConfig { segment_bytes: 100, ..small() },
        EmbeddedConfig { waiting_bytes_max: 0, ..small() },
    ] {
        assert!(matches!(config.validate(), Err(Error::Config { .. })));
    }
    assert!(EmbeddedConfig::default().validate().is_ok());
}

#[tokio::test]
async fn a_failed_sync_stops_the_log_for_ever() {
    let directory = tempfile::tempdir().expect("a directory");
    let forgetful = ForgetfulFs::new(directory.path()).expect("opened");
    let log =
        EmbeddedLog::open(Arc::new(forgetful.clone()), directory.path(), small(), FailPoints::default())
            .expect("opened");
    append_text(&log, "kept").await.expect("appended");
    forgetful.fail_sync_point(forgetful.sync_points() + 1);
    let unknown = append_text(&log, "unknown").await.expect_err("not synced");
    assert!(matches!(unknown, Error::AppendUnknown { .. }), "{unknown}");
    assert!(matches!(append_text(&log, "later").await, Err(Error::Stopped)));
    assert!(matches!(log.wait_for(TOPIC, ZERO, LogOffset(1)).await, Err(Error::Stopped)));
    assert_eq!(texts(&log).await, ["kept"], "reading goes on, up to what was synced");
}

#[tokio::test]
async fn a_full_disk_stops_the_log_and_a_restart_cuts_the_half_written_frame() {
    let directory = tempfile::tempdir().expect("a directory");
    let forgetful = ForgetfulFs::new(directory.path()).expect("opened");
    let open_log = || {
        EmbeddedLog::open(Arc::new(forgetful.clone()), directory.path(), small(), FailPoints::default())
            .expect("opened")
    };
    let log = open_log();
    append_text(&log, "kept").await.expect("appended");
    forgetful.fail_writes(true);
    assert!(matches!(append_text(&log, &"lost".repeat(100)).await, Err(Error::AppendUnknown { .. })));
    forgetful.fail_writes(false);
    drop(log);
    let log = open_log();
    append_text(&log, "again").await.expect("appended");
    assert_eq!(texts(&log).await, ["kept", "again"]);
}
