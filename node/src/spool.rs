//! The spool of a node: where its queues lie, who drains them, and what is shown of them.
//!
//! Guarantee (G-1): what is in the queues is drained for as long as the node runs, and stays on disk when it stops.

pub mod copies;
mod folder;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use actix_web::rt::task::JoinHandle;
use anyhow::{Context, Result};
use twice_log::UtcMillis;
use twice_log::archive::Archive;
use twice_log::fs::{FileSystem, RealFs};
use twice_log::hot::ClickLog;
use twice_log::spool::{QueueStatus, SpoolConfig, Spooling, Survey, survey};
use twice_reconciler::ports::{HeldRecords, Holding};

use crate::metrics::{
    SPOOL_BYTES, SPOOL_BYTES_MAX, SPOOL_MISSING_RECORDS, SPOOL_OLDEST_SECONDS, SPOOL_RECORDS,
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
    folder::note_folder(fs.as_ref(), data_dir, config)?;
    let spooling = Spooling::open(log, fs, &folder, config.clone()).await.context("cannot open the spool")?;
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let apart = device(&folder).is_some_and(|own| Some(own) != device(data_dir));
    Ok(Arc::new(spooling.on_another_disk(apart)))
}

/// Begins to drain the queues, and to copy their closed segments into the archive under the node's name.
pub fn start(spooling: &Arc<Spooling>, (archive, node): (Archive, String)) -> JoinHandle<()> {
    let (draining, copied) = (spooling.clone(), spooling.clone());
    actix_web::rt::spawn(async move {
        tokio::join!(draining.drain(), copies::run(copied, archive, node));
    })
}

/// What this node's gateway holds, for the batch path.
pub struct HeldHere(pub Arc<Spooling>);

impl Holding for HeldHere {
    fn held_before(&self, instant: UtcMillis) -> Vec<HeldRecords> {
        let held = self.0.held_before(instant).into_iter();
        held.map(|held| HeldRecords {
            holder: format!("{} of this node", held.queue),
            records: held.records,
            missing: held.missing,
        })
        .collect()
    }
}

/// What the queues of a stopped node hold, for the batch path of a command.
pub struct HeldOnDisk(Vec<Survey>);

impl HeldOnDisk {
    /// Reads the queues that belong to a data folder.
    ///
    /// # Errors
    /// A folder that does not read: nobody may bill as if it held nothing.
    pub fn read(data_dir: &Path) -> Result<Self> {
        let folder = folder::noted_folder(data_dir)?;
        let surveys = survey(&RealFs, &folder);
        Ok(Self(surveys.with_context(|| format!("cannot read the spool in {}", folder.display()))?))
    }
}

impl Holding for HeldOnDisk {
    fn held_before(&self, instant: UtcMillis) -> Vec<HeldRecords> {
        let held = self.0.iter().map(|survey| HeldRecords {
            holder: format!("{} of the stopped node", survey.queue),
            records: Some(survey.held_before(instant)),
            missing: survey.missing,
        });
        held.filter(|held| held.records != Some(0) || held.missing > 0).collect()
    }
}

/// Shows how the queues are as metrics.
pub fn show(spooling: &Spooling, now: UtcMillis) {
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
