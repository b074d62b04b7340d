//! The Fluvio log against a real cluster: the suite, millions of records, other writers, servers that die.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use twice_log::hot::conformance::{self, LogUnderTest};
use twice_log::hot::fluvio::FluvioConfig;
use twice_log::hot::{AppendRecord, ClickLog};
use twice_log::{Error, LogOffset, PartitionId, Topic};
use twice_tests::{FluvioCluster, one_at_a_time};

use super::{config, open, run};

const TOPIC: Topic = Topic::AdClicks;
const ZERO: PartitionId = PartitionId(0);

struct OnCluster {
    cluster: FluvioCluster,
    newest: Mutex<FluvioConfig>,
}

#[async_trait::async_trait]
impl LogUnderTest for OnCluster {
    fn trims(&self) -> bool {
        false
    }

    async fn create(&self) -> Arc<dyn ClickLog> {
        let config = config(&self.cluster, &self.cluster.new_prefix());
        *self.newest.lock().expect("no panic") = config.clone();
        Arc::new(open(&config, 2).await.expect("opened"))
    }

    async fn reopen(&self, log: Arc<dyn ClickLog>) -> Arc<dyn ClickLog> {
        drop(log);
        let config = self.newest.lock().expect("no panic").clone();
        Arc::new(open(&config, 2).await.expect("opened again"))
    }
}

#[test]
fn the_fluvio_log_passes_the_suite() -> Result<()> {
    let _turn = one_at_a_time();
    let Some(cluster) = FluvioCluster::for_test("the_fluvio_log_passes_the_suite")? else { return Ok(()) };
    let backend = OnCluster { cluster, newest: Mutex::new(FluvioConfig::default()) };
    run(async {
        conformance::run(&backend).await;
        Ok(())
    })
}

fn numbered(numbers: std::ops::Range<u64>) -> Vec<AppendRecord> {
    let record = |number: u64| {
        let mut bytes = number.to_be_bytes().to_vec();
        bytes.resize(150, number as u8);
        AppendRecord { partition: ZERO, bytes: bytes.into() }
    };
    numbers.map(record).collect()
}

fn number_of(bytes: &Bytes) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[..8]);
    u64::from_be_bytes(number)
}

/// Reads to `end` and checks every offset and every record.
async fn read_all(log: &dyn ClickLog, end: u64, bytes_max: usize) -> Result<()> {
    let mut next = LogOffset(0);
    while (next.0 as u64) < end {
        let batch = log.read(TOPIC, ZERO, next, bytes_max).await?;
        ensure!(!batch.records.is_empty(), "nothing read at {next}, before the end {end}");
        for (offset, bytes) in batch.records {
            ensure!(offset == next, "expected {next}, read {offset}");
            ensure!(number_of(&bytes) == offset.0 as u64, "another record at {offset}");
            next = offset.next();
        }
    }
    Ok(())
}

const RECORDS: u64 = 3_000_000;
const RECORDS_A_CALL: u64 = 10_000;

#[test]
fn of_three_million_records_in_large_batches_every_one_is_read_back() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "of_three_million_records_in_large_batches_every_one_is_read_back";
    let Some(cluster) = FluvioCluster::for_test(name)? else { return Ok(()) };
    run(async {
        let mut config = config(&cluster, &cluster.new_prefix());
        config.batch_bytes_max = 512 * 1024;
        let log = Arc::new(open(&config, 2).await?);
        let begun = Instant::now();
        let mut calls = std::collections::VecDeque::new();
        for call in 0..RECORDS / RECORDS_A_CALL {
            let (log, first) = (log.clone(), call * RECORDS_A_CALL);
            calls.push_back(tokio::spawn(async move {
                log.append(TOPIC, numbered(first..first + RECORDS_A_CALL)).await
            }));
            // In order, so that a record's number is its offset; a few on the way, so that batches fill.
            tokio::task::yield_now().await;
            if calls.len() == 4 {
                calls.pop_front().context("a call")?.await??;
            }
        }
        for call in calls {
            call.await??;
        }
        eprintln!("appended {:.0} records/s", RECORDS as f64 / begun.elapsed().as_secs_f64());
        let bounds = log.bounds(TOPIC, ZERO).await?;
        ensure!(bounds.end == LogOffset(RECORDS as i64), "{bounds:?}");

        for (fetch_bytes_max, bytes_max) in [(4 << 20, 1 << 20), (2 << 20, 64 << 10)] {
            config.fetch_bytes_max = fetch_bytes_max;
            let reading = open(&config, 2).await?;
            let begun = Instant::now();
            read_all_in_any_order(&reading, bytes_max).await?;
            let counters = reading.counters();
            eprintln!(
                "read {:.0} records/s; {} of {} answers ended inside a batch",
                RECORDS as f64 / begun.elapsed().as_secs_f64(),
                counters.batches_cut(),
                counters.fetches()
            );
            // Each such batch is one that the published client drops in silence.
            ensure!(counters.batches_cut() > 0, "no answer was cut: this test proves nothing");
            ensure!(counters.holes() == 0 || counters.holes_repaired() > 0, "a hole was passed over");
        }
        Ok(())
    })
}

