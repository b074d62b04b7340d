//! Destroys the month keys of pseudonyms when their time has come.
//!
//! Guarantee: a key whose month ended `pseudonym_retention_ms` ago is destroyed within an hour of a running node, by a clock
//! that is believed; what fails is said and tried again.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use twice_api::PseudonymKeys;
use twice_log::Clock;
use twice_reconciler::ReconcilerConfig;
use twice_reconciler::ports::ClockWitness;

use crate::metrics::PSEUDONYM_KEYS_DESTROYED_TOTAL;

/// Below this a month's late clicks would lose their users as a rule.
const RETENTION_MS_MIN: i64 = 2_592_000_000;
const HOUR_MS: u64 = 3_600_000;
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
    /// Checks the bound, and that the door is closed for clicks of hours that retention may have deleted.
    ///
    /// # Errors
    /// Naming the setting.
    pub fn validate(self, reconciler: &ReconcilerConfig, click_age_ms_max: i64) -> anyhow::Result<()> {
        let kept = reconciler.archive_retention_ms;
        // What comes at the last moment is billed, seen by a sweep and final before its hour may go.
        let needed = u64::try_from(click_age_ms_max)?
            .saturating_add(u64::from(reconciler.nightly_horizon_hours) * HOUR_MS)
            .saturating_add(reconciler.verdict_maturity_ms)
            .saturating_add(reconciler.sweep_interval_ms);
        anyhow::ensure!(
            kept == 0 || kept >= needed,
            "archive_retention_ms is {kept}: with a click_age_ms_max of {click_age_ms_max} it must be 0, or at least {needed}, \
             or clicks would be taken that no bill can have"
        );
        let retention = self.pseudonym_retention_ms;
        anyhow::ensure!(
            retention == 0 || retention >= RETENTION_MS_MIN,
            "pseudonym_retention_ms is {retention}; it must be 0, or at least {RETENTION_MS_MIN}"
        );
        Ok(())
    }
}

/// Looks for expired keys until the task is dropped.
pub async fn watch_keys(
    keys: Arc<PseudonymKeys>,
    clock: Arc<dyn Clock>,
    witness: Arc<dyn ClockWitness>,
    config: PrivacyConfig,
) {
    if config.pseudonym_retention_ms == 0 {
        return;
    }
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if let Some(doubt) = witness.doubt() {
            tracing::warn!("no month key is looked for: {doubt}");
            continue;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_door_is_closed_for_what_retention_may_have_deleted() {
        const DAY_MS: i64 = 86_400_000;
        let privacy = PrivacyConfig { pseudonym_retention_ms: 0 };
        let kept = |days: u64| ReconcilerConfig {
            archive_retention_ms: days * DAY_MS as u64,
            ..ReconcilerConfig::default()
        };
        assert!(privacy.validate(&kept(365), 7 * DAY_MS).is_ok(), "the defaults");
        let refused = privacy.validate(&kept(30), 60 * DAY_MS).expect_err("refused").to_string();
        assert!(refused.contains("click_age_ms_max"), "{refused}");
        assert!(privacy.validate(&kept(61), 60 * DAY_MS).is_err(), "no time is left to bill them");
        assert!(privacy.validate(&kept(63), 60 * DAY_MS).is_ok());
        assert!(privacy.validate(&kept(0), 400 * DAY_MS).is_ok(), "kept for ever");
    }
}
