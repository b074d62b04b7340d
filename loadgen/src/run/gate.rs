//! What is in flight, so that a copy that differs waits for its original; and whether the run goes on.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Whether a differing copy may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Its original was acknowledged, or certainly refused.
    Now,
    /// Its original is in flight.
    Wait,
    /// Its original's outcome will never be known.
    Never,
}

#[derive(Debug, Default)]
struct State {
    /// Numbers of bases released and not settled: as many as batches in flight hold.
    in_flight: HashSet<u64>,
    /// Bases given up; the run stops then, so they are few.
    given_up: HashSet<u64>,
    stopped: Option<String>,
}

/// Shared by the planner and the connections.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes bases as released.
    pub(super) fn release(&self, bases: impl IntoIterator<Item = u64>) {
        self.state().in_flight.extend(bases);
    }

    /// Notes copies as settled: acknowledged, refused for certain, or `given_up`.
    pub(super) fn settle(&self, copies: impl IntoIterator<Item = u64>, given_up: bool) {
        let mut state = self.state();
        for sequence in copies {
            // Numbers of repeats are not in the set; that costs a look-up and no bookkeeping.
            if state.in_flight.remove(&sequence) && given_up {
                state.given_up.insert(sequence);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Moves from `held` what may go now, at most `room`, to `ready`; forgets what never may.
    pub(super) fn take_ready(&self, held: &mut Vec<(u64, u64)>, ready: &mut Vec<u64>, room: usize) {
        let state = self.state();
        let mut taken = 0;
        held.retain(|(sequence, original)| match turn(&state, *original) {
            Turn::Now if taken < room => {
                ready.push(*sequence);
                taken += 1;
                false
            }
            Turn::Now | Turn::Wait => true,
            Turn::Never => false,
        });
    }

    /// Waits until something settles or `timeout` passes.
    pub(super) fn wait(&self, timeout: Duration) {
        let state = self.state();
        drop(self.changed.wait_timeout(state, timeout));
    }

    /// Stops the run: nothing more is planned, nothing repeated. The first reason stays.
    pub(super) fn stop(&self, reason: String) {
        self.state().stopped.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Returns why the run was stopped, if it was.
    pub(super) fn stop_reason(&self) -> Option<String> {
        self.state().stopped.clone()
    }

    /// Returns whether the run was stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.state().stopped.is_some()
    }
}

fn turn(state: &State, original: u64) -> Turn {
    if state.given_up.contains(&original) {
        Turn::Never
    } else if state.in_flight.contains(&original) {
        Turn::Wait
    } else {
        Turn::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_differing_copy_waits_for_its_original() {
        let gate = Gate::default();
        gate.release([1, 2, 3]);
        let mut held = vec![(10, 1), (11, 2), (12, 3)];
        let mut ready = Vec::new();
        gate.take_ready(&mut held, &mut ready, 10);
        assert!(ready.is_empty());
        gate.settle([1, 99], false);
        gate.settle([3], true);
        gate.take_ready(&mut held, &mut ready, 10);
        assert_eq!(ready, [10]); // 11 still waits; 12 never goes
        assert_eq!(held, [(11, 2)]);
    }

    #[test]
    fn no_more_go_than_there_is_room_for() {
        let gate = Gate::default();
        let mut held = vec![(10, 1), (11, 2)];
        let mut ready = Vec::new();
        gate.take_ready(&mut held, &mut ready, 1);
        assert_eq!((ready, held), (vec![10], vec![(11, 2)]));
    }

    #[test]
    fn the_first_reason_to_stop_stays() {
        let gate = Gate::default();
        gate.stop("first".to_owned());
        gate.stop("second".to_owned());
        assert_eq!(gate.stop_reason().as_deref(), Some("first"));
    }
}
