//! The stream path: a number within seconds, from one actor a campaign, and the archiver beside it.
//!
//! `campaign` counts (pure state, thin actor); `checkpoint` keeps that state in sled (G-2); `partition` reads the log,
//! routes, publishes and seals (G-3, G-5); `archiver` writes the same log as Parquet; `replay` makes bills (kappa);
//! `budget` holds spend against budgets. Start with [`StreamPath::start`]
//! and [`Archiving::start`], inside a running `actix::System`; the handles work from any thread.

pub mod archiver;
pub mod budget;
pub mod campaign;
pub mod checkpoint;
mod config;
mod error;
mod feed;
mod freshness;
pub mod metrics;
pub mod partition;
pub mod replay;
mod stream;
#[cfg(test)]
mod testing;

pub use archiver::{ArchiverStatus, Archiving, ArchivingParts};
pub use budget::{BudgetConfig, BudgetParts, Budgets, PublishedSpend, SpendFeed};
pub use config::{ArchiverConfig, StreamConfig};
pub use error::{Error, ErrorKind, Result};
pub use freshness::{Freshness, Quantiles};
pub use partition::{ClickHistory, ManifestsFrom, PartitionPhase, PartitionStatus, SealArchive};
pub use replay::{InProcessReplay, ProcessReplay, ReplayConfig, ReplayLimits};
pub use stream::{StreamParts, StreamPath};
