//! Appends that wait for the commit loop, bounded in bytes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::append::Part;
use crate::error::{Error, Result};

/// All parts of one partition that a group commit writes as one frame.
pub(super) struct FrameParts {
    pub slot: usize,
    pub parts: Vec<Part>,
}

impl FrameParts {
    pub(super) fn payload_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.payload.len()).sum()
    }

    pub(super) fn records(&self) -> u32 {
        self.parts.iter().map(|part| part.records).sum()
    }
}

struct State {
    /// By slot, oldest first.
    waiting: Vec<VecDeque<Part>>,
    parts: usize,
    /// Bytes of payload that wait or are being written.
    bytes: u64,
    closing: bool,
    stopped: bool,
}

/// The queue between appends and the commit loop.
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    bytes_max: u64,
    frame_bytes_max: usize,
}

impl Queue {
    pub(super) fn new(slots: usize, bytes_max: u64, frame_bytes_max: usize) -> Self {
        let waiting = (0..slots).map(|_| VecDeque::new()).collect();
        let state = State { waiting, parts: 0, bytes: 0, closing: false, stopped: false };
        Self { state: Mutex::new(state), filled: Condvar::new(), bytes_max, frame_bytes_max }
    }

    /// Enqueues all parts of an append at once, or none: parts of one append stay together in their partition.
    ///
    /// # Errors
    /// `Stopped`; `Busy`; `Config` if the append is larger than the queue could ever hold.
    pub(super) fn push(&self, parts: Vec<Part>) -> Result<()> {
        let bytes: u64 = parts.iter().map(|part| part.payload.len() as u64).sum();
        let mut state = self.lock();
        if state.stopped || state.closing {
            return Err(Error::Stopped);
        }
        if bytes > self.bytes_max {
            let limit = self.bytes_max;
            return Err(Error::Config {
                reason: format!(
                    "an append of {bytes} bytes passes waiting_bytes_max of {limit}; split it or raise the setting"
                ),
            });
        }
        if state.bytes + bytes > self.bytes_max {
            return Err(Error::Busy { waiting_bytes: state.bytes });
        }
        state.bytes += bytes;
        state.parts += parts.len();
        for part in parts {
            state.waiting[part.slot].push_back(part);
        }
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for appends and takes the next group: of each partition as much as one frame holds.
    /// `None` when the queue was closed and is empty.
    pub(super) fn take_group(&self) -> Option<Vec<FrameParts>> {
        let mut state = self.lock();
        while state.parts == 0 {
            if state.closing {
                return None;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut group = Vec::new();
        let mut taken = 0;
        for (slot, waiting) in state.waiting.iter_mut().enumerate() {
            let mut parts: Vec<Part> = Vec::new();
            let mut bytes = 0;
            while let Some(next) = waiting.front()
                && (parts.is_empty() || bytes + next.payload.len() <= self.frame_bytes_max)
            {
                bytes += next.payload.len();
                parts.extend(waiting.pop_front());
            }
            taken += parts.len();
            if !parts.is_empty() {
                group.push(FrameParts { slot, parts });
            }
        }
        state.parts -= taken;
        Some(group)
    }

    /// Resolves the appends of a group that is durable and published.
    pub(super) fn group_stored(&self, group: Vec<FrameParts>) {
        let parts = || group.iter().flat_map(|frame| &frame.parts);
        self.lock().bytes -= parts().map(|part| part.payload.len() as u64).sum::<u64>();
        parts().for_each(|part| part.append.part_stored());
    }

    /// Refuses appends from now on; those that wait are still taken.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.filled.notify_all();
    }

    /// Refuses appends for ever and ends those of `group` and those that wait: their outcome is unknown.
    pub(super) fn stop(&self, group: Vec<FrameParts>, source: &Arc<io::Error>) {
        let mut state = self.lock();
        state.stopped = true;
        let waiting: Vec<Part> = state.waiting.iter_mut().flat_map(std::mem::take).collect();
        (state.parts, state.bytes) = (0, 0);
        drop(state);
        for part in group.into_iter().flat_map(|frame| frame.parts).chain(waiting) {
            part.append.resolve(Err(Error::AppendUnknown { source: source.clone() }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
