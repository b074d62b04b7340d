//! Archives one partition: reads, gathers, flushes at a bound, at an age or on request, and never gives up.
//!
//! Guarantee: a failed flush keeps its rows and is tried again; reading pauses at the memory bound meanwhile. An error
//! of another kind begins again at the newest manifest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use twice_log::archive::layout::ChainKey;
use twice_log::archive::{ArchiverSettings, PartitionArchiver};
use twice_log::{LogOffset, PartitionId, Topic};

use super::backoff::Backoff;
use super::{ArchiverStatus, ArchivingParts};
use crate::config::ArchiverConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::RecordFeed;
use crate::metrics as names;

/// How often status and metrics are brought up to date while nothing happens.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often a failure that goes on is warned of.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

type Records = Vec<(LogOffset, Bytes)>;

/// Someone who waits for manifests up to an offset.
#[derive(Debug)]
pub(super) struct FlushRequest {
    pub(super) end: LogOffset,
    pub(super) reply: oneshot::Sender<()>,
}

/// The archiver of one topic and partition.
pub(super) struct Worker {
    parts: ArchivingParts,
    config: ArchiverConfig,
    topic: Topic,
    partition: PartitionId,
    status: Arc<Mutex<ArchiverStatus>>,
    backoff: Backoff,
    waiting: Vec<FlushRequest>,
    opened: Option<PartitionArchiver>,
    /// `None` while all is well.
    outage: Option<Outage>,
}

/// A row of failures without a success between them.
#[derive(Debug)]
struct Outage {
    since: Instant,
    failures: u64,
    kind: ErrorKind,
    warned: Option<Instant>,
}

/// Records read ahead by one batch; dropped and begun anew when the cursor moves.
struct ReadAhead {
    records: mpsc::Receiver<Result<Records>>,
    task: JoinHandle<()>,
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What woke the worker.
enum Event {
    Stop,
    Flush(Option<FlushRequest>),
    Read(Result<Records>),
    Look,
}

impl Worker {
    pub(super) fn new(
        parts: &ArchivingParts,
        config: &ArchiverConfig,
        topic: Topic,
        partition: PartitionId,
    ) -> (Self, Arc<Mutex<ArchiverStatus>>) {
        let status = Arc::new(Mutex::new(ArchiverStatus {
            topic,
            partition,
            archived_end: LogOffset(0),
            log_end: LogOffset(0),
            gathered_rows: 0,
            last_error: None,
        }));
        let worker = Self {
            parts: parts.clone(),
            config: config.clone(),
            topic,
            partition,
            status: status.clone(),
            backoff: Backoff::new(config.retry_pause_ms, config.retry_pause_ms_max),
            waiting: Vec::new(),
            opened: None,
            outage: None,
        };
        (worker, status)
    }

    /// Tries to open the cursor once, so that a wrong layout, or a log that ends before its archive, stops the
    /// start; any other error is left to the run.
    pub(super) async fn opened(mut self) -> Result<Self> {
        match self.open().await {
            Ok(archiver) => {
                self.report(|status| status.archived_end = archiver.archived_end());
                self.opened = Some(archiver);
            }
            Err(
                error @ Error::Log(twice_log::Error::Config { .. } | twice_log::Error::WentBackwards { .. }),
            ) => return Err(error),
            Err(error) => self.failed(&error), // the run opens it
        }
        Ok(self)
    }

    async fn open(&self) -> Result<PartitionArchiver> {
        let chain = ChainKey {
            topic: self.topic,
            generation: self.parts.log.generation(),
            partition: self.partition,
        };
        let settings =
            ArchiverSettings { disorder_ms: self.parts.settings.disorder_ms, ..ArchiverSettings::default() };
        let partitions = self.parts.log.partitions();
        let fail_points = self.parts.fail_points.clone();
        let archive = self.parts.archive.clone();
        let archiver = PartitionArchiver::open(archive, chain, partitions, settings, fail_points).await?;
        // Before the end is compared: what was archived must not be given out again, whatever the end says later.
        self.parts.log.note_end(self.topic, self.partition, archiver.archived_end()).await?;
        archiver.check_log(self.parts.log.bounds(self.topic, self.partition).await?)?;
        Ok(archiver)
    }

