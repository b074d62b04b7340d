//! The child process of a recompute: one JSON request in, JSON lines out.
//!
//! Guarantee: the last line is a summary, or an error and exit status 2; whoever reads neither got no answer. The
//! process keeps to its memory limit; should that fail, it dies before the machine runs out. Lines leave range by range
//! as they are computed, so that a million campaigns take no more memory than a thousand.

use std::io::{Read, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use twice_log::archive::{Archive, RunInputs};
use twice_log::event::Sha256Hex;
use twice_store::{BillingCounts, CostMeter, Divergence};

use super::engine::{RangeAnswer, recompute_ranges};
use super::lookup::look_up;
use super::shadow::shadow_inputs;
use super::spill::SpillFolder;
use super::{
    LocalAggregates, LookedUp, MemoryBound, RecomputeRequest, Recomputed, ShadowReport, Summary, Task,
};
use crate::compare::{Explanation, explain_inputs};
use crate::error::{Error, ErrorKind, Result, describe};

/// Threads for blocking reads; the runtime's own default of 512 would cost more stack than the slack.
const BLOCKING_THREADS: usize = 16;
/// Answers that may wait to be written.
const LINES_WAITING: usize = 2;

/// One line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    Row(BillingCounts),
    Divergence(Divergence),
    Aggregates(Vec<LocalAggregates>),
    Explanation(Explanation),
    LookedUp(LookedUp),
    Shadow(ShadowReport),
    Summary(Summary),
    Error(Complaint),
}

/// Why there is no answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Complaint {
    pub detail: String,
    pub damage: bool,
    /// The limit, where it was too low.
    #[serde(default)]
    pub out_of_memory: Option<u64>,
    /// Why a candidate statement was refused.
    #[serde(default)]
    pub candidate: Option<String>,
}

impl Complaint {
    fn of(error: &Error) -> Self {
        Self {
            detail: describe(error),
            damage: error.kind() == ErrorKind::Damage,
            out_of_memory: match error {
                Error::OutOfMemory { limit_bytes } => Some(*limit_bytes),
                _ => None,
            },
            candidate: match error {
                Error::Candidate { reason } => Some(reason.clone()),
                _ => None,
            },
        }
    }

    /// Returns the error as the parent sees it.
    pub fn into_error(self) -> Error {
        if let Some(reason) = self.candidate {
            return Error::Candidate { reason };
        }
        match self.out_of_memory {
            Some(limit_bytes) => Error::OutOfMemory { limit_bytes },
            None if self.damage => Error::Contradiction { reason: self.detail },
            None => Error::ChildFailed { status: "exit status: 2".to_owned(), detail: self.detail },
        }
    }
}

/// What a request is answered with.
#[derive(Debug)]
pub(super) enum Answer {
    Recomputed(Recomputed),
    Explanation(Box<Explanation>),
    LookedUp(LookedUp),
    Shadow(Box<ShadowReport>),
}

impl Answer {
    /// Notes how many processes died for want of memory before the one that answered.
    pub(super) fn after(mut self, memory_retries: u32) -> Self {
        if let Answer::Recomputed(recomputed) = &mut self {
            recomputed.summary.memory_retries = memory_retries;
        }
        self
    }

    pub(super) fn into_recomputed(self) -> Result<Recomputed> {
        match self {
            Answer::Recomputed(recomputed) => Ok(recomputed),
            _ => Err(wrong_answer()),
        }
    }

    pub(super) fn into_explanation(self) -> Result<Explanation> {
        match self {
            Answer::Explanation(explanation) => Ok(*explanation),
            _ => Err(wrong_answer()),
        }
    }

    pub(super) fn into_shadow(self) -> Result<ShadowReport> {
        match self {
            Answer::Shadow(report) => Ok(*report),
            _ => Err(wrong_answer()),
        }
    }

    pub(super) fn into_looked_up(self) -> Result<LookedUp> {
        match self {
            Answer::LookedUp(looked_up) => Ok(looked_up),
            _ => Err(wrong_answer()),
        }
    }
}

/// Puts the lines of an answer together again.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    recomputed: Recomputed,
    explanation: Option<Explanation>,
    looked_up: Option<LookedUp>,
    shadow: Option<ShadowReport>,
    ended: bool,
}

