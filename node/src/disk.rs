//! The space left where the data folder lies: below a share nothing more is acknowledged.
//!
//! Guarantee (G-1): the node refuses new clicks while it can still write down what it took. A disk filled to the last
//! byte stops the log in the middle of a write; one with a reserve lets checkpoints, archive and bill be finished, and
//! trimming make room again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use twice_api::ports::{Admission, PortError};

use crate::metrics::DISK_FREE_SHARE;

/// How often the disk is asked. At 200 000 clicks/s about 10 MB are written in between.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Settings of the disk's reserve.
#[derive(Debug, Clone, Copy, Args)]
pub struct DiskConfig {
    /// Free share of the data folder's disk below which nothing more is acknowledged: senders get 503 and send again.
    /// More leaves more room to finish what was taken; 0 never refuses. 0 to 100
    #[arg(long, default_value_t = 5.0, value_name = "PERCENT")]
    pub disk_free_percent_min: f64,
}

/// Watches the disk of one folder.
#[derive(Debug)]
pub struct DiskSpace {
    folder: PathBuf,
    percent_min: f64,
    refusal: Mutex<Option<String>>,
}

impl DiskSpace {
    /// Looks at the disk of `folder` for the first time.
    ///
    /// # Errors
    /// A setting out of bounds, or a disk that does not tell.
    pub fn new(folder: &Path, config: DiskConfig) -> Result<Self> {
        let percent_min = config.disk_free_percent_min;
        if !(0.0..=100.0).contains(&percent_min) {
            bail!("disk_free_percent_min is {percent_min}; it must lie within 0 and 100");
        }
        let space = Self { folder: folder.to_path_buf(), percent_min, refusal: Mutex::default() };
        space.note(free_percent(folder)?);
        Ok(space)
    }

    /// Looks every half second, until the task is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let folder = self.folder.clone();
            // A disk that hangs must not hang the thread that serves.
            match tokio::task::spawn_blocking(move || free_percent(&folder)).await {
                Ok(Ok(free)) => self.note(free),
                Ok(Err(error)) => {
                    tracing::warn!(error = format!("{error:#}"), "the disk does not tell its space")
                }
                Err(error) => tracing::warn!(%error, "the disk does not tell its space"),
            }
        }
    }

    /// Takes in what is free now; warns when the answer changes, not every time it is given.
    fn note(&self, free_percent: f64) {
        ::metrics::gauge!(DISK_FREE_SHARE).set(free_percent / 100.0);
        let refusal = (free_percent < self.percent_min).then(|| {
            format!(
                "{free_percent:.1} % of the disk of {} is free, below disk_free_percent_min = {}: nothing more is taken; \
                 free some space, or let the log be trimmed at a smaller size",
                self.folder.display(),
                self.percent_min
            )
        });
        let mut present = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        match (present.is_some(), &refusal) {
            (false, Some(reason)) => tracing::warn!("{reason}"),
            (true, None) => tracing::info!(free_percent, "the disk has room again: clicks are taken"),
            _ => {}
        }
        *present = refusal;
    }

    /// Returns why nothing is taken, while that is so.
    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Admission for DiskSpace {
    fn admit(&self) -> Result<(), PortError> {
        match self.refusal() {
            None => Ok(()),
            Some(reason) => Err(PortError::Unavailable { reason }),
        }
    }
}

/// Returns the share of the blocks an unprivileged process may still take, in percent.
fn free_percent(folder: &Path) -> Result<f64> {
    let space = rustix::fs::statvfs(folder)
        .with_context(|| format!("cannot ask the disk of {}", folder.display()))?;
    // Blocks kept for the administrator are in neither number, as in df.
    let used = space.f_blocks.saturating_sub(space.f_bfree);
    let total = used + space.f_bavail;
    Ok(if total == 0 { 100.0 } else { space.f_bavail as f64 * 100.0 / total as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(percent_min: f64) -> Result<DiskSpace> {
        let folder = tempfile::tempdir().expect("temporary folder");
        DiskSpace::new(folder.path(), DiskConfig { disk_free_percent_min: percent_min })
    }

    #[test]
    fn clicks_are_refused_below_the_reserve_and_taken_again_above_it() {
        let space = space(0.0).expect("in bounds");
        assert!(space.admit().is_ok());
        let space = DiskSpace { percent_min: 5.0, ..space };
        space.note(4.9);
        let refused = space.admit().expect_err("below the reserve").to_string();
        assert!(refused.contains("4.9 %") && refused.contains("disk_free_percent_min"), "{refused}");
        space.note(5.0);
        assert!(space.admit().is_ok());
    }

    #[test]
    fn a_reserve_that_is_no_share_is_refused() {
        assert!(space(-1.0).is_err() && space(101.0).is_err() && space(f64::NAN).is_err());
    }
}
