//! The parent's side: starts the child, hands it the request, reads its lines.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Most bytes of the child's standard error that an error carries.
const STDERR_BYTES_MAX: usize = 4096;
/// How long a child may work without a line: many times what the largest hour takes, so that one that hangs, as on a
/// disk or a bucket that never answers, is killed and tried again.
const SILENCE_MAX: Duration = Duration::from_secs(2 * 60 * 60);
/// The highest: whoever has it goes first.
const OOM_SCORE: &str = "1000";
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
/// How the child's allocator gives memory back. Its default keeps what was freed for ten seconds, and one arena for
/// each quarter of a core: a slice would begin while the last one's memory is still held. Read by jemalloc, which the
/// node is built with; without effect under another allocator.
const ALLOCATOR: [(&str, &str); 2] = [
    ("_RJEM_MALLOC_CONF", "narenas:2,dirty_decay_ms:200,muzzy_decay_ms:0,background_thread:true"),
    ("MALLOC_ARENA_MAX", "2"),
];

/// Why a child gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started or spoken to.
    #[error("{action}")]
    Io {
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// It ended with a status that is no success.
    #[error("it failed ({status}): {detail}")]
    Failed {
        status: String,
        /// The end of what it said on standard error.
        detail: String,
        /// Killed or aborted: probably for want of memory.
        killed: bool,
    },
    /// It said nothing for longer than any work takes, and was killed. The attempt is repeated.
    #[error("it said nothing for {} minutes and was killed", after.as_secs() / 60)]
    Silent { after: Duration },
}

/// A program to start as a child.
#[derive(Debug, Clone)]
pub struct ChildCommand {
    program: PathBuf,
    arguments: Vec<String>,
    nice: i32,
    silence_max: Duration,
}

impl ChildCommand {
    /// Starts `program arguments…` with niceness `nice`, 0 to 19.
    pub fn new(program: PathBuf, arguments: Vec<String>, nice: i32) -> Self {
        Self { program, arguments, nice, silence_max: SILENCE_MAX }
    }

    /// Kills a child that says nothing for so long, where the default of two hours does not suit.
    #[must_use]
    pub fn silent_at_most(self, silence_max: Duration) -> Self {
        Self { silence_max, ..self }
    }

    /// Starts the child, writes `request`, and gives each line to `take` until it returns an error or the child ends.
    ///
    /// # Errors
    /// What `take` returned, first; else why there was no answer.
    pub async fn run<E: From<ChildError>>(
        &self,
        request: Vec<u8>,
        mut take: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut child = self.start()?;
        let failed = |action| move |source| ChildError::Io { action, source };
        let (stdin, stdout, stderr) = match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(stdin), Some(stdout), Some(stderr)) => (stdin, stdout, stderr),
            _ => return Err(failed("open pipes")(std::io::ErrorKind::BrokenPipe.into()).into()),
        };
        let write = async move {
            let mut stdin = stdin;
            // A child that died before it read everything says why by its status.
            let _ = stdin.write_all(&request).await;
            let _ = stdin.shutdown().await;
        };
        let complaints = async move {
            let mut bytes = Vec::new();
            let _ = stderr.take(1 << 20).read_to_end(&mut bytes).await;
            tail(&bytes)
        };
        let read = async move {
            let mut lines = BufReader::new(stdout).lines();
            let silent = |_| ChildError::Silent { after: self.silence_max };
            while let Some(line) =
                timeout(self.silence_max, lines.next_line()).await.map_err(silent)?.map_err(failed("read"))?
            {
                take(&line)?;
            }
            Ok::<(), E>(())
        };
        // No further than the first error: dropping the child kills it, whatever it does.
        let others = async { Ok(futures::join!(write, complaints)) };
        let ((), ((), complaints)) = futures::try_join!(read, others)?;
        let status = child.wait().await.map_err(failed("wait"))?;
        if status.success() { Ok(()) } else { Err(child_failed(status, complaints).into()) }
    }

    fn start(&self) -> Result<Child, ChildError> {
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .envs(ALLOCATOR)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ChildError::Io { action: "start", source })?;
        lower_priority(&child, self.nice);
        offer_to_killer(&child);
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
        tracing::warn!(%error, "a counting process keeps its priority");
    }
}

/// Has the kernel kill the child first where the machine's memory runs out: it is followed by one with smaller slices, and
/// the node, which may be larger, serves on.
fn offer_to_killer(child: &Child) {
    if let Some(pid) = child.id()
        && let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE)
    {
        tracing::warn!(%error, "where memory runs out, the node may be killed before a counting process");
    }
}

/// Returns the end of what the child said on standard error.
fn tail(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(STDERR_BYTES_MAX);
    String::from_utf8_lossy(&bytes[from..]).trim().to_owned()
}

fn child_failed(status: ExitStatus, detail: String) -> ChildError {
    // The kernel's out-of-memory killer, or a container's; and an allocation beyond the process's own bound.
    let killed = matches!(status.signal(), Some(SIGKILL | SIGABRT));
    ChildError::Failed { status: status.to_string(), detail, killed }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> ChildCommand {
        ChildCommand::new(PathBuf::from("/bin/sh"), vec!["-c".to_owned(), script.to_owned()], 0)
    }

    #[tokio::test]
    async fn a_child_that_hangs_is_killed_and_its_lines_so_far_were_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid_file = folder.path().join("pid");
        let script = format!("echo $$ > {}; echo one; exec sleep 1000", pid_file.display());
        let command = shell(&script).silent_at_most(Duration::from_millis(500));
        let mut lines = Vec::new();
        let ended = command.run(Vec::new(), |line| {
            lines.push(line.to_owned());
            Ok::<(), ChildError>(())
        });
        assert!(matches!(ended.await, Err(ChildError::Silent { .. })));
        assert_eq!(lines, ["one"]);
        let pid = std::fs::read_to_string(&pid_file).expect("its id");
        let begun = Instant::now();
        while is_alive(pid.trim()) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{pid} lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn is_alive(pid: &str) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !status.is_empty() && !status.contains(") Z ")
    }

    #[tokio::test]
    async fn where_memory_runs_out_a_child_goes_before_its_parent() {
        let mut lines = Vec::new();
        // It waits for its request, as every child does.
        let child = shell("read request; cat /proc/$$/oom_score_adj");
        let asked = child.run(b"go\n".to_vec(), |line| {
            lines.push(line.to_owned());
            Ok::<(), ChildError>(())
        });
        asked.await.expect("a success");
        assert_eq!(lines, [OOM_SCORE]);
    }

    #[tokio::test]
    async fn a_child_that_is_killed_is_told_from_one_that_failed() {
        let run = async |script: &str| shell(script).run(Vec::new(), |_| Ok::<(), ChildError>(())).await;
        let killed = run("kill -9 $$").await;
        assert!(matches!(killed, Err(ChildError::Failed { killed: true, .. })), "{killed:?}");
        let failed = run("echo why >&2; exit 2").await;
        assert!(
            matches!(&failed, Err(ChildError::Failed { killed: false, detail, .. }) if detail == "why"),
            "{failed:?}"
        );
        run("cat > /dev/null").await.expect("a success");
    }
}
