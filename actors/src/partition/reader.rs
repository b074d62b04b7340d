//! Reads one partition ahead of the counting: contiguous, decoded, watermarked copy by copy, grouped by campaign.
//!
//! Guarantee: a batch begins at the offset after the one before it and has no hole; a hole is read again, for ever if
//! need be, and never passed over (FACTS: clients skip records in silence).
//! Flow: reserve a place -> read -> decode off the arbiter -> hand over. One batch at most is ahead of the one applied.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use tokio::sync::mpsc;
use twice_log::event::record::decode_click;
use twice_log::hot::ClickLog;
use twice_log::{
    CampaignId, ClickCopy, Generation, Hour, LogOffset, PartitionId, Position, Topic, UtcMillis, Watermark,
};

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{HOLES_TOTAL, UNDECODABLE_TOTAL};

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
    pub(super) log: Arc<dyn ClickLog>,
    pub(super) partition: PartitionId,
    pub(super) generation: Generation,
    /// Offset the next record must have.
    pub(super) expected: LogOffset,
    pub(super) watermark: Watermark,
    pub(super) bytes_max: usize,
    pub(super) retry_pause: Duration,
    pub(super) skips: Arc<HashSet<LogOffset>>,
}

impl LogReader {
    /// Reads until the receiver is gone; ends after the first error it cannot wait out.
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
        loop {
            match self.read_contiguous().await {
                Ok(records) if records.is_empty() => {
                    self.log.wait_for(Topic::AdClicks, self.partition, self.expected).await?;
                }
                Ok(records) => return self.decode(records).await,
                Err(error) if error.kind() == ErrorKind::Retry || is_hole(&error) => {
                    tracing::warn!(partition = %self.partition, offset = %self.expected, %error,
                        "read failed, reading again from the offset expected");
                    tokio::time::sleep(self.retry_pause).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads from the offset expected, up to the first hole.
    async fn read_contiguous(&self) -> Result<Vec<(LogOffset, Bytes)>> {
        let read = self.log.read(Topic::AdClicks, self.partition, self.expected, self.bytes_max).await?;
        let mut records = read.records;
        let mut expected = self.expected;
        for (index, (offset, _)) in records.iter().enumerate() {
            if *offset != expected {
                metrics::counter!(HOLES_TOTAL).increment(1);
                tracing::warn!(partition = %self.partition, %expected, read = %offset,
                    "hole in the log, reopening");
                if index == 0 {
                    let (topic, partition, read) = (Topic::AdClicks, self.partition, *offset);
                    return Err(twice_log::Error::Hole { topic, partition, expected, read }.into());
                }
                records.truncate(index);
                break;
            }
            expected = expected.next();
        }
        Ok(records)
    }

    async fn decode(&mut self, records: Vec<(LogOffset, Bytes)>) -> Result<DecodedBatch> {
        let decoder = Decoder {
            partition: self.partition,
            generation: self.generation,
            watermark: self.watermark,
            skips: self.skips.clone(),
        };
        let batch = tokio::task::spawn_blocking(move || decoder.decode(records))
            .await
            .map_err(|_| Error::TaskDied { what: "decoding a batch" })?;
        self.expected = batch.end;
        self.watermark = batch.watermark;
        Ok(batch)
    }
}

fn is_hole(error: &Error) -> bool {
    matches!(error, Error::Log(twice_log::Error::Hole { .. }))
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
