//! One run of a partition: applies batches, publishes, checkpoints and seals, until it is stopped or fails.
//!
//! Guarantee: between two batches every campaign reflects exactly the records below `applied_end`; windows, snapshots
//! and seals are taken there and nowhere else. A failed step ends the run; the next one starts from the checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use twice_log::archive::{Seal, StoredSeal};
use twice_log::{CampaignId, Hour, LogOffset, Topic, Watermark};
use twice_store::windows::Fence;

use super::children::Children;
use super::hours::HourLedger;
use super::messages::Command;
use super::reader::{DecodedBatch, LogReader};
use super::recovery::Recovered;
use super::sealing::{self, SealNotice, SealRequests};
use super::setup::PartitionSetup;
use super::status::PartitionPhase;
use crate::campaign::Tallies;
use crate::checkpoint::{CheckpointBatch, CheckpointNumber, CheckpointWriter, Commit, WrittenCheckpoint};
use crate::error::{Error, Result};
use crate::feed::RecordFeed;
use crate::metrics as names;

/// How a run ended without a failure.
pub(super) struct Stopped {
    pub(super) reply: oneshot::Sender<Result<()>>,
    pub(super) outcome: Result<()>,
}

/// A checkpoint being written.
struct InFlight {
    task: JoinHandle<Result<WrittenCheckpoint>>,
    applied_end: LogOffset,
    /// Put into the archive once the commit is durable.
    seals: Vec<Seal>,
    since: Instant,
}

/// The memory of a run.
pub(super) struct Runner {
    setup: PartitionSetup,
    children: Children,
    ledger: HourLedger,
    watermark: Watermark,
    applied_end: LogOffset,
    hours_open: BTreeSet<Hour>,
    writer: Arc<Mutex<CheckpointWriter>>,
    batches: mpsc::Receiver<Result<DecodedBatch>>,
    reader: JoinHandle<()>,
    notices: mpsc::UnboundedReceiver<SealNotice>,
    notice_sender: mpsc::UnboundedSender<SealNotice>,
    checkpointing: Option<InFlight>,
    next_checkpoint: Instant,
    /// Something changed since the last snapshot was taken.
    unsaved: bool,
    publishing: Option<JoinHandle<twice_store::Result<()>>>,
    next_publish: Instant,
    unpublished: bool,
    /// A publish failed: the next one takes every window.
    republish: bool,
    /// Ends of what the windows taken last reflect, and of what is shown.
    taken_end: LogOffset,
    shown_end: LogOffset,
    /// Hours close no sooner: their windows could not be published.
    next_close: Instant,
    /// Dedup bytes this run has reported to the budget.
    budgeted: u64,
}

impl Runner {
    /// Starts to read ahead; nothing is applied before [`Runner::run`].
    pub(super) fn new(
        setup: PartitionSetup,
        recovered: Recovered,
        writer: Arc<Mutex<CheckpointWriter>>,
        skips: Arc<HashSet<LogOffset>>,
    ) -> Self {
        let Recovered { children, ledger, watermark, applied_end, hours_open } = recovered;
        let feed = RecordFeed {
            log: setup.parts.log.clone(),
            topic: Topic::AdClicks,
            partition: setup.partition,
            expected: applied_end,
            bytes_max: setup.config.read_bytes_max,
            retry_pause: setup.retry_pause(),
        };
        let reader = LogReader { feed, generation: setup.parts.log.generation(), watermark, skips };
        let (batch_sender, batches) = mpsc::channel(1);
        let (notice_sender, notices) = mpsc::unbounded_channel();
        let now = Instant::now();
        let next_checkpoint = now + Duration::from_millis(setup.config.checkpoint_interval_ms);
        Self {
            unpublished: children.has_unpublished(),
            setup,
            children,
            ledger,
            watermark,
            applied_end,
            hours_open,
            writer,
            batches,
            reader: actix::spawn(reader.run(batch_sender)),
            notices,
            notice_sender,
            checkpointing: None,
            next_checkpoint,
            unsaved: false,
            publishing: None,
            next_publish: now,
            republish: false,
            taken_end: LogOffset(0),
            shown_end: LogOffset(0),
            next_close: now,
            budgeted: 0,
        }
    }

