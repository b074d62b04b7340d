//! One `twice up` and its data directory, which outlives the process: start, kill, start again.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::binaries::Binaries;
use crate::client::Client;
use crate::command::{Finished, Running, run, spawn, tail};
use crate::ports::free_port;

/// Generous: a test that waits this long has failed, and a slow machine has not.
const READY_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(120);
const COMMAND_LIMIT: Duration = Duration::from_secs(900);

/// How a node is started.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// Further arguments of `twice up`.
    pub arguments: Vec<String>,
    /// TOML settings, written to a file and passed by `--config`.
    pub settings: Option<String>,
    /// Variables of the process, beside those of the test's own.
    pub environment: Vec<(String, String)>,
}

impl NodeOptions {
    /// Returns options with small segments and frequent checkpoints, so that a short test meets many of each.
    ///
    /// The default options are the product's own.
    pub fn brisk() -> Self {
        let settings = "log_segment_bytes = 1048576\ncheckpoint_interval_ms = 700\n".to_owned();
        Self { settings: Some(settings), ..Self::default() }
    }

    /// Adds a log so small that it is trimmed as soon as archive and checkpoints allow.
    pub fn with_little_log(mut self) -> Self {
        let settings = self.settings.unwrap_or_default().replace("1048576", "65536");
        self.settings = Some(format!(
            "{settings}log_bytes_max = 1\nlog_trim_interval_ms = 200\narchive_flush_interval_ms = 400\n"
        ));
        self
    }
}

/// A node under test. Dropping it kills the process and removes the folder, unless `TWICE_TEST_KEEP` is set.
#[derive(Debug)]
pub struct Node {
    folder: Option<TempDir>,
    root: PathBuf,
    port: u16,
    options: NodeOptions,
    obeys_permissions: bool,
    asks_for_keys: bool,
    listen: Option<Vec<String>>,
    process: Option<Running>,
    client: Client,
}

impl Node {
    /// Starts a node in a new folder and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready; the message has the end of its log.
    pub fn start(options: NodeOptions) -> Result<Self> {
        let mut node = Self::prepare(options)?;
        node.restart()?;
        Ok(node)
    }

    /// Makes the folder and takes a port, and starts nothing.
    ///
    /// # Errors
    /// If there is no folder or no port to be had.
    pub fn prepare(options: NodeOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("count-twice-test-").tempdir()?;
        let root = folder.path().to_path_buf();
        let port = free_port()?;
        let client = Client::new(&format!("http://127.0.0.1:{port}"))?;
        if let Some(settings) = &options.settings {
            std::fs::write(root.join("twice.toml"), settings)?;
        }
        Ok(Self {
            folder: Some(folder),
            root,
            port,
            options,
            obeys_permissions: false,
            asks_for_keys: false,
            listen: None,
            process: None,
            client,
        })
    }

