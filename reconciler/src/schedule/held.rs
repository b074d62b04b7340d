//! Hours that wait for records which were acknowledged and have not reached the log yet (G-3).
//!
//! Guarantee: the schedule closes no hour while a gateway holds a click or verdict that arrived before the hour's closing
//! instant. Waiting is no failure: it uses up no attempts. Who asks for an hour by hand does not wait, and is told.

use twice_log::archive::BillingStatus;
use twice_log::{Day, Hour, UtcMillis};

use super::handle::ReconcilerDeps;
use super::reconciler_actor::ms;
use crate::config::ReconcilerConfig;
use crate::error::{Error, Result};
use crate::ports::HeldRecords;

impl ReconcilerDeps {
    /// Returns `HeldUp` while records from before the hour's closing instant are held.
    pub(super) fn check_held(
        &self,
        config: &ReconcilerConfig,
        hour: Hour,
        status: BillingStatus,
    ) -> Result<()> {
        let instant = closing_instant(config, hour, status);
        match describe_held(&self.held.held_before(instant)) {
            None => Ok(()),
            Some(detail) => Err(Error::HeldUp { hour, instant, detail }),
        }
    }

    /// Returns what a bill made now will not have in it, in words.
    pub(super) fn held_now(&self) -> Option<String> {
        describe_held(&self.held.held_before(self.clock.now()))
    }
}

/// Returns the instant up to which everything that arrived has to be in the archive before the hour closes.
fn closing_instant(config: &ReconcilerConfig, hour: Hour, status: BillingStatus) -> UtcMillis {
    match status {
        BillingStatus::Final => Day::of(hour).end().plus_ms(ms(config.verdict_maturity_ms)),
        _ => hour.end().plus_ms(ms(config.close_delay_ms)),
    }
}

fn describe_held(held: &[HeldRecords]) -> Option<String> {
    let parts: Vec<String> = held
        .iter()
        .map(|HeldRecords { holder, records, missing }| match (records, missing) {
            (None, _) => format!("the {holder}, which does not open, so that nobody knows what it holds"),
            (Some(0), missing) => {
                format!("a decision about {missing} records of the {holder} that do not read (docs/spool.md)")
            }
            (Some(records), 0) => format!("{records} clicks and verdicts in the {holder}"),
            (Some(records), missing) => {
                format!("{records} clicks and verdicts in the {holder}, of which {missing} more do not read")
            }
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join(", and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(records: Option<u64>, missing: u64) -> HeldRecords {
        HeldRecords { holder: "spool of this node".to_owned(), records, missing }
    }

    #[test]
    fn what_is_held_is_said_in_words() {
        assert_eq!(describe_held(&[]), None);
        let said = describe_held(&[held(Some(12), 0), held(None, 0)]).expect("held");
        assert!(
            said.starts_with("12 clicks and verdicts in the spool of this node, and the spool"),
            "{said}"
        );
        assert!(describe_held(&[held(Some(0), 3)]).expect("held").contains("3 records"));
    }

    #[test]
    fn a_night_waits_for_what_came_before_its_verdicts_matured() {
        let config = ReconcilerConfig::default();
        let hour: Hour = "2025-01-15T12".parse().expect("an hour");
        let hourly = closing_instant(&config, hour, BillingStatus::Reconciled);
        assert_eq!(hourly.to_string(), "2025-01-15T13:02:00.000Z");
        let nightly = closing_instant(&config, hour, BillingStatus::Final);
        assert_eq!(nightly.to_string(), "2025-01-16T06:00:00.000Z");
    }
}
