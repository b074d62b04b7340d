//! Planning: takes copies in order of number, holds differing ones back, and releases each batch when it is due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Shared;
use super::batch::{Batch, Pending};
use crate::ledger::note_sent_below;
use crate::stream::Texts;

/// Differing copies that wait for their originals at most; beyond, planning waits too. Reached only if a node answers some
/// batches and not others for long.
const HELD_MAX: usize = 65_536;
/// Seconds of the schedule for which a worker writes down ahead that it may send.
const NOTED_AHEAD_S: u64 = 2;

/// Plans the batches of a run on a thread of its own.
#[derive(Debug)]
pub(super) struct Planner {
    shared: Arc<Shared>,
    texts: Texts,
    batch_size: usize,
    /// Copies that a worker writes down ahead as perhaps sent.
    noted_ahead: u64,
    /// Every copy below is written down so.
    noted_below: u64,
    /// Moment of the schedule at which this process goes on.
    begun_at: Option<Duration>,
    /// Number of the next copy.
    next: u64,
    /// Differing copies and their originals, in order of number.
    held: Vec<(u64, u64)>,
}

impl Planner {
    pub(super) fn new(shared: Arc<Shared>, rate: u64, batch: u32) -> Self {
        // At low rates a full batch would hold its first clicks back for long: one second is enough.
        let batch_size = u64::from(batch).min(rate.max(1)) as usize;
        let texts = Texts::new(shared.stream.settings());
        let noted_below = shared.earlier.sent_below;
        let noted_ahead = (rate * NOTED_AHEAD_S).max(1_000);
        Self {
            shared,
            texts,
            batch_size,
            noted_ahead,
            noted_below,
            begun_at: None,
            next: 0,
            held: Vec::new(),
        }
    }

    /// Releases every batch at its time; returns at the end, when the run stops, or when nobody receives any more.
    pub(super) fn release_all(mut self, batches: &mpsc::Sender<Batch>) {
        while !self.shared.gate.is_stopped() {
            let (sequences, due) = self.fill();
            if sequences.is_empty() {
                if self.held.is_empty() {
                    return;
                }
                self.shared.gate.wait(Duration::from_millis(100));
                continue;
            }
            let form = self.shared.form;
            let body = form.write(&self.shared.stream, &self.texts, sequences.iter().copied());
            let body = match body.and_then(|body| self.note_ahead().map(|()| body)) {
                Ok(body) => body,
                Err(error) => return self.shared.gate.stop(format!("{error:#}")),
            };
            let copies = sequences.into_iter().map(|sequence| self.pending(sequence)).collect();
            let batch = Batch { due, copies, body };
            self.sleep_until(due);
            if batches.blocking_send(batch).is_err() {
                return;
            }
        }
    }

    /// Returns when the last of the copies planned so far is due. A process that goes on after another begins at once.
    fn due(&mut self) -> Instant {
        let copies = self.shared.stream.settings().copies.max(1);
        let moment = self.shared.pace.moment(self.next as f64 / copies as f64);
        let begun_at = match self.begun_at {
            Some(begun_at) => begun_at,
            None if self.shared.earlier.settled.is_empty() => Duration::ZERO,
            None => moment,
        };
        self.begun_at = Some(begun_at);
        self.shared.started + moment.saturating_sub(begun_at)
    }

    /// Writes down that copies up to beyond the next one may be sent, before they are.
    fn note_ahead(&mut self) -> anyhow::Result<()> {
        if let Some(file) = self.shared.worker_file.as_deref().filter(|_| self.next > self.noted_below) {
            self.noted_below = self.next + self.noted_ahead;
            note_sent_below(file, self.noted_below)?;
        }
        Ok(())
    }

    fn pending(&self, sequence: u64) -> Pending {
        if sequence < self.shared.earlier.sent_below {
            Pending::perhaps_sent(sequence)
        } else {
            Pending::new(sequence)
        }
    }

    /// Sleeps in slices, so that a slow schedule does not keep a stopped run.
    fn sleep_until(&self, due: Instant) {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() || self.shared.gate.is_stopped() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// Returns the numbers of the next batch and when it is due: when the last of its planned copies is.
    fn fill(&mut self) -> (Vec<u64>, Instant) {
        let mut sequences = Vec::with_capacity(self.batch_size);
        let room = if self.held.len() >= HELD_MAX { self.batch_size } else { self.batch_size / 2 + 1 };
        self.shared.gate.take_ready(&mut self.held, &mut sequences, room);
        let mut bases = Vec::with_capacity(self.batch_size);
        let planned_before = self.next;
        let copies = self.shared.stream.settings().copies;
        while sequences.len() < self.batch_size && self.next < copies && self.held.len() < HELD_MAX {
            let copy = self.shared.stream.copy(self.next);
            self.next += 1;
            if !self.shared.has(copy.original) || self.shared.earlier.settled.contains(&copy.sequence) {
                continue;
            }
            if copy.kind.differs() {
                self.held.push((copy.sequence, copy.original));
                continue;
            }
            if copy.kind.is_base() {
                bases.push(copy.sequence);
            }
            sequences.push(copy.sequence);
        }
        self.shared.gate.release(bases);
        // Copies held to the end are due when their originals let them go, which is now.
        let due = if self.next == planned_before { Instant::now() } else { self.due() };
        (sequences, due)
    }
}