impl Gathering {
    /// Takes the next line.
    ///
    /// # Errors
    /// The child's own, if the line says that it failed.
    pub(super) fn take(&mut self, line: Line) -> Result<()> {
        match line {
            Line::Row(row) => self.recomputed.rows.push(row),
            Line::Divergence(row) => self.recomputed.divergence.push(row),
            Line::Aggregates(files) => self.recomputed.aggregates = Some(files),
            Line::Explanation(explanation) => self.explanation = Some(explanation),
            Line::LookedUp(looked_up) => self.looked_up = Some(looked_up),
            Line::Shadow(report) => self.shadow = Some(report),
            Line::Summary(summary) => {
                self.recomputed.summary = summary;
                self.ended = true;
            }
            Line::Error(complaint) => return Err(complaint.into_error()),
        }
        Ok(())
    }

    /// Returns the answer to `task`, or `None` where no summary ended it.
    ///
    /// # Errors
    /// `Contradiction` if it answers another question.
    pub(super) fn finish(self, task: &Task) -> Result<Option<Answer>> {
        if !self.ended {
            return Ok(None);
        }
        match (task, self.explanation, self.looked_up, self.shadow) {
            (Task::Bill, None, None, None) => Ok(Some(Answer::Recomputed(self.recomputed))),
            (Task::Explain { .. }, Some(explanation), None, None) => {
                Ok(Some(Answer::Explanation(Box::new(explanation))))
            }
            (Task::LookUp(_), None, Some(looked_up), None) => Ok(Some(Answer::LookedUp(looked_up))),
            (Task::Shadow { .. }, None, None, Some(report)) => Ok(Some(Answer::Shadow(Box::new(report)))),
            _ => Err(wrong_answer()),
        }
    }
}

fn wrong_answer() -> Error {
    Error::Contradiction { reason: "the recompute answered another question".to_owned() }
}

/// Reads one request from `input`, answers it on `output`, and returns the process's exit status: 0, or 2.
///
/// The node calls it for its hidden subcommand, before it starts anything else. It limits the memory of this process.
pub fn run(mut input: impl Read, output: impl Write) -> ExitCode {
    twice_store::child::die_with_parent();
    let mut output = std::io::BufWriter::new(output);
    let answered = read_request(&mut input).and_then(|request| answer_process(request, &mut output));
    let (last, status) = match answered {
        Ok(summary) => (Line::Summary(summary), ExitCode::SUCCESS),
        Err(error) => (Line::Error(Complaint::of(&error)), ExitCode::from(2)),
    };
    match write_line(&mut output, &last).and_then(|()| output.flush()) {
        Ok(()) => status,
        // A parent that cannot be written to sees the status alone.
        Err(_) => ExitCode::from(2),
    }
}

/// Answers a request with all that this process has, and writes lines as they come.
fn answer_process(mut request: RecomputeRequest, output: &mut impl Write) -> Result<Summary> {
    twice_store::child::limit_memory(request.limits.memory_bytes_max)
        .map_err(|source| Error::Process { action: "limit memory", source })?;
    let spill = SpillFolder::make(&request.limits.spill_dir)
        .map_err(|source| Error::Process { action: "make its spill folder", source })?;
    request.limits.spill_dir = spill.path().to_path_buf();
    let memory = MemoryBound::of_process(&request.limits);
    let archive = request.archive.open()?;
    answer(&archive, &request, memory, |line| {
        write_line(output, &line).map_err(|source| Error::Process { action: "write", source })
    })
}

/// Answers a request in a process that does other things as well. Blocks: never call it on an arbiter.
pub(super) fn answer_here(archive: &Archive, request: &RecomputeRequest) -> Result<Answer> {
    let mut gathering = Gathering::default();
    let memory = MemoryBound::of_share(&request.limits);
    let summary = answer(archive, request, memory, |line| gathering.take(line))?;
    gathering.take(Line::Summary(summary))?;
    gathering.finish(&request.task)?.ok_or_else(wrong_answer)
}

fn read_request(input: &mut impl Read) -> Result<RecomputeRequest> {
    let mut text = String::new();
    input
        .read_to_string(&mut text)
        .map_err(|source| Error::Process { action: "read the request", source })?;
    serde_json::from_str(&text).map_err(|source| Error::Json { what: "recompute request", source })
}

