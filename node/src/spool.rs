//! The spool of a node: where its queues lie, who drains them, and what is shown of them.
//!
//! Guarantee (G-1): what is in the queues is drained for as long as the node runs, and stays on disk when it stops.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use twice_log::fs::FileSystem;
use twice_log::hot::ClickLog;
use twice_log::spool::{QueueStatus, SpoolConfig, Spooling};

use crate::metrics::{
    SPOOL_BYTES, SPOOL_BYTES_MAX, SPOOL_MISSING_RECORDS, SPOOL_OLDEST_SECONDS,
    SPOOL_RECORDS,
};

/// Returns the folder of the queues.
pub fn folder_of(config: &SpoolConfig, data_dir: &Path) -> PathBuf {
    config.spool_dir.clone().unwrap_or_else(|| data_dir.join("spool"))
}

/// Opens the queues of a node.
///
/// # Errors
/// A setting out of its bounds. A folder that does not open is no error: clicks go to the log alone until it does.
pub async fn open(
    config: &SpoolConfig,
    data_dir: &Path,
    log: Arc<dyn ClickLog>,
    fs: Arc<dyn FileSystem>,
) -> Result<Arc<Spooling>> {
    let folder = folder_of(config, data_dir);
    let spooling = Spooling::open(log, fs, &folder, config.clone()).await.context("cannot open the spool")?;
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let apart = device(&folder).is_some_and(|own| Some(own) != device(data_dir));
    Ok(Arc::new(spooling.on_another_disk(apart)))
}

/// Shows how the queues are as metrics.
pub fn show(spooling: &Spooling, now: twice_log::UtcMillis) {
    for status in spooling.status() {
        let QueueStatus { name, records, bytes, bytes_max, oldest, missing, .. } = status;
        let label = |metric: &'static str| metrics::gauge!(metric, "queue" => label_of(name));
        label(SPOOL_RECORDS).set(records as f64);
        label(SPOOL_BYTES).set(bytes as f64);
        label(SPOOL_BYTES_MAX).set(bytes_max as f64);
        label(SPOOL_MISSING_RECORDS).set(missing as f64);
        let age_ms = oldest.map_or(0, |oldest| (now.epoch_ms() - oldest.epoch_ms()).max(0));
        label(SPOOL_OLDEST_SECONDS).set(age_ms as f64 / 1000.0);
    }
}

fn label_of(queue: &'static str) -> &'static str {
    if queue == "spool" { "spool" } else { "spill" }
}
