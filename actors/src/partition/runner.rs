//! One run of a partition: applies batches, publishes, checkpoints and seals, until it is stopped or fails.
//!
//! Guarantee: between two batches every campaign reflects exactly the records below `applied_end`; windows, snapshots
//! and seals are taken there and nowhere else. A failed step ends the run; the next one starts from the checkpoint.
//! Flow: this file drives and applies; `publishing` shows windows, `checkpointing` saves, seals and lets campaigns rest.

mod checkpointing;
mod publishing;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use twice_log::archive::Seal;
use twice_log::fail::FailPoint;
use twice_log::{Hour, LogOffset, Topic, UtcMillis, Watermark};

use super::children::Children;
use super::hours::HourLedger;
use super::messages::Command;
use super::reader::{DecodedBatch, LogReader};
use super::recovery::Recovered;
use super::sealing::{self, SealNotice, SealRequests};
use super::setup::PartitionSetup;
use super::status::PartitionPhase;
use crate::campaign::Tallies;
use crate::checkpoint::{CheckpointWriter, WrittenCheckpoint};
use crate::error::{Error, Result};
use crate::feed::RecordFeed;
use crate::freshness::AgesWaiting;
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
    highest_time: Option<UtcMillis>,
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
    /// Which opening of the store holds what was shown.
    opening: u64,
    /// Since when something is not shown; `None` while everything is.
    waiting_since: Option<Instant>,
    /// Ends of what the windows taken last reflect, and of what is shown.
    taken_end: LogOffset,
    shown_end: LogOffset,
    /// Ages of the clicks applied and not shown yet.
    ages: AgesWaiting,
    /// Hours close no sooner: their windows could not be published.
    next_close: Instant,
    /// Campaigns at rest whose windows are being shown; hours close once that is done.
    showing: Option<JoinHandle<Result<()>>>,
    /// Idle campaigns are looked for no sooner.
    next_rest: Instant,
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
        let Recovered { children, ledger, watermark, applied_end, hours_open, archived } = recovered;
        let feed = RecordFeed {
            log: setup.parts.log.clone(),
            topic: Topic::AdClicks,
            partition: setup.partition,
            expected: applied_end,
            bytes_max: setup.config.read_bytes_max,
            retry_pause: setup.retry_pause(),
        };
        let generation = setup.parts.log.generation();
        let (clock, freshness) = (setup.parts.clock.clone(), setup.freshness.clone());
        let reader = LogReader { feed, archived, generation, watermark, skips, clock, freshness };
        let (batch_sender, batches) = mpsc::channel(1);
        let (notice_sender, notices) = mpsc::unbounded_channel();
        let opening = setup.parts.windows.openings();
        let now = Instant::now();
        let next_checkpoint = now + Duration::from_millis(setup.config.checkpoint_interval_ms);
        Self {
            unpublished: false,
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
            opening,
            waiting_since: None,
            taken_end: LogOffset(0),
            shown_end: LogOffset(0),
            ages: AgesWaiting::default(),
            next_close: now,
            showing: None,
            next_rest: now,
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
            status.checkpoint_time = self.watermark.highest();
        });
        self.begin_showing();
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
                shown = joined(self.showing.as_mut()) => {
                    self.showing = None;
                    shown.and_then(|shown| shown)?;
                    self.unsaved |= !self.hours_over().is_empty(); // they waited for this
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
        self.look_at_store();
        let now = Instant::now();
        if self.publishing.is_none() && self.unpublished && now >= self.next_publish {
            self.begin_publish().await?;
        }
        if self.checkpointing.is_none() {
            let due = requests.due(self.applied_end);
            if !due.is_empty() && now >= self.next_close && self.showing.is_none() {
                self.begin_checkpoint(due, requests).await?;
            } else if self.unsaved && now >= self.next_checkpoint {
                self.begin_checkpoint(Vec::new(), requests).await?;
            }
        }
        if self.is_settled() && now >= self.next_rest {
            self.rest_idle().await?;
        }
        Ok(())
    }

    fn next_due(&self, requests: &SealRequests) -> Option<Instant> {
        let is_free = self.checkpointing.is_none();
        let publish = (self.publishing.is_none() && self.unpublished).then_some(self.next_publish);
        let checkpoint = (is_free && self.unsaved).then_some(self.next_checkpoint);
        let closes = is_free && self.showing.is_none() && !requests.due(self.applied_end).is_empty();
        let close = closes.then_some(self.next_close);
        let rest = self.is_settled().then_some(self.next_rest);
        publish.into_iter().chain(checkpoint).chain(close).chain(rest).min()
    }

    async fn apply(&mut self, batch: DecodedBatch) -> Result<()> {
        debug_assert_eq!(batch.first, self.applied_end, "the reader is contiguous");
        self.setup.parts.fail_points.pass(FailPoint::StreamApplying);
        self.setup.parts.fail_points.hold(FailPoint::StreamApplying).await;
        for (offset, event_time) in &batch.skipped {
            tracing::error!(partition = %self.setup.partition, %offset, %event_time,
                "copy killed the partition twice and is skipped: its hour is incomplete");
            metrics::counter!(names::SKIPPED_TOTAL).increment(1);
            self.ledger.mark_skipped(*event_time);
        }
        // Asked before: whatever closes within the batch may have windows from its part below.
        let open: Vec<Hour> = batch.hours.iter().copied().filter(|hour| !self.is_closed(*hour)).collect();
        if self.children.awaits_checkpoint(&batch.groups) {
            self.wait_for_checkpoint().await?;
        }
        let spend = &self.setup.parts.spend;
        let (tallies, woken) = self.children.apply(batch.groups, &self.ledger.ends(), spend).await?;
        self.applied_end = batch.end;
        self.watermark = batch.watermark;
        self.unsaved = true;
        self.unpublished |= tallies.counted > 0 || woken > 0;
        if self.unpublished {
            self.waiting_since.get_or_insert_with(Instant::now);
        }
        if tallies.counted > 0 {
            self.hours_open.extend(open);
            batch.ages.into_iter().for_each(|ages| self.ages.push(ages));
        }
        self.keep_within_budget().await?;
        self.count(batch.copies, batch.undecodable, batch.skipped.len() as u64, tallies);
        Ok(())
    }

    /// Returns whether no copy of the hour is counted from the applied offset on.
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
        let (active, resting) = (self.children.len() as f64, self.children.len_resting() as f64);
        metrics::gauge!(names::CAMPAIGNS_ACTIVE, "partition" => self.setup.label()).set(active);
        metrics::gauge!(names::CAMPAIGNS_RESTING, "partition" => self.setup.label()).set(resting);
    }

    fn report(&self) {
        self.setup.report(|status| {
            let is_all_shown = !self.unpublished && self.publishing.is_none();
            let shown_end = match self.showing {
                // Windows of campaigns at rest may be missing, however new those published by the line are.
                Some(_) => LogOffset(0),
                None if is_all_shown => self.applied_end,
                None => self.shown_end,
            };
            status.applied_end = self.applied_end;
            status.highest_time = self.watermark.highest();
            status.shown_end = shown_end;
            status.waiting_since = self.waiting_since.map(Instant::into_std);
            status.hours_unsealed =
                self.hours_open.iter().copied().filter(|hour| self.ledger.record(*hour).is_none()).collect();
            status.hours_incomplete = self.ledger.incomplete_hours();
            status.dedup_bytes = self.children.dedup_bytes();
            status.campaigns = self.children.len() as u64;
            status.campaigns_resting = self.children.len_resting() as u64;
        });
    }

    /// Applies what was read ahead, publishes durably, checkpoints.
    async fn stop(&mut self) -> Result<()> {
        self.reader.abort();
        if let Some(showing) = &self.showing {
            showing.abort(); // it stays set: no hour closes any more, and the next start shows them again
        }
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
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.reader.abort();
        if let Some(showing) = &self.showing {
            showing.abort();
        }
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