fn write_line(output: &mut impl Write, line: &Line) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, line)?;
    output.write_all(b"\n")
}

/// Answers a request over `archive`, on a runtime of its own; gives each line but the last to `take`. Blocks.
fn answer(
    archive: &Archive,
    request: &RecomputeRequest,
    memory: MemoryBound,
    mut take: impl FnMut(Line) -> Result<()>,
) -> Result<Summary> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(request.limits.threads.max(1))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("recompute")
        .enable_all()
        .build()
        .map_err(|source| Error::Process { action: "start threads", source })?;
    let (sender, mut receiver) = mpsc::channel(LINES_WAITING);
    let archive = archive.clone();
    let request = request.clone();
    // As a task of its own, so that planning runs on a worker's stack as well.
    let task = runtime.spawn(async move { answer_request(&archive, &request, memory, sender).await });
    while let Some(answer) = receiver.blocking_recv() {
        lines_of(answer).try_for_each(&mut take)?;
    }
    runtime
        .block_on(task)
        .map_err(|error| Error::Process { action: "run", source: std::io::Error::other(error) })?
}

/// A part of an answer, on its way to whoever writes it.
enum Part {
    Range(RangeAnswer),
    /// An answer of one line.
    Whole(Line),
}

fn lines_of(part: Part) -> impl Iterator<Item = Line> {
    let (range, whole) = match part {
        Part::Range(range) => (range, None),
        Part::Whole(line) => (RangeAnswer::default(), Some(line)),
    };
    let rows = range.rows.into_iter().map(Line::Row);
    let divergence = range.divergence.into_iter().map(Line::Divergence);
    let aggregates = range.aggregates.map(Line::Aggregates);
    rows.chain(divergence).chain(aggregates).chain(whole)
}

async fn answer_request(
    archive: &Archive,
    request: &RecomputeRequest,
    memory: MemoryBound,
    parts: mpsc::Sender<Part>,
) -> Result<Summary> {
    let limits = &request.limits;
    let meter = CostMeter::start();
    let inputs = async || read_inputs(archive, &request.inputs_path, &request.inputs_sha256).await;
    match &request.task {
        Task::Bill => {
            let inputs = inputs().await?;
            let (sender, mut ranges) = mpsc::channel(LINES_WAITING);
            let pass_on = async move {
                while let Some(range) = ranges.recv().await {
                    if parts.send(Part::Range(range)).await.is_err() {
                        return; // dropping `ranges` tells the recompute
                    }
                }
            };
            let folder = request.aggregates_dir.as_deref();
            let recompute = recompute_ranges(archive, &inputs, limits, memory, folder, sender);
            let (summary, ()) = futures::join!(recompute, pass_on);
            summary
        }
        Task::Explain { campaign, limit } => {
            let explanation =
                explain_inputs(archive, &inputs().await?, limits, memory, campaign, *limit).await?;
            // Whoever is gone needs no explanation.
            let _ = parts.send(Part::Whole(Line::Explanation(explanation))).await;
            Ok(Summary { cost: meter.read(), ..Summary::default() })
        }
        Task::Shadow { sql, campaign } => {
            let inputs = inputs().await?;
            let report = shadow_inputs(archive, &inputs, limits, memory, sql, campaign.as_ref()).await?;
            let _ = parts.send(Part::Whole(Line::Shadow(report))).await;
            Ok(Summary { cost: meter.read(), ..Summary::default() })
        }
        Task::LookUp(lookup) => {
            let (looked_up, slices) = look_up(archive, lookup, limits, memory).await?;
            let _ = parts.send(Part::Whole(Line::LookedUp(looked_up))).await;
            let copies = lookup.click_files.iter().map(|file| file.rows).sum();
            Ok(Summary { copies, slices, memory_retries: 0, cost: meter.read() })
        }
    }
}

/// Reads the run inputs and checks that they are the ones meant.
async fn read_inputs(archive: &Archive, path: &str, sha256: &Sha256Hex) -> Result<RunInputs> {
    let damage = |reason: &str| Error::ArchiveDamage { path: path.to_owned(), reason: reason.to_owned() };
    let bytes = archive.get(path).await?.ok_or_else(|| damage("is missing"))?;
    if Sha256Hex::of(&bytes) != *sha256 {
        return Err(damage("is not the object the request means"));
    }
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { what: "run inputs", source })
}
