//! The hot log as the settings choose it: segmented files in the data folder, or a Fluvio cluster.
//!
//! Guarantee: a data folder keeps the log it began with. Checkpoints and manifests name clicks by offset, and the same
//! offset is another click in another log: such a start is refused, by a note of the log in the data folder.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use twice_log::Clock;
use twice_log::fail::FailPoints;
use twice_log::fs::FileSystem;
use twice_log::hot::ClickLog;
use twice_log::hot::embedded::{EmbeddedConfig, EmbeddedLog};
use twice_log::hot::fluvio::{FluvioConfig, FluvioCounters, FluvioLog};

use crate::metrics::{FLUVIO_APPEND_RETRIES_TOTAL, FLUVIO_HOLES_REPAIRED_TOTAL};
use crate::note::Note;

/// Where the hot log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogBackend {
    /// Segmented files in the data folder
    Embedded,
    /// Topics of a Fluvio cluster
    Fluvio,
}

/// Settings of the hot log.
#[derive(Debug, Clone, Args)]
pub struct LogConfig {
    /// Where the hot log is kept; docs/fluvio.md says how to run on Fluvio
    #[arg(id = "log", long = "log", value_enum, default_value = "embedded", value_name = "WHERE")]
    pub backend: LogBackend,
    #[command(flatten, next_help_heading = "Log")]
    pub embedded: EmbeddedConfig,
    #[command(flatten, next_help_heading = "Fluvio")]
    pub fluvio: FluvioConfig,
}

/// File in the data folder that names the log.
const NOTE: Note = Note("LOG");
const EMBEDDED_NAME: &str = "embedded";
const SHOWN_EVERY: Duration = Duration::from_secs(1);

impl LogConfig {
    /// Returns the log's name. A cluster may move to another address; its topics stay the same.
    fn name(&self) -> String {
        match self.backend {
            LogBackend::Embedded => EMBEDDED_NAME.to_owned(),
            LogBackend::Fluvio => format!("fluvio, topic prefix `{}`", self.fluvio.topic_prefix),
        }
    }
}

/// The open log.
pub enum OpenLog {
    Embedded(Arc<EmbeddedLog>),
    Fluvio(Arc<FluvioLog>),
}

impl OpenLog {
    /// Opens the log for writing.
    ///
    /// # Errors
    /// What to do before it opens.
    pub async fn open(
        config: &LogConfig,
        folder: &Path,
        fs: Arc<dyn FileSystem>,
        clock: Arc<dyn Clock>,
        fail_points: FailPoints,
    ) -> Result<Self> {
        let name = config.name();
        let noted = noted(folder)?;
        if let Some(noted) = &noted
            && *noted != name
        {
            bail!(
                "the log of {} is {noted}, not {name}: start with the --log and --fluvio-topic-prefix it began with, or \
                 with another --data-dir",
                folder.display()
            );
        }
        let opened = match config.backend {
            LogBackend::Embedded => {
                let log =
                    EmbeddedLog::open(fs.clone(), &folder.join("log"), config.embedded.clone(), fail_points)?;
                Self::Embedded(Arc::new(log))
            }
            LogBackend::Fluvio => {
                let log = FluvioLog::open(&config.fluvio, config.embedded.partitions, clock).await?;
                tokio::spawn(show(Arc::downgrade(&log.counters())));
                Self::Fluvio(Arc::new(log))
            }
        };
        // A start that failed binds the folder to nothing; one that succeeded is bound before anything is counted.
        if noted.is_none() {
            NOTE.write(fs.as_ref(), folder, &name).context("cannot note which log this folder belongs to")?;
        }
        Ok(opened)
    }

    /// Returns the log as every part of the node uses it.
    pub fn shared(&self) -> Arc<dyn ClickLog> {
        match self {
            Self::Embedded(log) => log.clone(),
            Self::Fluvio(log) => log.clone(),
        }
    }

