//! Commands as tests run them: output kept in files, a limit on every wait, and a clear account of a failure.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const POLL: Duration = Duration::from_millis(20);

/// A process this test started, with its output in files. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// A process that ended.
#[derive(Debug)]
pub struct Finished {
    pub name: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Starts `command`; its output goes to `{name}.out` and `{name}.err` in `directory`, appended.
///
/// # Errors
/// If a file cannot be opened or the process cannot be started.
pub fn spawn(command: &mut Command, directory: &Path, name: &str) -> Result<Running> {
    let stdout = directory.join(format!("{name}.out"));
    let stderr = directory.join(format!("{name}.err"));
    let open = |path: &Path| {
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("open {}", path.display()))
    };
    let child = command
        .stdin(Stdio::null())
        .stdout(open(&stdout)?)
        .stderr(open(&stderr)?)
        .spawn()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    Ok(Running { child, name: name.to_owned(), stdout, stderr })
}

/// Runs `command` to its end within `limit`; past it the process is killed and the call fails.
///
/// # Errors
/// If it cannot be started or does not end in time. A non-zero exit status is no error here.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    let directory = tempfile::tempdir()?;
    let name =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    spawn(command, directory.path(), &name)?.wait(limit)
}

impl Running {
    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status if the process has ended.
    ///
    /// # Errors
    /// If the process cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Kills the process with SIGKILL and waits for its end. Nothing happens if it has ended already.
    ///
    /// # Errors
    /// If the process cannot be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let _ = self.child.kill(); // it may have ended a moment ago
        Ok(self.child.wait()?)
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn terminate(&self) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).context("process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("send SIGTERM")
    }

    /// Waits for the end within `limit`, and kills the process past it.
    ///
    /// # Errors
    /// If the process did not end in time; the message has the end of what it printed.
    pub fn wait(mut self, limit: Duration) -> Result<Finished> {
        let Some(status) = self.wait_until_ended(limit)? else {
            self.kill()?;
            bail!("{} did not end within {limit:?}\n{}", self.name, self.output_tail());
        };
        Ok(Finished {
            name: self.name.clone(),
            status,
            stdout: std::fs::read_to_string(&self.stdout).unwrap_or_default(),
            stderr: std::fs::read_to_string(&self.stderr).unwrap_or_default(),
        })
    }

    /// Waits up to `limit` and returns the exit status if the process ended by then.
    ///
    /// # Errors
    /// If the process cannot be asked.
    pub fn wait_until_ended(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if started.elapsed() > limit {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Returns the last lines it printed, on both streams.
    pub fn output_tail(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", tail(&self.stdout, 20), tail(&self.stderr, 60))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Returns the exit code; -1 if a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Checks the exit code and returns what was printed on standard output.
    ///
    /// # Errors
    /// If the code is another; the message has both outputs.
    pub fn expect(self, code: i32) -> Result<String> {
        if self.code() != code {
            bail!(
                "{} ended with {}, expected exit status {code}\n--- stdout\n{}\n--- stderr\n{}",
                self.name,
                self.status,
                last_lines(&self.stdout, 40),
                last_lines(&self.stderr, 60)
            );
        }
        Ok(self.stdout)
    }
}

/// Returns the last `lines` lines of a file; empty if it cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    last_lines(&std::fs::read_to_string(path).unwrap_or_default(), lines)
}

fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_shows_status_and_output() {
        let finished =
            run(&mut shell("echo out; echo err >&2; exit 3"), Duration::from_secs(60)).expect("runs");
        assert_eq!(finished.code(), 3);
        let message = finished.expect(0).expect_err("another code").to_string();
        assert!(message.contains("exit status: 3") && message.contains("out") && message.contains("err"));
    }

    #[test]
    fn a_process_past_its_limit_is_killed_and_reported() {
        let error =
            run(&mut shell("echo begun; sleep 600"), Duration::from_millis(200)).expect_err("too long");
        assert!(error.to_string().contains("did not end") && error.to_string().contains("begun"), "{error}");
    }

    #[test]
    fn dropping_a_process_ends_it() {
        let directory = tempfile::tempdir().expect("folder");
        let running = spawn(&mut shell("exec sleep 600"), directory.path(), "sleeper").expect("starts");
        let status = format!("/proc/{}", running.id());
        drop(running);
        assert!(!Path::new(&status).exists());
    }
}
