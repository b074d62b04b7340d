//! Counts one slice: one pass over the files, lanes side by side, each campaign's copies in offset order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use twice_log::{CampaignId, LogOffset, Position};
use twice_store::{BillingCounts, Error, Result};

use super::files::{Files, side_by_side};
use super::inputs::{FileRange, ReplayInputs, refused};
use super::rows::{CLICK_COLUMNS, RangeRows, Row, Stretch};
use super::slices::Slice;
use super::verdicts::{self, Rulings};
use crate::campaign::{BillRules, BilledCopy, CampaignState};

/// What one slice counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SliceCounts {
    /// Of each run, in order of campaign.
    pub runs: Vec<Vec<BillingCounts>>,
    pub copies: u64,
}

/// How counting a slice ended.
#[derive(Debug)]
pub(super) enum Ended {
    Counted(SliceCounts),
    /// It was given up: it would have taken more memory than there is.
    TooLarge,
}

/// Counts slices of one replay.
pub(super) struct Pass<'a> {
    pub inputs: &'a ReplayInputs,
    pub clicks: &'a Files,
    pub verdicts: &'a Files,
    pub runtime: &'a Handle,
    pub threads: usize,
    /// Says whether memory is used up.
    pub is_full: &'a (dyn Fn() -> bool + Sync),
    /// Waits until the memory of a slice that was given up is free again.
    pub settle: &'a (dyn Fn() + Sync),
    /// Told how many copies were counted since it was told last.
    pub counted: &'a (dyn Fn(u64) + Sync),
}

impl Pass<'_> {
    /// Counts one slice.
    ///
    /// # Errors
    /// `Archive` if a file cannot be read; `Replay` if it holds what cannot be counted.
    pub fn count(&self, slice: &Slice) -> Result<Ended> {
        let rulings = Mutex::new(verdicts::read(self.verdicts, self.runtime, slice)?);
        let lanes: Mutex<VecDeque<&Vec<FileRange>>> = Mutex::new(self.inputs.lanes.iter().collect());
        let given_up = AtomicBool::new(false);
        let copies = AtomicU64::new(0);
        let counts: Mutex<Vec<Vec<BillingCounts>>> =
            Mutex::new(vec![Vec::new(); self.inputs.runs.runs().len()]);
        side_by_side(self.threads.min(self.inputs.lanes.len()), || {
            let next = || lanes.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            while let Some(ranges) = next() {
                let mut lane = Lane {
                    pass: self,
                    slice,
                    rulings: &rulings,
                    numbers: HashMap::new(),
                    states: Vec::new(),
                };
                if !lane.count(ranges, &given_up, &copies)? {
                    return Ok(());
                }
                lane.finish(&mut counts.lock().unwrap_or_else(PoisonError::into_inner));
            }
            Ok(())
        })?;
        if given_up.into_inner() {
            return Ok(Ended::TooLarge);
        }
        let mut runs = counts.into_inner().unwrap_or_else(PoisonError::into_inner);
        runs.iter_mut()
            .for_each(|rows| rows.sort_unstable_by(|left, right| left.campaign_id.cmp(&right.campaign_id)));
        Ok(Ended::Counted(SliceCounts { runs, copies: copies.into_inner() }))
    }
}

/// Partitions that are counted one after the other, and their campaigns.
struct Lane<'a> {
    pass: &'a Pass<'a>,
    slice: &'a Slice,
    rulings: &'a Mutex<Rulings>,
    numbers: HashMap<String, u32>,
    states: Vec<CampaignState<BillRules>>,
}