    /// Archives until it is stopped; begins again at the newest manifest after an error.
    pub(super) async fn run(
        mut self,
        mut flushes: mpsc::Receiver<FlushRequest>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            let error = match self.archive(&mut flushes, &mut stop).await {
                Ok(()) => return,
                Err(error) => error,
            };
            self.failed(&error);
            tokio::select! {
                _ = stop.wait_for(|stopped| *stopped) => return,
                () = tokio::time::sleep(self.backoff.failed()) => {}
            }
        }
    }

    /// Returns `Ok` when told to stop.
    async fn archive(
        &mut self,
        flushes: &mut mpsc::Receiver<FlushRequest>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<()> {
        let mut archiver = match self.opened.take() {
            Some(archiver) => archiver,
            None => self.open().await?,
        };
        let mut ahead = self.read_ahead(&archiver);
        let mut flush_not_before = Instant::now();
        loop {
            tokio::select! {
                _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
                () = self.look(&archiver) => {}
            }
            self.answer(&archiver);
            if self.is_due(&archiver) && Instant::now() >= flush_not_before {
                let expected = archiver.next_offset();
                let flushed = tokio::select! {
                    _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
                    flushed = archiver.flush() => flushed.map_err(Error::from),
                };
                match flushed {
                    Ok(manifest) => self.flushed(manifest.map(|stored| stored.manifest)),
                    Err(error) if error.kind() == ErrorKind::Retry => {
                        self.failed(&error);
                        flush_not_before = Instant::now() + self.backoff.failed();
                    }
                    Err(error) => return Err(error),
                }
                if archiver.next_offset() != expected {
                    ahead = self.read_ahead(&archiver); // another archiver was ahead of this one
                }
                continue;
            }
            match self.next_event(&archiver, &mut ahead, flush_not_before, flushes, stop).await {
                Event::Stop | Event::Flush(None) => return Ok(()),
                Event::Flush(Some(request)) => self.waiting.push(request),
                Event::Read(records) => {
                    for (offset, bytes) in records? {
                        archiver.push(offset, &bytes)?;
                    }
                }
                Event::Look => {}
            }
        }
    }

    async fn next_event(
        &self,
        archiver: &PartitionArchiver,
        ahead: &mut ReadAhead,
        flush_not_before: Instant,
        flushes: &mut mpsc::Receiver<FlushRequest>,
        stop: &mut watch::Receiver<bool>,
    ) -> Event {
        let now = Instant::now();
        let mut pause = LOOK_INTERVAL;
        if let Some(since) = archiver.pending_since() {
            let age = Duration::from_millis(self.config.flush_interval_ms);
            let due = if self.is_due(archiver) { flush_not_before } else { since + age };
            pause = pause.min(due.saturating_duration_since(now));
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stopped| *stopped) => Event::Stop,
            request = flushes.recv() => Event::Flush(request),
            Some(records) = ahead.records.recv(), if !self.is_full(archiver) => Event::Read(records),
            () = tokio::time::sleep(pause) => Event::Look,
        }
    }

    fn read_ahead(&self, archiver: &PartitionArchiver) -> ReadAhead {
        let mut feed = RecordFeed {
            log: self.parts.log.clone(),
            topic: self.topic,
            partition: self.partition,
            expected: archiver.next_offset(),
            bytes_max: self.config.read_bytes_max,
            retry_pause: Duration::from_millis(self.config.retry_pause_ms),
        };
        let (sender, records) = mpsc::channel(1);
        let task = actix::spawn(async move {
            while let Ok(place) = sender.reserve().await {
                let read = feed.next().await;
                let failed = read.is_err();
                place.send(read);
                if failed {
                    return;
                }
            }
        });
        ReadAhead { records, task }
    }

    fn is_full(&self, archiver: &PartitionArchiver) -> bool {
        archiver.rows() as u64 >= self.config.rows_max || archiver.bytes() as u64 >= self.config.bytes_max
    }

