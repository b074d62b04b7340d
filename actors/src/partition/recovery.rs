//! Builds a run from the last checkpoint, the log's bounds and the archive's seals.
//!
//! Guarantee: whatever the checkpoint folder went through - put back, removed, written in part - the run counts as one
//! that never stopped, or marks the hours for which it cannot say so (G-2, G-5).

use std::collections::BTreeSet;

use twice_log::archive::StoredSeal;
use twice_log::{Hour, LogOffset, Topic, UtcMillis, Watermark};

use super::children::Children;
use super::hours::HourLedger;
use super::setup::PartitionSetup;
use crate::checkpoint::{Commit, LoadedCheckpoint};
use crate::error::{Error, Result};

/// How far event times may lie ahead of the clock (5 min, CR-7), and the dedup horizon, rounded up well.
const HISTORY_REACH_MS: i64 = 3_600_000;

/// The memory of a partition at the start of a run.
pub(super) struct Recovered {
    pub(super) children: Children,
    pub(super) ledger: HourLedger,
    pub(super) watermark: Watermark,
    pub(super) applied_end: LogOffset,
    pub(super) hours_open: BTreeSet<Hour>,
}

/// Reads bounds and seals, and starts the campaigns the checkpoint holds.
///
/// # Errors
/// `LogWentBackwards` if the log ends below the checkpoint; errors of log and archive, which the caller tries again.
pub(super) async fn recover(setup: &PartitionSetup, loaded: Option<LoadedCheckpoint>) -> Result<Recovered> {
    let settings = setup.parts.settings;
    let bounds = setup.parts.log.bounds(Topic::AdClicks, setup.partition).await?;
    let (commit, campaigns) = match loaded {
        Some(LoadedCheckpoint { commit, campaigns }) => (Some(commit), campaigns),
        None => (None, Vec::new()),
    };
    let applied_end = commit.as_ref().map_or(LogOffset(0), |commit| commit.applied_end);
    if applied_end > bounds.end {
        return Err(Error::LogWentBackwards {
            partition: setup.partition,
            applied: LogOffset(applied_end.0 - 1),
            end: bounds.end,
        });
    }
    let highest = commit.as_ref().and_then(|commit| commit.highest_time);
    let watermark = Watermark::new(highest, settings.disorder_ms);
    let stored = archived_seals(setup, commit.is_some(), watermark.at_next()).await?;
    let mut ledger = ledger(setup, commit.as_ref());
    stored.iter().for_each(|seal| ledger.adopt(seal));

    let is_recounted = commit.as_ref().is_some_and(|commit| commit.settings != settings);
    if applied_end < bounds.earliest || is_recounted {
        // Whatever is missing was appended before now, so its event time is bounded by the clock.
        let through = setup.parts.clock.now().plus_ms(HISTORY_REACH_MS).hour();
        tracing::warn!(partition = %setup.partition, %applied_end, earliest = %bounds.earliest, %is_recounted, %through,
            "state does not reflect all of the log by today's rules: hours are marked incomplete");
        ledger.lose_history(through);
    }
    let mut children = Children::new(setup.partition, setup.rules);
    let mut hours_open = BTreeSet::new();
    for campaign in campaigns {
        hours_open.extend(campaign.windows.iter().map(|(start, _, _)| start.hour()));
        children.restore(campaign);
    }
    Ok(Recovered { children, ledger, watermark, applied_end: applied_end.max(bounds.earliest), hours_open })
}

fn ledger(setup: &PartitionSetup, commit: Option<&Commit>) -> HourLedger {
    let Some(commit) = commit else { return HourLedger::new(setup.rules, Vec::new(), Vec::new(), None) };
    HourLedger::new(
        setup.rules,
        commit.seals.clone(),
        commit.incomplete_hours.clone(),
        commit.incomplete_through,
    )
}

/// The folder may have been put back to before a seal, so the archive is asked every time; after a checkpoint only for
/// hours that the watermark does not close by itself.
async fn archived_seals(
    setup: &PartitionSetup,
    has_checkpoint: bool,
    watermark: Option<UtcMillis>,
) -> Result<Vec<StoredSeal>> {
    let generation = setup.parts.log.generation();
    let late_below = setup.rules.late_below(watermark);
    let from = late_below.filter(|_| has_checkpoint).map(|time| time.hour());
    Ok(setup.parts.seals.seals_of_partition(generation, setup.partition, from).await?)
}
