//! Comparisons of lambda and kappa: carried to the API, and what this node knows of its own costs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc};
use twice_actors::{ReplayConfig, StreamPath};
use twice_api::ports as api;
use twice_log::Topic;
use twice_log::archive::Archive;
use twice_log::hot::embedded::EmbeddedLog;
use twice_reconciler::compare::paths::{
    self, Comparator, ComparatorParts, CompareProgress, Comparison, Figure, Freshness, Prices, Quantiles,
    Stored, Surroundings, SurroundingsSource,
};
use twice_reconciler::{ReconcilerConfig, ReconcilerDeps, ReconcilerHandle};
use twice_store::Page;

use super::chain;
use crate::lines::lines_of_code;
use crate::recovery::Recovery;

/// Compares for the API, one comparison at a time.
pub struct Compares {
    reconciler: ReconcilerHandle,
    comparator: Comparator,
    archive: Archive,
    turn: Arc<Semaphore>,
}

impl Compares {
    /// Compares with what the reconciler works with, on its thread.
    pub fn of(
        reconciler: ReconcilerHandle,
        deps: &ReconcilerDeps,
        config: &ReconcilerConfig,
        replay: &ReplayConfig,
        around: Arc<Around>,
    ) -> Self {
        let parts = ComparatorParts::of(deps, config, Some(replay.memory_bytes_max), around);
        let archive = deps.archive.clone();
        Self { reconciler, comparator: Comparator::new(parts), archive, turn: Arc::new(Semaphore::new(1)) }
    }
}

#[async_trait]
impl api::CompareControl for Compares {
    async fn start(
        &self,
        request: api::CompareRequest,
    ) -> Result<BoxStream<'static, api::CompareEvent>, api::PortError> {
        let prices = prices_of(request.prices)?;
        if request.from.plus(paths::HOURS_MAX) < request.to {
            let (from, to, max) = (request.from, request.to, paths::HOURS_MAX);
            let reason = format!("{from} to {to} are more than {max} hours; compare them in parts");
            return Err(api::PortError::Refused { reason });
        }
        let Ok(turn) = self.turn.clone().try_acquire_owned() else {
            let reason = "another comparison is under way; wait for its end".to_owned();
            return Err(api::PortError::Conflict { reason });
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        let comparator = self.comparator.clone();
        // A task of its own: a client that goes away must not stop what it started.
        self.reconciler.spawn(async move {
            let (progress, mut steps) = mpsc::unbounded_channel::<CompareProgress>();
            let forward = async {
                while let Some(CompareProgress { path, done, total }) = steps.recv().await {
                    let path = path.name().to_owned();
                    let _ = sender.send(api::CompareEvent::Progress { path, done, total });
                }
            };
            let compare = comparator.compare(request.from, request.to, prices, Some(progress));
            let (compared, ()) = tokio::join!(compare, forward);
            if let Err(error) = &compared {
                tracing::warn!(error = chain(error), "comparison failed");
            }
            let _ = sender.send(event(compared));
            drop(turn);
        });
        let next = async |mut receiver: mpsc::UnboundedReceiver<api::CompareEvent>| {
            receiver.recv().await.map(|event| (event, receiver))
        };
        Ok(stream::unfold(receiver, next).boxed())
    }

    async fn list(
        &self,
        limit: u32,
        cursor: Option<String>,
    ) -> Result<Page<api::ComparisonSummary>, api::PortError> {
        let listed = paths::comparisons(&self.archive, limit as usize, cursor.as_deref()).await;
        let Page { rows, next_cursor } = listed.map_err(|error| unavailable(&error))?;
        let summary = |kept: paths::KeptComparison| api::ComparisonSummary {
            id: kept.id,
            created_at: kept.created_at,
            from: kept.from,
            to: kept.to,
            equal: kept.equal,
            rows: kept.counted.rows,
            copies: kept.counted.copies,
            conclusion: kept.conclusion,
        };
        Ok(Page { rows: rows.into_iter().map(summary).collect(), next_cursor })
    }

    async fn get(&self, id: &str) -> Result<Bytes, api::PortError> {
        let found = paths::comparison(&self.archive, id).await.map_err(|error| unavailable(&error))?;
        found.ok_or_else(|| api::PortError::NotFound { what: format!("comparison {id}") })
    }
}

fn prices_of(given: Option<serde_json::Value>) -> Result<Prices, api::PortError> {
    let read = match given {
        None => Prices::from_toml(paths::PRICES_TOML).map_err(|error| error.to_string()),
        Some(json) => serde_json::from_value(json)
            .map_err(|error| format!("prices do not read: {error}"))
            .and_then(|prices: Prices| prices.check().map(|()| prices).map_err(|error| error.to_string())),
    };
    read.map_err(|reason| api::PortError::Refused { reason })
}

fn event(compared: twice_reconciler::Result<Comparison>) -> api::CompareEvent {
    let written = compared.map_err(|error| chain(&error)).and_then(|comparison| {
        let json = serde_json::to_string(&comparison).and_then(RawValue::from_string);
        json.map(|json| (comparison, json)).map_err(|error| error.to_string())
    });
    match written {
        Ok((comparison, json)) => {
            api::CompareEvent::Done { id: comparison.id, equal: comparison.equal, comparison: json }
        }
        Err(detail) => api::CompareEvent::Failed { detail },
    }
}