    /// Runs until a stop command, or an error that only a new run can cure.
    pub(super) async fn run(
        &mut self,
        commands: &mut mpsc::Receiver<Command>,
        requests: &mut SealRequests,
    ) -> Result<Stopped> {
        requests.restart();
        self.setup.report(|status| {
            status.phase = PartitionPhase::Running;
            status.checkpoint_end = self.applied_end;
        });
        let unarchived: Vec<Seal> = self.ledger.records().filter_map(|record| record.seal.clone()).collect();
        unarchived.into_iter().for_each(|seal| self.put_seal(seal));
        loop {
            self.do_what_is_due(requests).await?;
            self.report();
            let due = self.next_due(requests);
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Seal { hour, at_or_after, reply }) => requests.ask(hour, at_or_after, reply),
                    Some(Command::Stop { reply }) => {
                        let outcome = self.stop().await;
                        return Ok(Stopped { reply, outcome });
                    }
                    None => return Err(Error::Stopped), // the actor is gone: nobody is left to answer to
                },
                Some(notice) = self.notices.recv() => self.take_notice(notice, requests),
                written = joined(self.checkpointing.as_mut().map(|in_flight| &mut in_flight.task)) => {
                    self.checkpoint_written(written.and_then(|written| written))?;
                }
                published = joined(self.publishing.as_mut()) => {
                    self.published(published.map(|published| published.map_err(Error::from)).and_then(|done| done));
                }
                Some(batch) = self.batches.recv() => self.apply(batch?).await?,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    async fn do_what_is_due(&mut self, requests: &mut SealRequests) -> Result<()> {
        for hour in requests.take_asked() {
            match self.ledger.record(hour) {
                // Committed, and the put is under way: its notice answers.
                Some(record) if record.seal.is_some() => requests.sealed(hour),
                _ => {
                    let notices = self.notice_sender.clone();
                    actix::spawn(sealing::look_up(self.setup.clone(), hour, notices));
                }
            }
        }
        let now = Instant::now();
        if self.publishing.is_none() && self.unpublished && now >= self.next_publish {
            self.begin_publish().await?;
        }
        if self.checkpointing.is_none() {
            let due = requests.due(self.applied_end);
            if !due.is_empty() && now >= self.next_close {
                self.begin_checkpoint(due, requests).await?;
            } else if self.unsaved && now >= self.next_checkpoint {
                self.begin_checkpoint(Vec::new(), requests).await?;
            }
        }
        Ok(())
    }

    fn next_due(&self, requests: &SealRequests) -> Option<Instant> {
        let is_free = self.checkpointing.is_none();
        let publish = (self.publishing.is_none() && self.unpublished).then_some(self.next_publish);
        let checkpoint = (is_free && self.unsaved).then_some(self.next_checkpoint);
        let close = (is_free && !requests.due(self.applied_end).is_empty()).then_some(self.next_close);
        publish.into_iter().chain(checkpoint).chain(close).min()
    }

    async fn apply(&mut self, batch: DecodedBatch) -> Result<()> {
        debug_assert_eq!(batch.first, self.applied_end, "the reader is contiguous");
        for (offset, event_time) in &batch.skipped {
            tracing::error!(partition = %self.setup.partition, %offset, %event_time,
                "copy killed the partition twice and is skipped: its hour is incomplete");
            metrics::counter!(names::SKIPPED_TOTAL).increment(1);
            self.ledger.mark_skipped(*event_time);
        }
        let tallies = self.children.apply(batch.groups, &self.ledger.ends()).await?;
        self.applied_end = batch.end;
        self.watermark = batch.watermark;
        self.unsaved = true;
        self.unpublished |= tallies.counted > 0;
        for hour in batch.hours {
            if tallies.counted > 0 && !self.is_closed(hour) {
                self.hours_open.insert(hour);
            }
        }
        self.keep_within_budget().await?;
        self.count(batch.copies, batch.undecodable, batch.skipped.len() as u64, tallies);
        Ok(())
    }

