//! Whether the clock may be believed where something is deleted for good because its time is over.
//!
//! Guarantee: raw clicks, month keys and copies of spools do not go by a clock that jumped ahead, in this process or while
//! none ran, until that clock has run steadily for a day: time enough to be told and to set it back. Less than an hour, and
//! less than a day across a restart, is no jump: no retention is shorter than thirty.
//! Words: *claimed* = what the clock says; *believed* = what it said when it was last believed, and the time that has
//! passed since by a clock that does not jump; *steady* = for how long both have run alike.
//! Flow: compared each minute and at each question, and noted in the data folder each minute. A folder without a note has
//! nothing to compare with: it believes the clock if the archive is empty, else after a steady day.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use twice_log::archive::Archive;
use twice_log::fs::RealFs;
use twice_log::{Clock, UtcMillis};
use twice_reconciler::ports::ClockWitness;

use crate::metrics::CLOCK_AHEAD_SECONDS;
use crate::note::Note;

const NOTE: Note = Note("CLOCK");
const HOUR_MS: i64 = 3_600_000;
/// Differences up to this are no jump: a suspended machine, a correction.
const SLACK_MS: i64 = HOUR_MS;
/// How long a node may have stood still without doubt about the clock it finds.
const STOPPED_MS_MAX: i64 = 24 * HOUR_MS;
/// How long a clock that jumped runs until it is believed.
const STEADY_MS: i64 = 24 * HOUR_MS;
const EVERY: Duration = Duration::from_secs(60);

/// What is known of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// `None` where there was never anything to compare with.
    believed_ms: Option<i64>,
    claimed_ms: i64,
    steady_ms: i64,
}

impl Record {
    /// A folder that knows nothing yet.
    fn first(claimed_ms: i64, is_believed: bool) -> Self {
        Self { believed_ms: is_believed.then_some(claimed_ms), claimed_ms, steady_ms: 0 }
    }

    /// Goes on after a time without a process, of which nobody knows how long it was.
    fn resumed(self, claimed_ms: i64) -> Self {
        let believed_ms = self.believed_ms.map(|believed| {
            let is_near = claimed_ms.saturating_sub(believed) <= STOPPED_MS_MAX;
            if is_near { claimed_ms.max(believed) } else { believed }
        });
        let goes_on = (0..=STOPPED_MS_MAX).contains(&claimed_ms.saturating_sub(self.claimed_ms));
        Self { believed_ms, claimed_ms, steady_ms: if goes_on { self.steady_ms } else { 0 } }
    }

    /// Compares the clock with the time that has passed.
    fn observed(self, claimed_ms: i64, passed_ms: i64) -> Self {
        let near = |moment: i64| claimed_ms.saturating_sub(moment).saturating_abs() <= SLACK_MS;
        let expected = self.claimed_ms.saturating_add(passed_ms);
        let steady_ms = if near(expected) { self.steady_ms.saturating_add(passed_ms) } else { 0 };
        let believed_ms = self.believed_ms.map(|believed| believed.saturating_add(passed_ms));
        let is_believed = believed_ms.is_some_and(near) || steady_ms >= STEADY_MS;
        Self { believed_ms: if is_believed { Some(claimed_ms) } else { believed_ms }, claimed_ms, steady_ms }
    }

    /// Returns by how much the clock is ahead of what is believed; 0 where it is believed.
    fn ahead_ms(self) -> i64 {
        let ahead = self.believed_ms.map_or(i64::MAX, |believed| self.claimed_ms.saturating_sub(believed));
        if ahead <= SLACK_MS { 0 } else { ahead }
    }

    fn doubt(self) -> Option<String> {
        if self.ahead_ms() == 0 {
            return None;
        }
        let said = UtcMillis::clamped(self.claimed_ms);
        let why = match self.believed_ms.map(UtcMillis::clamped) {
            Some(believed) => format!("it says {said}, and by the time that passed it is about {believed}"),
            None => format!("it says {said}, and this data folder has nothing yet to compare that with"),
        };
        let left = (STEADY_MS - self.steady_ms).max(0) / HOUR_MS + 1;
        Some(format!(
            "the clock may be ahead: {why}. Nothing is deleted for good until the clock is set right, or has run steadily for \
             another {left} h"
        ))
    }
}

/// Compares the clock with the time that passes.
pub struct ClockWatch {
    clock: Arc<dyn Clock>,
    folder: PathBuf,
    seen: Mutex<(Record, Instant)>,
}

impl ClockWatch {
    /// Goes on from the folder's note.
    ///
    /// # Errors
    /// If the note does not read, or cannot be written.
    pub async fn open(folder: PathBuf, clock: Arc<dyn Clock>, archive: &Archive) -> Result<Self> {
        let claimed = clock.now().epoch_ms();
        let record = match NOTE.read(&folder)? {
            Some(text) => serde_json::from_str::<Record>(&text)
                .with_context(|| format!("{} is no note of the clock", NOTE.path(&folder).display()))?
                .resumed(claimed),
            // What an archive holds could go by this clock; one that does not answer may hold something.
            None => {
                let is_empty =
                    archive.list_folders("manifests").await.is_ok_and(|folders| folders.is_empty());
                Record::first(claimed, is_empty)
            }
        };
        let watch = Self { clock, folder, seen: Mutex::new((record, Instant::now())) };
        watch.note(record)?;
        Ok(watch)
    }

