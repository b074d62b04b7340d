//! `twice-loadgen`: load in the background, and the verification of what came out of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::binaries::Binaries;
use crate::command::{Finished, Running, run, spawn};
use crate::node::Node;

/// Generous: a test that waits this long has failed, and a slow machine has not.
const DRAIN_LIMIT: Duration = Duration::from_secs(90);
const VERIFY_LIMIT: Duration = Duration::from_secs(1_800);

/// What a load consists of. Event times lie in past hours, so that they can be closed at once.
#[derive(Debug, Clone)]
pub struct LoadShape {
    /// Name of the ledger and of the log files; also keeps two loads on one node apart.
    pub name: String,
    pub seed: u64,
    pub rate: u64,
    pub duration: Duration,
    pub campaigns: u32,
    pub batch: u32,
    /// First hour of event time, such as `2025-01-15T12`.
    pub event_start: String,
    pub event_span: Duration,
    /// Further flags of `twice-loadgen run`.
    pub flags: Vec<String>,
}

/// A load under way.
#[derive(Debug)]
pub struct Load {
    process: Running,
    limit: Duration,
    ledger: PathBuf,
}

impl LoadShape {
    /// Returns a small load: enough campaigns, duplicates, conflicts and late clicks to meet every rule.
    pub fn small(name: &str, seed: u64, event_start: &str) -> Self {
        Self {
            name: name.to_owned(),
            seed,
            rate: 4_000,
            duration: Duration::from_secs(5),
            campaigns: 40,
            batch: 50,
            event_start: event_start.to_owned(),
            event_span: Duration::from_secs(2 * 3_600),
            flags: ["--duplicates", "2%", "--conflicts", "0.5%", "--late", "1%"].map(str::to_owned).to_vec(),
        }
    }

    /// Sends no identity twice with different payloads: where the first copy is spooled, a later one may reach the log before
    /// it and win (CR-1), which the ledger cannot know.
    #[must_use]
    pub fn without_conflicts(mut self) -> Self {
        self.flags = ["--duplicates", "2%", "--conflicts", "0%", "--late", "1%"].map(str::to_owned).to_vec();
        self
    }

    /// Returns where the ledger of this load on `node` lies.
    pub fn ledger(&self, node: &Node) -> PathBuf {
        node.root().join(format!("{}.ledger.parquet", self.name))
    }

    /// Returns the arguments that shape the stream, the same for `run` and `generate`.
    pub fn stream_arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "--seed".to_owned(),
            self.seed.to_string(),
            "--campaigns".to_owned(),
            self.campaigns.to_string(),
            "--event-start".to_owned(),
            self.event_start.clone(),
            "--event-span".to_owned(),
            format!("{}s", self.event_span.as_secs()),
        ];
        arguments.extend(self.flags.iter().cloned());
        arguments
    }

    /// Starts the load against `node`; the node may be killed and restarted while it runs.
    ///
    /// # Errors
    /// If the generator cannot be started.
    pub fn start(&self, node: &Node) -> Result<Load> {
        let ledger = self.ledger(node);
        let mut command = Binaries::get().loadgen();
        command.args(["run", "--target", &node.url()]);
        command.args(["--rate", &self.rate.to_string(), "--batch", &self.batch.to_string()]);
        command.args(["--duration", &format!("{}ms", self.duration.as_millis())]);
        command.arg("--ledger").arg(&ledger).args(self.stream_arguments());
        let process = spawn(&mut command, node.root(), &format!("loadgen-{}", self.name))?;
        // The schedule may fall behind by the time a node was down, and everything unacknowledged is sent again.
        Ok(Load { process, limit: self.duration * 3 + Duration::from_secs(600), ledger })
    }

    /// Runs the load to its end and returns the ledger.
    ///
    /// # Errors
    /// If not every click was acknowledged in the end.
    pub fn run(&self, node: &Node) -> Result<PathBuf> {
        self.start(node)?.finish(node)
    }
}

impl Load {
    /// Returns whether the load is still sending.
    ///
    /// # Errors
    /// If the process cannot be asked.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Waits until every click was acknowledged and returns the ledger.
    ///
    /// # Errors
    /// If the generator failed or gave up.
    pub fn finish(self, node: &Node) -> Result<PathBuf> {
        let Load { process, limit, ledger } = self;
        process.wait(limit)?.expect(0).with_context(|| node.log_tail())?;
        Ok(ledger)
    }
}

impl Node {
    /// Runs `twice-loadgen verify` over `ledgers`, oldest first, with further `flags`.
    ///
    /// # Errors
    /// If it does not end.
    pub fn verify(&self, ledgers: &[PathBuf], flags: &[&str]) -> Result<Finished> {
        let mut command = Binaries::get().loadgen();
        command.args(["verify", "--target", &self.url()]);
        for ledger in ledgers {
            command.arg("--ledger").arg(ledger);
        }
        run(command.args(flags), VERIFY_LIMIT)
    }

    /// Waits until everything that was spooled has reached the log: an hour closed by hand is made of what is in it.
    ///
    /// # Errors
    /// If it does not within a minute.
    pub fn wait_drained(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let page = self.client().get("/metrics").map(|answer| answer.body).unwrap_or_default();
            let held = page.lines().filter(|line| line.starts_with("twice_spool_records{"));
            let held: Vec<&str> = held.filter_map(|line| line.rsplit(' ').next()).collect();
            if !held.is_empty() && held.iter().all(|count| *count == "0") {
                return Ok(());
            }
            ensure!(begun.elapsed() < DRAIN_LIMIT, "still spooled: {held:?}\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Proves the same as [`Node::prove`] but for one thing: a record whose append was not answered in time is spooled, so
    /// the log may have it twice. `gross` and `duplicates` then have no upper bound; what is billed stays exact.
    ///
    /// # Errors
    /// If the node's answer differs from the ledgers in one billed click.
    pub fn prove_after_outage(&self, ledgers: &[PathBuf]) -> Result<String> {
        self.wait_drained()?;
        let flags = ["--reconcile", "--exclusive", "--require-complete", "--extra-copies"];
        self.verify(ledgers, &flags)?.expect(0).with_context(|| self.log_tail())
    }

    /// Closes every hour the ledgers touch and proves that the bill is what was sent: nothing lost, nothing twice,
    /// nothing unexplained (G-1, G-5), and no row for what nobody sent.
    ///
    /// # Errors
    /// If the node's answer differs from the ledgers in one click.
    pub fn prove(&self, ledgers: &[PathBuf]) -> Result<String> {
        let flags = ["--reconcile", "--exclusive", "--require-complete"];
        self.verify(ledgers, &flags)?.expect(0).with_context(|| self.log_tail())
    }
}
