//! One partition of the log, counted: reads, checks contiguity, routes to campaigns, publishes, checkpoints, seals.
//!
//! Guarantee: what is published and sealed reflects each record below the applied offset exactly once (G-2, G-3).
//! Words: *run* = one life of the partition's memory, from a checkpoint to a stop or failure; *line* = read, apply,
//! publish; *close* = forget the windows of a sealed hour; *at rest* = in the checkpoint store and not in memory.
//! Flow: `actor` supervises -> `recovery` builds a run from checkpoint and archive -> `runner` drives it: `reader` reads
//! ahead, `children` are the campaign actors, `resting` those without one, `hours` knows seals and what is incomplete,
//! `sealing` closes hours. `history` and `archived` rebuild from the archive what the log no longer holds.

mod actor;
mod archived;
mod children;
mod history;
mod hours;
mod messages;
mod reader;
mod recovery;
mod resting;
mod runner;
mod seal_archive;
mod sealing;
mod setup;
mod status;
#[cfg(test)]
mod tests;

pub use actor::PartitionActor;
pub use history::{ClickHistory, ManifestsFrom};
pub use messages::{SealHour, StopPartition};
pub use seal_archive::SealArchive;
pub(crate) use setup::{DedupBudget, PartitionSetup};
pub use status::{PartitionPhase, PartitionStatus};
