//! Syncs the files of one group commit at the same time.
//!
//! One after the other, each partition would add a whole sync to every acknowledgement; side by side the file system
//! commits its journal once for several. Threads stay, as starting one for each sync would cost as much as it saves.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::fs::File;

/// Most threads beside the commit thread; more wait for the same disk.
const THREADS_MAX: usize = 7;

struct Job {
    file: Arc<dyn File>,
    index: usize,
}

/// Threads that sync files for the commit thread. They end when this is dropped.
pub(super) struct SyncThreads {
    jobs: Vec<Sender<Job>>,
    outcomes: Receiver<(usize, io::Result<()>)>,
}

impl SyncThreads {
    /// Starts what helps for groups of at most `files_max` files.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(super) fn start(files_max: usize) -> io::Result<Self> {
        let (outcome_sender, outcomes) = channel();
        let jobs = (0..files_max.saturating_sub(1).min(THREADS_MAX)).map(|_| {
            let (sender, receiver) = channel::<Job>();
            let outcome_sender = outcome_sender.clone();
            std::thread::Builder::new().name("log-sync".to_owned()).spawn(move || {
                for Job { file, index } in receiver {
                    let outcome = file.sync_data();
                    if outcome_sender.send((index, outcome)).is_err() {
                        return;
                    }
                }
            })?;
            Ok(sender)
        });
        Ok(Self { jobs: jobs.collect::<io::Result<_>>()?, outcomes })
    }

    /// Syncs all files; returns when the last one is done, with the index of one that failed and why.
    pub(super) fn sync_all(&self, files: &[Arc<dyn File>]) -> Result<(), (usize, io::Error)> {
        let mut failed = None;
        let mut given = 0;
        for (index, file) in files.iter().enumerate() {
            let turn = index % (self.jobs.len() + 1);
            if turn < self.jobs.len() {
                if self.jobs[turn].send(Job { file: file.clone(), index }).is_err() {
                    return Err((index, ended()));
                }
                given += 1;
            } else if let Err(error) = file.sync_data() {
                failed = Some((index, error));
            }
        }
        for _ in 0..given {
            match self.outcomes.recv() {
                Ok((_, Ok(()))) => {}
                Ok((index, Err(error))) => failed = Some((index, error)),
                Err(_) => return Err((0, ended())),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

fn ended() -> io::Error {
    io::Error::other("a sync thread of the log ended")
}
