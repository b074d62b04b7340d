//! The parent's side of a recompute: hands a child process the request and reads its lines.
//!
//! Guarantee: the child has a low priority, dies with its parent's interest (kill on drop), and an answer without a
//! closing summary line is an error, never a smaller bill.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use twice_store::child::{ChildCommand, ChildError};

use super::child::{Answer, Gathering};
use super::{LookedUp, Recompute, RecomputeRequest, Recomputed, ResourceLimits, ShadowReport};
use crate::compare::Explanation;
use crate::error::{Error, Result};
use crate::metrics;

/// How long a shadow run may take: many times what both statements take over the largest hour.
const SHADOW_TIME_MAX: Duration = Duration::from_secs(30 * 60);

/// Processes that may follow one that died for want of memory: the last has an eighth of the memory, and in the end the
/// operator has to know.
const MEMORY_RETRIES_MAX: u32 = 3;

/// Runs each recompute in a child process: `program arguments…`, which must end in `recompute::child::run`.
#[derive(Debug, Clone)]
pub struct ProcessRecompute(ChildCommand);

impl ProcessRecompute {
    /// Starts `program recompute`; `nice` is the child's niceness, 0 to 19.
    pub fn new(program: PathBuf, nice: i32) -> Self {
        Self::with_arguments(program, vec!["recompute".to_owned()], nice)
    }

    /// Starts `program` with other arguments.
    pub fn with_arguments(program: PathBuf, arguments: Vec<String>, nice: i32) -> Self {
        Self(ChildCommand::new(program, arguments, nice))
    }

    /// Asks until a process answers; one that died for want of memory is followed by one with smaller slices.
    async fn answer(&self, mut request: RecomputeRequest) -> Result<Answer> {
        let mut retries = 0;
        loop {
            match self.ask(&request).await {
                Err(Error::ChildKilled { status, .. }) if retries < MEMORY_RETRIES_MAX => {
                    retries += 1;
                    request.limits = request.limits.smaller();
                    let ResourceLimits { memory_bytes_max, rows_per_slice_max, .. } = request.limits;
                    tracing::warn!(
                        status,
                        retries,
                        memory_bytes_max,
                        rows_per_slice_max,
                        inputs = request.inputs_path,
                        "a recompute process was killed, probably for want of memory; counting again in smaller slices"
                    );
                    ::metrics::counter!(metrics::RECOMPUTE_MEMORY_RETRIES_TOTAL).increment(1);
                    if let Some(folder) = request.aggregates_dir.clone() {
                        let emptied = tokio::task::spawn_blocking(move || empty(&folder)).await;
                        let emptied = emptied.unwrap_or_else(|error| Err(std::io::Error::other(error)));
                        emptied.map_err(|source| Error::Process { action: "empty its folder", source })?;
                    }
                }
                answered => return answered.map(|answer| answer.after(retries)),
            }
        }
    }

    async fn ask(&self, request: &RecomputeRequest) -> Result<Answer> {
        let text = serde_json::to_vec(request)
            .map_err(|source| Error::Json { what: "recompute request", source })?;
        let mut gathering = Gathering::default();
        let answered = self.0.run(text, |line| {
            let line = serde_json::from_str(line)
                .map_err(|source| Error::Json { what: "line of the recompute process", source })?;
            gathering.take(line)
        });
        answered.await?;
        let ended_without = || Error::ChildFailed {
            status: "exit status: 0".to_owned(),
            detail: "it ended without a summary".to_owned(),
        };
        gathering.finish(&request.task)?.ok_or_else(ended_without)
    }
}

/// Removes what a killed process left in the folder of its asker.
fn empty(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(&path)? } else { std::fs::remove_file(&path)? }
    }
    Ok(())
}

impl From<ChildError> for Error {
    /// Says what to do where memory is the likely cause.
    fn from(error: ChildError) -> Self {
        let advice = "it was killed or gave up, probably for want of memory: lower recompute_memory_bytes_max \
             (--recompute-memory-bytes-max) to what the machine has left, or raise it if the machine has more";
        match error {
            ChildError::Io { action, source } => Error::Process { action, source },
            error @ ChildError::Silent { .. } => {
                Error::ChildFailed { status: "killed".to_owned(), detail: error.to_string() }
            }
            ChildError::Failed { status, detail, killed: false } => Error::ChildFailed { status, detail },
            ChildError::Failed { status, detail, killed: true } => {
                let detail =
                    [advice, &detail].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
                Error::ChildKilled { status, detail: detail.join("; ") }
            }
        }
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

    async fn look_up(&self, request: RecomputeRequest) -> Result<LookedUp> {
        self.answer(request).await?.into_looked_up()
    }

    async fn shadow(&self, request: RecomputeRequest) -> Result<ShadowReport> {
        // A candidate may join everything with everything. Dropping the answer kills the child, busy as it may be.
        match timeout(SHADOW_TIME_MAX, self.answer(request)).await {
            Ok(answer) => answer?.into_shadow(),
            Err(_) => {
                let minutes = SHADOW_TIME_MAX.as_secs() / 60;
                Err(Error::Candidate { reason: format!("it took longer than {minutes} minutes") })
            }
        }
    }
}