fn unavailable(error: &twice_reconciler::Error) -> api::PortError {
    api::PortError::Unavailable { reason: chain(error) }
}

/// What a node knows of itself; of a folder without a running node, what its files say.
pub struct Around {
    pub folder: PathBuf,
    /// `None` where the log is in a cluster, or no node runs.
    pub log: Option<Arc<EmbeddedLog>>,
    /// `None` where no node runs.
    pub running: Option<(StreamPath, Arc<Recovery>)>,
}

const NO_NODE: &str = "measured by a running node only";

#[async_trait]
impl SurroundingsSource for Around {
    async fn look(&self) -> Surroundings {
        let folder = self.folder.clone();
        let sizes = tokio::task::spawn_blocking(move || (state_bytes(&folder), billing_bytes(&folder)));
        let (state_bytes, billing_bytes) = sizes.await.unwrap_or((None, None));
        let campaigns = match &self.running {
            None => None,
            Some((stream, _)) => {
                let statuses = stream.status().await;
                Some(statuses.iter().map(|status| status.campaigns + status.campaigns_resting).sum())
            }
        };
        let stored = |bytes: Option<u64>, count, per, source: &str| match bytes {
            Some(bytes) => Figure::measured(Stored::new(bytes, count, per), source),
            None => Figure::unknown("the folder cannot be read"),
        };
        Surroundings {
            freshness: self.freshness(),
            recovery: self
                .running
                .as_ref()
                .map_or_else(|| Figure::unknown(NO_NODE), |(_, recovery)| recovery.figure()),
            log: self.log().await,
            stream_state: stored(
                state_bytes,
                campaigns,
                "campaign",
                "files below sled/checkpoints and sled/windows",
            ),
            billing: stored(billing_bytes, None, "", "twice.sqlite with its journal, all hours"),
            lines_of_code: lines_of_code(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl Around {
    fn freshness(&self) -> Figure<Freshness> {
        let Some((stream, _)) = &self.running else { return Figure::unknown(NO_NODE) };
        let measured = stream.freshness();
        let (Some(arrival), Some(event)) = (measured.arrival, measured.event) else {
            return Figure::unknown("no click has arrived since the node started");
        };
        let quantiles = |measured: twice_actors::Quantiles| Quantiles {
            p50_seconds: measured.p50_seconds,
            p99_seconds: measured.p99_seconds,
        };
        let freshness = Freshness {
            since: measured.since,
            clicks: measured.clicks,
            event: quantiles(event),
            arrival: quantiles(arrival),
        };
        let source = "by the stream path at each publish, of every click that arrived since the node started; the \
                      same whichever path bills. From the click's own time it holds the sender's delay too";
        Figure::measured(freshness, source)
    }

    /// Complete segments only: the newest of a partition is reserved as a whole, however little it holds.
    async fn log(&self) -> Figure<Stored> {
        let Some(log) = &self.log else {
            return Figure::unknown("the log is in a cluster, or no node runs: its size is not known here");
        };
        let segments = match log.segments().await {
            Ok(segments) => segments,
            Err(error) => return Figure::unknown(format!("the log's segments cannot be read: {error}")),
        };
        let complete = segments.iter().filter(|segment| segment.topic == Topic::AdClicks);
        let complete = complete.filter_map(|segment| Some((segment.bytes, segment.end?.0 - segment.base.0)));
        let (bytes, clicks) = complete.fold((0, 0), |(bytes, clicks), (more, records)| {
            (bytes + more, clicks + u64::try_from(records).unwrap_or(0))
        });
        if clicks == 0 {
            return Figure::unknown(
                "no segment of the log is complete yet, and the newest is reserved as a whole",
            );
        }
        Figure::measured(
            Stored::new(bytes, Some(clicks), "click"),
            "complete segment files of the clicks' log",
        )
    }
}

fn state_bytes(folder: &Path) -> Option<u64> {
    Some(bytes_below(&folder.join("sled/checkpoints"))? + bytes_below(&folder.join("sled/windows"))?)
}

fn billing_bytes(folder: &Path) -> Option<u64> {
    let size = |name: &str| std::fs::metadata(folder.join(name)).map(|file| file.len()).ok();
    Some(size("twice.sqlite")? + size("twice.sqlite-wal").unwrap_or(0))
}

/// Sums the files below a folder; one that goes away meanwhile counts as nothing.
fn bytes_below(folder: &Path) -> Option<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        bytes += match kind.is_dir() {
            true => bytes_below(&entry.path()).unwrap_or(0),
            false => entry.metadata().map_or(0, |file| file.len()),
        };
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_summed_through_all_folders() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("a/b")).expect("folders");
        std::fs::write(folder.path().join("a/b/one"), [0; 10]).expect("writes");
        std::fs::write(folder.path().join("a/two"), [0; 5]).expect("writes");
        assert_eq!(bytes_below(folder.path()), Some(15));
        assert_eq!(bytes_below(&folder.path().join("none")), None);
    }

    #[test]
    fn prices_are_the_built_in_ones_or_read_as_a_whole() {
        assert!(prices_of(None).is_ok());
        let error = prices_of(Some(serde_json::json!({"vcpu_hour": 1}))).expect_err("keys are missing");
        assert!(matches!(error, api::PortError::Refused { reason } if reason.contains("missing")));
    }
}
