//! Tests of the archive as a whole, and what they share: seeded clicks and the naive model they are compared with.

mod chain;
mod crash;
pub(super) mod faulty;
mod files;
mod layouts;
mod local;
mod outage;
mod records;
mod writer;

use std::sync::Arc;

use object_store::memory::InMemory;
use xxhash_rust::xxh3::xxh3_64;

use super::{Archive, ArchiverSettings, ChainKey, FileKind, PartitionArchiver, StoredManifest};
use crate::event::record::encode_click;
use crate::event::{
    AdId, CampaignId, Click, ClickCopy, ClickId, Generation, LogOffset, PartitionId, Position, PublisherId,
    Topic, UserId, UtcMillis, Watermark,
};
use crate::fail::FailPoints;

const CLICKS: ChainKey =
    ChainKey { topic: Topic::AdClicks, generation: Generation(0), partition: PartitionId(3) };
const VERDICTS: ChainKey = ChainKey { topic: Topic::FraudVerdicts, ..CLICKS };
const PARTITIONS: u32 = 8;

fn memory() -> Archive {
    Archive::new(Arc::new(InMemory::new()), "memory")
}

async fn archiver(archive: &Archive) -> PartitionArchiver {
    open(archive, CLICKS, ArchiverSettings::default()).await
}

async fn open(archive: &Archive, chain: ChainKey, settings: ArchiverSettings) -> PartitionArchiver {
    PartitionArchiver::open(archive.clone(), chain, PARTITIONS, settings, FailPoints::default())
        .await
        .expect("opens")
}

/// A number that looks random, the same for the same question.
fn noise(question: &str, number: u64) -> u64 {
    xxh3_64(format!("{question}:{number}").as_bytes())
}

fn noise16(question: &str, number: u64) -> [u8; 16] {
    let (high, low) = (noise(question, number), noise(question, number ^ (1 << 63)));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_le_bytes());
    bytes[8..].copy_from_slice(&low.to_le_bytes());
    bytes
}

/// A pseudonym as the gateway makes it: 22 characters of base64url over 16 bytes.
fn pseudonym(user: u64) -> UserId {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = u128::from_le_bytes(noise16("user", user));
    let text: String =
        (0..22).map(|place| char::from(ALPHABET[((bits >> (place * 6)) & 63) as usize])).collect();
    UserId::new(text).expect("valid")
}

/// The `number`th click of a stream of 200 a second that begins shortly before an hour's end; some come late.
fn click(number: u64) -> Click {
    let start: UtcMillis = "2025-01-15T12:59:58Z".parse().expect("valid time");
    let arrival_time = start.plus_ms(number as i64 * 5);
    let delay_ms = if noise("late", number).is_multiple_of(50) { 20_000 } else { 300 };
    let campaign = ((noise("campaign", number) % 1_000_000) as f64 / 1e6).powi(4) * 10_000.0;
    let user = noise("which user", number) % 2_000_000;
    Click {
        campaign_id: CampaignId::new(format!("camp_{:05}", campaign as u64)).expect("valid"),
        click_id: ClickId::from_bytes(noise16("click", number)),
        ad_id: AdId::new(format!("ad_{:05}_{}", campaign as u64, noise("ad", number) % 5)).expect("valid"),
        user_id: pseudonym(user),
        publisher_id: PublisherId::new(format!("pub_{}", noise("publisher", number) % 2_000)).expect("valid"),
        event_time: arrival_time.plus_ms(-((noise("delay", number) % delay_ms) as i64)),
        arrival_time,
        ip_hash: Some(noise16("ip", user)),
        schema_version: if number.is_multiple_of(97) { 1 } else { 2 },
    }
    .upgraded()
}

trait Upgraded {
    fn upgraded(self) -> Self;
}

impl Upgraded for Click {
    /// What a record of version 1 says once read.
    fn upgraded(mut self) -> Self {
        if self.schema_version == 1 {
            self.publisher_id = PublisherId::default();
            self.ip_hash = None;
        }
        self
    }
}

/// The record at `offset` of the test's log: every 31st does not decode.
fn record(offset: u64) -> Vec<u8> {
    if is_broken(offset) {
        return format!("no record {offset}").into_bytes();
    }
    let mut bytes = Vec::new();
    encode_click(&click(offset), &mut bytes);
    bytes
}

fn is_broken(offset: u64) -> bool {
    offset % 31 == 30
}

fn push_until(archiver: &mut PartitionArchiver, end: u64) {
    for offset in archiver.next_offset().0 as u64..end {
        archiver.push(LogOffset(offset as i64), &record(offset)).expect("takes the record");
    }
}

/// What must stand in the archive for the offsets below `end`, in offset order: the naive model.
fn expected_copies(end: u64) -> Vec<ClickCopy> {
    let mut watermark = Watermark::new(None, ArchiverSettings::default().disorder_ms);
    let mut copies = Vec::new();
    for offset in (0..end).filter(|offset| !is_broken(*offset)) {
        let click = click(offset);
        let position = Position { generation: CLICKS.generation, offset: LogOffset(offset as i64) };
        let partition = CLICKS.partition;
        copies.push(ClickCopy { partition, position, watermark: watermark.at_next(), click: click.clone() });
        watermark.advance(&click);
    }
    copies
}

/// Reads every committed file: the copies in offset order, and the offsets in quarantine.
async fn archived(archive: &Archive) -> (Vec<ClickCopy>, Vec<u64>) {
    let (mut copies, mut quarantined) = (Vec::new(), Vec::new());
    for StoredManifest { manifest, .. } in archive.manifests(CLICKS, None).await.expect("a whole chain") {
        for file in &manifest.files {
            match file.kind {
                FileKind::Clicks => copies.extend(archive.read_clicks(file, None).await.expect("reads")),
                FileKind::Quarantine => {
                    let rows = archive.read_quarantine(file).await.expect("reads");
                    assert!(rows.iter().all(|row| row.bytes == record(row.offset.0 as u64)));
                    quarantined.extend(rows.iter().map(|row| row.offset.0 as u64));
                }
                FileKind::Verdicts => panic!("a verdict among clicks"),
            }
        }
    }
    copies.sort_by_key(|copy| copy.position);
    (copies, quarantined)
}

/// Asserts that the archive holds each record below `end` once, with the watermark of the naive model.
async fn assert_archived(archive: &Archive, end: u64) {
    let (copies, mut quarantined) = archived(archive).await;
    quarantined.sort_unstable();
    assert_eq!(quarantined, (0..end).filter(|offset| is_broken(*offset)).collect::<Vec<_>>());
    assert!(copies == expected_copies(end), "the archive differs from the naive model below {end}");
}
