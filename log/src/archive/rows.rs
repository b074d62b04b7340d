//! The rows of one partition that wait for their flush, kept small: names once, everything else as plain numbers.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use compact_str::CompactString;

use crate::event::{Click, Hour, IpHash, LogOffset, UtcMillis, Verdict, payload_hash};

/// One decoded copy of a click, with names as numbers of [`PendingRows`]' tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClickRow {
    pub offset: i64,
    pub event_ms: i64,
    pub arrival_ms: i64,
    /// [`WATERMARK_NONE`] at a generation's start.
    pub watermark_ms: i64,
    pub payload_hash: i64,
    pub click_id: [u8; 16],
    /// All zero where there is none; see `has_ip_hash`.
    pub ip_hash: IpHash,
    pub campaign: u32,
    pub ad: u32,
    pub publisher: u32,
    pub user_length: u8,
    pub has_ip_hash: bool,
    pub schema_version: u8,
    user_start: usize,
}

/// Stands for "no watermark" in a row; no time is that early.
pub(super) const WATERMARK_NONE: i64 = i64::MIN;

/// A record that did not decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineRow {
    pub offset: LogOffset,
    pub bytes: Bytes,
    /// Why it is no record, in words.
    pub reason: String,
}

/// Rows not yet flushed, by hour.
#[derive(Debug, Clone, Default)]
pub(super) struct PendingRows {
    names: Vec<CompactString>,
    numbers: HashMap<CompactString, u32>,
    users: Vec<u8>,
    pub clicks: BTreeMap<Hour, Vec<ClickRow>>,
    pub verdicts: BTreeMap<Hour, Vec<(LogOffset, Verdict)>>,
    pub quarantine: Vec<QuarantineRow>,
    rows: usize,
    other_bytes: usize,
}

impl PendingRows {
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns about how many bytes of memory the rows take.
    pub fn bytes(&self) -> usize {
        // A name stands in the table and in the map; twice its struct and some slack for the map.
        let names_bytes = self.names.len() * 3 * size_of::<CompactString>();
        self.rows * size_of::<ClickRow>() + self.users.len() + names_bytes + self.other_bytes
    }

    pub fn push_click(&mut self, offset: LogOffset, watermark: Option<UtcMillis>, click: &Click) {
        let user = click.user_id.as_str().as_bytes();
        let row = ClickRow {
            offset: offset.0,
            event_ms: click.event_time.epoch_ms(),
            arrival_ms: click.arrival_time.epoch_ms(),
            watermark_ms: watermark.map_or(WATERMARK_NONE, UtcMillis::epoch_ms),
            payload_hash: payload_hash(click),
            click_id: *click.click_id.as_bytes(),
            ip_hash: click.ip_hash.unwrap_or_default(),
            campaign: self.number(click.campaign_id.as_str()),
            ad: self.number(click.ad_id.as_str()),
            publisher: self.number(click.publisher_id.as_str()),
            user_length: user.len() as u8, // identifiers are at most 64 bytes
            has_ip_hash: click.ip_hash.is_some(),
            schema_version: click.schema_version,
            user_start: self.users.len(),
        };
        self.users.extend_from_slice(user);
        self.clicks.entry(click.event_time.hour()).or_default().push(row);
        self.rows += 1;
    }

    pub fn push_verdict(&mut self, offset: LogOffset, verdict: Verdict) {
        self.other_bytes += size_of::<Verdict>();
        self.verdicts.entry(verdict.arrival_time.hour()).or_default().push((offset, verdict));
        self.rows += 1;
    }

    pub fn push_quarantine(&mut self, offset: LogOffset, bytes: &[u8], reason: String) {
        self.other_bytes += bytes.len() + reason.len() + size_of::<QuarantineRow>();
        self.quarantine.push(QuarantineRow { offset, bytes: Bytes::copy_from_slice(bytes), reason });
        self.rows += 1;
    }

    /// Forgets the rows below `end`: another archiver's manifest has them.
    pub fn drop_below(&mut self, end: LogOffset) {
        for rows in self.clicks.values_mut() {
            rows.retain(|row| row.offset >= end.0);
        }
        for rows in self.verdicts.values_mut() {
            rows.retain(|(offset, _)| *offset >= end);
        }
        self.quarantine.retain(|row| row.offset >= end);
        self.clicks.retain(|_, rows| !rows.is_empty());
        self.verdicts.retain(|_, rows| !rows.is_empty());
        self.rows = self.clicks.values().map(Vec::len).sum::<usize>()
            + self.verdicts.values().map(Vec::len).sum::<usize>()
            + self.quarantine.len();
    }

    /// Returns the name with this number.
    pub fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("", CompactString::as_str)
    }

    /// Returns the user of a row.
    pub fn user(&self, row: &ClickRow) -> &str {
        let bytes = self.users.get(row.user_start..row.user_start + usize::from(row.user_length));
        // Whole identifiers went in, so whole UTF-8 comes out.
        bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or("")
    }

    /// Returns, for each name's number, its place in the order of names: rows sort by it without comparing text.
    pub fn ranks(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.names.len() as u32).collect();
        order.sort_unstable_by(|left, right| self.name(*left).cmp(self.name(*right)));
        let mut ranks = vec![0; order.len()];
        for (rank, number) in order.into_iter().enumerate() {
            ranks[number as usize] = rank as u32;
        }
        ranks
    }

    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u32; // bounded by three times the rows of a flush
        self.names.push(CompactString::new(name));
        self.numbers.insert(CompactString::new(name), number);
        number
    }
}
