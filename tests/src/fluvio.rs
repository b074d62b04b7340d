//! A Fluvio cluster to test against: one that runs already, or one controller and one server started by the test.
//!
//! `TWICE_TEST_FLUVIO=HOST:PORT` names a running cluster. Otherwise `fluvio-run` is taken from `TWICE_FLUVIO_BIN`, a
//! folder or the program itself, or from `~/.fluvio/bin`, where Fluvio's installer puts it. Without either, tests that
//! need a cluster say so, are noted in the file `TWICE_TEST_SKIPPED` names, and pass.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fluvio::metadata::customspu::CustomSpuSpec;
use fluvio::metadata::spu::SpuSpec;
use fluvio::metadata::topic::TopicSpec;
use fluvio::{FluvioAdmin, FluvioClusterConfig};
use tempfile::TempDir;

use crate::command::{Running, spawn};
use crate::ports::free_port;

const PROGRAM: &str = "fluvio-run";
const SPU_ID: i32 = 5_001;
/// Generous: a test that waits this long has failed, and a slow machine has not.
const READY_LIMIT: Duration = Duration::from_secs(120);
const READY_POLL: Duration = Duration::from_millis(50);

/// A cluster under test. Dropping it kills the processes that the test started, and removes their folder.
pub struct FluvioCluster {
    endpoint: String,
    servers: Option<Servers>,
    runtime: tokio::runtime::Runtime,
}

/// One controller (SC) and one server (SPU) on the loopback, whose folder outlives their processes.
struct Servers {
    folder: TempDir,
    program: PathBuf,
    sc_public: u16,
    sc_private: u16,
    spu_public: u16,
    spu_private: u16,
    sc: Option<Running>,
    spu: Option<Running>,
}

impl FluvioCluster {
    /// Returns a cluster for `test`, or notes that the test is skipped.
    ///
    /// # Errors
    /// If there are binaries and they do not get ready.
    pub fn for_test(test: &str) -> Result<Option<Self>> {
        if let Some(endpoint) = std::env::var("TWICE_TEST_FLUVIO").ok().filter(|text| !text.is_empty()) {
            return Ok(Some(Self { endpoint, servers: None, runtime: runtime()? }));
        }
        Self::own_for_test(test)
    }

    /// Returns a cluster whose processes the test may kill, or notes that the test is skipped.
    ///
    /// # Errors
    /// If there are binaries and they do not get ready.
    pub fn own_for_test(test: &str) -> Result<Option<Self>> {
        match program() {
            Some(program) => Self::start(program).map(Some),
            None => {
                skipped(test)?;
                Ok(None)
            }
        }
    }

