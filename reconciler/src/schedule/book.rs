//! The newest run of each hour as the archive records it: what decides what a night has to do.
//!
//! Guarantee: everything here is read from run records, so a restart knows what the process before it knew; only runs
//! that ended with rows or without a difference count, never one that was given up.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use twice_log::archive::{
    Archive, BillingPath, BillingStatus, ChainKey, FileEntry, ManifestIndex, RunInputs, RunOutcome,
};
use twice_log::{Day, Hour, LogOffset, Topic, UtcMillis};

use crate::error::Result;
use crate::recompute::relations::file_span;

/// Runs looked up at once.
const LOOKUPS_AT_ONCE: usize = 16;

/// What the schedule needs of an hour's newest run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestRun {
    pub seq: u32,
    pub status: BillingStatus,
    pub created_at: UtcMillis,
    /// When the hour's first run was begun.
    pub first_created_at: UtcMillis,
    /// How far it looked for duplicates.
    pub horizon_hours: u32,
    /// Where each partition ended for it.
    ends: BTreeMap<ChainKey, LogOffset>,
}

impl NewestRun {
    fn of(inputs: &RunInputs, first_created_at: UtcMillis) -> Self {
        let ends = inputs.cutoffs.iter().map(|cutoff| (cutoff.chain(), cutoff.end)).collect();
        let RunInputs { seq, status, created_at, .. } = *inputs;
        let horizon_hours = inputs.settings.horizon_hours;
        Self { seq, status, created_at, first_created_at, horizon_hours, ends }
    }

    /// Returns the first offset of a partition that the run did not see.
    pub fn end(&self, chain: ChainKey) -> LogOffset {
        self.ends.get(&chain).copied().unwrap_or(LogOffset(0))
    }

    /// Returns whether a data file of the hour reaches above what the run saw.
    fn misses(&self, topic: Topic, file: &FileEntry) -> bool {
        file_span(&file.path).is_some_and(|span| {
            let chain = ChainKey { topic, generation: span.generation, partition: span.partition };
            span.last >= self.end(chain)
        })
    }
}

/// Newest runs by hour.
#[derive(Debug, Default)]
pub struct RunBook {
    runs: BTreeMap<Hour, NewestRun>,
    /// Hours with a run begun and not ended.
    open: BTreeSet<Hour>,
    /// Hours whose runs are to be read again.
    stale: BTreeSet<Hour>,
    is_read: bool,
}

impl RunBook {
    /// Notes that a run of the hour was tried.
    pub fn tried(&mut self, hour: Hour) {
        self.stale.insert(hour);
    }

    /// Reads what came since: every hour the first time, and then those of which a run was tried.
    pub async fn refresh(&mut self, archive: &Archive) -> Result<()> {
        if !self.is_read {
            self.stale.extend(archive.run_hours(BillingPath::Lambda).await?);
            // A replay begun later is somebody's, who ends it; only what a process before this one left is the schedule's.
            let replayed = archive.run_hours(BillingPath::Kappa).await?;
            self.stale.extend(&replayed);
            self.open.extend(replayed);
            self.is_read = true;
        }
        let hours: Vec<(Hour, bool)> =
            self.stale.iter().map(|hour| (*hour, self.open.contains(hour))).collect();
        let mut lookups = futures::stream::iter(hours)
            .map(|(hour, may_be_open)| async move { (hour, newest_run(archive, hour, may_be_open).await) })
            .buffered(LOOKUPS_AT_ONCE);
        while let Some((hour, found)) = lookups.next().await {
            let (newest, is_open) = found?;
            if let Some(newest) = newest {
                self.runs.insert(hour, newest);
            }
            if is_open {
                self.open.insert(hour);
            } else {
                self.open.remove(&hour);
            }
            self.stale.remove(&hour);
        }
        Ok(())
    }

    /// Returns hours whose newest run, of either path, has no result: a crash came between inputs and result (G-4).
    pub fn open(&self) -> &BTreeSet<Hour> {
        &self.open
    }

    /// Iterates over billed hours and their newest runs.
    pub fn runs(&self) -> impl Iterator<Item = (Hour, &NewestRun)> {
        self.runs.iter().map(|(hour, run)| (*hour, run))
    }

    /// Returns an hour's newest run.
    pub fn run(&self, hour: Hour) -> Option<&NewestRun> {
        self.runs.get(&hour)
    }

    /// Returns the billed hours that are to become final at `now`, oldest first (CR-9).
    ///
    /// An hour billed only after its day's close, such as an import, waits as long from its first bill: its verdicts
    /// need their time as well.
    pub fn nights(&self, now: UtcMillis, maturity_ms: i64) -> Vec<Hour> {
        let is_due = |(hour, run): &(Hour, &NewestRun)| {
            let close = Day::of(*hour).end().plus_ms(maturity_ms);
            let close =
                if run.first_created_at <= close { close } else { run.first_created_at.plus_ms(maturity_ms) };
            run.status < BillingStatus::Final && now >= close
        };
        self.runs().filter(is_due).map(|(hour, _)| hour).collect()
    }

    /// Returns the billed hours, of at least this status, with clicks that their newest run did not see.
    pub fn with_later_clicks(&self, index: &ManifestIndex, status: BillingStatus) -> BTreeSet<Hour> {
        let mut touched = BTreeSet::new();
        for chain in index.chains().filter(|chain| chain.topic == Topic::AdClicks) {
            let files = index.manifests(chain).iter().flat_map(|manifest| &manifest.manifest.files);
            for (hour, file) in files.filter_map(|file| Some((file.hour?, file))) {
                let run = self.runs.get(&hour).filter(|run| run.status >= status);
                if run.is_some_and(|run| run.misses(Topic::AdClicks, file)) {
                    touched.insert(hour);
                }
            }
        }
        touched
    }
}

/// Returns the newest run of an hour that was not given up, and whether the newest of all has no result; of a replay's it
/// asks only where one may be open.
async fn newest_run(archive: &Archive, hour: Hour, may_be_open: bool) -> Result<(Option<NewestRun>, bool)> {
    let replayed = match may_be_open {
        true => archive.latest_run(BillingPath::Kappa, hour).await?,
        false => None,
    };
    let is_replay_open = replayed.is_some_and(|run| run.result.is_none());
    let Some(run) = archive.latest_run(BillingPath::Lambda, hour).await? else {
        return Ok((None, is_replay_open));
    };
    let is_open = run.result.is_none() || is_replay_open;
    let is_counted = run.result.is_some_and(|run| run.result.outcome != RunOutcome::Abandoned);
    let mut newest = is_counted.then_some(run.inputs.inputs.clone());
    let mut seq = run.inputs.inputs.seq;
    while newest.is_none() && seq > 1 {
        seq -= 1;
        let result = archive.run_result(BillingPath::Lambda, hour, seq).await?;
        if result.is_some_and(|run| run.result.outcome != RunOutcome::Abandoned) {
            newest = archive.run_inputs(BillingPath::Lambda, hour, seq).await?.map(|run| run.inputs);
        }
    }
    let Some(newest) = newest else { return Ok((None, is_open)) };
    let first = match newest.seq {
        1 => None,
        // A final hour's first run decides nothing any more.
        _ if newest.status == BillingStatus::Final => None,
        _ => archive.run_inputs(BillingPath::Lambda, hour, 1).await?,
    };
    let first_created_at = first.map_or(newest.created_at, |first| first.inputs.created_at);
    Ok((Some(NewestRun::of(&newest, first_created_at)), is_open))
}
