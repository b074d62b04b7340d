//! The archive: immutable Parquet files, the manifests that commit them, seals and run records.
//!
//! Layout below the root: `clicks/…`, `verdicts/…` and `quarantine/…` hold Parquet, `manifests/…` commit it,
//! `seals/…` and `runs/…` hold what the stream had counted and what each billing run read and wrote, `rules/…` the texts it
//! counted by, `aggregates/…` what it counted by ad and minute. `tombstones/…` say what was deleted under retention, and
//! `settled/…` what was billed of hours that can therefore no longer be counted.

mod aggregates;
mod chain;
mod columns;
mod data;
mod data_reader;
mod encode;
mod failover;
mod index;
pub mod layout;
mod local;
mod location;
mod manifest;
mod reader;
mod records;
mod rows;
mod run;
pub mod s3;
mod seal;
mod store;
mod sweeps;
mod tombstones;
mod writer;

pub use aggregates::{AggregateFile, AggregateLevel, AggregateSet, RunKey, RunKeyError};
pub use chain::OFFSET_END_MAX;
pub use columns::{Absent, Layout, clicks_schema, quarantine_schema, verdicts_schema};
pub use data::Bucket;
pub use data_reader::DataFileReader;
pub use index::ManifestIndex;
pub use layout::ChainKey;
pub use local::DurableLocal;
pub use location::ArchiveLocation;
pub use manifest::{FileEntry, FileKind, Manifest, StoredManifest};
pub use records::{StoredRun, StoredRunInputs, StoredRunResult};
pub use rows::QuarantineRow;
pub use run::{
    BillingPath, BillingStatus, CountingSettings, Cutoff, Rate, ResultRow, RunInputs, RunOutcome, RunResult,
    SealInput, SealReference,
};
pub use seal::{Seal, StoredSeal};
pub use store::{Archive, LOCAL_BUCKET, PutOutcome};
pub use sweeps::{SweepRecord, SweptEnd};
pub use tombstones::{Grave, StoredTombstone, Tombstone, TombstoneKey, TombstoneKeys, is_stray};
pub use writer::{ArchiverSettings, PartitionArchiver, ROWS_PER_FILE_MAX};

#[cfg(test)]
mod tests;