    /// Says whether what is gathered is to be written: full, old enough, or asked for and all there.
    fn is_due(&self, archiver: &PartitionArchiver) -> bool {
        let age = Duration::from_millis(self.config.flush_interval_ms);
        let is_asked = |request: &FlushRequest| {
            request.end > archiver.archived_end() && request.end <= archiver.next_offset()
        };
        archiver.rows() > 0
            && (self.is_full(archiver)
                || archiver.pending_since().is_some_and(|since| since.elapsed() >= age)
                || self.waiting.iter().any(is_asked))
    }

    fn answer(&mut self, archiver: &PartitionArchiver) {
        let end = archiver.archived_end();
        self.waiting.retain(|request| !request.reply.is_closed()); // who gave up is passed over
        for request in self.waiting.extract_if(.., |request| request.end <= end) {
            let _ = request.reply.send(());
        }
    }

    fn flushed(&mut self, manifest: Option<twice_log::archive::Manifest>) {
        self.backoff.succeeded();
        self.works();
        if let Some(manifest) = manifest {
            let rows = manifest.last.0 - manifest.first.0 + 1;
            let primary = self.parts.archive.bucket();
            let elsewhere = manifest.files.iter().filter(|file| file.bucket != primary).count();
            metrics::counter!(names::SECONDARY_FILES_TOTAL).increment(elsewhere as u64);
            metrics::counter!(names::MANIFESTS_TOTAL).increment(1);
            metrics::counter!(names::ARCHIVED_ROWS_TOTAL).increment(u64::try_from(rows).unwrap_or(0));
            tracing::info!(topic = %self.topic, partition = %self.partition, first = %manifest.first,
                last = %manifest.last, files = manifest.files.len(), "manifest put");
        }
    }

    /// Notes that nothing is left to be tried again.
    fn works(&mut self) {
        self.report(|status| status.last_error = None);
        metrics::gauge!(names::ARCHIVE_FAILING, &self.labels()).set(0.0);
        if let Some(outage) = self.outage.take() {
            tracing::info!(topic = %self.topic, partition = %self.partition, failures = outage.failures,
                seconds = outage.since.elapsed().as_secs(), "archiving works again");
        }
    }

    /// Notes a failure. The first of an outage is a warning, and then one every while: the gauge says that it goes on.
    fn failed(&mut self, error: &Error) {
        let text = error.with_causes();
        let now = Instant::now();
        let outage =
            self.outage.get_or_insert(Outage { since: now, failures: 0, kind: error.kind(), warned: None });
        outage.failures += 1;
        let is_other = outage.kind != error.kind();
        outage.kind = error.kind();
        if is_other || outage.warned.is_none_or(|warned| now - warned >= WARNING_INTERVAL) {
            outage.warned = Some(now);
            let seconds = outage.since.elapsed().as_secs();
            tracing::warn!(topic = %self.topic, partition = %self.partition, failures = outage.failures, seconds,
                error = %text, "archiving fails, trying again until it works");
        }
        metrics::counter!(names::ARCHIVE_FAILURES_TOTAL).increment(1);
        metrics::gauge!(names::ARCHIVE_FAILING, &self.labels()).set(1.0);
        self.report(|status| status.last_error = Some(text));
    }

    fn labels(&self) -> [(&'static str, String); 2] {
        [("topic", self.topic.name().to_owned()), ("partition", self.partition.to_string())]
    }

    async fn look(&mut self, archiver: &PartitionArchiver) {
        let bounds = self.parts.log.bounds(self.topic, self.partition).await;
        let archived_end = archiver.archived_end();
        let log_end = bounds.map_or(archiver.next_offset(), |bounds| bounds.end);
        if self.outage.is_some() && archived_end == log_end {
            self.works(); // opening failed, and there was nothing to put
        }
        self.report(|status| {
            status.archived_end = archived_end;
            status.log_end = log_end;
            status.gathered_rows = archiver.rows() as u64;
        });
        let labels = self.labels();
        metrics::gauge!(names::UNARCHIVED_RECORDS, &labels).set((log_end.0 - archived_end.0) as f64);
        let age = archiver.pending_since().map_or(0.0, |since| since.elapsed().as_secs_f64());
        metrics::gauge!(names::UNARCHIVED_AGE_SECONDS, &labels).set(age);
    }

    fn report(&self, change: impl FnOnce(&mut ArchiverStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
