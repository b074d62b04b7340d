//! The archive: immutable Parquet files, the manifests that commit them, seals and run records.
//!
//! Layout below the root: `clicks/…`, `verdicts/…` and `quarantine/…` hold Parquet, `manifests/…` commit it,
//! `seals/…` and `runs/…` hold what the stream had counted and what each billing run read and wrote.

mod manifest;
mod run;
mod seal;

pub use manifest::{FileEntry, FileKind, Manifest, StoredManifest};
pub use run::{
    BillingPath, BillingStatus, CountingSettings, Cutoff, Rate, ResultRow, RunInputs, RunOutcome, RunResult,
    SealInput, SealReference,
};
pub use seal::{Seal, StoredSeal};
