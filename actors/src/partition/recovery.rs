//! Builds a run from the last checkpoint, the log's bounds, and the archive's seals and manifests.
//!
//! Guarantee: whatever the checkpoint folder went through - put back, removed, written in part - the run counts as one
//! that never stopped, or marks the hours for which it cannot say so (G-2, G-5).
//! Flow: checkpoint and log meet -> go on. They do not -> `history` says where in the archive to begin. That has a gap
//! too -> go on with the log, hours incomplete.

use std::collections::BTreeSet;

use twice_log::archive::StoredSeal;
use twice_log::hot::OffsetBounds;
use twice_log::{Hour, LogOffset, Topic, UtcMillis, Watermark};

use super::archived::ArchivedClicks;
use super::children::Children;
use super::history::{self, Beginning, Remains};
use super::hours::HourLedger;
use super::resting::RestingCampaigns;
use super::setup::PartitionSetup;
use crate::checkpoint::{CheckpointReader, Commit, LoadedCheckpoint};
use crate::error::{Error, Result};

/// The memory of a partition at the start of a run.
pub(super) struct Recovered {
    pub(super) children: Children,
    pub(super) ledger: HourLedger,
    pub(super) watermark: Watermark,
    pub(super) applied_end: LogOffset,
    pub(super) hours_open: BTreeSet<Hour>,
    /// What is read before the log.
    pub(super) archived: Option<ArchivedClicks>,
}

/// Reads bounds, seals and, where needed, manifests. Every campaign of the checkpoint begins at rest.
///
/// # Errors
/// `LogWentBackwards` if the log ends below the checkpoint; errors of log and archive, which the caller tries again.
pub(super) async fn recover(
    setup: &PartitionSetup,
    loaded: Option<LoadedCheckpoint>,
    reader: CheckpointReader,
    is_history_damaged: bool,
) -> Result<Recovered> {
    let settings = setup.parts.settings;
    let bounds = setup.parts.log.bounds(Topic::AdClicks, setup.partition).await?;
    let (commit, campaigns) = match loaded {
        Some(LoadedCheckpoint { commit, resting }) => (Some(commit), resting),
        None => (None, hashbrown::HashMap::new()),
    };
    check_end(setup, commit.as_ref(), bounds)?;
    let highest = commit.as_ref().and_then(|commit| commit.highest_time);
    let watermark = Watermark::new(highest, settings.disorder_ms);
    let resting = RestingCampaigns::new(reader, campaigns);
    let hours_open = resting.hours();
    let oldest_open = hours_open.first().copied();
    let stored = archived_seals(setup, commit.is_some(), watermark.at_next(), oldest_open).await?;
    let mut ledger = ledger(setup, commit.as_ref());
    ledger.adopt(&stored);

    let beginning = begin(setup, commit.as_ref(), watermark, bounds, &stored, is_history_damaged).await?;
    if let Some(through) = beginning.lost_through {
        ledger.lose_history(through);
    }
    if commit.as_ref().is_some_and(|commit| commit.settings != settings) {
        let through = history::latest_hour(setup.parts.clock.now());
        tracing::warn!(partition = %setup.partition, %through,
            "counting settings changed: hours counted in part by the old ones are marked incomplete");
        ledger.lose_history(through);
    }
    let Beginning { applied_end, watermark, archived, .. } = beginning;
    let archived = archived.map(|range| ArchivedClicks {
        history: setup.parts.history.clone(),
        partition: setup.partition,
        range,
        turn: setup.rebuild_turn.clone(),
        retry_pause: setup.retry_pause(),
        open: None,
    });
    let children = Children::new(setup.partition, setup.rules, resting);
    Ok(Recovered { children, ledger, watermark, applied_end, hours_open, archived })
}

fn check_end(setup: &PartitionSetup, commit: Option<&Commit>, bounds: OffsetBounds) -> Result<()> {
    match commit.map(|commit| commit.applied_end) {
        Some(applied_end) if applied_end > bounds.end => Err(Error::LogWentBackwards {
            partition: setup.partition,
            applied: LogOffset(applied_end.0 - 1),
            end: bounds.end,
        }),
        _ => Ok(()),
    }
}

/// Says where to go on: at the checkpoint's end, in the log or the archive; or with the log alone, saying what is lost.
async fn begin(
    setup: &PartitionSetup,
    commit: Option<&Commit>,
    watermark: Watermark,
    bounds: OffsetBounds,
    seals: &[StoredSeal],
    is_history_damaged: bool,
) -> Result<Beginning> {
    let applied_end = commit.map_or(LogOffset(0), |commit| commit.applied_end);
    if applied_end >= bounds.earliest {
        return Ok(Beginning { applied_end, watermark, lost_through: None, archived: None });
    }
    let goes_on_at = commit.map(|commit| commit.applied_end);
    if !is_history_damaged && let Some(remains) = remains(setup, goes_on_at, bounds, seals).await? {
        let found = match commit {
            Some(_) => remains.go_on(applied_end, watermark),
            None => remains.begin(),
        };
        if let Some(beginning) = found {
            let lost_through = beginning.lost_through.map(|hour| hour.to_string());
            tracing::warn!(partition = %setup.partition, from = %beginning.applied_end, log_begins = %bounds.earliest,
                has_checkpoint = commit.is_some(), closed_through = lost_through,
                "the log was trimmed above the state: rebuilding from the archive");
            return Ok(beginning);
        }
    }
    // Whatever is missing was appended before now, so its event time is bounded by the clock.
    let through = history::latest_hour(setup.parts.clock.now());
    tracing::warn!(partition = %setup.partition, %applied_end, earliest = %bounds.earliest, %through,
        "neither log nor archive has all that the state misses: hours are marked incomplete, the bill is not affected");
    let applied_end = bounds.earliest;
    Ok(Beginning { applied_end, watermark, lost_through: Some(through), archived: None })
}

/// Reads the manifests needed, one partition of the node at a time; `None` if their chain is damaged, which the archiver and the reconciler report as well.
async fn remains<'a>(
    setup: &PartitionSetup,
    goes_on_at: Option<LogOffset>,
    bounds: OffsetBounds,
    seals: &'a [StoredSeal],
) -> Result<Option<Remains<'a>>> {
    let generation = setup.parts.log.generation();
    let from = Remains::manifests_from(goes_on_at, setup.rules);
    let _turn = setup.rebuild_turn.acquire().await.ok(); // never closed
    let manifests = match setup.parts.history.manifests(generation, setup.partition, from).await {
        Ok(manifests) => manifests,
        Err(error) if error.kind() == twice_log::ErrorKind::Damage => {
            tracing::error!(partition = %setup.partition, %error, "manifests are damaged; restore the one named");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let disorder_ms = setup.parts.settings.disorder_ms;
    Ok(Some(Remains { manifests, seals, earliest: bounds.earliest, rules: setup.rules, disorder_ms }))
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
/// hours that the watermark does not close by itself, and for those it has windows of, which a seal lets go.
async fn archived_seals(
    setup: &PartitionSetup,
    has_checkpoint: bool,
    watermark: Option<UtcMillis>,
    oldest_open: Option<Hour>,
) -> Result<Vec<StoredSeal>> {
    let generation = setup.parts.log.generation();
    let late_below = setup.rules.late_below(watermark);
    let from = late_below.filter(|_| has_checkpoint).map(|time| {
        let not_late = time.hour();
        oldest_open.map_or(not_late, |open| open.min(not_late))
    });
    Ok(setup.parts.seals.seals_of_partition(generation, setup.partition, from).await?)
}