/// Calls on the way at once may be stored in another order than they were made: each number is there once.
async fn read_all_in_any_order(log: &dyn ClickLog, bytes_max: usize) -> Result<()> {
    let mut seen = vec![false; RECORDS as usize];
    let mut next = LogOffset(0);
    while (next.0 as u64) < RECORDS {
        let batch = log.read(TOPIC, ZERO, next, bytes_max).await?;
        ensure!(!batch.records.is_empty(), "nothing read at {next}");
        for (offset, bytes) in batch.records {
            ensure!(offset == next, "expected {next}, read {offset}");
            let number = number_of(&bytes) as usize;
            ensure!(!std::mem::replace(&mut seen[number], true), "record {number} twice");
            next = offset.next();
        }
    }
    ensure!(seen.iter().all(|seen| *seen), "a record is missing");
    Ok(())
}

#[test]
fn another_partition_count_and_an_absent_cluster_are_errors_that_say_what_to_do() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "another_partition_count_and_an_absent_cluster_are_errors_that_say_what_to_do";
    let Some(cluster) = FluvioCluster::for_test(name)? else { return Ok(()) };
    run(async {
        let config = config(&cluster, &cluster.new_prefix());
        drop(open(&config, 3).await?);
        let error = open(&config, 2).await.err().context("three are there")?;
        ensure!(matches!(error, Error::Config { .. }), "{error}");
        let text = error.to_string();
        ensure!(text.contains("has 3 partitions") && text.contains("--partitions 3"), "{text}");
        // What the topics were created with holds: one copy, whatever is set today.
        let log = open(&FluvioConfig { replication: 2, ..config.clone() }, 3).await?;
        log.append(TOPIC, numbered(0..1)).await?;
        drop(log);

        let nowhere = FluvioConfig {
            endpoint: Some("127.0.0.1:1".to_owned()),
            connect_timeout_ms: 500,
            ..config.clone()
        };
        let error = open(&nowhere, 3).await.err().context("nobody listens there")?;
        let text = error.to_string();
        ensure!(text.contains("127.0.0.1:1") && text.contains("--fluvio-endpoint"), "{text}");
        let absent = FluvioConfig { topic_prefix: cluster.new_prefix(), ..config };
        let error =
            twice_log::hot::fluvio::FluvioLog::open_reader(&absent).await.err().context("no topic")?;
        ensure!(error.to_string().contains("twice up"), "{error}");
        Ok(())
    })
}

#[test]
fn records_of_another_writer_wake_who_waits() -> Result<()> {
    let _turn = one_at_a_time();
    let Some(cluster) = FluvioCluster::for_test("records_of_another_writer_wake_who_waits")? else {
        return Ok(());
    };
    run(async {
        let config = config(&cluster, &cluster.new_prefix());
        let (here, there) = (Arc::new(open(&config, 2).await?), open(&config, 2).await?);
        let waiting = {
            let here = here.clone();
            tokio::spawn(async move { here.wait_for(TOPIC, ZERO, LogOffset(4)).await })
        };
        there.append(TOPIC, numbered(0..5)).await?;
        tokio::time::timeout(Duration::from_secs(60), waiting).await.context("never woken")???;
        read_all(here.as_ref(), 5, 1 << 20).await
    })
}

