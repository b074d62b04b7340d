//! The child process of a recompute: one JSON request in, JSON lines out.
//!
//! Guarantee: the last line is a summary, or an error and exit status 2; whoever reads neither got no answer. The
//! process limits its own memory, so that it dies before the machine runs out.

use std::io::{Read, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use serde::{Deserialize, Serialize};
use twice_log::archive::{Archive, RunInputs};
use twice_log::event::Sha256Hex;
use twice_store::{BillingCounts, Divergence};

use super::{RecomputeRequest, Recomputed, Summary, Task, recompute_inputs, rules_sha256};
use crate::compare::{Explanation, explain_inputs};
use crate::error::{Error, Result, describe};

/// Bytes the process may allocate beside the engine's pool: code, buffers of files being read, thread stacks.
const MEMORY_SLACK_BYTES: u64 = 1 << 30;
/// Threads for blocking reads; the runtime's own default of 512 would cost more stack than the slack.
const BLOCKING_THREADS: usize = 16;

/// One line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    Row(BillingCounts),
    Divergence(Divergence),
    Explanation(Explanation),
    Summary(Summary),
    Error { detail: String, damage: bool },
}

/// What a request is answered with.
#[derive(Debug)]
pub(super) enum Answer {
    Recomputed(Recomputed),
    Explanation(Explanation),
}

impl Answer {
    pub(super) fn into_recomputed(self) -> Result<Recomputed> {
        match self {
            Answer::Recomputed(recomputed) => Ok(recomputed),
            Answer::Explanation(_) => Err(wrong_answer()),
        }
    }

    pub(super) fn into_explanation(self) -> Result<Explanation> {
        match self {
            Answer::Explanation(explanation) => Ok(explanation),
            Answer::Recomputed(_) => Err(wrong_answer()),
        }
    }
}

pub(super) fn wrong_answer() -> Error {
    Error::Contradiction { reason: "the recompute answered another question".to_owned() }
}

/// Reads one request from `input`, answers it on `output`, and returns the process's exit status: 0, or 2.
///
/// The node calls it for its hidden subcommand, before it starts anything else. It limits the memory of this process.
pub fn run(mut input: impl Read, mut output: impl Write) -> ExitCode {
    // Whoever asked is gone: nobody would read the answer. If it cannot be set, the broken pipe ends us later.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let answered = read_request(&mut input).and_then(|request| {
        limit_memory(request.limits.memory_bytes_max)?;
        answer(&request.archive.open()?, &request)
    });
    let lines = match answered {
        Ok(Answer::Recomputed(recomputed)) => lines_of(recomputed),
        Ok(Answer::Explanation(explanation)) => {
            vec![Line::Explanation(explanation), Line::Summary(Summary::default())]
        }
        Err(error) => vec![Line::Error {
            detail: describe(&error),
            damage: error.kind() == crate::error::ErrorKind::Damage,
        }],
    };
    let failed = matches!(lines.last(), Some(Line::Error { .. }));
    match write_lines(&mut output, &lines) {
        Ok(()) if !failed => ExitCode::SUCCESS,
        // A parent that cannot be written to sees the status alone.
        _ => ExitCode::from(2),
    }
}

fn read_request(input: &mut impl Read) -> Result<RecomputeRequest> {
    let mut text = String::new();
    input
        .read_to_string(&mut text)
        .map_err(|source| Error::Process { action: "read the request", source })?;
    serde_json::from_str(&text).map_err(|source| Error::Json { what: "recompute request", source })
}

fn lines_of(recomputed: Recomputed) -> Vec<Line> {
    let rows = recomputed.rows.into_iter().map(Line::Row);
    let divergence = recomputed.divergence.into_iter().map(Line::Divergence);
    rows.chain(divergence).chain([Line::Summary(recomputed.summary)]).collect()
}

fn write_lines(output: &mut impl Write, lines: &[Line]) -> std::io::Result<()> {
    let mut buffer = std::io::BufWriter::new(output);
    for line in lines {
        serde_json::to_writer(&mut buffer, line)?;
        buffer.write_all(b"\n")?;
    }
    buffer.flush()
}

/// Bounds what this process can allocate; an existing lower bound stays.
fn limit_memory(pool_bytes: u64) -> Result<()> {
    let bound = pool_bytes.saturating_mul(2).saturating_add(MEMORY_SLACK_BYTES);
    let present = getrlimit(Resource::Data);
    let bound = present.maximum.map_or(bound, |maximum| bound.min(maximum));
    setrlimit(Resource::Data, Rlimit { current: Some(bound), maximum: present.maximum })
        .map_err(|error| Error::Process { action: "limit memory", source: error.into() })
}

/// Answers a request over `archive`, on a runtime of its own. Blocks: never call it on an arbiter.
pub(super) fn answer(archive: &Archive, request: &RecomputeRequest) -> Result<Answer> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(request.limits.threads.max(1))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("recompute")
        .enable_all()
        .build()
        .map_err(|source| Error::Process { action: "start threads", source })?;
    let archive = archive.clone();
    let request = request.clone();
    // As a task of its own, so that planning runs on a worker's stack as well.
    let task = runtime.spawn(async move { answer_request(&archive, &request).await });
    runtime
        .block_on(task)
        .map_err(|error| Error::Process { action: "run", source: std::io::Error::other(error) })?
}

async fn answer_request(archive: &Archive, request: &RecomputeRequest) -> Result<Answer> {
    let inputs = read_inputs(archive, &request.inputs_path, &request.inputs_sha256).await?;
    Ok(match &request.task {
        Task::Bill => Answer::Recomputed(recompute_inputs(archive, &inputs, &request.limits).await?),
        Task::Explain { campaign, limit } => {
            Answer::Explanation(explain_inputs(archive, &inputs, &request.limits, campaign, *limit).await?)
        }
    })
}

/// Reads the run inputs and checks that they are the ones meant, made under this build's rules.
async fn read_inputs(archive: &Archive, path: &str, sha256: &Sha256Hex) -> Result<RunInputs> {
    let damage = |reason: &str| Error::ArchiveDamage { path: path.to_owned(), reason: reason.to_owned() };
    let bytes = archive.get(path).await?.ok_or_else(|| damage("is missing"))?;
    if Sha256Hex::of(&bytes) != *sha256 {
        return Err(damage("is not the object the request means"));
    }
    let inputs: RunInputs =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { what: "run inputs", source })?;
    let present = rules_sha256(&inputs.settings)?;
    if present == inputs.rules_sha256 {
        Ok(inputs)
    } else {
        Err(Error::OtherRules {
            run_id: path.to_owned(),
            recorded: inputs.rules_sha256.0,
            present: present.0,
        })
    }
}
