//! The parts of a node, opened from its data folder by a command: no server is asked.
//!
//! Guarantee: a command that writes holds the folder's lock, so no node runs beside it; one that reads changes nothing and
//! may run beside a node. The archive is the one the folder's note names, the log the folder's own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use clap::{Args, Command};
use twice_actors::ReplayConfig;
use twice_log::archive::Archive;
use twice_log::archive::s3::S3Config;
use twice_log::fail::FailPoints;
use twice_log::fs::RealFs;
use twice_log::hot::ClickLog;
use twice_log::hot::embedded::EmbeddedLog;
use twice_log::{Clock, Hour, LogOffset, PartitionId, Topic, WallClock};
use twice_reconciler::ports::{ArchiveControl, ClockBelieved, PortError, SealControl};
use twice_reconciler::recompute::{ArchiveLocation, ProcessRecompute};
use twice_reconciler::{ReconcilerConfig, ReconcilerDeps};
use twice_store::SqliteStore;

use crate::database::{self, DATABASE};
use crate::spool::HeldOnDisk;
use crate::{archive, node, settings};

const NO_WAIT_MS: u64 = 2_000;

/// Where the data folder is, for commands that can do without a server.
#[derive(Debug, Clone, Args)]
pub struct DataDir {
    /// Act on the data folder of a node, without a server; a node on it must be stopped if the command writes
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Archive on S3, with --data-dir")]
    s3: S3Config,
}

/// What a command does to the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads alone, also beside a running node.
    Read,
    /// Writes, and holds the folder's lock.
    Write,
}

/// The parts of the node in a data folder. The lock is given back when it is dropped.
pub struct Offline {
    pub folder: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub archive: Archive,
    pub archive_location: ArchiveLocation,
    pub store: Arc<SqliteStore>,
    pub recompute: Arc<ProcessRecompute>,
    pub config: ReconcilerConfig,
    pub held: Arc<HeldOnDisk>,
    _lock: Option<File>,
}

impl DataDir {
    /// Opens the parts; `None` where no folder was named.
    ///
    /// # Errors
    /// What does not open, with what to do; a node that runs on the folder, for [`Access::Write`].
    pub async fn open(&self, access: Access) -> Result<Option<Offline>> {
        let Some(folder) = &self.data_dir else { return Ok(None) };
        let lock = self.lock(folder, access)?;
        let clock: Arc<dyn Clock> = Arc::new(WallClock);
        let (archive, archive_location) = self.open_archive(folder, access).await?;
        let store = match access {
            Access::Read => SqliteStore::open_read_only(&folder.join(DATABASE), clock.clone()).await?,
            Access::Write => database::open_for_writing(folder, &archive, clock.clone()).await?,
        };
        Ok(Some(Offline {
            folder: folder.clone(),
            clock,
            archive,
            archive_location,
            store: Arc::new(store),
            recompute: Arc::new(recompute()?),
            config: ReconcilerConfig::default(),
            held: Arc::new(HeldOnDisk::read(folder)?),
            _lock: lock,
        }))
    }

    /// Returns the folder named.
    pub fn folder(&self) -> Option<&Path> {
        self.data_dir.as_deref()
    }

    /// Takes the folder's lock where the command writes.
    ///
    /// # Errors
    /// If the folder is not there, or a node runs on it.
    pub fn lock(&self, folder: &Path, access: Access) -> Result<Option<File>> {
        self.check(folder)?;
        match access {
            Access::Read => Ok(None),
            Access::Write => node::lock(folder).map(Some),
        }
    }

    /// Checks that the folder is there.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self, folder: &Path) -> Result<()> {
        if !folder.is_dir() {
            bail!("{} is no folder; --data-dir names the data folder of a node", folder.display());
        }
        Ok(())
    }

    /// Opens the archive that the folder's note names.
    ///
    /// # Errors
    /// If it cannot be used.
    pub async fn open_archive(&self, folder: &Path, access: Access) -> Result<(Archive, ArchiveLocation)> {
        match access {
            Access::Read => archive::open_for_reading(&self.s3, folder),
            Access::Write => {
                let config = archive::settings_of(&self.s3, folder)?.unwrap_or_default();
                archive::open(&config, Arc::new(RealFs), folder).await
            }
        }
    }
}

impl Offline {
    /// Returns the parts as the reconciler takes them: the log is read, nobody seals, nobody archives.
    ///
    /// # Errors
    /// If the folder has no log of its own: with a log in a cluster the command must go through a node.
    pub fn reconciler_deps(&self) -> Result<ReconcilerDeps> {
        let folder = self.folder.join("log");
        let log = EmbeddedLog::open_reader(&folder).with_context(|| {
            format!("no log in {}; with a log in a cluster, start the node and ask it", folder.display())
        })?;
        let log: Arc<dyn ClickLog> = Arc::new(log);
        Ok(ReconcilerDeps {
            clock: self.clock.clone(),
            clock_witness: Arc::new(ClockBelieved),
            log,
            archive: self.archive.clone(),
            archive_location: self.archive_location.clone(),
            billing: self.store.clone(),
            campaigns: self.store.clone(),
            imports: self.store.clone(),
            seals: Arc::new(Nobody),
            archiver: Arc::new(Nobody),
            held: self.held.clone(),
            recompute: self.recompute.clone(),
            replay: Arc::new(node::replay_child(
                &ReplayConfig::default(),
                self.archive_location.clone(),
                &self.folder,
            )?),
            fail_points: FailPoints::default(),
        })
    }

    /// Returns settings for closing an hour of which everything is archived: nothing is waited for.
    pub fn closing_config(&self) -> ReconcilerConfig {
        ReconcilerConfig {
            schedule: false,
            nightly_close: false,
            seal_timeout_ms: NO_WAIT_MS,
            archive_timeout_ms: NO_WAIT_MS,
            ..self.config.clone()
        }
    }
}

/// The stream path and the archiver of a stopped node.
struct Nobody;

#[async_trait]
impl SealControl for Nobody {
    async fn seal(&self, _: Hour, _: PartitionId, _: LogOffset) -> Result<(), PortError> {
        Err(PortError::Absent { part: "stream path" })
    }
}

#[async_trait]
impl ArchiveControl for Nobody {
    async fn flush_through(&self, _: Topic, _: PartitionId, _: LogOffset) -> Result<(), PortError> {
        Err(PortError::Absent { part: "archiver" })
    }
}

/// Returns what starts recompute processes of this program.
///
/// # Errors
/// If the program's own path is unknown.
pub fn recompute() -> Result<ProcessRecompute> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    Ok(ProcessRecompute::new(program, ReconcilerConfig::default().nice))
}

/// Lets the variables that say how to reach a node's archive say it to its commands as well.
pub fn with_variables(command: Command) -> Command {
    if command.get_name() == "up" {
        return command; // has all its variables by its own settings
    }
    command.mut_args(|argument| {
        let name = argument.get_id().as_str();
        let is_place = name.starts_with("s3_") || name.starts_with("archive_secondary") || name == "archive";
        if is_place { settings::with_variable(argument) } else { argument }
    })
}
