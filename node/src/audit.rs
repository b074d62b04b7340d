//! The audit as a process of its own: the node starts it, and a command is one itself.
//!
//! Guarantee: an audit reads and writes nothing of the node's, neither in the archive nor in the billing store, and keeps
//! to its memory; counting it leaves to the same child processes that a run uses. Flow: one request on standard input, one
//! line on standard output: the certificate, or why there is none.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use twice_actors::{ProcessReplay, ReplayConfig};
use twice_log::archive::{Archive, ArchiveLocation};
use twice_log::{CampaignId, Clock, Hour, WallClock};
use twice_reconciler::audit::{AuditDeps, AuditQuestion, audit};
use twice_reconciler::recompute::ResourceLimits;
use twice_reconciler::{Error, ReconcilerConfig};
use twice_store::SqliteStore;
use twice_store::child::{ChildCommand, ChildError, die_with_parent, limit_memory};

use crate::cli::offline::recompute;
use crate::database::DATABASE;
use crate::ports::chain;

/// What an audit process is asked.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    hour: Hour,
    campaign: Option<CampaignId>,
    data_dir: PathBuf,
    archive: ArchiveLocation,
    limits: ResourceLimits,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Certificate(Box<RawValue>),
    NotReconciled,
    Failed(String),
}

/// Why the node has no certificate to give.
#[derive(Debug)]
pub enum NoCertificate {
    /// The hour has no run.
    NotReconciled,
    Failed(String),
}

impl From<ChildError> for NoCertificate {
    fn from(error: ChildError) -> Self {
        Self::Failed(format!("audit process: {}", chain(&error)))
    }
}

/// Starts audit processes on the node's own folder.
#[derive(Debug, Clone)]
pub struct AuditProcess {
    command: ChildCommand,
    data_dir: PathBuf,
    archive: ArchiveLocation,
    limits: ResourceLimits,
}

impl AuditProcess {
    /// Audits what lies in `data_dir` and `archive`, with the niceness and memory of a recompute.
    ///
    /// # Errors
    /// If the path of this program is unknown.
    pub fn new(config: &ReconcilerConfig, data_dir: &Path, archive: ArchiveLocation) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find the path of this program")?;
        Ok(Self {
            command: ChildCommand::new(program, vec!["audit-child".to_owned()], config.nice),
            data_dir: data_dir.to_path_buf(),
            archive,
            limits: config.limits(),
        })
    }

    /// Audits an hour and returns the certificate as JSON.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn audit(
        &self,
        hour: Hour,
        campaign: Option<CampaignId>,
    ) -> Result<Box<RawValue>, NoCertificate> {
        let request = Request {
            hour,
            campaign,
            data_dir: self.data_dir.clone(),
            archive: self.archive.clone(),
            limits: self.limits.clone(),
        };
        let broken = |error: serde_json::Error| NoCertificate::Failed(error.to_string());
        let request = serde_json::to_vec(&request).map_err(broken)?;
        let mut answer = None;
        self.command
            .run(request, |line| {
                answer = Some(serde_json::from_str::<Answer>(line).map_err(broken)?);
                Ok::<(), NoCertificate>(())
            })
            .await?;
        match answer {
            Some(Answer::Certificate(certificate)) => Ok(certificate),
            Some(Answer::NotReconciled) => Err(NoCertificate::NotReconciled),
            Some(Answer::Failed(reason)) => Err(NoCertificate::Failed(reason)),
            None => Err(NoCertificate::Failed("the audit process ended without an answer".to_owned())),
        }
    }
}

/// Returns what an audit of a data folder works with.
///
/// # Errors
/// If the path of this program is unknown.
pub fn audit_deps(
    clock: Arc<dyn Clock>,
    (archive, archive_location): (Archive, ArchiveLocation),
    store: Arc<SqliteStore>,
    limits: ResourceLimits,
) -> Result<AuditDeps> {
    let config = ReplayConfig {
        threads: limits.threads,
        memory_bytes_max: limits.memory_bytes_max,
        ..ReplayConfig::default()
    };
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    // Nothing of an earlier replay is used: what lies in the folder is not of the archive.
    let replay = ProcessReplay::new(program, config.nice, archive_location.clone(), config.limits(None));
    Ok(AuditDeps {
        clock,
        archive,
        archive_location,
        billing: store.clone(),
        campaigns: store,
        recompute: Arc::new(recompute()?),
        replay: Some(Arc::new(replay)),
        limits,
    })
}

/// Reads one request, audits, writes one line: what the hidden subcommand does.
pub fn run_child(mut input: impl Read, mut output: impl Write) -> ExitCode {
    die_with_parent();
    let answer = read_request(&mut input).and_then(|request| {
        limit_memory(request.limits.memory_bytes_max).context("cannot limit its memory")?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(request.limits.threads.max(1))
            .enable_all()
            .build()?;
        runtime.block_on(answer(request))
    });
    let answer = answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
    let written = serde_json::to_writer(&mut output, &answer).map_err(std::io::Error::from);
    match written.and_then(|()| output.write_all(b"\n")).and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(2),
    }
}

fn read_request(input: &mut impl Read) -> Result<Request> {
    let mut text = String::new();
    input.read_to_string(&mut text).context("cannot read the request")?;
    serde_json::from_str(&text).context("the request does not read")
}

async fn answer(request: Request) -> Result<Answer> {
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    let archive = request.archive.open()?;
    let store = SqliteStore::open_read_only(&request.data_dir.join(DATABASE), clock.clone()).await?;
    let deps = audit_deps(clock, (archive, request.archive), Arc::new(store), request.limits)?;
    let question = AuditQuestion { hour: request.hour, campaign: request.campaign };
    match audit(&deps, &question).await {
        Ok(certificate) => Ok(Answer::Certificate(serde_json::value::to_raw_value(&certificate)?)),
        Err(Error::NotReconciled { .. }) => Ok(Answer::NotReconciled),
        Err(error) => Ok(Answer::Failed(chain(&error))),
    }
}