    fn is_closed(&self, hour: Hour) -> bool {
        let sealed = self.ledger.ends().get(&hour).is_some_and(|end| *end <= self.applied_end);
        sealed || self.setup.rules.is_late(self.watermark.at_next(), hour.end().plus_ms(-1))
    }

    fn count(&self, copies: u64, undecodable: u64, skipped: u64, tallies: Tallies) {
        let Tallies { counted, duplicates, late } = tallies;
        metrics::counter!(names::APPLIED_TOTAL).increment(copies);
        metrics::counter!(names::COUNTED_TOTAL).increment(counted);
        metrics::counter!(names::DUPLICATES_TOTAL).increment(duplicates);
        metrics::counter!(names::LATE_TOTAL).increment(late);
        self.setup.report(|status| {
            status.applied += copies;
            status.counted += counted;
            status.duplicates += duplicates;
            status.late += late;
            status.undecodable += undecodable;
            status.skipped += skipped;
        });
    }

    /// Drops the oldest dedup entries while the node is over its budget and this partition over its share.
    async fn keep_within_budget(&mut self) -> Result<()> {
        self.report_dedup_bytes();
        while self.setup.budget.is_exceeded(self.children.dedup_bytes()) {
            let Some(dropped) = self.children.drop_oldest_dedup().await? else { break };
            self.ledger.mark_dropped(&dropped, self.watermark.at_next());
            tracing::warn!(partition = %self.setup.partition, entries = dropped.entries, earliest = %dropped.earliest,
                latest = %dropped.latest, "dedup_bytes_max reached: oldest identities dropped, hours are incomplete");
            metrics::counter!(names::DEDUP_DROPPED_TOTAL).increment(dropped.entries);
            self.report_dedup_bytes();
        }
        Ok(())
    }

    fn report_dedup_bytes(&mut self) {
        let bytes = self.children.dedup_bytes();
        self.setup.budget.change(std::mem::replace(&mut self.budgeted, bytes), bytes);
        metrics::gauge!(names::DEDUP_BYTES, "partition" => self.setup.label()).set(bytes as f64);
    }

    fn report(&self) {
        self.setup.report(|status| {
            let is_all_shown = !self.unpublished && self.publishing.is_none();
            let shown_end = if is_all_shown { self.applied_end } else { self.shown_end };
            status.applied_end = self.applied_end;
            status.highest_time = self.watermark.highest();
            status.shown_end = shown_end;
            status.hours_unsealed =
                self.hours_open.iter().copied().filter(|hour| self.ledger.record(*hour).is_none()).collect();
            status.hours_incomplete = self.ledger.incomplete_hours();
            status.dedup_bytes = self.children.dedup_bytes();
            status.campaigns = self.children.len() as u64;
        });
    }

    /// Returns the fence of the present state; `None` while nothing is applied.
    fn fence(&self) -> Option<Fence> {
        (self.applied_end > LogOffset(0)).then(|| Fence {
            lease_epoch: self.setup.parts.lease_epoch,
            generation: self.setup.parts.log.generation(),
            applied: LogOffset(self.applied_end.0 - 1),
        })
    }

    /// Takes what changed and publishes it beside the line.
    async fn begin_publish(&mut self) -> Result<()> {
        let Some(fence) = self.fence() else { return Ok(()) };
        let rows = self.children.take_windows(fence, std::mem::take(&mut self.republish)).await?;
        self.unpublished = false;
        self.taken_end = self.applied_end;
        self.next_publish = Instant::now() + Duration::from_millis(self.setup.config.publish_interval_ms);
        let windows = self.setup.parts.windows.clone();
        self.publishing = Some(actix::spawn(async move {
            let since = Instant::now();
            let published = windows.publish(rows).await;
            metrics::histogram!(names::PUBLISH_SECONDS).record(since.elapsed().as_secs_f64());
            published
        }));
        Ok(())
    }

    fn published(&mut self, outcome: Result<()>) {
        self.publishing = None;
        if let Err(error) = outcome {
            tracing::warn!(partition = %self.setup.partition, %error, "windows not published, trying again");
            metrics::counter!(names::PUBLISH_FAILURES_TOTAL).increment(1);
            self.republish = true;
            self.unpublished = true;
            self.next_publish = Instant::now() + self.setup.retry_pause();
        } else {
            self.shown_end = self.taken_end;
        }
    }