    fn start(program: PathBuf) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("count-twice-fluvio-").tempdir()?;
        let servers = Servers {
            folder,
            program,
            sc_public: free_port()?,
            sc_private: free_port()?,
            spu_public: free_port()?,
            spu_private: free_port()?,
            sc: None,
            spu: None,
        };
        let endpoint = format!("127.0.0.1:{}", servers.sc_public);
        let mut cluster = Self { endpoint, servers: Some(servers), runtime: runtime()? };
        cluster.restart_sc()?;
        cluster.register_spu()?;
        cluster.restart_spu()?;
        Ok(cluster)
    }

    /// Returns the address of the controller, HOST:PORT.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns a topic prefix that no other test uses, also not on a cluster that outlives the tests.
    pub fn new_prefix(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
        format!("t{since}-{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the arguments of `twice up` that put its log on this cluster.
    pub fn node_arguments(&self, prefix: &str) -> Vec<String> {
        ["--log", "fluvio", "--fluvio-endpoint", &self.endpoint, "--fluvio-topic-prefix", prefix]
            .map(str::to_owned)
            .to_vec()
    }

    /// Deletes the topics under a prefix.
    ///
    /// # Errors
    /// If the cluster refuses.
    pub fn delete_topics(&self, prefix: &str) -> Result<()> {
        self.runtime.block_on(async {
            let admin = self.admin().await?;
            for topic in ["ad-clicks", "fraud-verdicts", "budget-decisions"] {
                admin.delete::<TopicSpec>(format!("{prefix}{topic}")).await?;
            }
            loop {
                let left = admin.all::<TopicSpec>().await?;
                if !left.iter().any(|topic| topic.name.starts_with(prefix)) {
                    return Ok(());
                }
                tokio::time::sleep(READY_POLL).await;
            }
        })
    }

    /// Kills the controller with SIGKILL.
    ///
    /// # Errors
    /// If the cluster is not the test's own.
    pub fn kill_sc(&mut self) -> Result<()> {
        kill(&mut self.own()?.sc)
    }

    /// Kills the server with SIGKILL.
    ///
    /// # Errors
    /// If the cluster is not the test's own.
    pub fn kill_spu(&mut self) -> Result<()> {
        kill(&mut self.own()?.spu)
    }

    /// Starts the controller over its folder, and waits until it answers.
    ///
    /// # Errors
    /// If the cluster is not the test's own, or the controller does not answer.
    pub fn restart_sc(&mut self) -> Result<()> {
        let servers = self.own()?;
        let folder = servers.folder.path();
        let mut command = Command::new(&servers.program);
        command.args(["sc", "--local"]).arg(folder.join("metadata"));
        command.args(["--bind-public", &format!("127.0.0.1:{}", servers.sc_public)]);
        command.args(["--bind-private", &format!("127.0.0.1:{}", servers.sc_private)]);
        servers.sc = Some(spawn(quiet(&mut command), folder, "sc")?);
        self.wait_until("the controller to answer", async |admin| Ok(admin.all::<SpuSpec>().await.is_ok()))
    }

    /// Starts the server over its folder, and waits until the controller calls it online.
    ///
    /// # Errors
    /// If the cluster is not the test's own, or the server does not get online.
    pub fn restart_spu(&mut self) -> Result<()> {
        self.restart_spu_unready()?;
        self.wait_until("the server to be online", async |admin| {
            let servers = admin.all::<SpuSpec>().await?;
            Ok(servers.iter().any(|server| server.spec.id == SPU_ID && server.status.is_online()))
        })
    }

    /// Starts the server and returns at once, as is needed while the controller is down.
    ///
    /// # Errors
    /// If the cluster is not the test's own.
    pub fn restart_spu_unready(&mut self) -> Result<()> {
        let servers = self.own()?;
        let folder = servers.folder.path();
        let mut command = Command::new(&servers.program);
        command.args(["spu", "-i", &SPU_ID.to_string()]);
        command.args(["-p", &format!("127.0.0.1:{}", servers.spu_public)]);
        command.args(["-v", &format!("127.0.0.1:{}", servers.spu_private)]);
        command.args(["--sc-addr", &format!("127.0.0.1:{}", servers.sc_private), "--log-base-dir"]);
        command.arg(folder.join("data"));
        servers.spu = Some(spawn(quiet(&mut command), folder, "spu")?);
        Ok(())
    }

    fn register_spu(&mut self) -> Result<()> {
        let servers = self.own()?;
        let mut spec = CustomSpuSpec { id: SPU_ID, ..CustomSpuSpec::default() };
        spec.private_endpoint.port = servers.spu_private;
        spec.private_endpoint.host = "127.0.0.1".to_owned();
        spec.public_endpoint.port = servers.spu_public;
        spec.public_endpoint.ingress = vec![Default::default()];
        spec.public_endpoint.ingress[0].hostname = Some("127.0.0.1".to_owned());
        self.runtime.block_on(async {
            let admin = self.admin().await?;
            admin.create(format!("custom-spu-{SPU_ID}"), false, spec).await
        })
    }

    fn own(&mut self) -> Result<&mut Servers> {
        self.servers.as_mut().context("the cluster of TWICE_TEST_FLUVIO is not this test's to start or kill")
    }

    async fn admin(&self) -> Result<FluvioAdmin> {
        FluvioAdmin::connect_with_config(&FluvioClusterConfig::new(self.endpoint.as_str())).await
    }

    fn wait_until(&self, what: &str, is_so: impl AsyncFn(&FluvioAdmin) -> Result<bool>) -> Result<()> {
        let started = Instant::now();
        loop {
            let now = self.runtime.block_on(async {
                let look = async { is_so(&self.admin().await?).await };
                tokio::time::timeout(Duration::from_secs(5), look).await
            });
            match now {
                Ok(Ok(true)) => return Ok(()),
                _ if started.elapsed() < READY_LIMIT => std::thread::sleep(READY_POLL),
                other => bail!("waited {READY_LIMIT:?} for {what}: {other:?}\n{}", self.output_tail()),
            }
        }
    }

    /// Returns the last lines of the processes the test started.
    pub fn output_tail(&self) -> String {
        let processes = self.servers.iter().flat_map(|servers| [&servers.sc, &servers.spu]);
        processes.flatten().map(Running::output_tail).collect()
    }
}

fn kill(process: &mut Option<Running>) -> Result<()> {
    if let Some(mut process) = process.take() {
        process.kill()?;
    }
    Ok(())
}

/// The servers write a line for each request otherwise.
fn quiet(command: &mut Command) -> &mut Command {
    command.env("RUST_LOG", "error")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// Returns the server program, where there is one.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("TWICE_FLUVIO_BIN").filter(|path| !path.is_empty()).map(PathBuf::from);
    let installed = std::env::home_dir().map(|home| home.join(".fluvio/bin"));
    let places = [named, installed].into_iter().flatten();
    places.flat_map(|place| [place.join(PROGRAM), place]).find(|path| path.is_file())
}

fn skipped(test: &str) -> Result<()> {
    let line = format!(
        "SKIPPED {test}: no Fluvio cluster; set TWICE_TEST_FLUVIO or TWICE_FLUVIO_BIN, or install Fluvio\n"
    );
    std::io::stderr().write_all(line.as_bytes())?;
    if let Some(path) = std::env::var_os("TWICE_TEST_SKIPPED") {
        let file = std::fs::File::options().create(true).append(true).open(Path::new(&path));
        file.and_then(|mut file| file.write_all(line.as_bytes())).context("note the skipped test")?;
    }
    Ok(())
}
