//! Planning: takes copies in order of number, holds differing ones back, and releases each batch when it is due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::batch::{Batch, Pending, format_body};
use super::{Shared, due_after};
use crate::stream::Texts;

/// Differing copies that wait for their originals at most; beyond, planning waits too. Reached only if a node answers some
/// batches and not others for long.
const HELD_MAX: usize = 65_536;

/// Plans the batches of a run on a thread of its own.
#[derive(Debug)]
pub(super) struct Planner {
    shared: Arc<Shared>,
    texts: Texts,
    rate: u64,
    batch_size: usize,
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
        Self { shared, texts, rate, batch_size, next: 0, held: Vec::new() }
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
            let mut body = Vec::with_capacity(self.batch_size * 200);
            format_body(&self.shared.stream, &self.texts, sequences.iter().copied(), &mut body);
            let batch = Batch {
                due,
                copies: sequences.into_iter().map(Pending::new).collect(),
                body: bytes::Bytes::from(body),
            };
            self.sleep_until(due);
            if batches.blocking_send(batch).is_err() {
                return;
            }
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
        let due = if self.next == planned_before {
            Instant::now()
        } else {
            due_after(self.shared.started, self.next, self.rate)
        };
        (sequences, due)
    }
}
