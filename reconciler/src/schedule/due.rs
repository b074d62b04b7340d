//! Which hours the schedule would close now: a pure decision from what the archive and the billing store say.

use std::collections::{BTreeMap, BTreeSet};

use twice_log::{Hour, UtcMillis};

/// A backfill that never falls quiet is billed after this many quiet times; what comes later restates it.
const QUIET_TIMES_MAX: i64 = 6;

/// Waits of the schedule, milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct DueSettings {
    pub close_delay_ms: i64,
    pub backfill_quiet_ms: i64,
}

/// What the schedule remembers of hours it saw in the archive and not yet billed.
#[derive(Debug, Default)]
pub struct Sightings(BTreeMap<Hour, UtcMillis>);

impl Sightings {
    /// Returns the hours due at `now`, oldest first.
    ///
    /// `grown` says of each hour with clicks when its newest manifest was put. An hour that was seen before it closed,
    /// or has not grown since, is due as soon as it closes; another one is a backfill and has to fall quiet first.
    pub fn due(
        &mut self,
        grown: &BTreeMap<Hour, UtcMillis>,
        billed: &BTreeSet<Hour>,
        now: UtcMillis,
        settings: DueSettings,
    ) -> Vec<Hour> {
        self.0.retain(|hour, _| !billed.contains(hour));
        let unbilled = grown.iter().filter(|(hour, _)| !billed.contains(hour));
        unbilled
            .filter(|(hour, newest)| {
                let seen = *self.0.entry(**hour).or_insert(now);
                let closes = hour.end().plus_ms(settings.close_delay_ms);
                let in_time = seen < closes || **newest <= closes;
                let quiet = now >= newest.plus_ms(settings.backfill_quiet_ms);
                let waited = now >= seen.plus_ms(settings.backfill_quiet_ms.saturating_mul(QUIET_TIMES_MAX));
                now >= closes && (in_time || quiet || waited)
            })
            .map(|(hour, _)| *hour)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: DueSettings = DueSettings { close_delay_ms: 120_000, backfill_quiet_ms: 600_000 };

    fn hour() -> Hour {
        "2025-01-15T12".parse().expect("valid hour")
    }

    fn at(minutes_after_end: i64) -> UtcMillis {
        hour().end().plus_ms(minutes_after_end * 60_000)
    }

    fn due(sightings: &mut Sightings, grown: UtcMillis, now: UtcMillis) -> bool {
        !sightings.due(&BTreeMap::from([(hour(), grown)]), &BTreeSet::new(), now, SETTINGS).is_empty()
    }

    #[test]
    fn an_hour_seen_while_it_ran_closes_two_minutes_after_its_end() {
        let mut sightings = Sightings::default();
        assert!(!due(&mut sightings, at(-5), at(-4)));
        assert!(!due(&mut sightings, at(1), at(1)));
        assert!(due(&mut sightings, at(3), at(3)));
    }

    #[test]
    fn a_gap_found_after_a_restart_closes_at_once_if_it_did_not_grow() {
        assert!(due(&mut Sightings::default(), at(1), at(500)));
    }

    #[test]
    fn a_backfilled_hour_closes_after_ten_quiet_minutes() {
        let mut sightings = Sightings::default();
        assert!(!due(&mut sightings, at(1000), at(1000)));
        assert!(!due(&mut sightings, at(1005), at(1014)));
        assert!(due(&mut sightings, at(1005), at(1015)));
    }

    #[test]
    fn a_backfill_that_never_falls_quiet_is_billed_after_an_hour() {
        let mut sightings = Sightings::default();
        assert!((1000..1060).all(|minute| !due(&mut sightings, at(minute), at(minute))));
        assert!(due(&mut sightings, at(1060), at(1060)));
    }

    #[test]
    fn several_missing_hours_come_oldest_first_and_billed_ones_not_at_all() {
        let grown =
            BTreeMap::from([(hour().plus(-1), at(-70)), (hour(), at(0)), (hour().plus(-2), at(-130))]);
        let due = Sightings::default().due(&grown, &BTreeSet::from([hour().plus(-1)]), at(10), SETTINGS);
        assert_eq!(due, [hour().plus(-2), hour()]);
    }
}
