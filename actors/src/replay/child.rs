//! The child process of a replay: one JSON request in, JSON lines out.
//!
//! Guarantee: the last line is a summary, or an error and exit status 2; whoever reads neither got no answer. The process
//! keeps to its memory limit, and dies with whoever asked; finished slices stay for the next try.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use twice_log::archive::{Archive, ArchiveLocation, RunInputs, StoredRunInputs};
use twice_log::event::Sha256Hex;
use twice_store::{BillingCounts, Error, ReplayProgress, Result};

use super::ReplayLimits;
use super::count::{Said, Scope, Summary, count};
use super::inputs::refused;

/// Threads for blocking reads; the runtime's own default of 512 would cost more stack than there is memory.
const BLOCKING_THREADS: usize = 8;

/// A run by the place of its inputs, and the hash their bytes must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunPlace {
    pub path: String,
    pub sha256: Sha256Hex,
}

/// One order to the child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub archive: ArchiveLocation,
    pub runs: Vec<RunPlace>,
    pub limits: ReplayLimits,
}

/// One line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    Progress(ReplayProgress),
    Row { run: usize, counts: BillingCounts },
    Summary(Summary),
    Error { detail: String, damage: Option<String> },
}

impl Line {
    fn of(error: &Error) -> Self {
        match error {
            Error::Archive(twice_log::Error::ArchiveDamage { path, reason }) => {
                Line::Error { detail: reason.clone(), damage: Some(path.clone()) }
            }
            Error::Replay { reason } => Line::Error { detail: reason.clone(), damage: None },
            error => Line::Error { detail: describe(error), damage: None },
        }
    }
}

/// Reads one request from `input`, answers it on `output`, and returns the process's exit status: 0, or 2.
///
/// The node calls it for its hidden subcommand, before it starts anything else. It limits the memory of this process.
pub fn run(mut input: impl Read, output: impl Write + Send) -> ExitCode {
    twice_store::child::die_with_parent();
    let output = Mutex::new(std::io::BufWriter::new(output));
    let write = |line: &Line| -> std::io::Result<()> {
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_writer(&mut *output, line)?;
        output.write_all(b"\n")?;
        // Rows come by the thousand; everything else is waited for.
        if matches!(line, Line::Row { .. }) { Ok(()) } else { output.flush() }
    };
    let say = |said| {
        let line = match said {
            Said::Progress(progress) => Line::Progress(progress),
            Said::Row(run, counts) => Line::Row { run, counts },
        };
        write(&line).map_err(|error| refused(format!("cannot answer: {error}")))
    };
    let answered = read_request(&mut input).and_then(|request| answer(&request, &say));
    let (last, status) = match answered {
        Ok(summary) => (Line::Summary(summary), ExitCode::SUCCESS),
        Err(error) => (Line::of(&error), ExitCode::from(2)),
    };
    // A parent that cannot be written to sees the status alone.
    if write(&last).is_ok() { status } else { ExitCode::from(2) }
}

fn read_request(input: &mut impl Read) -> Result<Request> {
    let mut text = String::new();
    input.read_to_string(&mut text).map_err(|error| refused(format!("cannot read the request: {error}")))?;
    serde_json::from_str(&text).map_err(|error| refused(format!("the request does not read: {error}")))
}

fn answer(request: &Request, say: &(dyn Fn(Said) -> Result<()> + Sync)) -> Result<Summary> {
    let limits = &request.limits;
    twice_store::child::limit_memory(limits.memory_bytes_max)
        .map_err(|error| refused(format!("cannot limit its memory: {error}")))?;
    let archive = request.archive.open()?;
    let runtime = runtime()?;
    let runs = request.runs.iter().map(|place| runtime.block_on(read_inputs(&archive, place)));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    count(&archive, &runs, limits, Scope::Process, runtime.handle(), say)
}

/// Builds the runtime that reads; the threads that count are others.
pub(super) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("replay-read")
        .enable_all()
        .build()
        .map_err(|error| refused(format!("cannot start threads: {error}")))
}

/// Reads recorded inputs and checks that they are the ones meant.
async fn read_inputs(archive: &Archive, place: &RunPlace) -> Result<StoredRunInputs> {
    let damage = |reason: &str| {
        Error::Archive(twice_log::Error::ArchiveDamage {
            path: place.path.clone(),
            reason: reason.to_owned(),
        })
    };
    let bytes = archive.get(&place.path).await?.ok_or_else(|| damage("is missing"))?;
    if Sha256Hex::of(&bytes) != place.sha256 {
        return Err(damage("is not the object the request means"));
    }
    let inputs: RunInputs = serde_json::from_slice(&bytes).map_err(|_| damage("is no run inputs"))?;
    Ok(StoredRunInputs { inputs, sha256: place.sha256.clone() })
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
