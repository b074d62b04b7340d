//! Messages of the actors that close hours.

use actix::Message;
use tokio::sync::oneshot;
use twice_log::archive::BillingStatus;
use twice_log::{Day, Hour};

use super::progress::{HourReport, ProgressSender, ReconcilerStatus, Step, SweepReport};
use super::retention::{RetentionReport, RetentionScope};
use crate::error::Result;

/// Closes one hour as soon as the one running has ended; the reply comes when it is closed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReconcileHour {
    pub hour: Hour,
    pub progress: Option<ProgressSender>,
    pub reply: oneshot::Sender<Result<HourReport>>,
}

/// Closes every hour that is due, oldest first; the reply comes when the last is closed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReconcileDue {
    pub progress: Option<ProgressSender>,
    pub reply: oneshot::Sender<Result<Vec<HourReport>>>,
}

/// Makes every hour of a past day final; the reply comes when the last is.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReconcileDay {
    pub day: Day,
    pub progress: Option<ProgressSender>,
    pub reply: oneshot::Sender<Result<Vec<HourReport>>>,
}

/// Looks for later clicks, verdicts and rates of billed hours; the reply comes when each hour they touch was run again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SweepNow {
    pub progress: Option<ProgressSender>,
    pub reply: oneshot::Sender<Result<SweepReport>>,
}

/// Deletes what is expired, or says what that would be; the reply comes when all of it is done.
#[derive(Message)]
#[rtype(result = "()")]
pub struct RetainNow {
    pub scope: RetentionScope,
    pub dry_run: bool,
    pub reply: oneshot::Sender<Result<RetentionReport>>,
}

/// Asks what is going on.
#[derive(Message)]
#[rtype(result = "ReconcilerStatus")]
pub struct GetStatus;

/// Ends the reconciler; what runs is dropped where it stands and hours that wait are given up.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

/// In what hurry an order is; the first goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Somebody waits for this hour.
    Request,
    /// The hour has ended and has no bill.
    Hourly,
    /// A day that somebody asked for: many hours, behind which the fresh one must not wait.
    RequestedDay,
    /// The nightly close, and restatements.
    Nightly,
}

/// Who wants an hour closed. The order is that of what they want: a request is content with more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trigger {
    /// The schedule: it is content with the end of a run it finds begun.
    Schedule,
    /// A request: it wants the offsets present to be in.
    Request,
}

/// Order to an HourActor: run the steps of one attempt.
#[derive(Message)]
#[rtype(result = "Result<HourReport>")]
pub struct CloseHour {
    pub hour: Hour,
    pub trigger: Trigger,
    /// Status wanted, which decides the horizon (CR-3). A final hour stays final whatever is wanted.
    pub status: BillingStatus,
}

/// Notice of an HourActor: it begins a step.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StepBegun {
    pub hour: Hour,
    pub step: Step,
}
