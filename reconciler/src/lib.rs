//! The batch path: closes hours, recomputes their bill from the archive, and explains every difference to the stream.
//!
//! `recompute` runs the billing SQL over the files of a run's inputs, in a child process with bounded memory;
//! `compare` explains preliminary against billed by cause (G-5); `schedule` is the actor tree that closes hours in G-3's
//! order and commits them under G-4. What it needs of other crates are the traits in `ports`, which the node implements.

pub mod audit;
pub mod compare;
mod config;
mod error;
pub mod metrics;
pub mod ports;
pub mod rebuild;
pub mod recompute;
pub mod schedule;
mod stored;

pub use config::ReconcilerConfig;
pub use error::{Error, ErrorKind, Result};
pub use schedule::{
    BillChange, Buried, HourFailure, HourReport, Kept, MoneyDelta, ProgressEvent, ProgressSender, Reconciler,
    ReconcilerDeps, ReconcilerHandle, ReconcilerStatus, ReplayEvent, ReplayEventSender, ReplayOrder,
    ReplayReport, RetentionReport, RetentionScope, Step, SweepReport,
};