#[test]
fn a_topic_made_anew_under_an_open_log_is_found_out_and_nothing_more_is_taken() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "a_topic_made_anew_under_an_open_log_is_found_out_and_nothing_more_is_taken";
    let Some(cluster) = FluvioCluster::own_for_test(name)? else { return Ok(()) };
    let config = config(&cluster, &cluster.new_prefix());
    let log = run(async {
        let log = open(&config, 2).await?;
        log.append(TOPIC, numbered(0..100)).await?;
        Ok(log)
    })?;
    cluster.delete_topics(&config.topic_prefix)?;
    run(async {
        drop(open(&config, 2).await?);
        let error = log.append(TOPIC, numbered(100..101)).await.err().context("offset 0 a second time")?;
        ensure!(matches!(error, Error::WentBackwards { known: LogOffset(99), .. }), "{error}");
        ensure!(error.to_string().contains("restore"), "{error}");
        let refused = log.append(TOPIC, numbered(101..102)).await.err().context("closed")?;
        ensure!(matches!(refused, Error::WentBackwards { .. }), "{refused}");
        let refused = log.read(TOPIC, ZERO, LogOffset(0), 100).await.err().context("closed")?;
        ensure!(matches!(refused, Error::WentBackwards { .. }), "{refused}");
        Ok(())
    })
}

#[test]
fn an_append_below_an_end_that_was_noted_is_refused_from_the_first_on() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "an_append_below_an_end_that_was_noted_is_refused_from_the_first_on";
    let Some(cluster) = FluvioCluster::for_test(name)? else { return Ok(()) };
    run(async {
        let config = config(&cluster, &cluster.new_prefix());
        let log = open(&config, 2).await?;
        // As after a topic that vanished: the checkpoint says 100, and the topic is new. More comes than was lost.
        let append = async {
            tokio::task::yield_now().await;
            let mut refused = 0;
            for first in (0..300).step_by(50) {
                refused += u32::from(log.append(TOPIC, numbered(first..first + 50)).await.is_err());
            }
            refused
        };
        let (noted, refused) = tokio::join!(log.note_end(TOPIC, ZERO, LogOffset(100)), append);
        let error = noted.err().context("it ends below what was noted")?;
        ensure!(matches!(error, Error::WentBackwards { known: LogOffset(99), .. }), "{error}");
        ensure!(refused == 6, "{refused} of 6 appends were refused");
        let other = AppendRecord { partition: PartitionId(1), bytes: Bytes::from_static(b"fine") };
        log.append(TOPIC, vec![other]).await.context("another partition lost nothing")?;
        Ok(())
    })
}

#[test]
fn a_server_killed_under_load_loses_nothing_acknowledged() -> Result<()> {
    let _turn = one_at_a_time();
    let name = "a_server_killed_under_load_loses_nothing_acknowledged";
    let Some(mut cluster) = FluvioCluster::own_for_test(name)? else { return Ok(()) };
    let config = config(&cluster, &cluster.new_prefix());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let log = Arc::new(runtime.block_on(open(&config, 2))?);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let (log, stop) = (log.clone(), stop.clone());
            runtime.spawn(async move {
                let mut acknowledged = Vec::new();
                let mut next = writer << 40;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    match log.append(TOPIC, numbered(next..next + 20)).await {
                        Ok(()) => acknowledged.push(next..next + 20),
                        Err(error) if error.kind() == twice_log::ErrorKind::Retry => {}
                        Err(error) => return Err(error),
                    }
                    next += 20;
                }
                Ok(acknowledged)
            })
        })
        .collect();
    for pause in [700, 1_500, 400] {
        std::thread::sleep(Duration::from_millis(pause));
        cluster.kill_spu()?;
        std::thread::sleep(Duration::from_millis(pause / 2));
        cluster.restart_spu()?;
    }
    std::thread::sleep(Duration::from_millis(1_000));
    cluster.kill_sc()?;
    cluster.restart_sc()?;
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    runtime.block_on(async {
        let mut acknowledged = std::collections::BTreeSet::new();
        for writer in writers {
            acknowledged.extend(writer.await??.into_iter().flatten());
        }
        // A new log: what it reads came from the server, not from memory of this one.
        let reading = open(&config, 2).await?;
        let end = reading.bounds(TOPIC, ZERO).await?.end;
        let mut next = LogOffset(0);
        let mut stored = 0_u64;
        while next < end {
            let batch = reading.read(TOPIC, ZERO, next, 1 << 20).await?;
            ensure!(!batch.records.is_empty(), "nothing read at {next}, before the end {end}");
            for (offset, bytes) in batch.records {
                ensure!(offset == next, "expected {next}, read {offset}");
                acknowledged.remove(&number_of(&bytes));
                next = offset.next();
                stored += 1;
            }
        }
        let retries = log.counters().append_retries();
        eprintln!("{stored} records stored over three kills; requests sent again: {retries}");
        ensure!(acknowledged.is_empty(), "{} acknowledged records are lost", acknowledged.len());
        ensure!(retries > 0, "no kill met an append: this test proves nothing");
        Ok(())
    })
}
