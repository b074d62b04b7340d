//! A replay from beginning to end: verify, cut, count slice by slice, add up.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use twice_log::archive::{Archive, StoredRunInputs};
use twice_log::event::Sha256Hex;
use twice_store::cost::rss_bytes;
use twice_store::{BillingCounts, Cost, CostMeter, ReplayProgress, Result};

use super::ReplayLimits;
use super::files::Files;
use super::inputs::{ReplayInputs, refused};
use super::pass::{self, Ended, Pass, SliceCounts};
use super::scratch::Scratch;
use super::slices::{self, Slice};

/// Memory of one copy in the set of identities: a slot of 27 bytes in a table that is seven sixteenths full, and the
/// table it grew out of. Measured, then rounded up.
const BYTES_PER_COPY: u64 = 100;
/// Memory of one copy of a range while it is read: its row, and once more where several files hold its campaign.
const BYTES_PER_ROW_READ: u64 = 80;
/// Program, footers, pages and batches.
const BASE_BYTES: u64 = 80 << 20;
/// Fewest copies of a slice, however little memory there is.
const COPIES_PER_SLICE_MIN: u64 = 50_000;
/// One part in so many of the limit is never planned with.
const HEADROOM_PARTS: u64 = 16;
/// Times a slice may be halved.
const HALVINGS_MAX: u32 = 8;
/// How often it is looked whether a slice that was given up has freed its memory: the allocator keeps freed pages a while.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Looks within which it should have.
const LOOKS_TO_SETTLE: u32 = 200;

/// Whose memory the limit bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All of the process: it does nothing but replay, and a slice that grows too large is halved.
    Process,
    /// What the replay takes, by its own account: others work in the same process.
    Share,
}

/// What a replay says while it works.
pub(super) enum Said {
    Progress(ReplayProgress),
    /// One row of the run at a place; those of a run come in order of campaign.
    Row(usize, BillingCounts),
}

/// Figures of a replay.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Summary {
    pub copies: u64,
    pub slices: u32,
    /// Of these, finished by an earlier try.
    pub slices_found: u32,
    pub cost: Cost,
}

/// Counts `runs` and says rows to `say`. Blocks: never call it on an arbiter.
///
/// # Errors
/// `Replay` with the reason; `Archive` if a file is not the one recorded.
pub(super) fn count(
    archive: &Archive,
    runs: &[StoredRunInputs],
    limits: &ReplayLimits,
    scope: Scope,
    runtime: &Handle,
    say: &(dyn Fn(Said) -> Result<()> + Sync),
) -> Result<Summary> {
    let meter = CostMeter::start();
    let inputs = ReplayInputs::of(runs)?;
    let clicks = Files::new(archive.clone(), inputs.clicks.clone());
    let verdicts = Files::new(archive.clone(), inputs.verdicts.clone());
    if limits.verify_files {
        clicks.verify(runtime, limits.threads)?;
        verdicts.verify(runtime, limits.threads)?;
    }
    let rows_max = copies_per_slice(&inputs, limits);
    let slices = cut(&clicks, &verdicts, runtime, rows_max)?;
    let names = serde_json::to_string(&slices).map_err(|error| refused(error.to_string()))?;
    let id = Sha256Hex::of(format!("{}\n{names}", inputs.sha256).as_bytes());
    let mut scratch = Scratch::open(limits.scratch_dir.as_deref(), &id)?;
    let progress = Progress::new(inputs.copies(), slices.len() as u32, say);
    let is_full = || scope == Scope::Process && rss_bytes() > most(limits);
    let settle = || {
        if scope == Scope::Process {
            settle(limits.memory_bytes_max / 2);
        }
    };
    let counted = |copies| progress.counted(copies);
    let pass = Pass {
        inputs: &inputs,
        clicks: &clicks,
        verdicts: &verdicts,
        runtime,
        threads: limits.threads,
        is_full: &is_full,
        settle: &settle,
        counted: &counted,
    };
    let (mut slices_found, mut copies) = (0, 0);
    for (index, slice) in slices.iter().enumerate() {
        match scratch.find(index, slice) {
            Some(found) => {
                slices_found += 1;
                copies += found.copies;
                progress.counted(found.copies);
            }
            None => {
                let counts = count_halving(&pass, slice, HALVINGS_MAX)?;
                copies += counts.copies;
                scratch.keep(index, slice, counts)?;
            }
        }
        progress.slice_done()?;
    }
    say_rows(&mut scratch, &slices, inputs.runs.runs().len(), say)?;
    scratch.remove();
    Ok(Summary { copies, slices: slices.len() as u32, slices_found, cost: meter.read() })
}