    /// Compares each minute, until the task is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut was_doubted = false;
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let record = self.observe();
            ::metrics::gauge!(CLOCK_AHEAD_SECONDS).set((record.ahead_ms() / 1000) as f64);
            match record.doubt() {
                Some(doubt) if !was_doubted => tracing::warn!("{doubt}"),
                None if was_doubted => tracing::info!("the clock is believed again"),
                _ => {}
            }
            was_doubted = record.ahead_ms() > 0;
            let watch = self.clone();
            let noted = tokio::task::spawn_blocking(move || watch.note(record)).await;
            if let Ok(Err(error)) = noted {
                tracing::warn!(error = format!("{error:#}"), "what the clock says cannot be noted");
            }
        }
    }

    fn observe(&self) -> Record {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, at) = *seen;
        let now = Instant::now();
        let passed = i64::try_from(now.duration_since(at).as_millis()).unwrap_or(i64::MAX);
        *seen = (record.observed(self.clock.now().epoch_ms(), passed), now);
        seen.0
    }

    fn note(&self, record: Record) -> Result<()> {
        NOTE.write(&RealFs, &self.folder, &serde_json::to_string(&record)?)
    }
}

impl ClockWitness for ClockWatch {
    fn doubt(&self) -> Option<String> {
        self.observe().doubt()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_700_000_000_000;
    const DAY_MS: i64 = 24 * HOUR_MS;
    const MINUTE_MS: i64 = 60_000;

    fn believed() -> Record {
        Record::first(NOW, true)
    }

    #[test]
    fn a_jump_ahead_is_doubted_until_it_goes_back_or_has_run_for_a_day() {
        let jumped = believed().observed(NOW + 31 * DAY_MS, MINUTE_MS);
        assert!(jumped.doubt().is_some_and(|doubt| doubt.contains("may be ahead")), "{jumped:?}");
        assert_eq!(jumped.observed(NOW + 2 * MINUTE_MS, MINUTE_MS).doubt(), None, "it was set right");
        let (mut record, mut minutes) = (jumped, 0);
        while record.doubt().is_some() {
            minutes += 1;
            record = record.observed(record.claimed_ms + MINUTE_MS, MINUTE_MS);
        }
        assert_eq!(minutes, 24 * 60);
    }

    #[test]
    fn a_jump_while_nothing_ran_is_doubted_and_restarts_shorten_no_doubt() {
        assert_eq!(believed().resumed(NOW + 20 * HOUR_MS).doubt(), None);
        let ahead = NOW + 31 * DAY_MS;
        let jumped = believed().resumed(ahead);
        assert!(jumped.doubt().is_some());
        let steady = jumped.observed(ahead + HOUR_MS, HOUR_MS).resumed(ahead + 2 * HOUR_MS);
        assert_eq!(
            (steady.steady_ms, steady.doubt().is_some()),
            (HOUR_MS, true),
            "stopped time is not steady"
        );
        assert_eq!(steady.resumed(NOW + 3 * HOUR_MS).doubt(), None, "it was set right");
    }

    #[test]
    fn a_clock_that_was_behind_is_believed_when_it_is_right_again() {
        let behind = believed().observed(0, MINUTE_MS);
        assert_eq!(behind.doubt(), None, "nothing goes too early by it");
        assert_eq!(behind.observed(NOW + 2 * MINUTE_MS, MINUTE_MS).doubt(), None);
    }

    #[test]
    fn without_a_note_an_archive_is_kept_for_a_day() {
        assert_eq!(Record::first(NOW, true).doubt(), None);
        let unknown = Record::first(NOW, false);
        assert!(unknown.doubt().is_some_and(|doubt| doubt.contains("nothing yet to compare")));
        assert_eq!(unknown.observed(NOW + DAY_MS, DAY_MS).doubt(), None);
    }

    proptest! {
        /// Whatever the clock does within a day, what is believed is never further ahead than the slack of one comparison each.
        #[test]
        fn no_jumps_within_a_day_make_a_moment_believed_that_is_far_ahead(
            jumps in proptest::collection::vec((-400 * DAY_MS..400 * DAY_MS, 1..HOUR_MS), 1..20),
        ) {
            let (mut record, mut truth) = (believed(), NOW);
            for (comparisons, (jump, passed)) in jumps.into_iter().enumerate() {
                truth += passed;
                let claimed = truth + jump;
                record = record.observed(claimed, passed);
                let slack = SLACK_MS * (comparisons as i64 + 2);
                prop_assert!(record.doubt().is_some() || claimed <= truth + slack, "{record:?} at {truth}");
            }
        }
    }
}
