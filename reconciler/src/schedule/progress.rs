//! What the outside sees of an hour being closed: steps as they begin, and how it ended.

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use twice_log::archive::{BillingStatus, RunOutcome};
use twice_log::{Currency, Hour, UtcMillis};
use twice_store::Correction;

/// A step of closing an hour, in G-3's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Each partition closes the hour in the stream path.
    Sealing,
    /// The end offsets are read again: nothing above them exists for this run.
    Cutoff,
    /// Manifests have to reach the cutoff.
    Archiving,
    /// SQL over the archive, in the child process.
    Recomputing,
    /// One transaction, then the run's result.
    Committing,
}

/// How the close of one hour ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourReport {
    pub hour: Hour,
    pub outcome: RunOutcome,
    /// Status the run was made for, which decided its horizon.
    pub status: BillingStatus,
    /// `{path}/{hour}/{seq:06}`.
    pub run_id: String,
    /// Billing rows the run computed: one a campaign with clicks in the hour.
    pub rows: u64,
    /// Versions written; 0 where the outcome is `identical`.
    pub rows_written: u64,
    pub billed: u64,
    /// The sums over campaigns for which they are known; `None` where they are known for none (G-5).
    pub preliminary: Option<u64>,
    pub late: Option<u64>,
    pub late_duplicate: Option<u64>,
    pub fraud: Option<u64>,
    /// Sum of absolute values.
    pub unexplained: Option<i64>,
    /// Whether an import announced the hour: then its lateness is no divergence.
    pub announced: bool,
    /// Recompute processes that were killed, probably for want of memory, before one with smaller slices answered.
    #[serde(default)]
    pub memory_retries: u32,
    /// How the run changed a bill that was there before.
    pub change: BillChange,
}

/// By how much a run changed the bill of an hour; nothing where it made the hour's first bill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillChange {
    /// Rows whose counts or amount changed.
    pub rows: u64,
    /// New billable clicks minus old ones.
    pub billable: i64,
    /// By currency; none where no amount changed.
    pub money: Vec<MoneyDelta>,
    /// The first of the changed rows, in the order of the corrections.
    pub listed: Vec<Correction>,
}

/// New amounts minus old ones, in one currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoneyDelta {
    pub currency: Option<Currency>,
    pub amount_micros: i64,
}

/// One line of the event stream of a reconciliation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum ProgressEvent {
    /// A step has begun.
    Step { hour: Hour, step: Step },
    /// The hour is committed, or was already.
    Done(HourReport),
    /// What whoever asked should know.
    Note { detail: String },
    /// What was asked is refused, or failed before any hour was taken up.
    Refused { detail: String },
    /// The attempt failed; the schedule tries again if it would have closed the hour by itself.
    Failed { hour: Hour, detail: String },
}

/// What a sweep found, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// Verdicts looked at, and those whose click was not found.
    pub verdicts: u64,
    pub verdicts_without_click: u64,
    /// Hours with later clicks, with later verdicts, and with later rates; one hour may have all three.
    pub hours_with_clicks: u64,
    pub hours_with_verdicts: u64,
    pub hours_with_rates: u64,
    /// Hours with such events that can no longer be counted, because what they would be counted from was deleted.
    pub refused: Vec<Hour>,
    /// Hours run again, oldest first.
    pub hours: Vec<HourReport>,
}

/// Where progress goes. A receiver that went away is no error.
pub type ProgressSender = mpsc::UnboundedSender<ProgressEvent>;

/// A failed hour, as status shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourFailure {
    pub hour: Hour,
    pub attempts: u32,
    pub last_error: String,
    /// `None`: no more attempts by itself; a request or a restart tries again.
    pub next_attempt_at: Option<UtcMillis>,
}

/// What the reconciler is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcilerStatus {
    pub running: Option<Hour>,
    pub step: Option<Step>,
    /// In the order they will run.
    pub waiting: Vec<Hour>,
    pub failures: Vec<HourFailure>,
    /// Newest hour closed since this process started.
    pub newest_reconciled: Option<Hour>,
    /// Why the schedule could not look for hours, if it could not.
    pub schedule_error: Option<String>,
    /// The oldest hour that is due and waits for records which have not reached the log, and for what.
    #[serde(default)]
    pub held_up: Option<String>,
}