    /// Starts the process over the same data directory and port, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn restart(&mut self) -> Result<()> {
        self.start_process(None)?;
        self.wait_ready()
    }

    /// Starts the process with a fail point armed, as `NAME` or `NAME:NTH`. It may die before it is ready.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn restart_armed(&mut self, fail_point: &str) -> Result<()> {
        self.start_process(Some(fail_point))?;
        let started = Instant::now();
        while started.elapsed() < READY_LIMIT && !self.is_dead()? {
            if self.is_ready() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn start_process(&mut self, fail_point: Option<&str>) -> Result<()> {
        self.process = None;
        let mut command = self.program();
        command.arg("up").arg("--data-dir").arg(self.data_dir());
        match &self.listen {
            Some(arguments) => command.args(arguments),
            None => command.args(["--listen", &format!("127.0.0.1:{}", self.port)]),
        };
        if !self.asks_for_keys {
            command.arg("--insecure-no-auth");
        }
        if self.options.settings.is_some() {
            command.arg("--config").arg(self.root.join("twice.toml"));
        }
        command.args(&self.options.arguments);
        command.envs(self.options.environment.iter().cloned());
        if let Some(fail_point) = fail_point {
            command.env("TWICE_FAIL_POINT", fail_point);
        }
        self.process = Some(spawn(&mut command, &self.root, "twice-up")?);
        Ok(())
    }

    /// From the next start on, the node obeys file permissions even where the administrator runs the tests.
    pub fn obey_permissions(&mut self) {
        self.obeys_permissions = true;
    }

    /// From the next start on, requests need a key, or again none. Commands and the client of this node send none.
    pub fn ask_for_keys(&mut self, asks: bool) {
        self.asks_for_keys = asks;
    }

    fn program(&self) -> Command {
        let twice = Binaries::get().twice();
        if !self.obeys_permissions || !rustix::process::geteuid().is_root() {
            return twice;
        }
        let mut command = Command::new("setpriv");
        command.arg("--bounding-set=-dac_override,-dac_read_search").arg(twice.get_program());
        let removed = twice.get_envs().filter(|(_, value)| value.is_none());
        removed.for_each(|(name, _)| {
            command.env_remove(name);
        });
        command
    }

    fn wait_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        while !self.is_ready() {
            if self.is_dead()? {
                bail!("`twice up` ended before it was ready\n{}", self.log_tail());
            }
            if started.elapsed() > READY_LIMIT {
                bail!("`twice up` was not ready within {READY_LIMIT:?}\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        self.client.get("/readyz").is_ok_and(|answer| answer.status == 200)
    }

    /// Returns whether the process has ended.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn is_dead(&mut self) -> Result<bool> {
        match &mut self.process {
            Some(process) => Ok(process.ended()?.is_some()),
            None => Ok(true),
        }
    }

    /// Waits up to `limit` and returns the exit status if the process ended by then, by itself.
    ///
    /// # Errors
    /// If it cannot be asked, or was not running.
    pub fn death_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        self.process.as_mut().context("the node was not running")?.wait_until_ended(limit)
    }

    /// Starts the process and returns at once, while it is still starting.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn restart_unready(&mut self) -> Result<()> {
        self.start_process(None)
    }

    /// Kills the process with SIGKILL, as a crash would.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// Stops the process with SIGTERM and returns its exit status.
    ///
    /// # Errors
    /// If it does not stop in time.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let process = self.process.take().context("the node is not running")?;
        process.terminate()?;
        Ok(process.wait(STOP_LIMIT).with_context(|| self.log_tail())?.status)
    }

    /// From the next start on, the node listens as these arguments say; one of them MUST be its own plain address.
    pub fn set_listen(&mut self, arguments: &[&str]) {
        self.listen = Some(arguments.iter().map(|argument| (*argument).to_owned()).collect());
    }

    /// Runs `twice ARGUMENTS…`, which ask no server, to its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn offline(&self, arguments: &[&str]) -> Result<Finished> {
        run(Binaries::get().twice().args(arguments), COMMAND_LIMIT)
    }

    /// Returns the process id of the running node.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Running::id)
    }

    /// Returns the base address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns a client of this node.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the node's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Returns the folder of the test: data directory, logs, and room for files.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the end of the node's log, over all its starts.
    pub fn log_tail(&self) -> String {
        let (out, err) = (self.root.join("twice-up.out"), self.root.join("twice-up.err"));
        format!("--- twice up: stdout\n{}\n--- twice up: stderr\n{}", tail(&out, 20), tail(&err, 60))
    }

    /// Runs `twice ARGUMENTS… --server URL` to its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn command(&self, arguments: &[&str]) -> Result<Finished> {
        run(&mut self.command_line(arguments), COMMAND_LIMIT)
    }

    /// Returns the command `twice ARGUMENTS… --server URL`, to be started by the caller.
    pub fn command_line(&self, arguments: &[&str]) -> Command {
        let mut command = Binaries::get().twice();
        command.args(arguments).args(["--server", &self.url()]);
        command
    }

    /// Reconciles one hour (`2025-01-15T12`) through the CLI and returns the billing rows of the hour.
    ///
    /// # Errors
    /// If the command could not run, or leaves a difference unexplained. A rerun may change the bill: that ends with 1 too.
    pub fn reconcile(&self, hour: &str) -> Result<Vec<Value>> {
        let ended = self.command(&["reconcile", "--hour", hour])?;
        let is_changed = ended.code() == 1 && ended.stdout.contains("the bill changed");
        let agrees = is_changed && !ended.stdout.contains("UNEXPLAINED");
        ended.expect(i32::from(agrees)).with_context(|| self.log_tail())?;
        self.client.get_rows(&format!("/v1/billing?hour={hour}"))
    }

    /// Keeps the folder after the test, and returns its path: for looking at a failure.
    pub fn keep(&mut self) -> PathBuf {
        if let Some(folder) = self.folder.take() {
            let _ = folder.keep();
        }
        self.root.clone()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.process = None;
        if std::env::var_os("TWICE_TEST_KEEP").is_some() {
            self.keep();
        }
    }
}
