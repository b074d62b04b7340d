//! Payloads of checkpoint entries as bytes, little endian. Numbers marked *v* are LEB128 with 7 bits a byte.
//!
//! Window: `version u8 | clicks v | users | ads v | per ad: length of id u8, id, clicks v, users`, ads in order of id.
//! Chunk: `version u8 | entries v | per entry: click_id [16], event_time - the one before (zigzag) v`.
//! Meta: `version u8 | applied v | counted v | duplicates v | late v`.

use twice_log::{AdId, ClickId, LogOffset, UtcMillis};
use twice_store::sketch::UserSketch;

use super::entry::CampaignMeta;
use crate::campaign::{AdTally, DedupEntry, Tallies, Window};

const VERSION: u8 = 1;

pub(super) fn encode_window(window: &Window) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    put_number(&mut bytes, window.clicks);
    window.users.write_to(&mut bytes);
    put_number(&mut bytes, window.ads.len() as u64);
    for (ad_id, tally) in window.sorted_ads() {
        bytes.push(ad_id.as_str().len() as u8); // ids are at most 64 bytes
        bytes.extend(ad_id.as_str().as_bytes());
        put_number(&mut bytes, tally.clicks);
        tally.users.write_to(&mut bytes);
    }
    bytes
}

pub(super) fn decode_window(bytes: &[u8]) -> Option<Window> {
    let mut input = Input::open(bytes)?;
    let mut window = Window::new(input.number()?, input.sketch()?);
    let ads = input.number()?;
    for _ in 0..ads {
        let [length] = input.array()?;
        let ad_id = AdId::new(std::str::from_utf8(input.take(usize::from(length))?).ok()?).ok()?;
        window.ads.insert(ad_id, AdTally { clicks: input.number()?, users: input.sketch()? });
    }
    input.finish(window)
}

pub(super) fn encode_chunk(entries: &[DedupEntry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * 19 + 8);
    bytes.push(VERSION);
    put_number(&mut bytes, entries.len() as u64);
    let mut before = 0_i64;
    for entry in entries {
        let event_ms = entry.event_time.epoch_ms();
        bytes.extend(entry.click_id.as_bytes());
        put_number(&mut bytes, zigzag(event_ms.wrapping_sub(before)));
        before = event_ms;
    }
    bytes
}

pub(super) fn decode_chunk(bytes: &[u8]) -> Option<Vec<DedupEntry>> {
    let mut input = Input::open(bytes)?;
    let count = input.number()?;
    let mut entries = Vec::with_capacity(usize::try_from(count).ok()?.min(bytes.len() / 17));
    let mut before = 0_i64;
    for _ in 0..count {
        let click_id = ClickId::from_bytes(input.array()?);
        before = before.wrapping_add(unzigzag(input.number()?));
        entries.push(DedupEntry { click_id, event_time: UtcMillis::new(before).ok()? });
    }
    input.finish(entries)
}

pub(super) fn encode_meta(meta: CampaignMeta) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    let Tallies { counted, duplicates, late } = meta.tallies;
    [zigzag(meta.applied.0), counted, duplicates, late].into_iter().for_each(|n| put_number(&mut bytes, n));
    bytes
}

pub(super) fn decode_meta(bytes: &[u8]) -> Option<CampaignMeta> {
    let mut input = Input::open(bytes)?;
    let applied = LogOffset(unzigzag(input.number()?));
    let tallies = Tallies { counted: input.number()?, duplicates: input.number()?, late: input.number()? };
    input.finish(CampaignMeta { applied, tallies })
}

fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// Reads a payload from front to back; `None` means it is not one of ours.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn open(bytes: &'a [u8]) -> Option<Self> {
        match bytes {
            [VERSION, rest @ ..] => Some(Self(rest)),
            _ => None,
        }
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn sketch(&mut self) -> Option<UserSketch> {
        let (sketch, rest) = UserSketch::read_from(self.0).ok()?;
        self.0 = rest;
        Some(sketch)
    }

    fn finish<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use twice_log::UserId;

    use super::*;

    fn window(clicks: &[(String, String)]) -> Window {
        let mut window = Window::default();
        for (ad, user) in clicks {
            let user = UserId::new(user).expect("valid");
            window.clicks += 1;
            window.users.insert(&user);
            let tally = window.ads.entry(AdId::new(ad).expect("valid")).or_default();
            tally.clicks += 1;
            tally.users.insert(&user);
        }
        window
    }

    proptest! {
        #[test]
        fn windows_read_back_equal(clicks in proptest::collection::vec(("[a-z]{0,9}", "[a-z]{0,2}"), 0..300)) {
            let window = window(&clicks);
            prop_assert_eq!(decode_window(&encode_window(&window)), Some(window));
        }

        #[test]
        fn chunks_read_back_equal(times in proptest::collection::vec(-62_167_219_200_000..253_402_300_799_999_i64, 0..50)) {
            let entries: Vec<DedupEntry> = times.iter().map(|time| DedupEntry {
                click_id: ClickId::derived(&time.to_string()),
                event_time: UtcMillis::clamped(*time),
            }).collect();
            prop_assert_eq!(decode_chunk(&encode_chunk(&entries)), Some(entries));
        }

        #[test]
        fn metas_read_back_equal(applied in 0..i64::MAX, counted: u64, duplicates: u64, late: u64) {
            let meta = CampaignMeta { applied: LogOffset(applied), tallies: Tallies { counted, duplicates, late } };
            prop_assert_eq!(decode_meta(&encode_meta(meta)), Some(meta));
        }

        #[test]
        fn no_bytes_panic_the_decoders(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (decode_window(&bytes), decode_chunk(&bytes), decode_meta(&bytes));
        }
    }
}
