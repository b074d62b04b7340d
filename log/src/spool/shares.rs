//! How much of a queue each owner of its records takes up, so that one alone cannot fill it for all.
//!
//! Guarantee: an owner that takes up nothing finds room while others hold no more than their shares. Words: *passed* =
//! bytes that went through the queue since the process began; a record is gone when more was given up than had passed
//! when it came, as a queue gives up in order. Appends that run at once may be taken for each other's by their own size,
//! and what a process before this one stored is nobody's.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::entry::Entry;
use super::queue::SpoolQueue;
use crate::error::{Error, Result};

/// Into so many parts of the queue what an owner holds is summed up: neighbours are given up together.
const PARTS: u64 = 256;

/// The shares of a queue's owners.
pub(super) struct Shares {
    bytes_max: u64,
    part_bytes: u64,
    owners: Mutex<HashMap<String, VecDeque<Held>>>,
}

/// Neighbouring records of one owner.
struct Held {
    /// What had passed the queue with the last of them.
    passed: u64,
    bytes: u64,
}

/// What was taken up.
pub(super) struct Place {
    passed: u64,
    bytes: u64,
}

impl Shares {
    /// Shares out a queue of so many bytes.
    pub fn of(queue_bytes_max: u64, percent_max: u8) -> Self {
        // In a wider number: the bytes of a queue have no upper bound.
        let bytes_max = (u128::from(queue_bytes_max) * u128::from(percent_max) / 100) as u64; // at most the queue's
        Self { bytes_max, part_bytes: (queue_bytes_max / PARTS).max(1), owners: Mutex::default() }
    }

    /// Takes up room for what an owner is about to append.
    ///
    /// # Errors
    /// `SpoolFull`: its share is used up. One that holds nothing may always append.
    pub fn take(&self, owner: &str, entries: &[Entry], queue: &SpoolQueue) -> Result<Place> {
        let bytes: u64 = entries.iter().map(Entry::stored_bytes).sum();
        let (given_up, status) = (queue.given_up(), queue.status());
        let passed = given_up + status.bytes + bytes;
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, held| {
            while held.front().is_some_and(|oldest| oldest.passed <= given_up) {
                held.pop_front();
            }
            !held.is_empty()
        });
        let held = owners.get(owner).map_or(0, |held| held.iter().map(|held| held.bytes).sum());
        if held > 0 && held + bytes > self.bytes_max {
            return Err(Error::SpoolFull { queue: status.name, bytes: held, bytes_max: self.bytes_max });
        }
        let own = owners.entry(owner.to_owned()).or_default();
        match own.back_mut().filter(|newest| newest.passed / self.part_bytes == passed / self.part_bytes) {
            Some(newest) => {
                newest.bytes += bytes;
                newest.passed = newest.passed.max(passed);
            }
            None => own.push_back(Held { passed, bytes }),
        }
        Ok(Place { passed, bytes })
    }

    /// Gives room back for what was certainly not stored.
    pub fn give_back(&self, owner: &str, place: Place) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let part = place.passed / self.part_bytes;
        let held = owners
            .get_mut(owner)
            .and_then(|held| held.iter_mut().rev().find(|held| held.passed / self.part_bytes == part));
        if let Some(held) = held {
            held.bytes = held.bytes.saturating_sub(place.bytes);
        }
    }
}
