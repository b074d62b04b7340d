//! Closes hours: by the clock, after a gap, or on request.
//!
//! Guarantee: an hour is billed only over an archive that covers its cutoff without a hole (G-3), in one transaction,
//! from inputs recorded before any work; killed anywhere, it is run again with exactly these (G-4).
//! Words: *due* = the schedule would close it now; *cutoff* = the end offsets above which nothing exists for a run;
//! *attempt* = one try at closing an hour.
//! Flow: [`ReconcilerActor`] looks for hours with clicks in the manifests and no bill, oldest first, and starts one
//! [`HourActor`] at a time, which runs the steps: sealing, cutoff, archiving, recomputing, committing.

mod aggregates;
mod book;
mod close;
mod cutoff;
mod due;
mod handle;
mod held;
mod hour_actor;
mod inputs;
mod kappa;
mod look;
mod messages;
mod progress;
mod queue;
mod reconciler_actor;
mod replays;
mod report;
pub(crate) mod retention;
mod retention_actor;
mod run;
mod sealing;
mod sweep;
mod sweep_actor;

pub use handle::{Reconciler, ReconcilerDeps, ReconcilerHandle};
pub(crate) use kappa::divergence_of;
pub use progress::{
    BillChange, HourFailure, HourReport, MoneyDelta, ProgressEvent, ProgressSender, ReconcilerStatus, Step,
    SweepReport,
};
pub use replays::{ReplayEvent, ReplayEventSender, ReplayOrder, ReplayReport};
pub use retention::{Buried, Kept, RetentionReport, RetentionScope};
pub(crate) use run::{put_result, run_id};
