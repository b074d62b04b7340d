//! Checkpoints of partitions in sled: window state that a crash neither loses nor doubles (G-2).
//!
//! Guarantee: a restart finds exactly the states of the last committed checkpoint, or, where the folder is damaged,
//! lost or older, an earlier one or none; replay from there gives the same counts.
//! Words: *entry* = one window, dedup chunk or meta record of a campaign, under its checkpoint's number k; *commit* = the
//! record (k, offset, watermark, seals, sum of live entries) that makes a checkpoint exist; *superseded* = replaced by a
//! later entry, or expired, and deleted only once the commit that says so is flushed; *at rest* = a campaign whose state
//! is here alone, of which memory keeps a summary.
//! Flow: entries -> flush -> commit -> flush -> delete superseded. Load: newest commit, its entries checked and summed up
//! one by one, the rest deleted; a campaign's state is read when its next click comes (`read`).
//!
//! One tree a partition. Key: `kind u8 | length of campaign u8 | campaign | minute i64 BE, sign flipped | k u64 BE`; a
//! commit: `kind u8 | k u64 BE`. Value: payload, then CRC32C (u32 LE) over key and payload.

mod codec;
mod commit;
mod entry;
mod load;
mod read;
mod resting;
mod store;
#[cfg(test)]
mod tests;
mod write;

pub use commit::{CheckpointNumber, Commit, SealRecord};
pub use entry::{CampaignMeta, CampaignSnapshot, EntryKind, EntryTotals, StoredEntry};
pub use load::{LoadedCampaign, LoadedCheckpoint};
pub use read::{CheckpointReader, StoredWindows};
pub use resting::Resting;
pub use store::{CheckpointLayout, CheckpointStore};
pub use write::{CheckpointBatch, CheckpointWriter, WrittenCheckpoint};
