//! Stores shared by the paths and the API: their traits, their row types and their backends.
//!
//! Real-time windows live in sled ([`SledWindows`]); billing, campaigns with rates, modes and imports in SQLite
//! ([`SqliteStore`]); aggregates of billed hours in the archive ([`ArchiveAggregates`]).

pub mod aggregates;
pub mod billing;
pub mod campaigns;
mod error;
pub mod imports;
pub mod modes;
pub mod sketch;
mod sqlite;
pub mod windows;

pub use aggregates::{AggregateCounts, AggregateReader, AggregateRow, ArchiveAggregates};
pub use billing::{
    BillingCounts, BillingQuery, BillingRow, BillingStore, CommittedRun, Divergence, DivergenceRow,
    NewBillingRow, Page, Reconciliation, RunCommit, StreamState, UtcMicros, row_digest,
};
pub use campaigns::{Campaign, CampaignStore, PutCampaign};
pub use error::{Error, ErrorKind, Result};
pub use imports::{Import, ImportStore};
pub use modes::{ModeSetting, ModeStore};
pub use sketch::UserSketch;
pub use sqlite::SqliteStore;
pub use windows::{AdCounts, Fence, SledWindows, WindowRow, WindowStore};
