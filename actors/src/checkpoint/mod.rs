//! Checkpoints of partitions in sled: window state that a crash neither loses nor doubles (G-2).
//!
//! Guarantee: a restart finds exactly the states of the last committed checkpoint, or, where the folder is damaged,
//! lost or older, an earlier one or none; replay from there gives the same counts.
//! Words: *entry* = one window, dedup chunk or meta record of a campaign, under its checkpoint's number k; *commit* = the
//! record (k, offset, watermark, seals, sum of live entries) that makes a checkpoint exist; *superseded* = replaced by a
//! later entry, or expired, and deleted only once the commit that says so is flushed.
//! Flow: entries -> flush -> commit -> flush -> delete superseded. Load: newest commit, its entries, the rest deleted.
//!
//! One tree a partition. Key: `kind u8 | length of campaign u8 | campaign | minute i64 BE, sign flipped | k u64 BE`; a
//! commit: `kind u8 | k u64 BE`. Value: payload, then CRC32C (u32 LE) over key and payload.

mod codec;
mod commit;
mod entry;
mod load;
mod store;
#[cfg(test)]
mod tests;
mod write;

pub use commit::{CheckpointNumber, Commit, SealRecord};
pub use entry::{CampaignMeta, CampaignSnapshot, EntryKind, EntryTotals, StoredEntry};
pub use load::{LoadedCampaign, LoadedCheckpoint};
pub use store::{CheckpointLayout, CheckpointStore};
pub use write::{CheckpointBatch, CheckpointWriter, WrittenCheckpoint};