impl Lane<'_> {
    /// Counts range by range; returns false where the slice was given up.
    fn count(&mut self, ranges: &[FileRange], given_up: &AtomicBool, copies: &AtomicU64) -> Result<bool> {
        let mut rows = RangeRows::default();
        let mut gathered = Vec::new();
        for range in ranges {
            if given_up.load(Ordering::Relaxed) {
                return Ok(false);
            }
            if (self.pass.is_full)() {
                given_up.store(true, Ordering::Relaxed);
                return Ok(false);
            }
            rows.clear();
            self.read(range, &mut rows)?;
            self.apply(range, &mut rows, &mut gathered);
            let count = rows.rows.len() as u64;
            copies.fetch_add(count, Ordering::Relaxed);
            (self.pass.counted)(count);
        }
        Ok(true)
    }

    fn read(&mut self, range: &FileRange, rows: &mut RangeRows) -> Result<()> {
        let Pass { inputs, clicks, runtime, .. } = self.pass;
        let (rulings, numbers, states) = (self.rulings, &mut self.numbers, &mut self.states);
        for place in &range.files {
            let Some(batches) = clicks.open(runtime, *place, &CLICK_COLUMNS, self.slice)? else { continue };
            rows.take(batches, self.slice, range.end_max, |campaign| {
                if let Some(number) = numbers.get(campaign) {
                    return Ok(*number);
                }
                let id = CampaignId::new(campaign)
                    .map_err(|error| refused(format!("campaign {campaign:?} {error}")))?;
                let mut rulings = rulings.lock().unwrap_or_else(PoisonError::into_inner);
                let rulings = rulings.remove(campaign).unwrap_or_default();
                let rules = BillRules::new(Arc::clone(&inputs.runs), id.clone(), rulings);
                let number = states.len() as u32; // campaigns of a slice, which fit into memory
                states.push(CampaignState::new(id, rules));
                numbers.insert(campaign.to_owned(), number);
                Ok(number)
            })?;
        }
        Ok(())
    }

    /// Applies rows campaign by campaign, each in offset order.
    fn apply(&mut self, range: &FileRange, rows: &mut RangeRows, gathered: &mut Vec<Row>) {
        rows.stretches.sort_unstable_by_key(|stretch| (stretch.campaign, stretch.from));
        for stretches in rows.stretches.chunk_by(|left, right| left.campaign == right.campaign) {
            let Some(Stretch { campaign, from, to }) = stretches.first().copied() else { continue };
            let state = &mut self.states[campaign as usize];
            let mut apply = |rows: &mut [Row]| {
                rows.sort_unstable_by_key(|row| row.offset);
                for row in rows {
                    let position =
                        Position { generation: range.chain.generation, offset: LogOffset(row.offset) };
                    let copy = BilledCopy {
                        click_id: row.click_id,
                        event_ms: row.event_ms,
                        payload_hash: row.payload_hash,
                        position,
                    };
                    state.apply_copy(copy, &range.ends);
                }
            };
            if stretches.len() == 1 {
                apply(&mut rows.rows[from..to]);
            } else {
                gathered.clear();
                stretches.iter().for_each(|part| gathered.extend_from_slice(&rows.rows[part.from..part.to]));
                apply(gathered);
            }
        }
    }

    fn finish(self, counts: &mut [Vec<BillingCounts>]) {
        for state in self.states {
            state.counts().rows().for_each(|(run, row)| counts[run].push(row.clone()));
        }
    }
}

/// Adds the counts of another share of the same campaigns. Both are in order of campaign.
pub(super) fn add(left: Vec<BillingCounts>, right: Vec<BillingCounts>) -> Result<Vec<BillingCounts>> {
    let mut all = left;
    all.extend(right);
    all.sort_by(|left, right| left.campaign_id.cmp(&right.campaign_id));
    let mut sums: Vec<BillingCounts> = Vec::with_capacity(all.len());
    for row in all {
        match sums.last_mut() {
            Some(sum) if sum.campaign_id == row.campaign_id => add_row(sum, &row)?,
            _ => sums.push(row),
        }
    }
    Ok(sums)
}

fn add_row(sum: &mut BillingCounts, row: &BillingCounts) -> Result<()> {
    let counts = [
        (&mut sum.gross, row.gross),
        (&mut sum.duplicates, row.duplicates),
        (&mut sum.conflicts, row.conflicts),
        (&mut sum.invalid_givt, row.invalid_givt),
        (&mut sum.invalid_sivt, row.invalid_sivt),
        (&mut sum.billable, row.billable),
        (&mut sum.unpriced, row.unpriced),
    ];
    counts.into_iter().for_each(|(sum, more)| *sum += more);
    let amount = sum.amount_micros.checked_add(row.amount_micros);
    sum.amount_micros =
        amount.ok_or_else(|| Error::Replay { reason: format!("{} owes more than fits", sum.campaign_id) })?;
    Ok(())
}
