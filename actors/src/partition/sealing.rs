//! Seals under way: who waits for which hour, and the talks with the archive that must not stop the line.
//!
//! Flow of one hour: asked -> looked up in the archive -> due once its offset is applied -> committed in a checkpoint ->
//! put into the archive -> answered (G-3). A failed look-up or put is tried again for as long as the run lives.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use twice_log::archive::{Seal, StoredSeal};
use twice_log::fail::FailPoint;
use twice_log::{Hour, LogOffset};

use super::setup::PartitionSetup;
use crate::error::{Error, Result};

type Reply = oneshot::Sender<Result<StoredSeal>>;

/// What the archive said.
#[derive(Debug)]
pub(super) enum SealNotice {
    LookedUp { hour: Hour, found: Option<StoredSeal> },
    Stored { stored: StoredSeal },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    LookingUp,
    /// The archive has no seal of the hour.
    Open,
    /// In a checkpoint, or on its way into one.
    Sealed,
}

#[derive(Debug)]
struct Waiting {
    at_or_after: LogOffset,
    stage: Stage,
    replies: Vec<Reply>,
}

/// The hours someone waits for. Outlives a run: a restart asks again.
#[derive(Debug, Default)]
pub(super) struct SealRequests {
    waiting: BTreeMap<Hour, Waiting>,
}

impl SealRequests {
    pub(super) fn ask(&mut self, hour: Hour, at_or_after: LogOffset, reply: Reply) {
        let fresh = || Waiting { at_or_after, stage: Stage::Asked, replies: Vec::new() };
        let waiting = self.waiting.entry(hour).or_insert_with(fresh);
        waiting.at_or_after = waiting.at_or_after.max(at_or_after);
        waiting.replies.push(reply);
    }

    /// Forgets how far each hour was: a new run begins.
    pub(super) fn restart(&mut self) {
        self.waiting.values_mut().for_each(|waiting| waiting.stage = Stage::Asked);
    }

    /// Takes the hours that nobody looked up yet.
    pub(super) fn take_asked(&mut self) -> Vec<Hour> {
        let asked = self.waiting.iter_mut().filter(|(_, waiting)| waiting.stage == Stage::Asked);
        asked
            .map(|(hour, waiting)| {
                waiting.stage = Stage::LookingUp;
                *hour
            })
            .collect()
    }

    /// Notes that the archive has no seal of the hour.
    pub(super) fn open(&mut self, hour: Hour) {
        self.set(hour, Stage::Open);
    }

    /// Notes that the hour is in a checkpoint.
    pub(super) fn sealed(&mut self, hour: Hour) {
        self.set(hour, Stage::Sealed);
    }

    fn set(&mut self, hour: Hour, stage: Stage) {
        if let Some(waiting) = self.waiting.get_mut(&hour) {
            waiting.stage = stage;
        }
    }

    /// Returns the open hours whose offset is applied.
    pub(super) fn due(&self, applied_end: LogOffset) -> Vec<Hour> {
        let due = |waiting: &Waiting| waiting.stage == Stage::Open && waiting.at_or_after <= applied_end;
        self.waiting.iter().filter(|(_, waiting)| due(waiting)).map(|(hour, _)| *hour).collect()
    }

    /// Answers everyone who waits for the hour. Who gave up is passed over.
    pub(super) fn answer(&mut self, hour: Hour, outcome: impl Fn() -> Result<StoredSeal>) {
        for reply in self.waiting.remove(&hour).map(|waiting| waiting.replies).unwrap_or_default() {
            let _ = reply.send(outcome());
        }
    }

    /// Tells everyone that the partition stopped.
    pub(super) fn stop(&mut self) {
        let hours: Vec<Hour> = self.waiting.keys().copied().collect();
        hours.into_iter().for_each(|hour| self.answer(hour, || Err(Error::Stopped)));
    }
}

/// Looks an hour up in the archive, until that answers or the run ends.
pub(super) async fn look_up(setup: PartitionSetup, hour: Hour, notices: mpsc::UnboundedSender<SealNotice>) {
    let mut failures: u32 = 0;
    while !notices.is_closed() {
        let generation = setup.parts.log.generation();
        match setup.parts.seals.seal(hour, generation, setup.partition).await {
            Ok(found) => {
                let _ = notices.send(SealNotice::LookedUp { hour, found });
                return;
            }
            Err(error) => {
                failures += 1;
                if failures.is_power_of_two() {
                    tracing::warn!(partition = %setup.partition, %hour, %error, failures, "archive not read, trying again");
                }
                tokio::time::sleep(pause_after(setup.retry_pause(), failures)).await;
            }
        }
    }
}

/// Puts a committed seal into the archive, until it stands there or the run ends.
pub(super) async fn put(setup: PartitionSetup, seal: Seal, notices: mpsc::UnboundedSender<SealNotice>) {
    let mut failures: u32 = 0;
    while !notices.is_closed() {
        setup.parts.fail_points.pass(FailPoint::SealBeforePut);
        match setup.parts.seals.put_seal(&seal).await {
            Ok(stored) => {
                setup.parts.fail_points.pass(FailPoint::SealPut);
                let _ = notices.send(SealNotice::Stored { stored });
                return;
            }
            Err(error) => {
                failures += 1;
                if failures.is_power_of_two() {
                    tracing::warn!(partition = %setup.partition, hour = %seal.hour, %error, failures,
                        "seal not put into the archive, trying again");
                }
                tokio::time::sleep(pause_after(setup.retry_pause(), failures)).await;
            }
        }
    }
}

/// Returns the pause after that many failures in a row: doubling, up to 32 times the first.
fn pause_after(first: Duration, failures: u32) -> Duration {
    first * (1 << failures.saturating_sub(1).min(5))
}
