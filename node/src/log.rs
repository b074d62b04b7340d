//! The hot log as the settings choose it: segmented files in the data folder, or a Fluvio cluster.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
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
