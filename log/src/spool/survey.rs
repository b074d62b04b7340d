//! What lies in the queues of a stopped node, read without a lock and without changing anything.

use std::path::Path;

use super::Entry;
use super::holdings::Holdings;
use super::queue;
use super::spooling::QUEUES;
use crate::error::Result;
use crate::event::UtcMillis;
use crate::fs::FileSystem;

/// One queue as it lies on disk.
#[derive(Debug, Clone)]
pub struct Survey {
    pub queue: &'static str,
    /// Records that do not read.
    pub missing: u64,
    holdings: Holdings,
}

impl Survey {
    /// Returns how many records it holds.
    pub fn records(&self) -> u64 {
        self.holdings.records
    }

    /// Returns the bytes of its records.
    pub fn bytes(&self) -> u64 {
        self.holdings.bytes
    }

    /// Returns when the oldest record arrived.
    pub fn oldest(&self) -> Option<UtcMillis> {
        self.holdings.oldest()
    }

    /// Returns how many records arrived before `instant`.
    pub fn held_before(&self, instant: UtcMillis) -> u64 {
        self.holdings.before(instant)
    }
}

/// Reads both queues below `folder`; queues that are not there hold nothing. Blocks on the disk; beside a running node it
/// may see records that are just being drained.
///
/// # Errors
/// `Io`.
pub fn survey(fs: &dyn FileSystem, folder: &Path) -> Result<Vec<Survey>> {
    QUEUES.iter().map(|(name, part)| survey_queue(fs, name, &folder.join(part))).collect()
}

fn survey_queue(fs: &dyn FileSystem, name: &'static str, folder: &Path) -> Result<Survey> {
    let mut survey = Survey { queue: name, missing: 0, holdings: Holdings::default() };
    for epoch in queue::epochs(fs, folder)? {
        let own = queue::epoch_folder(folder, epoch);
        if let Some(missing) = queue::salvaged(fs, &own)? {
            survey.missing += missing;
            continue;
        }
        let read = queue::salvage_epoch(fs, &own)?;
        let entries: Vec<Entry> =
            read.records.iter().filter_map(|(_, stored)| Entry::decode(stored).ok()).collect();
        survey.missing += read.missing + (read.records.len() - entries.len()) as u64;
        survey.holdings.add(&entries);
    }
    Ok(survey)
}
