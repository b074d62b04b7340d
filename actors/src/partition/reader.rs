//! Reads one partition ahead of the counting: contiguous, decoded, watermarked copy by copy, grouped by campaign.
//!
//! Guarantee: a batch begins at the offset after the one before it and has no hole (`feed`).
//! Flow: reserve a place -> read -> decode off the arbiter -> hand over. One batch at most is ahead of the one applied.
//! Where state is rebuilt from before the log's beginning, the archive is read first (`archived`), then the log.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use tokio::sync::mpsc;
use twice_log::event::record::decode_click;
use twice_log::{
    CampaignId, Click, ClickCopy, Clock, Generation, Hour, LogOffset, PartitionId, Position, UtcMillis,
    Watermark,
};

use super::archived::ArchivedClicks;
use crate::error::{Error, Result};
use crate::feed::RecordFeed;
use crate::freshness::{BatchAges, FreshnessMeter};
use crate::metrics::UNDECODABLE_TOTAL;

/// Copies of contiguous records, grouped by campaign.
#[derive(Debug)]
pub(super) struct DecodedBatch {
    pub(super) first: LogOffset,
    /// Exclusive.
    pub(super) end: LogOffset,
    pub(super) groups: Vec<(CampaignId, Vec<ClickCopy>)>,
    pub(super) copies: u64,
    pub(super) undecodable: u64,
    /// Copies left out because they killed the partition before.
    pub(super) skipped: Vec<(LogOffset, UtcMillis)>,
    /// Event hours of the copies.
    pub(super) hours: BTreeSet<Hour>,
    /// Ages of the copies when they were read; `None` where they come from the archive.
    pub(super) ages: Option<Box<BatchAges>>,
    /// Watermark state after the last record.
    pub(super) watermark: Watermark,
}

/// Reads one partition from an offset on.
pub(super) struct LogReader {
    pub(super) feed: RecordFeed,
    /// What is read before the log.
    pub(super) archived: Option<ArchivedClicks>,
    pub(super) generation: Generation,
    pub(super) watermark: Watermark,
    pub(super) skips: Arc<HashSet<LogOffset>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) freshness: Arc<FreshnessMeter>,
}

impl LogReader {
    /// Reads until the receiver is gone; ends after the first error that reading again does not cure.
    pub(super) async fn run(mut self, batches: mpsc::Sender<Result<DecodedBatch>>) {
        // The place is reserved before the read: memory holds this batch and the one being applied, no more.
        while let Ok(place) = batches.reserve().await {
            let read = self.next().await;
            let failed = read.is_err();
            place.send(read);
            if failed {
                return;
            }
        }
    }

    async fn next(&mut self) -> Result<DecodedBatch> {
        if let Some(archived) = &mut self.archived {
            let read = archived.next(self.feed.expected, self.watermark, &self.skips).await?;
            if let Some(batch) = read {
                self.feed.expected = batch.end;
                self.watermark = batch.watermark;
                return Ok(batch);
            }
            self.archived = None;
        }
        let records = self.feed.next().await?;
        let decoder = Decoder {
            partition: self.feed.partition,
            generation: self.generation,
            watermark: self.watermark,
            skips: self.skips.clone(),
            ages: self.freshness.batch(self.clock.now()),
        };
        let batch = tokio::task::spawn_blocking(move || decoder.decode(records))
            .await
            .map_err(|_| Error::TaskDied { what: "decoding a batch" })?;
        self.watermark = batch.watermark;
        Ok(batch)
    }
}

/// Decodes records in offset order; on a blocking thread, so that it overlaps with the counting.
struct Decoder {
    partition: PartitionId,
    generation: Generation,
    watermark: Watermark,
    skips: Arc<HashSet<LogOffset>>,
    ages: Box<BatchAges>,
}

impl Decoder {
    fn decode(mut self, records: Vec<(LogOffset, Bytes)>) -> DecodedBatch {
        let first = records.first().map_or(LogOffset(0), |(offset, _)| *offset);
        let end = records.last().map_or(first, |(offset, _)| offset.next());
        let mut builder = BatchBuilder::new(first, self.watermark);
        for (offset, bytes) in records {
            self.decode_record(offset, &bytes, &mut builder);
        }
        builder.batch.ages = Some(self.ages);
        builder.finish(end)
    }

    fn decode_record(&mut self, offset: LogOffset, bytes: &[u8], builder: &mut BatchBuilder) {
        let click = match decode_click(bytes) {
            Ok(click) => click,
            // No copy, moves no watermark; the archiver puts it into quarantine.
            Err(error) => {
                tracing::warn!(partition = %self.partition, %offset, %error, "record does not decode, passed over");
                metrics::counter!(UNDECODABLE_TOTAL).increment(1);
                builder.batch.undecodable += 1;
                return;
            }
        };
        let watermark = builder.batch.watermark.at_next();
        builder.advance(&click);
        if self.skips.contains(&offset) {
            builder.skip(offset, click.event_time);
            return;
        }
        self.ages.add(&click);
        let position = Position { generation: self.generation, offset };
        builder.push(ClickCopy { partition: self.partition, position, watermark, click });
    }
}

/// Gathers the copies of contiguous offsets by campaign.
pub(super) struct BatchBuilder {
    batch: DecodedBatch,
    indices: HashMap<CampaignId, usize>,
    hour_before: Option<Hour>,
}

impl BatchBuilder {
    /// Starts a batch at `first`; `watermark` is of the offsets below.
    pub(super) fn new(first: LogOffset, watermark: Watermark) -> Self {
        let batch = DecodedBatch {
            first,
            end: first,
            groups: Vec::new(),
            copies: 0,
            undecodable: 0,
            skipped: Vec::new(),
            hours: BTreeSet::new(),
            ages: None,
            watermark,
        };
        Self { batch, indices: HashMap::new(), hour_before: None }
    }

    /// Lets the watermark see a click, whether it is then pushed or skipped.
    pub(super) fn advance(&mut self, click: &Click) {
        self.batch.watermark.advance(click);
    }

    /// Leaves out a copy that killed the partition before.
    pub(super) fn skip(&mut self, offset: LogOffset, event_time: UtcMillis) {
        self.batch.skipped.push((offset, event_time));
    }

    /// Adds a copy.
    pub(super) fn push(&mut self, copy: ClickCopy) {
        let batch = &mut self.batch;
        batch.copies += 1;
        let hour = copy.click.event_time.hour();
        if self.hour_before.replace(hour) != Some(hour) {
            batch.hours.insert(hour);
        }
        match self.indices.get(&copy.click.campaign_id) {
            Some(index) => batch.groups[*index].1.push(copy),
            None => {
                let campaign = copy.click.campaign_id.clone();
                self.indices.insert(campaign.clone(), batch.groups.len());
                batch.groups.push((campaign, vec![copy]));
            }
        }
    }

    /// Returns the batch, which covers the offsets below `end`.
    pub(super) fn finish(mut self, end: LogOffset) -> DecodedBatch {
        self.batch.end = end;
        self.batch
    }
}