    /// Returns the embedded log, which is ours to trim; a cluster trims its topics by its own settings.
    pub fn embedded(&self) -> Option<Arc<EmbeddedLog>> {
        match self {
            Self::Embedded(log) => Some(log.clone()),
            Self::Fluvio(_) => None,
        }
    }

    /// Writes down what waits. A Fluvio log has nothing of its own to write: what was acknowledged is in the cluster.
    pub fn close(&self) {
        if let Self::Embedded(log) = self {
            log.close();
        }
    }
}

/// Shows what the Fluvio log met as metrics, for as long as the log is there.
async fn show(counters: Weak<FluvioCounters>) {
    let mut every = tokio::time::interval(SHOWN_EVERY);
    loop {
        every.tick().await;
        let Some(counters) = counters.upgrade() else { return };
        metrics::counter!(FLUVIO_HOLES_REPAIRED_TOTAL).absolute(counters.holes_repaired());
        metrics::counter!(FLUVIO_APPEND_RETRIES_TOTAL).absolute(counters.append_retries());
    }
}

/// Returns the log of this data folder; `None` for a new one.
fn noted(folder: &Path) -> Result<Option<String>> {
    // Folders of before there were notes, and of a start that ended before it wrote one.
    let without_note = || folder.join("log").exists().then(|| EMBEDDED_NAME.to_owned());
    Ok(NOTE.read(folder)?.or_else(without_note))
}

#[cfg(test)]
mod tests {
    use twice_log::WallClock;
    use twice_log::fs::RealFs;

    use super::*;

    async fn open(backend: LogBackend, prefix: &str, folder: &Path) -> Result<OpenLog> {
        let fluvio = FluvioConfig {
            endpoint: Some("127.0.0.1:1".to_owned()), // nobody listens there
            connect_timeout_ms: 100,
            topic_prefix: prefix.to_owned(),
            ..FluvioConfig::default()
        };
        let config = LogConfig { backend, embedded: EmbeddedConfig::default(), fluvio };
        OpenLog::open(&config, folder, Arc::new(RealFs), Arc::new(WallClock), FailPoints::default()).await
    }

    #[tokio::test]
    async fn a_data_folder_refuses_a_log_that_is_not_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        open(LogBackend::Embedded, "", folder.path()).await.expect("a new folder").close();
        let error = open(LogBackend::Fluvio, "", folder.path()).await.err().expect("another log").to_string();
        assert!(error.contains("is embedded, not fluvio") && error.contains("--data-dir"), "{error}");
        std::fs::remove_file(NOTE.path(folder.path())).expect("removed");
        let error = open(LogBackend::Fluvio, "", folder.path()).await.err().expect("of before").to_string();
        assert!(error.contains("is embedded"), "{error}");

        let folder = tempfile::tempdir().expect("a folder");
        NOTE.write(&RealFs, folder.path(), "fluvio, topic prefix `a-`").expect("written");
        for (backend, prefix) in [(LogBackend::Fluvio, "b-"), (LogBackend::Embedded, "")] {
            let error = open(backend, prefix, folder.path()).await.err().expect("another log").to_string();
            assert!(error.contains("topic prefix `a-`"), "{error}");
        }
        let own = open(LogBackend::Fluvio, "a-", folder.path()).await.err().expect("no cluster").to_string();
        assert!(own.contains("no Fluvio cluster answers"), "its own log is asked for: {own}");
    }

    #[tokio::test]
    async fn a_start_that_failed_binds_the_folder_to_no_log() {
        let folder = tempfile::tempdir().expect("a folder");
        for prefix in ["a-", "b-"] {
            let absent = open(LogBackend::Fluvio, prefix, folder.path()).await.err().expect("no cluster");
            assert!(absent.to_string().contains("no Fluvio cluster answers"), "{absent}");
        }
        open(LogBackend::Embedded, "", folder.path()).await.expect("still a new folder").close();
    }
}
