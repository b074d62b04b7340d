//! The parent's side of a recompute: starts the child, hands it the request, reads its lines.
//!
//! Guarantee: the child has a low priority, dies with its parent's interest (kill on drop), and an answer without a
//! closing summary line is an error, never a smaller bill.

use std::path::PathBuf;
use std::process::Stdio;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::child::{Answer, Line, wrong_answer};
use super::{Recompute, RecomputeRequest, Recomputed, Task};
use crate::compare::Explanation;
use crate::error::{Error, Result};

/// Most bytes of the child's standard error that an error carries.
const STDERR_BYTES_MAX: usize = 4096;

/// Runs each recompute in a child process: `program arguments…`, which must end in `recompute::child::run`.
#[derive(Debug, Clone)]
pub struct ProcessRecompute {
    program: PathBuf,
    arguments: Vec<String>,
    nice: i32,
}

impl ProcessRecompute {
    /// Starts `program recompute`; `nice` is the child's niceness, 0 to 19.
    pub fn new(program: PathBuf, nice: i32) -> Self {
        Self::with_arguments(program, vec!["recompute".to_owned()], nice)
    }

    /// Starts `program` with other arguments.
    pub fn with_arguments(program: PathBuf, arguments: Vec<String>, nice: i32) -> Self {
        Self { program, arguments, nice }
    }

    async fn answer(&self, request: RecomputeRequest) -> Result<Answer> {
        let text = serde_json::to_vec(&request)
            .map_err(|source| Error::Json { what: "recompute request", source })?;
        let mut child = self.start()?;
        let failed = |action| move |source| Error::Process { action, source };
        let (stdin, stdout, stderr) = match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(stdin), Some(stdout), Some(stderr)) => (stdin, stdout, stderr),
            _ => return Err(failed("open pipes")(std::io::ErrorKind::BrokenPipe.into())),
        };
        let write = async move {
            let mut stdin = stdin;
            // A child that died before it read everything says why by its status.
            let _ = stdin.write_all(&text).await;
            let _ = stdin.shutdown().await;
        };
        let complaints = async move {
            let mut bytes = Vec::new();
            let _ = stderr.take(1 << 20).read_to_end(&mut bytes).await;
            tail(&bytes)
        };
        let ((), answer, complaints) =
            futures::join!(write, read_answer(BufReader::new(stdout), &request.task), complaints);
        let status = child.wait().await.map_err(failed("wait"))?;
        match answer? {
            Some(answer) if status.success() => Ok(answer),
            _ => Err(Error::ChildFailed { status: status.to_string(), detail: complaints }),
        }
    }

    fn start(&self) -> Result<Child> {
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| Error::Process { action: "start", source })?;
        lower_priority(&child, self.nice);
        Ok(child)
    }
}

/// Lowers the child's priority from outside: it does so before any work, as the child still waits for its request.
fn lower_priority(child: &Child, nice: i32) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = rustix::process::setpriority_process(Some(pid), nice)
    {
        // The bill is worth more than the priority.
        tracing::warn!(%error, "recompute process keeps its priority");
    }
}

/// Returns the end of what the child said on standard error.
fn tail(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(STDERR_BYTES_MAX);
    String::from_utf8_lossy(&bytes[from..]).trim().to_owned()
}

/// Reads lines up to the summary; `None` if the child ended without one.
async fn read_answer(output: impl tokio::io::AsyncBufRead + Unpin, task: &Task) -> Result<Option<Answer>> {
    let mut lines = output.lines();
    let mut recomputed = Recomputed::default();
    let mut explanation = None;
    let mut ended = false;
    while let Some(line) =
        lines.next_line().await.map_err(|source| Error::Process { action: "read", source })?
    {
        let line = serde_json::from_str(&line)
            .map_err(|source| Error::Json { what: "line of the recompute process", source })?;
        match line {
            Line::Row(row) => recomputed.rows.push(row),
            Line::Divergence(row) => recomputed.divergence.push(row),
            Line::Explanation(found) => explanation = Some(found),
            Line::Summary(summary) => {
                recomputed.summary = summary;
                ended = true;
            }
            Line::Error { detail, damage: true } => return Err(Error::Contradiction { reason: detail }),
            Line::Error { detail, damage: false } => {
                return Err(Error::ChildFailed { status: "exit status: 2".to_owned(), detail });
            }
        }
    }
    match (ended, task, explanation) {
        (false, _, _) => Ok(None),
        (true, Task::Bill, None) => Ok(Some(Answer::Recomputed(recomputed))),
        (true, Task::Explain { .. }, Some(explanation)) => Ok(Some(Answer::Explanation(explanation))),
        (true, _, _) => Err(wrong_answer()),
    }
}

#[async_trait]
impl Recompute for ProcessRecompute {
    async fn recompute(&self, request: RecomputeRequest) -> Result<Recomputed> {
        self.answer(request).await?.into_recomputed()
    }

    async fn explain(&self, request: RecomputeRequest) -> Result<Explanation> {
        self.answer(request).await?.into_explanation()
    }
}
