//! The counter of recorded runs as others ask it: in a child process, or in this one.

use std::path::PathBuf;

use async_trait::async_trait;
use clap::{ArgAction, Args};
use twice_log::archive::{Archive, ArchiveLocation, StoredRunInputs, layout};
use twice_store::child::{ChildCommand, ChildError};
use twice_store::{Error, Replay, ReplayProgressSender, Replayed, ReplayedHour, Result};

use super::ReplayLimits;
use super::child::{Line, Request, RunPlace, runtime};
use super::count::{Said, Scope, Summary, count};
use super::inputs::refused;
use crate::config::check;

/// Below this nothing would be left for identities beside the program and what it reads.
const MEMORY_BYTES_MIN: u64 = 256 << 20;

/// Settings of replays. None of them changes a count.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ReplayConfig {
    /// Threads of one replay; 0 means one a core. Default 0.
    #[arg(long = "replay-threads", id = "replay_threads", default_value_t = ReplayConfig::default().threads)]
    pub threads: usize,
    /// Peak resident memory of the replay process, however long the range. Less makes more slices, so more reading.
    /// At least 256 MiB, default 1 GiB.
    #[arg(long = "replay-memory-bytes-max", id = "replay_memory_bytes_max", default_value_t = ReplayConfig::default().memory_bytes_max)]
    pub memory_bytes_max: u64,
    /// Whether each file's SHA-256 is compared before it is read; costs one more read of the files. Default true.
    #[arg(long = "replay-verify-files", id = "replay_verify_files", action = ArgAction::Set, default_value_t = true)]
    pub verify_files: bool,
    /// Niceness of the replay process. 0 to 19, default 10.
    #[arg(long = "replay-nice", id = "replay_nice", default_value_t = ReplayConfig::default().nice)]
    pub nice: i32,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self { threads: 0, memory_bytes_max: 1 << 30, verify_files: true, nice: 10 }
    }
}

impl ReplayConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the first setting out of its bounds.
    pub fn validate(&self) -> crate::Result<()> {
        check("replay_memory_bytes_max", self.memory_bytes_max, MEMORY_BYTES_MIN, u64::MAX)?;
        check("replay_nice", u64::try_from(self.nice).unwrap_or(u64::MAX), 0, 19)
    }

    /// Returns what one replay may use, keeping finished slices in `scratch_dir`.
    pub fn limits(&self, scratch_dir: Option<PathBuf>) -> ReplayLimits {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        ReplayLimits {
            threads: if self.threads == 0 { cores } else { self.threads },
            memory_bytes_max: self.memory_bytes_max,
            verify_files: self.verify_files,
            copies_per_slice_max: None,
            scratch_dir,
        }
    }
}

/// Puts what a replay says together.
struct Gathering {
    hours: Vec<ReplayedHour>,
    progress: Option<ReplayProgressSender>,
}

impl Gathering {
    fn new(runs: &[StoredRunInputs], progress: Option<ReplayProgressSender>) -> Self {
        let hours = runs.iter().map(|run| ReplayedHour { hour: run.inputs.hour, rows: Vec::new() });
        Self { hours: hours.collect(), progress }
    }

    fn take(&mut self, said: Said) -> Result<()> {
        match said {
            Said::Progress(progress) => {
                if let Some(sender) = &self.progress {
                    let _ = sender.send(progress); // who went away needs none
                }
            }
            Said::Row(run, counts) => {
                let hour = self.hours.get_mut(run);
                hour.ok_or_else(|| refused("the replay counted a run nobody asked for"))?.rows.push(counts);
            }
        }
        Ok(())
    }

    fn finish(self, summary: Summary) -> Replayed {
        if summary.slices_found > 0 {
            tracing::info!(slices = summary.slices_found, "went on after a replay that had not ended");
        }
        Replayed { hours: self.hours, copies: summary.copies, slices: summary.slices, cost: summary.cost }
    }
}

/// Runs each replay in a child process: `program arguments…`, which must end in `replay::child::run`.
#[derive(Debug, Clone)]
pub struct ProcessReplay {
    command: ChildCommand,
    archive: ArchiveLocation,
    limits: ReplayLimits,
}