    /// Publishes everything and makes it durable before it returns; says whether it could.
    async fn publish_durably(&mut self) -> Result<bool> {
        if self.publishing.is_some() {
            let outcome = joined(self.publishing.as_mut()).await;
            self.published(outcome.and_then(|done| done.map_err(Error::from)));
        }
        let Some(fence) = self.fence() else { return Ok(true) };
        let rows = self.children.take_windows(fence, std::mem::take(&mut self.republish)).await?;
        self.unpublished = false;
        self.taken_end = self.applied_end;
        let windows = &self.setup.parts.windows;
        let mut outcome = windows.publish(rows).await;
        if outcome.is_ok() {
            outcome = windows.flush().await;
        }
        let is_done = outcome.is_ok();
        self.published(outcome.map_err(Error::from));
        Ok(is_done)
    }

    /// Takes a checkpoint at this offset and writes it beside the line; seals the hours given in it (G-3).
    async fn begin_checkpoint(&mut self, sealing: Vec<Hour>, requests: &mut SealRequests) -> Result<()> {
        // An hour sealed before the folder was put back, or in another process's time: closed once its end is reached.
        let is_over = |hour: &Hour| self.ledger.ends().get(hour).is_some_and(|end| *end <= self.applied_end);
        let mut closing: Vec<Hour> = self.hours_open.iter().copied().filter(is_over).collect();
        closing.extend(&sealing);
        // The last values are in the window store, durably, before the commit lets go of them.
        if !closing.is_empty() && !self.publish_durably().await? {
            self.next_checkpoint = self.next_publish;
            self.next_close = self.next_publish;
            return Ok(());
        }
        let counts = self.children.close_hours(closing.clone()).await?;
        let seals = self.make_seals(&sealing, counts);
        for seal in &seals {
            self.ledger.seal(seal.clone());
            requests.sealed(seal.hour);
        }
        self.hours_open.retain(|hour| !closing.contains(hour));
        self.snapshot_and_write(closing, seals).await
    }

    fn make_seals(&self, sealing: &[Hour], counts: Vec<(Hour, CampaignId, u64)>) -> Vec<Seal> {
        let mut by_hour: BTreeMap<Hour, BTreeMap<CampaignId, u64>> = BTreeMap::new();
        for (hour, campaign, counted) in counts {
            by_hour.entry(hour).or_default().insert(campaign, counted);
        }
        let seal = |hour: &Hour| Seal {
            hour: *hour,
            generation: self.setup.parts.log.generation(),
            partition: self.setup.partition,
            end: self.applied_end,
            complete: self.ledger.is_complete(*hour),
            counts: by_hour.remove(hour).unwrap_or_default(),
        };
        sealing.iter().map(seal).collect()
    }

    async fn snapshot_and_write(&mut self, retired_hours: Vec<Hour>, seals: Vec<Seal>) -> Result<()> {
        let since = Instant::now();
        let watermark = self.watermark.at_next();
        let dedup_floor = self.setup.rules.dedup_floor(watermark);
        self.children.expire(watermark, dedup_floor).await?;
        self.report_dedup_bytes();
        self.ledger.prune(watermark);
        let mut writer = self.writer.clone().lock_owned().await;
        let checkpoint = writer.next_number();
        let snapshots = self.children.snapshot(checkpoint, dedup_floor).await?;
        let commit = self.commit(checkpoint, retired_hours);
        let task = tokio::task::spawn_blocking(move || writer.write(CheckpointBatch { commit, snapshots }));
        self.checkpointing = Some(InFlight { task, applied_end: self.applied_end, seals, since });
        self.unsaved = false;
        self.next_checkpoint = since + Duration::from_millis(self.setup.config.checkpoint_interval_ms);
        Ok(())
    }

