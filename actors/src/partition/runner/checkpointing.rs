//! Checkpoints and seals of a run: what is taken between two batches and written beside the line; and what rests.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use twice_log::archive::{Seal, StoredSeal};
use twice_log::{CampaignId, Hour};

use super::super::sealing::{self, SealNotice, SealRequests};
use super::{InFlight, Runner, joined};
use crate::checkpoint::{CheckpointBatch, CheckpointNumber, Commit, WrittenCheckpoint};
use crate::error::{Error, Result};
use crate::metrics as names;

/// Idle campaigns are looked for at least this often.
const REST_INTERVAL_MAX: Duration = Duration::from_secs(60);

impl Runner {
    /// Takes a checkpoint at this offset and writes it beside the line; seals the hours given in it (G-3).
    pub(super) async fn begin_checkpoint(
        &mut self,
        mut sealing: Vec<Hour>,
        requests: &mut SealRequests,
    ) -> Result<()> {
        let mut closing = self.hours_over();
        closing.extend(&sealing);
        if self.showing.is_some() {
            debug_assert!(sealing.is_empty(), "hours are sealed once all windows are shown");
            closing.clear();
        }
        // The last values are in the window store, durably, before the commit lets go of them.
        if !closing.is_empty() && !self.publish_durably().await? {
            self.next_close = self.next_publish;
            if !self.unsaved || Instant::now() < self.next_checkpoint {
                return Ok(());
            }
            // The hours stay open; what was applied is saved all the same, however long the store is down.
            closing.clear();
            sealing.clear();
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

    /// Returns the open hours whose seal's end is reached: sealed before the folder was put back, or in another
    /// process's time.
    pub(super) fn hours_over(&self) -> Vec<Hour> {
        let ends = self.ledger.ends();
        let is_over = |hour: &Hour| ends.get(hour).is_some_and(|end| *end <= self.applied_end);
        self.hours_open.iter().copied().filter(is_over).collect()
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
        self.ledger.prune(watermark, &self.hours_open);
        let mut writer = self.writer.clone().lock_owned().await;
        let checkpoint = writer.next_number();
        let snapshots = self.children.snapshot(checkpoint, dedup_floor).await?;
        let shed = self.children.resting().named();
        let batch = CheckpointBatch { commit: self.commit(checkpoint, retired_hours), snapshots, shed };
        let task = tokio::task::spawn_blocking(move || writer.write(batch));
        let (applied_end, highest_time) = (self.applied_end, self.watermark.highest());
        self.checkpointing = Some(InFlight { task, applied_end, highest_time, seals, since });
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

    pub(super) fn checkpoint_written(&mut self, outcome: Result<WrittenCheckpoint>) -> Result<()> {
        let Some(in_flight) = self.checkpointing.take() else { return Ok(()) };
        let written = outcome?;
        metrics::histogram!(names::CHECKPOINT_SECONDS).record(in_flight.since.elapsed().as_secs_f64());
        metrics::histogram!(names::CHECKPOINT_BYTES).record(written.bytes as f64);
        tracing::debug!(partition = %self.setup.partition, checkpoint = written.checkpoint.0,
            applied_end = %in_flight.applied_end, entries = written.entries, bytes = written.bytes, "checkpoint committed");
        self.children.resting().shed(written.shed);
        self.setup.report(|status| {
            status.checkpoint_end = in_flight.applied_end;
            status.checkpoint_time = in_flight.highest_time;
        });
        for seal in in_flight.seals {
            tracing::info!(partition = %self.setup.partition, hour = %seal.hour, end = %seal.end,
                complete = seal.complete, campaigns = seal.counts.len(), "hour sealed");
            metrics::counter!(names::SEALS_TOTAL, "complete" => seal.complete.to_string()).increment(1);
            self.put_seal(seal);
        }
        Ok(())
    }

    /// Lets idle campaigns leave memory, if all they hold is in the last commit and in the windows shown.
    pub(super) async fn rest_idle(&mut self) -> Result<()> {
        let idle = Duration::from_millis(self.setup.config.campaign_idle_ms);
        self.next_rest = Instant::now() + (idle / 4).min(REST_INTERVAL_MAX);
        self.children.rest_idle(idle).await
    }

    /// Returns whether the last commit and the store of windows have all that was taken for them.
    pub(super) fn is_settled(&self) -> bool {
        self.checkpointing.is_none() && self.publishing.is_none() && !self.republish
    }

    pub(super) fn put_seal(&self, seal: Seal) {
        actix::spawn(sealing::put(self.setup.clone(), seal, self.notice_sender.clone()));
    }

    pub(super) fn take_notice(&mut self, notice: SealNotice, requests: &mut SealRequests) {
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
        self.ledger.adopt([&stored]);
        self.unsaved = true; // the next commit no longer carries the whole seal
        requests.answer(stored.seal.hour, || Ok(stored.clone()));
    }

    pub(super) async fn wait_for_checkpoint(&mut self) -> Result<()> {
        if let Some(in_flight) = self.checkpointing.as_mut() {
            let written = joined(Some(&mut in_flight.task)).await;
            self.checkpoint_written(written.and_then(|written| written))?;
        }
        Ok(())
    }
}
