//! Entries of a checkpoint: their keys, their checksums, and the sum that tells whether one is missing.

use crc32c::{crc32c, crc32c_append};
use twice_log::{CampaignId, LogOffset, UtcMillis};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::codec;
use super::commit::CheckpointNumber;
use crate::campaign::{DedupEntry, Tallies, Window};

const KIND_COMMIT: u8 = b'C';
const KIND_DEDUP: u8 = b'D';
const KIND_META: u8 = b'M';
const KIND_WINDOW: u8 = b'W';
const CHECKSUM_BYTES: usize = 4;

/// What an entry holds of its campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// Identities new since the checkpoint before. Never superseded, only expired.
    DedupChunk,
    /// Offset and tallies.
    Meta,
    /// The minute that starts here.
    Window(UtcMillis),
}

impl EntryKind {
    /// Returns whether the totals of a commit count such entries.
    pub(super) fn is_counted(self) -> bool {
        self != EntryKind::Meta
    }
}

/// An entry as its owner remembers it: enough to supersede it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredEntry {
    pub checkpoint: CheckpointNumber,
    pub sum: u64,
}

/// Number of entries and the wrapping sum of their hashes: equal totals mean the same entries.
///
/// Meta records are not among them: a lost one changes no count, and that of a forgotten campaign may linger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntryTotals {
    pub entries: u64,
    pub sum: u64,
}

impl EntryTotals {
    /// Takes one entry in.
    pub fn add(&mut self, sum: u64) {
        self.entries = self.entries.wrapping_add(1);
        self.sum = self.sum.wrapping_add(sum);
    }

    /// Takes one entry out.
    pub fn remove(&mut self, sum: u64) {
        self.entries = self.entries.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(sum);
    }
}

/// Offset and tallies of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CampaignMeta {
    pub applied: LogOffset,
    pub tallies: Tallies,
}

/// An entry ready to be written.
#[derive(Debug)]
pub(super) struct SealedEntry {
    pub(super) kind: EntryKind,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) sum: u64,
}

/// What changed of one campaign since the checkpoint before, encoded.
#[derive(Debug)]
pub struct CampaignSnapshot {
    pub campaign: CampaignId,
    pub checkpoint: CheckpointNumber,
    /// Keys and values to write.
    pub(super) entries: Vec<SealedEntry>,
    /// Entries that stop to matter with this checkpoint's commit.
    pub(super) superseded: Vec<(EntryKind, StoredEntry)>,
    /// Newest event time of the campaign's oldest dedup chunk: when its floor is there, ask for a snapshot again.
    pub next_expiry: Option<UtcMillis>,
}

impl CampaignSnapshot {
    /// Starts an empty snapshot.
    pub fn new(campaign: CampaignId, checkpoint: CheckpointNumber) -> Self {
        Self { campaign, checkpoint, entries: Vec::new(), superseded: Vec::new(), next_expiry: None }
    }

    /// Returns whether the snapshot says nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.superseded.is_empty()
    }

    /// Adds a window.
    pub fn put_window(&mut self, start: UtcMillis, window: &Window) -> StoredEntry {
        self.put(EntryKind::Window(start), codec::encode_window(window))
    }

    /// Adds the identities new since the last checkpoint.
    pub fn put_chunk(&mut self, entries: &[DedupEntry]) -> StoredEntry {
        self.put(EntryKind::DedupChunk, codec::encode_chunk(entries))
    }

    /// Adds offset and tallies.
    pub fn put_meta(&mut self, meta: CampaignMeta) -> StoredEntry {
        self.put(EntryKind::Meta, codec::encode_meta(meta))
    }

    /// Names an entry that this checkpoint replaces or expires.
    pub fn supersede(&mut self, kind: EntryKind, stored: Option<StoredEntry>) {
        self.superseded.extend(stored.map(|stored| (kind, stored)));
    }

    fn put(&mut self, kind: EntryKind, payload: Vec<u8>) -> StoredEntry {
        let key = entry_key(&self.campaign, kind, self.checkpoint);
        let (value, sum) = seal_value(&key, payload);
        self.entries.push(SealedEntry { kind, key, value, sum });
        StoredEntry { checkpoint: self.checkpoint, sum }
    }
}

/// What a key of the tree names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ParsedKey {
    Commit(CheckpointNumber),
    Entry { campaign: CampaignId, kind: EntryKind, checkpoint: CheckpointNumber },
}

/// Returns the key of an entry.
pub(super) fn entry_key(campaign: &CampaignId, kind: EntryKind, checkpoint: CheckpointNumber) -> Vec<u8> {
    let (tag, minute) = match kind {
        EntryKind::DedupChunk => (KIND_DEDUP, 0),
        EntryKind::Meta => (KIND_META, 0),
        EntryKind::Window(start) => (KIND_WINDOW, start.epoch_ms()),
    };
    let mut key = prefix(tag, campaign);
    key.extend(((minute as u64) ^ (1 << 63)).to_be_bytes()); // sign flipped: keys sort by time
    key.extend(checkpoint.0.to_be_bytes());
    key
}

