//! Counting for the bill (kappa): the rules of CR-1 to CR-6 and CR-10 over one campaign's copies, in order of position.
//!
//! Guarantee: no copy is late and seals are ignored; a copy counts in the row of its own hour's run, if one was asked for
//! and the copy lies below its cutoff, and is a duplicate where another copy within the run's horizon stands before it.
//! Counts of disjoint identities add up. Words: *run* = the recorded inputs of one hour, as far as counting reads them;
//! *ruling* = a stored verdict.

use std::collections::HashMap;
use std::sync::Arc;

use twice_log::archive::Rate;
use twice_log::event::{HOUR_MS, VerdictClass};
use twice_log::{CampaignId, Generation, Hour, LogOffset, PartitionId, Position};
use twice_store::BillingCounts;

use super::counting::{Counting, Outcome};
use super::identities::BilledIdentities;

/// Verdicts that arrived more milliseconds before the hour began than this are not asked (CR-10).
const VERDICT_BEFORE_MS: i64 = 24 * HOUR_MS;

/// A copy, with what a bill reads of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BilledCopy {
    pub click_id: [u8; 16],
    pub event_ms: i64,
    pub payload_hash: i64,
    pub position: Position,
}

/// A stored verdict on one identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ruling {
    pub click_id: [u8; 16],
    pub class: VerdictClass,
    pub decided_ms: i64,
    pub arrival_ms: i64,
    pub position: Position,
    pub partition: PartitionId,
    /// Its data file, as a place in the list of all that were read.
    pub file: u32,
}

/// One run to count.
#[derive(Debug)]
pub struct BilledRun {
    pub hour: Hour,
    pub horizon_hours: u16,
    /// In order of campaign.
    pub rates: Arc<Vec<Rate>>,
    /// First verdict of each partition that does not exist for the run.
    pub verdict_ends: HashMap<(Generation, PartitionId), LogOffset>,
    /// Whether the run lists a data file of verdicts, by its place.
    pub verdict_files: Vec<bool>,
}

impl BilledRun {
    fn has_ruling(&self, ruling: &Ruling) -> bool {
        let chain = (ruling.position.generation, ruling.partition);
        self.verdict_files.get(ruling.file as usize).is_some_and(|is_listed| *is_listed)
            && self.verdict_ends.get(&chain).is_some_and(|end| ruling.position.offset < *end)
            && ruling.arrival_ms >= self.hour.start().epoch_ms() - VERDICT_BEFORE_MS
    }

    fn rates_of(&self, campaign: &CampaignId) -> &[Rate] {
        let from = self.rates.partition_point(|rate| rate.campaign_id < *campaign);
        let count = self.rates[from..].partition_point(|rate| rate.campaign_id == *campaign);
        &self.rates[from..from + count]
    }
}

/// The runs of a replay, one an hour.
#[derive(Debug)]
pub struct BilledRuns {
    runs: Vec<BilledRun>,
    /// Lowest hour whose copies are read.
    first_hour: i64,
    by_hour: Vec<Option<u32>>,
}

impl BilledRuns {
    /// Takes runs, in their order, of which no two are of one hour; copies are read from `first_hour` on.
    pub fn new(runs: Vec<BilledRun>, first_hour: Hour) -> Self {
        let first_hour = first_hour.since_epoch();
        let places = runs.iter().map(|run| usize::try_from(run.hour.since_epoch() - first_hour).unwrap_or(0));
        let places: Vec<usize> = places.collect();
        let mut by_hour = vec![None; places.iter().max().map_or(0, |last| last + 1)];
        for (index, place) in places.into_iter().enumerate() {
            by_hour[place] = u32::try_from(index).ok();
        }
        Self { runs, first_hour, by_hour }
    }

    /// Returns the runs.
    pub fn runs(&self) -> &[BilledRun] {
        &self.runs
    }

    /// Returns the place of an hour after the first, and of its run.
    fn place(&self, event_ms: i64) -> (u16, Option<usize>) {
        let place = event_ms.div_euclid(HOUR_MS) - self.first_hour;
        let run = usize::try_from(place).ok().and_then(|place| *self.by_hour.get(place)?);
        // The planner refuses ranges of more hours than fit; an hour outside them is of no run.
        (u16::try_from(place).unwrap_or(u16::MAX), run.map(|run| run as usize))
    }
}

/// First offset of a partition that each run does not see, in the order of the runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutoffEnds(pub Vec<LogOffset>);

/// The rules of one campaign's bill.
#[derive(Debug)]
pub struct BillRules {
    runs: Arc<BilledRuns>,
    campaign: CampaignId,
    /// In order of click.
    rulings: Vec<Ruling>,
}

impl BillRules {
    /// Counts `campaign` for `runs`; `rulings` are all its verdicts, in any order.
    pub fn new(runs: Arc<BilledRuns>, campaign: CampaignId, mut rulings: Vec<Ruling>) -> Self {
        rulings.sort_unstable_by_key(|ruling| ruling.click_id);
        Self { runs, campaign, rulings }
    }