    fn commit(&self, checkpoint: CheckpointNumber, retired_hours: Vec<Hour>) -> Commit {
        Commit {
            checkpoint,
            generation: self.setup.parts.log.generation(),
            partition: self.setup.partition,
            applied_end: self.applied_end,
            highest_time: self.watermark.highest(),
            settings: self.setup.parts.settings,
            dedup_floor: self.setup.rules.dedup_floor(self.watermark.at_next()),
            retired_hours,
            entries: 0, // set by the writer
            entries_sum: 0,
            incomplete_through: self.ledger.incomplete_through(),
            incomplete_hours: self.ledger.incomplete_hours(),
            seals: self.ledger.records().cloned().collect(),
        }
    }

    fn checkpoint_written(&mut self, outcome: Result<WrittenCheckpoint>) -> Result<()> {
        let Some(in_flight) = self.checkpointing.take() else { return Ok(()) };
        let written = outcome?;
        metrics::histogram!(names::CHECKPOINT_SECONDS).record(in_flight.since.elapsed().as_secs_f64());
        metrics::histogram!(names::CHECKPOINT_BYTES).record(written.bytes as f64);
        tracing::debug!(partition = %self.setup.partition, checkpoint = written.checkpoint.0,
            applied_end = %in_flight.applied_end, entries = written.entries, bytes = written.bytes, "checkpoint committed");
        self.setup.report(|status| status.checkpoint_end = in_flight.applied_end);
        for seal in in_flight.seals {
            tracing::info!(partition = %self.setup.partition, hour = %seal.hour, end = %seal.end,
                complete = seal.complete, campaigns = seal.counts.len(), "hour sealed");
            metrics::counter!(names::SEALS_TOTAL, "complete" => seal.complete.to_string()).increment(1);
            self.put_seal(seal);
        }
        Ok(())
    }

    fn put_seal(&self, seal: Seal) {
        actix::spawn(sealing::put(self.setup.clone(), seal, self.notice_sender.clone()));
    }

    fn take_notice(&mut self, notice: SealNotice, requests: &mut SealRequests) {
        match notice {
            SealNotice::Stored { stored } => self.answer_with(stored, requests),
            SealNotice::LookedUp { found: Some(stored), .. } => self.answer_with(stored, requests),
            SealNotice::LookedUp { hour, found: None } => match self.ledger.record(hour) {
                None => requests.open(hour),
                Some(record) if record.seal.is_some() => requests.sealed(hour),
                Some(_) => {
                    tracing::error!(partition = %self.setup.partition, %hour, "seal vanished from the archive");
                    let partition = self.setup.partition;
                    requests.answer(hour, || Err(Error::SealVanished { partition, hour }));
                }
            },
        }
    }

    fn answer_with(&mut self, stored: StoredSeal, requests: &mut SealRequests) {
        self.ledger.adopt(&stored);
        self.unsaved = true; // the next commit no longer carries the whole seal
        requests.answer(stored.seal.hour, || Ok(stored.clone()));
    }

    /// Applies what was read ahead, publishes durably, checkpoints.
    async fn stop(&mut self) -> Result<()> {
        self.reader.abort();
        while let Some(batch) = self.batches.recv().await {
            self.apply(batch?).await?;
        }
        let is_published = self.publish_durably().await?;
        self.wait_for_checkpoint().await?;
        if self.unsaved {
            self.begin_checkpoint(Vec::new(), &mut SealRequests::default()).await?;
            self.wait_for_checkpoint().await?;
        }
        self.report();
        if is_published { Ok(()) } else { Err(Error::NotPublished { partition: self.setup.partition }) }
    }

    async fn wait_for_checkpoint(&mut self) -> Result<()> {
        if let Some(in_flight) = self.checkpointing.as_mut() {
            let written = joined(Some(&mut in_flight.task)).await;
            self.checkpoint_written(written.and_then(|written| written))?;
        }
        Ok(())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.reader.abort();
        self.setup.budget.change(self.budgeted, 0);
    }
}

/// Waits for a background task; for ever if there is none.
async fn joined<T>(task: Option<&mut JoinHandle<T>>) -> Result<T> {
    match task {
        Some(task) => task.await.map_err(|_| Error::TaskDied { what: "publish or checkpoint" }),
        None => std::future::pending().await,
    }
}