/// Returns what the keys of a campaign's dedup chunks begin with.
pub(super) fn chunk_prefix(campaign: &CampaignId) -> Vec<u8> {
    prefix(KIND_DEDUP, campaign)
}

/// Returns what the keys of a campaign's meta records begin with.
pub(super) fn meta_prefix(campaign: &CampaignId) -> Vec<u8> {
    prefix(KIND_META, campaign)
}

/// Returns what the keys of a campaign's windows begin with.
pub(super) fn window_prefix(campaign: &CampaignId) -> Vec<u8> {
    prefix(KIND_WINDOW, campaign)
}

fn prefix(tag: u8, campaign: &CampaignId) -> Vec<u8> {
    let name = campaign.as_str().as_bytes();
    let mut prefix = Vec::with_capacity(name.len() + 18);
    prefix.extend([tag, name.len() as u8]); // ids are at most 64 bytes
    prefix.extend(name);
    prefix
}

/// Returns the key of a commit record.
pub(super) fn commit_key(checkpoint: CheckpointNumber) -> Vec<u8> {
    let mut key = vec![KIND_COMMIT];
    key.extend(checkpoint.0.to_be_bytes());
    key
}

/// Reads a key; `None` if it is not one of ours.
pub(super) fn parse_key(key: &[u8]) -> Option<ParsedKey> {
    let (tag, rest) = key.split_first()?;
    if *tag == KIND_COMMIT {
        return Some(ParsedKey::Commit(CheckpointNumber(u64::from_be_bytes(rest.try_into().ok()?))));
    }
    let (length, rest) = rest.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    let campaign = CampaignId::new(std::str::from_utf8(name).ok()?).ok()?;
    let (minute, checkpoint) = rest.split_first_chunk::<8>()?;
    let minute = (u64::from_be_bytes(*minute) ^ (1 << 63)) as i64;
    let kind = match *tag {
        KIND_DEDUP => EntryKind::DedupChunk,
        KIND_META => EntryKind::Meta,
        KIND_WINDOW => EntryKind::Window(UtcMillis::new(minute).ok()?),
        _ => return None,
    };
    let checkpoint = CheckpointNumber(u64::from_be_bytes(checkpoint.try_into().ok()?));
    Some(ParsedKey::Entry { campaign, kind, checkpoint })
}

/// Appends the checksum to a payload; returns the value and its part of the totals.
pub(super) fn seal_value(key: &[u8], mut payload: Vec<u8>) -> (Vec<u8>, u64) {
    let checksum = crc32c_append(crc32c(key), &payload);
    payload.extend(checksum.to_le_bytes());
    (payload, xxh3_64_with_seed(key, u64::from(checksum)))
}

/// Returns the payload of a value whose checksum was checked.
pub(super) fn payload_of(value: &[u8]) -> &[u8] {
    value.split_last_chunk::<CHECKSUM_BYTES>().map_or(&[], |(payload, _)| payload)
}

/// Checks a value under its key; returns the payload and its part of the totals, or `None` if the checksum is wrong.
pub(super) fn open_value<'a>(key: &[u8], value: &'a [u8]) -> Option<(&'a [u8], u64)> {
    let (payload, stored) = value.split_last_chunk::<CHECKSUM_BYTES>()?;
    let checksum = crc32c_append(crc32c(key), payload);
    (checksum == u32::from_le_bytes(*stored)).then(|| (payload, xxh3_64_with_seed(key, u64::from(checksum))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_sort_by_time() {
        let campaign = CampaignId::new("camp_1").expect("valid");
        let kinds = [
            EntryKind::DedupChunk,
            EntryKind::Meta,
            EntryKind::Window(UtcMillis::clamped(-60_000)),
            EntryKind::Window(UtcMillis::clamped(60_000)),
        ];
        let keys = kinds.map(|kind| entry_key(&campaign, kind, CheckpointNumber(7)));
        assert!(keys.is_sorted());
        for (key, kind) in keys.iter().zip(kinds) {
            let checkpoint = CheckpointNumber(7);
            assert_eq!(
                parse_key(key),
                Some(ParsedKey::Entry { campaign: campaign.clone(), kind, checkpoint })
            );
        }
        let commit = CheckpointNumber(u64::MAX);
        assert_eq!(parse_key(&commit_key(commit)), Some(ParsedKey::Commit(commit)));
        assert_eq!(parse_key(b""), None);
    }

    #[test]
    fn a_value_under_another_key_or_with_a_flipped_bit_does_not_open() {
        let (mut value, sum) = seal_value(b"key", b"payload".to_vec());
        assert_eq!(open_value(b"key", &value), Some((&b"payload"[..], sum)));
        assert_eq!(open_value(b"kez", &value), None);
        value[2] ^= 1;
        assert_eq!(open_value(b"key", &value), None);
    }
}
