//! Reads one partition ahead of the counting: contiguous, decoded, watermarked copy by copy, grouped by campaign.
//!
//! Guarantee: a batch begins at the offset after the one before it and has no hole (`feed`).
//! Flow: reserve a place -> read -> decode off the arbiter -> hand over. One batch at most is ahead of the one applied.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use tokio::sync::mpsc;
use twice_log::event::record::decode_click;
use twice_log::{
    CampaignId, ClickCopy, Generation, Hour, LogOffset, PartitionId, Position, UtcMillis, Watermark,
};

use crate::error::{Error, Result};
use crate::feed::RecordFeed;
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
    /// Watermark state after the last record.
    pub(super) watermark: Watermark,
}

/// Reads one partition from an offset on.
pub(super) struct LogReader {
    pub(super) feed: RecordFeed,
    pub(super) generation: Generation,
    pub(super) watermark: Watermark,
    pub(super) skips: Arc<HashSet<LogOffset>>,
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
        let records = self.feed.next().await?;
        let decoder = Decoder {
            partition: self.feed.partition,
            generation: self.generation,
            watermark: self.watermark,
            skips: self.skips.clone(),
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
}

impl Decoder {
    fn decode(mut self, records: Vec<(LogOffset, Bytes)>) -> DecodedBatch {
        let first = records.first().map_or(LogOffset(0), |(offset, _)| *offset);
        let end = records.last().map_or(first, |(offset, _)| offset.next());
        let mut batch = DecodedBatch {
            first,
            end,
            groups: Vec::new(),
            copies: 0,
            undecodable: 0,
            skipped: Vec::new(),
            hours: BTreeSet::new(),
            watermark: self.watermark,
        };
        let mut indices: HashMap<CampaignId, usize> = HashMap::new();
        let mut hour_before = None;
        for (offset, bytes) in records {
            let Some(copy) = self.decode_record(offset, &bytes, &mut batch) else { continue };
            batch.copies += 1;
            let hour = copy.click.event_time.hour();
            if hour_before.replace(hour) != Some(hour) {
                batch.hours.insert(hour);
            }
            match indices.get(&copy.click.campaign_id) {
                Some(index) => batch.groups[*index].1.push(copy),
                None => {
                    let campaign = copy.click.campaign_id.clone();
                    indices.insert(campaign.clone(), batch.groups.len());
                    batch.groups.push((campaign, vec![copy]));
                }
            }
        }
        batch.watermark = self.watermark;
        batch
    }

    fn decode_record(
        &mut self,
        offset: LogOffset,
        bytes: &[u8],
        batch: &mut DecodedBatch,
    ) -> Option<ClickCopy> {
        let click = match decode_click(bytes) {
            Ok(click) => click,
            // No copy, moves no watermark; the archiver puts it into quarantine.
            Err(error) => {
                tracing::warn!(partition = %self.partition, %offset, %error, "record does not decode, passed over");
                metrics::counter!(UNDECODABLE_TOTAL).increment(1);
                batch.undecodable += 1;
                return None;
            }
        };
        let watermark = self.watermark.at_next();
        self.watermark.advance(&click);
        if self.skips.contains(&offset) {
            batch.skipped.push((offset, click.event_time));
            return None;
        }
        let position = Position { generation: self.generation, offset };
        Some(ClickCopy { partition: self.partition, position, watermark, click })
    }
}
