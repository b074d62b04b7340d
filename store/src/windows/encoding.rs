//! Keys and values of window rows as bytes.
//!
//! Key: `hour | campaign | 0x00 | minute`: hours since 1970 + 2^31 as u32 BE, the campaign's id, a zero (ids are visible
//! ASCII, so no id is a prefix of another key), the minute of the hour as u8. Hour first, so that an hour is removed as
//! one range and the newest hours stand together; campaign next, so that a campaign's minutes are one short range.
//!
//! Value: `version u8 | crc32c u32 LE | lease_epoch u64 LE | generation u32 LE | applied i64 LE | clicks u64 LE | users |
//! number of ads u32 LE | per ad: length of its id u8, id, clicks u64 LE, users`, sketches as `UserSketch` writes them.
//! The checksum covers the key and everything after itself: a value under another key does not read.

use twice_log::{AdId, CampaignId, Generation, Hour, LogOffset, UtcMillis};

use super::{AdCounts, Fence, WindowRow};
use crate::error::{Error, Result};
use crate::sketch::UserSketch;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;
const HOUR_BYTES: usize = 4;
const MINUTE_MS: i64 = 60_000;

/// Returns the first key of an hour. Hours outside the calendar's years 0 to 9999 do not occur and are clamped.
pub(super) fn hour_prefix(hour: Hour) -> [u8; HOUR_BYTES] {
    let shifted = hour.since_epoch().saturating_add(1 << 31).clamp(0, i64::from(u32::MAX));
    (shifted as u32).to_be_bytes()
}

/// Returns the hour of a key.
pub(super) fn hour_of(key: &[u8]) -> Result<Hour> {
    let prefix = key.first_chunk::<HOUR_BYTES>().ok_or_else(|| damage("a key is too short"))?;
    Ok(Hour::from_since_epoch(i64::from(u32::from_be_bytes(*prefix)) - (1 << 31)))
}

/// Returns the key of one minute.
pub(super) fn key(campaign: &CampaignId, hour: Hour, minute: u8) -> Vec<u8> {
    let mut key = Vec::with_capacity(HOUR_BYTES + campaign.as_str().len() + 2);
    key.extend(hour_prefix(hour));
    key.extend(campaign.as_str().as_bytes());
    key.extend([0, minute]);
    key
}

/// Returns the key of a row.
pub(super) fn key_of(row: &WindowRow) -> Vec<u8> {
    key(&row.campaign_id, row.window_start.hour(), minute_of(row.window_start))
}

/// Returns the minute of its hour.
pub(super) fn minute_of(time: UtcMillis) -> u8 {
    ((time.epoch_ms() - time.hour().start().epoch_ms()) / MINUTE_MS) as u8 // 0 to 59
}

/// Returns the value of a row under `key`.
pub(super) fn encode(key: &[u8], row: &WindowRow) -> Vec<u8> {
    let mut bytes = vec![VERSION, 0, 0, 0, 0];
    bytes.extend(row.fence.lease_epoch.to_le_bytes());
    bytes.extend(row.fence.generation.0.to_le_bytes());
    bytes.extend(row.fence.applied.0.to_le_bytes());
    bytes.extend(row.clicks.to_le_bytes());
    row.users.write_to(&mut bytes);
    bytes.extend((row.ads.len() as u32).to_le_bytes()); // an ad has at least one click: fewer than 2^32
    for ad in &row.ads {
        bytes.push(ad.ad_id.as_str().len() as u8); // ids are at most 64 bytes
        bytes.extend(ad.ad_id.as_str().as_bytes());
        bytes.extend(ad.clicks.to_le_bytes());
        ad.users.write_to(&mut bytes);
    }
    let checksum = checksum(key, &bytes[HEADER_BYTES..]);
    bytes[1..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Reads the fence of a value, after its checksum.
pub(super) fn decode_fence(key: &[u8], value: &[u8]) -> Result<Fence> {
    read_fence(&mut Reader(checked(key, value)?))
}

/// Reads a row.
pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<WindowRow> {
    let (campaign_id, window_start) = read_key(key)?;
    let mut reader = Reader(checked(key, value)?);
    let fence = read_fence(&mut reader)?;
    let clicks = u64::from_le_bytes(reader.take()?);
    let users = reader.sketch()?;
    let count = u32::from_le_bytes(reader.take()?);
    let mut ads = Vec::new();
    for _ in 0..count {
        let [length] = reader.take()?;
        let text = std::str::from_utf8(reader.slice(usize::from(length))?).ok();
        let ad_id = text.and_then(|text| AdId::new(text).ok()).ok_or_else(|| damage("an ad id is none"))?;
        ads.push(AdCounts { ad_id, clicks: u64::from_le_bytes(reader.take()?), users: reader.sketch()? });
    }
    if !reader.0.is_empty() {
        return Err(damage("bytes follow a value's end"));
    }
    Ok(WindowRow { campaign_id, window_start, fence, clicks, users, ads })
}

fn read_key(key: &[u8]) -> Result<(CampaignId, UtcMillis)> {
    let hour = hour_of(key)?;
    let [campaign @ .., 0, minute] = &key[HOUR_BYTES..] else { return Err(damage("a key has no campaign")) };
    let campaign = std::str::from_utf8(campaign).ok().and_then(|text| CampaignId::new(text).ok());
    let campaign = campaign.ok_or_else(|| damage("the campaign of a key is no id"))?;
    Ok((campaign, hour.start().plus_ms(i64::from(*minute) * MINUTE_MS)))
}

fn read_fence(reader: &mut Reader<'_>) -> Result<Fence> {
    Ok(Fence {
        lease_epoch: u64::from_le_bytes(reader.take()?),
        generation: Generation(u32::from_le_bytes(reader.take()?)),
        applied: LogOffset(i64::from_le_bytes(reader.take()?)),
    })
}

/// Returns what follows the header, after version and checksum.
fn checked<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8]> {
    let [VERSION, a, b, c, d, body @ ..] = value else {
        return Err(damage("a value is too short or of an unknown version"));
    };
    if checksum(key, body) != u32::from_le_bytes([*a, *b, *c, *d]) {
        return Err(damage("a checksum does not fit"));
    }
    Ok(body)
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), body)
}

fn damage(reason: &str) -> Error {
    Error::Damage { what: "a real-time window".to_owned(), reason: reason.to_owned() }
}

/// Reads a value from front to back.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| damage("a value is cut off"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| damage("a value is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn sketch(&mut self) -> Result<UserSketch> {
        let (sketch, rest) = UserSketch::read_from(self.0)?;
        self.0 = rest;
        Ok(sketch)
    }
}
