//! How long the stream path took to be right again after a start, and whether the process before was killed.
//!
//! Guarantee: a start after a kill is known as such; one after a graceful stop is taken for a kill only if the process
//! died between its last write and the removal of its note, which costs nothing but the word.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use twice_actors::StreamPath;
use twice_log::fs::FileSystem;
use twice_log::{Clock, LogOffset, PartitionId};
use twice_reconciler::compare::paths::{Figure, StreamRecovery};

use crate::metrics::{START_AFTER_UNCLEAN_END, START_RECOVERY_SECONDS};
use crate::note::Note;

/// Stands in the data folder while a node runs on it.
const RUNNING: Note = Note("RUNNING");
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The start of this process, as the stream path sees it.
pub struct Recovery {
    folder: PathBuf,
    started: Instant,
    after_unclean_end: bool,
    found: Mutex<Option<StreamRecovery>>,
}

impl Recovery {
    /// Notes that a node runs on the folder; the caller holds its lock.
    ///
    /// # Errors
    /// If the folder cannot be read or written.
    pub fn begin(fs: &dyn FileSystem, folder: &Path, clock: &dyn Clock) -> Result<Self> {
        let started = Instant::now();
        let after_unclean_end = RUNNING.read(folder)?.is_some();
        RUNNING.write(fs, folder, &format!("since {}", clock.now()))?;
        Ok(Self { folder: folder.to_path_buf(), started, after_unclean_end, found: Mutex::default() })
    }

    /// Waits until every partition has applied what is in the log now, and notes how long it took since the start.
    pub async fn watch(&self, stream: StreamPath) {
        let ends: Vec<(PartitionId, LogOffset)> =
            stream.status().await.into_iter().map(|status| (status.partition, status.log_end)).collect();
        loop {
            let reached = stream.status().await;
            let is_reached = |(partition, end): &(PartitionId, LogOffset)| {
                reached.iter().any(|status| status.partition == *partition && status.applied_end >= *end)
            };
            if ends.iter().all(is_reached) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let recovery = StreamRecovery {
            seconds: self.started.elapsed().as_secs_f64(),
            after_unclean_end: self.after_unclean_end,
            partitions: ends.len() as u64,
        };
        metrics::gauge!(START_RECOVERY_SECONDS).set(recovery.seconds);
        metrics::gauge!(START_AFTER_UNCLEAN_END).set(if recovery.after_unclean_end { 1.0 } else { 0.0 });
        let StreamRecovery { seconds, after_unclean_end, .. } = recovery;
        tracing::info!(seconds, after_unclean_end, "the stream path has caught up with the log");
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(recovery);
    }

    /// Returns what was found.
    pub fn figure(&self) -> Figure<StreamRecovery> {
        match *self.found.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(found) => Figure::measured(
                found,
                "the last start of this node, until every partition had applied what was in the log then",
            ),
            None => Figure::unknown("the stream path has not caught up with the log since the start"),
        }
    }

    /// Notes that the node stopped by itself, with everything written down.
    ///
    /// # Errors
    /// If the note cannot be removed: the next start takes this stop for a kill, and nothing else changes.
    pub fn end(&self, fs: &dyn FileSystem) -> Result<()> {
        let path = RUNNING.path(&self.folder);
        fs.remove_file(&path)
            .and_then(|()| fs.sync_dir(&self.folder))
            .with_context(|| format!("cannot remove {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use twice_log::WallClock;
    use twice_log::fs::RealFs;

    use super::*;

    #[test]
    fn a_start_knows_whether_the_process_before_was_killed() {
        let folder = tempfile::tempdir().expect("a folder");
        let begin = || Recovery::begin(&RealFs, folder.path(), &WallClock).expect("begins");
        let first = begin();
        assert!(!first.after_unclean_end, "a new folder");
        drop(first);
        let second = begin();
        assert!(second.after_unclean_end, "the first never ended");
        second.end(&RealFs).expect("ends");
        assert!(!begin().after_unclean_end, "the second did");
        assert!(second.figure().value.is_none(), "nothing was watched");
    }
}
