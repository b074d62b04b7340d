//! What the runs of a replay read, put together: each file once, in the order in which it must be counted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use twice_log::archive::{ChainKey, FileEntry, Rate, RunInputs, StoredRunInputs, layout};
use twice_log::event::Sha256Hex;
use twice_log::{Generation, Hour, LogOffset, PartitionId, Topic};
use twice_store::{Error, Result};

use crate::campaign::{BilledRun, BilledRuns, CutoffEnds};

/// Files of clicks that one manifest lists: together they hold offsets `first` to `last`.
#[derive(Debug)]
pub(super) struct FileRange {
    pub chain: ChainKey,
    pub ends: Arc<CutoffEnds>,
    /// Highest of the ends: nothing at or above it is counted.
    pub end_max: LogOffset,
    /// Places in [`ReplayInputs::clicks`].
    pub files: Vec<usize>,
}

/// Everything a replay reads.
#[derive(Debug)]
pub(super) struct ReplayInputs {
    pub runs: Arc<BilledRuns>,
    pub clicks: Vec<FileEntry>,
    pub verdicts: Vec<FileEntry>,
    /// Ranges that must be counted one after the other, by lane.
    pub lanes: Vec<Vec<FileRange>>,
    /// Hash of what was asked: replays of the same runs share their finished slices.
    pub sha256: Sha256Hex,
}

impl ReplayInputs {
    /// Joins the inputs of `runs`.
    ///
    /// # Errors
    /// `Replay` if there is none, two are of one hour, or a file is not of their partitions.
    pub fn of(runs: &[StoredRunInputs]) -> Result<Self> {
        let hours: HashSet<Hour> = runs.iter().map(|run| run.inputs.hour).collect();
        if runs.is_empty() || hours.len() < runs.len() {
            return Err(refused("a replay takes one run an hour, and at least one"));
        }
        let (clicks, verdicts) = (union(runs, |run| &run.click_files), union(runs, |run| &run.verdict_files));
        let verdict_places: HashMap<&str, usize> =
            verdicts.iter().enumerate().map(|(place, file)| (file.path.as_str(), place)).collect();
        let mut rates: Vec<Arc<Vec<Rate>>> = Vec::new();
        let mut billed = Vec::with_capacity(runs.len());
        for StoredRunInputs { inputs, .. } in runs {
            let mut verdict_files = vec![false; verdicts.len()];
            inputs
                .verdict_files
                .iter()
                .for_each(|file| verdict_files[verdict_places[file.path.as_str()]] = true);
            billed.push(BilledRun {
                hour: inputs.hour,
                horizon_hours: u16::try_from(inputs.settings.horizon_hours).unwrap_or(u16::MAX),
                rates: shared_rates(&mut rates, inputs),
                verdict_ends: ends(inputs, Topic::FraudVerdicts),
                verdict_files,
            });
        }
        let first_hour = first_hour(&clicks, &hours)?;
        let lanes = lanes(runs, &clicks)?;
        let names: String = runs.iter().map(|run| format!("{}\n", run.sha256)).collect();
        let runs = Arc::new(BilledRuns::new(billed, first_hour));
        Ok(Self { runs, clicks, verdicts, lanes, sha256: Sha256Hex::of(names.as_bytes()) })
    }

    /// Returns the copies in all files.
    pub fn copies(&self) -> u64 {
        self.clicks.iter().map(|file| file.rows).sum()
    }
}

pub(super) fn refused(reason: impl Into<String>) -> Error {
    Error::Replay { reason: reason.into() }
}

/// Returns each file once, in order of its first mention.
fn union(runs: &[StoredRunInputs], files: impl Fn(&RunInputs) -> &Vec<FileEntry>) -> Vec<FileEntry> {
    let mut seen = HashSet::new();
    let all = runs.iter().flat_map(|run| files(&run.inputs));
    all.filter(|file| seen.insert(file.path.as_str())).cloned().collect()
}

/// Rates are mostly the same in all runs, and there may be a million of them.
fn shared_rates(known: &mut Vec<Arc<Vec<Rate>>>, inputs: &RunInputs) -> Arc<Vec<Rate>> {
    let mut rates = inputs.rates.clone();
    rates.sort();
    if let Some(same) = known.iter().find(|known| known.as_slice() == rates.as_slice()) {
        return Arc::clone(same);
    }
    let rates = Arc::new(rates);
    known.push(Arc::clone(&rates));
    rates
}

fn ends(inputs: &RunInputs, topic: Topic) -> HashMap<(Generation, PartitionId), LogOffset> {
    let of_topic = inputs.cutoffs.iter().filter(|cutoff| cutoff.topic == topic);
    of_topic.map(|cutoff| ((cutoff.generation, cutoff.partition), cutoff.end)).collect()
}

/// Returns the earliest hour read, and checks that hours fit the two bytes an identity has for them.
fn first_hour(clicks: &[FileEntry], hours: &HashSet<Hour>) -> Result<Hour> {
    let all = || clicks.iter().filter_map(|file| file.hour).chain(hours.iter().copied());
    let (first, last) = (all().min(), all().max());
    match first.zip(last) {
        Some((first, last)) if last.since_epoch() - first.since_epoch() < i64::from(u16::MAX) => Ok(first),
        _ => Err(refused("the hours to replay lie more than seven years apart; replay them in parts")),
    }
}

/// Orders the files as they must be counted. Copies of a campaign lie in one partition of a generation: partitions of
/// one generation are counted side by side, those of several one after the other.
fn lanes(runs: &[StoredRunInputs], clicks: &[FileEntry]) -> Result<Vec<Vec<FileRange>>> {
    let mut ranges: BTreeMap<(ChainKey, LogOffset), Vec<usize>> = BTreeMap::new();
    for (place, file) in clicks.iter().enumerate() {
        let span = layout::parse_data_path(&file.path);
        let span = span.ok_or_else(|| refused(format!("{} has not the name of a data file", file.path)))?;
        let chain =
            ChainKey { topic: Topic::AdClicks, generation: span.generation, partition: span.partition };
        ranges.entry((chain, span.first)).or_default().push(place);
    }
    let click_ends: Vec<_> = runs.iter().map(|run| ends(&run.inputs, Topic::AdClicks)).collect();
    let mut chain_ends: HashMap<ChainKey, Arc<CutoffEnds>> = HashMap::new();
    let mut lanes: BTreeMap<ChainKey, Vec<FileRange>> = BTreeMap::new();
    for ((chain, _), files) in ranges {
        let ends = chain_ends.entry(chain).or_insert_with(|| {
            let key = (chain.generation, chain.partition);
            let ends = click_ends.iter().map(|ends| ends.get(&key).copied().unwrap_or(LogOffset(0)));
            Arc::new(CutoffEnds(ends.collect()))
        });
        let end_max = ends.0.iter().copied().max().unwrap_or(LogOffset(0));
        let range = FileRange { chain, ends: Arc::clone(ends), end_max, files };
        lanes.entry(chain).or_default().push(range);
    }
    let generations: HashSet<Generation> = lanes.keys().map(|chain| chain.generation).collect();
    let mut lanes: Vec<Vec<FileRange>> = lanes.into_values().collect();
    if generations.len() > 1 {
        lanes = vec![lanes.into_iter().flatten().collect()]; // in order of generation already
    }
    let rows = |lane: &Vec<FileRange>| -> u64 {
        lane.iter().flat_map(|range| &range.files).map(|place| clicks[*place].rows).sum()
    };
    lanes.sort_by_key(|lane| std::cmp::Reverse(rows(lane))); // the longest first, so that threads end together
    Ok(lanes)
}
