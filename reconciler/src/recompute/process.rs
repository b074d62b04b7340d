//! The parent's side of a recompute: starts the child, hands it the request, reads its lines.
//!
//! Guarantee: the child has a low priority, dies with its parent's interest (kill on drop), and an answer without a
//! closing summary line is an error, never a smaller bill.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::child::{Answer, Gathering};
use super::{Recompute, RecomputeRequest, Recomputed, Task};
use crate::compare::Explanation;
use crate::error::{Error, Result};

/// Most bytes of the child's standard error that an error carries.
const STDERR_BYTES_MAX: usize = 4096;
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
/// How the child's allocator gives memory back. Its default keeps what was freed for ten seconds, and one arena for
/// each quarter of a core: a slice would begin while the last one's memory is still held. Read by jemalloc, which the
/// node is built with; without effect under another allocator.
const ALLOCATOR: [(&str, &str); 2] = [
    ("_RJEM_MALLOC_CONF", "narenas:2,dirty_decay_ms:200,muzzy_decay_ms:0,background_thread:true"),
    ("MALLOC_ARENA_MAX", "2"),
];

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
            _ => Err(child_failed(status, complaints)),
        }
    }

    fn start(&self) -> Result<Child> {
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .envs(ALLOCATOR)
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
    let mut gathering = Gathering::default();
    while let Some(line) =
        lines.next_line().await.map_err(|source| Error::Process { action: "read", source })?
    {
        let line = serde_json::from_str(&line)
            .map_err(|source| Error::Json { what: "line of the recompute process", source })?;
        gathering.take(line)?;
    }
    gathering.finish(task)
}

/// Says why a child ended without an answer, and what to do where memory is the likely cause.
fn child_failed(status: ExitStatus, complaints: String) -> Error {
    let advice = match status.signal() {
        // The kernel's out-of-memory killer, or a container's; and an allocation beyond the process's own bound.
        Some(SIGKILL | SIGABRT) => {
            "it was killed or gave up, probably for want of memory: lower recompute_memory_bytes_max \
             (--recompute-memory-bytes-max) to what the machine has left, or raise it if the machine has more"
        }
        _ => "",
    };
    let detail = [advice, &complaints].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
    Error::ChildFailed { status: status.to_string(), detail: detail.join("; ") }
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
