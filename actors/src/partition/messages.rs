//! The messages of a partition's actor.

use actix::Message;
use tokio::sync::oneshot;
use twice_log::archive::StoredSeal;
use twice_log::{Hour, LogOffset};

use crate::error::Result;

/// Seals an hour once every record below `at_or_after` is applied (G-3); answers with the seal that stands.
#[derive(Debug, Message)]
#[rtype(result = "Result<StoredSeal>")]
pub struct SealHour {
    pub hour: Hour,
    pub at_or_after: LogOffset,
}

/// Applies what was read, publishes, checkpoints and ends.
#[derive(Debug, Message)]
#[rtype(result = "Result<()>")]
pub struct StopPartition;

/// The same two, on their way from the actor to its run.
#[derive(Debug)]
pub(super) enum Command {
    Seal { hour: Hour, at_or_after: LogOffset, reply: oneshot::Sender<Result<StoredSeal>> },
    Stop { reply: oneshot::Sender<Result<()>> },
}