impl ProcessReplay {
    /// Starts `program replay-child`, which opens `archive` by itself.
    pub fn new(program: PathBuf, nice: i32, archive: ArchiveLocation, limits: ReplayLimits) -> Self {
        Self::with_arguments(program, vec!["replay-child".to_owned()], nice, archive, limits)
    }

    /// Starts `program` with other arguments.
    pub fn with_arguments(
        program: PathBuf,
        arguments: Vec<String>,
        nice: i32,
        archive: ArchiveLocation,
        limits: ReplayLimits,
    ) -> Self {
        Self { command: ChildCommand::new(program, arguments, nice), archive, limits }
    }
}

#[async_trait]
impl Replay for ProcessReplay {
    async fn replay(
        &self,
        runs: &[StoredRunInputs],
        progress: Option<ReplayProgressSender>,
    ) -> Result<Replayed> {
        let places = runs.iter().map(|run| RunPlace {
            path: layout::run_inputs_path(run.inputs.path, run.inputs.hour, run.inputs.seq),
            sha256: run.sha256.clone(),
        });
        let request =
            Request { archive: self.archive.clone(), runs: places.collect(), limits: self.limits.clone() };
        let request = serde_json::to_vec(&request).map_err(|error| refused(error.to_string()))?;
        let mut gathering = Gathering::new(runs, progress);
        let mut summary = None;
        let answered = self.command.run(request, |line| {
            let line: Line = serde_json::from_str(line)
                .map_err(|error| Failure(refused(format!("a line of the replay does not read: {error}"))))?;
            match line {
                Line::Progress(progress) => gathering.take(Said::Progress(progress)).map_err(Failure),
                Line::Row { run, counts } => gathering.take(Said::Row(run, counts)).map_err(Failure),
                Line::Summary(said) => {
                    summary = Some(said);
                    Ok(())
                }
                Line::Error { detail, damage: Some(path) } => {
                    Err(Failure(Error::Archive(twice_log::Error::ArchiveDamage { path, reason: detail })))
                }
                Line::Error { detail, damage: None } => Err(Failure(refused(detail))),
            }
        });
        answered.await.map_err(|Failure(error)| error)?;
        let summary = summary.ok_or_else(|| refused("the replay process ended without an answer"))?;
        Ok(gathering.finish(summary))
    }
}

/// Why a child gave no answer, as the store's error.
struct Failure(Error);

impl From<ChildError> for Failure {
    fn from(error: ChildError) -> Self {
        let advice = match &error {
            ChildError::Failed { killed: true, .. } => {
                "; it was killed or gave up, probably for want of memory: lower replay_memory_bytes_max \
                 (--replay-memory-bytes-max) to what the machine has left, or raise it if the machine has more"
            }
            _ => "",
        };
        let cause = match &error {
            ChildError::Io { source, .. } => format!(": {source}"),
            ChildError::Failed { .. } | ChildError::Silent { .. } => String::new(),
        };
        Self(refused(format!("replay process: {error}{cause}{advice}")))
    }
}

/// Runs replays in this process, on threads of their own. For tests and offline commands.
#[derive(Debug, Clone)]
pub struct InProcessReplay {
    archive: Archive,
    limits: ReplayLimits,
}

impl InProcessReplay {
    /// Reads from `archive`.
    pub fn new(archive: Archive, limits: ReplayLimits) -> Self {
        Self { archive, limits }
    }
}

#[async_trait]
impl Replay for InProcessReplay {
    async fn replay(
        &self,
        runs: &[StoredRunInputs],
        progress: Option<ReplayProgressSender>,
    ) -> Result<Replayed> {
        let (archive, limits, runs) = (self.archive.clone(), self.limits.clone(), runs.to_vec());
        // It blocks and has a runtime of its own: neither belongs on the caller's thread.
        let work = tokio::task::spawn_blocking(move || {
            let gathering = std::sync::Mutex::new(Gathering::new(&runs, progress));
            let say = |said| gathering.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take(said);
            let runtime = runtime()?;
            let summary = count(&archive, &runs, &limits, Scope::Share, runtime.handle(), &say)?;
            let gathering = gathering.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            Ok(gathering.finish(summary))
        });
        work.await.unwrap_or_else(|error| Err(refused(format!("the replay did not end: {error}"))))
    }
}
