//! Destroys the month keys of pseudonyms when their time has come.
//!
//! Guarantee: a key whose month ended `pseudonym_retention_ms` ago is destroyed within an hour of a running node; what fails
//! is said and tried again.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use twice_api::PseudonymKeys;
use twice_log::Clock;

use crate::metrics::PSEUDONYM_KEYS_DESTROYED_TOTAL;

/// Below this a month's late clicks would lose their users as a rule.
const RETENTION_MS_MIN: i64 = 2_592_000_000;
const EVERY: Duration = Duration::from_secs(3600);

/// How long users stay the same within a month.
#[derive(Debug, Clone, Copy, Args)]
pub struct PrivacyConfig {
    /// How long after its month's end the key of pseudonyms is destroyed; 0 = never. Longer lets a user be found again, for
    /// access or fraud, for longer, and keeps the data personal for longer. 0, or at least 2_592_000_000 (30 d); default
    /// 34_560_000_000 (400 d, the age to which clicks may be taken).
    #[arg(long, default_value_t = 34_560_000_000, value_name = "MS")]
    pub pseudonym_retention_ms: i64,
}

impl PrivacyConfig {
    /// Checks the bound.
    ///
    /// # Errors
    /// Naming the setting.
    pub fn validate(self) -> anyhow::Result<()> {
        let retention = self.pseudonym_retention_ms;
        anyhow::ensure!(
            retention == 0 || retention >= RETENTION_MS_MIN,
            "pseudonym_retention_ms is {retention}; it must be 0, or at least {RETENTION_MS_MIN}"
        );
        Ok(())
    }
}

/// Looks for expired keys until the task is dropped.
pub async fn watch_keys(keys: Arc<PseudonymKeys>, clock: Arc<dyn Clock>, config: PrivacyConfig) {
    if config.pseudonym_retention_ms == 0 {
        return;
    }
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let (keys, now) = (keys.clone(), clock.now());
        let destroyed =
            tokio::task::spawn_blocking(move || keys.destroy_expired(now, config.pseudonym_retention_ms))
                .await;
        match destroyed {
            Ok(Ok(months)) => {
                ::metrics::counter!(PSEUDONYM_KEYS_DESTROYED_TOTAL).increment(months.len() as u64);
                for month in months {
                    tracing::info!(month, "destroyed the month's key of pseudonyms");
                }
            }
            Ok(Err(error)) => tracing::error!(%error, "cannot destroy a month's key of pseudonyms"),
            Err(error) => tracing::error!(%error, "cannot look for month keys"),
        }
    }
}