/// Counts a slice; one that takes too much memory is given up and counted in halves.
pub(super) fn count_halving(pass: &Pass<'_>, slice: &Slice, halvings: u32) -> Result<SliceCounts> {
    match pass.count(slice)? {
        Ended::Counted(counts) => Ok(counts),
        Ended::TooLarge if halvings == 0 => Err(refused(
            "the memory did not suffice for even small slices: set replay_memory_bytes_max \
             (--replay-memory-bytes-max) higher, or replay_threads lower",
        )),
        Ended::TooLarge => {
            // Else the halves would be given up for memory that is only not yet given back.
            (pass.settle)();
            let [first, second] = slice.halves();
            let first = count_halving(pass, &first, halvings - 1)?;
            let second = count_halving(pass, &second, halvings - 1)?;
            let runs = first.runs.into_iter().zip(second.runs).map(|(left, right)| pass::add(left, right));
            Ok(SliceCounts { runs: runs.collect::<Result<_>>()?, copies: first.copies + second.copies })
        }
    }
}

/// Waits until this process holds less than `bytes`, or for two seconds.
fn settle(bytes: u64) {
    for _ in 0..LOOKS_TO_SETTLE {
        if rss_bytes() < bytes {
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Says the rows of each range of campaigns, its parts added up. Ranges follow each other in order of campaign.
fn say_rows(
    scratch: &mut Scratch,
    slices: &[Slice],
    runs: usize,
    say: &(dyn Fn(Said) -> Result<()> + Sync),
) -> Result<()> {
    let mut index = 0;
    for range in slices.chunk_by(|left, right| left.from == right.from) {
        let mut sums: Vec<Vec<BillingCounts>> = vec![Vec::new(); runs];
        for slice in range {
            let counts = scratch.read(index, slice)?;
            for (sum, more) in sums.iter_mut().zip(counts.runs) {
                *sum = pass::add(std::mem::take(sum), more)?;
            }
            index += 1;
        }
        for (run, rows) in sums.into_iter().enumerate() {
            rows.into_iter().try_for_each(|row| say(Said::Row(run, row)))?;
        }
    }
    Ok(())
}

fn cut(clicks: &Files, verdicts: &Files, runtime: &Handle, rows_max: u64) -> Result<Vec<Slice>> {
    let rows = |files: &Files| files.entries().iter().map(|file| file.rows).sum::<u64>();
    if rows(clicks) + rows(verdicts) <= rows_max {
        return Ok(vec![Slice::all()]);
    }
    let mut extents = Vec::new();
    for files in [clicks, verdicts] {
        for place in 0..files.entries().len() {
            extents.extend(files.extents(runtime, place)?);
        }
    }
    Ok(slices::cut(&extents, rows_max))
}

/// Returns the memory that may be in use.
fn most(limits: &ReplayLimits) -> u64 {
    limits.memory_bytes_max - limits.memory_bytes_max / HEADROOM_PARTS
}

/// Returns how many copies fit the memory at once.
fn copies_per_slice(inputs: &ReplayInputs, limits: &ReplayLimits) -> u64 {
    if let Some(copies) = limits.copies_per_slice_max {
        return copies.max(1);
    }
    let ranges = inputs.lanes.iter().flatten();
    let largest = ranges.map(|range| range.files.iter().map(|place| inputs.clicks[*place].rows).sum::<u64>());
    // A slice has its share of each range only: the smaller it is, the less of them is in memory at once.
    let read_at_once = (largest.max().unwrap_or(0) * limits.threads.max(1) as u64).min(inputs.copies());
    let reading = BYTES_PER_ROW_READ * read_at_once / inputs.copies().max(1);
    let left = most(limits).saturating_sub(BASE_BYTES);
    (left / (BYTES_PER_COPY + reading)).max(COPIES_PER_SLICE_MIN)
}

/// How far the replay is, told now and then.
struct Progress<'a> {
    copies_total: u64,
    slices_total: u32,
    copies_done: AtomicU64,
    slices_done: Mutex<u32>,
    say: &'a (dyn Fn(Said) -> Result<()> + Sync),
}

impl<'a> Progress<'a> {
    fn new(copies_total: u64, slices_total: u32, say: &'a (dyn Fn(Said) -> Result<()> + Sync)) -> Self {
        Self { copies_total, slices_total, copies_done: AtomicU64::new(0), slices_done: Mutex::new(0), say }
    }

    fn copies(&self) -> u64 {
        self.copies_done.load(Ordering::Relaxed)
    }

    fn counted(&self, copies: u64) {
        self.copies_done.fetch_add(copies, Ordering::Relaxed);
        let slices_done = *self.slices_done.lock().unwrap_or_else(PoisonError::into_inner);
        // Who does not hear it will see the end.
        let _ = self.tell(slices_done);
    }

    fn slice_done(&self) -> Result<()> {
        let slices_done = {
            let mut done = self.slices_done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += 1;
            *done
        };
        self.tell(slices_done)
    }

    fn tell(&self, slices_done: u32) -> Result<()> {
        (self.say)(Said::Progress(ReplayProgress {
            copies_done: self.copies(),
            // Copies above every cutoff are in the files and are never counted.
            copies_total: self.copies_total.max(self.copies()),
            slices_done,
            slices_total: self.slices_total,
        }))
    }
}
