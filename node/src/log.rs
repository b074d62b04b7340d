//! The hot log as the settings choose it: segmented files in the data folder, or a Fluvio cluster.
//!
//! Guarantee: a data folder keeps the log it began with. Checkpoints and manifests name clicks by offset, and the same
//! offset is another click in another log: such a start is refused, by a note of the log in the data folder.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use twice_log::Clock;
use twice_log::fail::FailPoints;
use twice_log::fs::FileSystem;
use twice_log::hot::ClickLog;
use twice_log::hot::embedded::{EmbeddedConfig, EmbeddedLog};
use twice_log::hot::fluvio::{FluvioConfig, FluvioLog};

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
const NOTE: &str = "LOG";
const EMBEDDED_NAME: &str = "embedded";

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
        if noted.is_none() {
            note(fs.as_ref(), folder, &name).context("cannot note which log this folder belongs to")?;
        }
        Ok(match config.backend {
            LogBackend::Embedded => {
                let log = EmbeddedLog::open(fs, &folder.join("log"), config.embedded.clone(), fail_points)?;
                Self::Embedded(Arc::new(log))
            }
            LogBackend::Fluvio => {
                let log = FluvioLog::open(&config.fluvio, config.embedded.partitions, clock).await?;
                Self::Fluvio(Arc::new(log))
            }
        })
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

/// Returns the log of this data folder; `None` for a new one.
fn noted(folder: &Path) -> Result<Option<String>> {
    let path = folder.join(NOTE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // Folders of before there were notes.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(folder.join("log").exists().then(|| EMBEDDED_NAME.to_owned()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Durable before the log is opened: whatever is counted, is counted under this name.
fn note(fs: &dyn FileSystem, folder: &Path, name: &str) -> std::io::Result<()> {
    let (path, beside) = (folder.join(NOTE), folder.join("LOG.new"));
    let mut file = File::create(&beside)?;
    writeln!(file, "{name}")?;
    file.sync_all()?;
    std::fs::rename(beside, path)?;
    fs.sync_dir(folder)
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
        std::fs::remove_file(folder.path().join(NOTE)).expect("removed");
        let error = open(LogBackend::Fluvio, "", folder.path()).await.err().expect("of before").to_string();
        assert!(error.contains("is embedded"), "{error}");

        let folder = tempfile::tempdir().expect("a folder");
        let absent =
            open(LogBackend::Fluvio, "a-", folder.path()).await.err().expect("no cluster").to_string();
        assert!(absent.contains("no Fluvio cluster answers"), "{absent}");
        for (backend, prefix) in [(LogBackend::Fluvio, "b-"), (LogBackend::Embedded, "")] {
            let error = open(backend, prefix, folder.path()).await.err().expect("another log").to_string();
            assert!(error.contains("topic prefix `a-`"), "{error}");
        }
    }
}
