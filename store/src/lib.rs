//! Stores shared by the paths and the API: their traits, their row types and their backends.
//!
//! Real-time windows live in sled ([`SledWindows`], kept open by [`ResilientWindows`]); billing, campaigns with rates, modes and imports in SQLite
//! ([`SqliteStore`]); aggregates of billed hours in the archive ([`ArchiveAggregates`]). `replay` is the
//! port through which the batch path asks the kappa path, and `cost` measures both.

pub mod aggregates;
pub mod billing;
pub mod budgets;
pub mod campaigns;
pub mod child;
pub mod cost;
mod error;
pub mod imports;
pub mod keys;
pub mod limits;
pub mod modes;
pub mod replay;
pub mod sketch;
mod sqlite;
pub mod windows;

pub use aggregates::{AggregateCounts, AggregateReader, AggregateRow, ArchiveAggregates};
pub use billing::{
    BilledMark, BillingCounts, BillingQuery, BillingRow, BillingStore, CommittedRun, Correction,
    CorrectionsQuery, CountsDelta, Divergence, DivergenceRow, HourMarks, NewBillingRow, Page, Reason,
    Reconciliation, RestoredRun, RunCommit, StreamState, UtcMicros, VersionLink, row_digest,
};
pub use budgets::{
    BilledSince, BudgetCause, BudgetDecision, BudgetReport, BudgetState, BudgetStore, DecisionsQuery,
};
pub use campaigns::{Campaign, CampaignStore, PutCampaign};
pub use cost::{Cost, CostMeter};
pub use error::{Error, ErrorKind, Result};
pub use imports::{Import, ImportStore};
pub use keys::{AdminAction, ApiKey, CampaignSet, KeyStore, Scope, StoredKey, Tier};
pub use limits::{
    LimitCounts, LimitEnd, LimitFigures, LimitHistory, LimitOutcome, LimitState, LimitStore, LimitVersion,
    NewLimits, TierLimits, Tiers, built_in_limits,
};
pub use modes::{HourMode, ModeSetting, ModeStore};
pub use replay::{Replay, ReplayProgress, ReplayProgressSender, Replayed, ReplayedHour};
pub use sketch::UserSketch;
pub use sqlite::SqliteStore;
pub use windows::{AdCounts, Fence, ResilientWindows, SledWindows, WindowRow, WindowStore};