    /// Returns the verdict that counts for a click in a run: the one decided last, then the one stored last.
    fn verdict(&self, click_id: &[u8; 16], run: &BilledRun) -> VerdictClass {
        let from = self.rulings.partition_point(|ruling| ruling.click_id < *click_id);
        let of_click = self.rulings[from..].iter().take_while(|ruling| ruling.click_id == *click_id);
        let newest = of_click
            .filter(|ruling| run.has_ruling(ruling))
            .max_by_key(|ruling| (ruling.decided_ms, ruling.position));
        newest.map_or(VerdictClass::Valid, |ruling| ruling.class)
    }
}

/// The row of one run, as far as it is counted.
#[derive(Debug)]
struct Row {
    run: u32,
    counts: BillingCounts,
    /// (effective from, micros), in order: of one moment only the price recorded last.
    prices: Vec<(i64, i64)>,
}

impl Row {
    fn new(run: u32, rules: &BillRules) -> Self {
        let rates = rules.runs.runs[run as usize].rates_of(&rules.campaign);
        let mut ordered: Vec<&Rate> = rates.iter().collect();
        ordered.sort_unstable_by_key(|rate| (rate.effective_from, rate.recorded_at, rate.cpc_micros));
        let mut prices: Vec<(i64, i64)> = Vec::with_capacity(ordered.len());
        for rate in ordered {
            let effective_ms = rate.effective_from.epoch_ms();
            prices.pop_if(|(before, _)| *before == effective_ms);
            prices.push((effective_ms, rate.cpc_micros));
        }
        // A campaign's currency never changes, so any of its rates tells it.
        let currency = rates.iter().map(|rate| rate.currency).max_by_key(|currency| currency.to_string());
        Self { run, counts: BillingCounts::zero(rules.campaign.clone(), currency), prices }
    }

    fn bill(&mut self, event_ms: i64) {
        let counts = &mut self.counts;
        counts.billable += 1;
        match self.prices.iter().rev().find(|(effective_ms, _)| *effective_ms <= event_ms) {
            Some((_, cpc_micros)) => counts.amount_micros = counts.amount_micros.saturating_add(*cpc_micros),
            None => counts.unpriced += 1,
        }
    }
}

/// The rows of one campaign.
#[derive(Debug, Default)]
pub struct BillCounts {
    rows: Vec<Row>,
    /// Place of the row counted last: copies of an hour come together.
    last: usize,
}

impl BillCounts {
    /// Returns the rows, each with the place of its run.
    pub fn rows(&self) -> impl Iterator<Item = (usize, &BillingCounts)> {
        self.rows.iter().map(|row| (row.run as usize, &row.counts))
    }

    fn row(&mut self, run: u32, rules: &BillRules) -> &mut Row {
        if self.rows.get(self.last).is_none_or(|row| row.run != run) {
            self.last = self.rows.iter().position(|row| row.run == run).unwrap_or(self.rows.len());
            if self.last == self.rows.len() {
                self.rows.push(Row::new(run, rules));
            }
        }
        &mut self.rows[self.last]
    }
}

impl Counting for BillRules {
    type Copy = BilledCopy;
    type Place = Position;
    type Ends = CutoffEnds;
    type Seen = BilledIdentities;
    type Counts = BillCounts;
    type Saved = ();

    fn nothing_seen(&self) -> BilledIdentities {
        BilledIdentities::default()
    }

    fn place(copy: &BilledCopy) -> Position {
        copy.position
    }

    #[inline]
    fn judge(&self, seen: &mut BilledIdentities, copy: &BilledCopy, ends: &CutoffEnds) -> Outcome {
        let (hour, run) = self.runs.place(copy.event_ms);
        let run = run.filter(|run| copy.position.offset < ends.0[*run]);
        let horizon = run.map_or(0, |run| self.runs.runs[run].horizon_hours);
        let winner = seen.check_and_insert(copy.click_id, hour, copy.payload_hash, horizon);
        match (run, winner) {
            (None, _) => Outcome::Remembered,
            (Some(_), None) => Outcome::Counted,
            (Some(_), Some(payload_hash)) if payload_hash == copy.payload_hash => Outcome::Duplicate,
            (Some(_), Some(_)) => Outcome::Conflict,
        }
    }

    #[inline]
    fn count(&self, counts: &mut BillCounts, copy: BilledCopy, outcome: Outcome) {
        let (_, run) = self.runs.place(copy.event_ms);
        let (Some(run), true) = (run, outcome != Outcome::Remembered) else { return };
        let row = counts.row(run as u32, self); // a place in a short list
        row.counts.gross += 1;
        match outcome {
            Outcome::Counted if self.rulings.is_empty() => row.bill(copy.event_ms),
            Outcome::Counted => match self.verdict(&copy.click_id, &self.runs.runs[run]) {
                VerdictClass::Givt => row.counts.invalid_givt += 1,
                VerdictClass::Sivt => row.counts.invalid_sivt += 1,
                VerdictClass::Valid => row.bill(copy.event_ms),
            },
            _ => {
                row.counts.duplicates += 1;
                row.counts.conflicts += u64::from(outcome == Outcome::Conflict);
            }
        }
    }
}
