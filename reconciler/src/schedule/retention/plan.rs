//! Which expired hours may go: a pure decision from what is known of each hour.

use std::collections::BTreeMap;

use twice_log::{Hour, UtcMillis};

/// Verdicts are read by the runs of hours up to this many after the one they arrived in (CR-10).
const VERDICT_HOURS_AFTER: i64 = 24;

/// What is known of an hour that has clicks or a bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HourState {
    /// It may still be counted; why.
    Needed(&'static str),
    /// Final, and its newest run has seen every click of it.
    Final,
    /// Its bill is in the archive for good.
    Settled,
    /// It was never billed and never can be: what its runs would read is deleted.
    Uncountable,
}

impl HourState {
    /// Returns whether a count of it may still be wanted.
    fn is_over(self) -> bool {
        matches!(self, HourState::Settled | HourState::Uncountable)
    }
}

/// Time, and how far runs read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ages {
    pub now: UtcMillis,
    pub retention_ms: i64,
    pub horizon: i64,
}

impl Ages {
    /// Returns whether something of this moment is expired.
    pub fn is_expired(self, since: UtcMillis) -> bool {
        since.plus_ms(self.retention_ms) <= self.now
    }

    /// Returns whether the clicks of an hour are expired: with every hour whose runs may read them.
    pub fn are_clicks_expired(self, hour: Hour) -> bool {
        self.is_expired(hour.plus(self.horizon).end())
    }
}

/// Returns why the billed clicks of an expired hour must stay; `None` where they may go.
pub(super) fn why_clicks_stay(hour: Hour, states: &BTreeMap<Hour, HourState>, ages: Ages) -> Option<String> {
    let around = hour.plus(-ages.horizon)..=hour.plus(ages.horizon);
    let needed = states.range(around).find_map(|(other, state)| match state {
        HourState::Needed(why) => Some((*other, *why)),
        HourState::Final | HourState::Settled | HourState::Uncountable => None,
    });
    needed.map(|(other, why)| {
        if other == hour { format!("it {why}") } else { format!("{other}, whose runs read it, {why}") }
    })
}

/// Returns why verdicts that arrived in an expired hour must stay; `None` where they may go.
pub(super) fn why_verdicts_stay(arrival: Hour, states: &BTreeMap<Hour, HourState>) -> Option<String> {
    let reading = states.range(..=arrival.plus(VERDICT_HOURS_AFTER));
    let needed = reading.filter(|(_, state)| !state.is_over()).map(|(hour, _)| hour).next();
    needed.map(|hour| format!("{hour}, whose runs read them, can still be counted"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hour(number: i64) -> Hour {
        "2025-01-15T12".parse::<Hour>().expect("valid").plus(number)
    }

    fn ages(horizon: i64) -> Ages {
        Ages { now: hour(1_000).start(), retention_ms: 10 * 3_600_000, horizon }
    }

    #[test]
    fn clicks_expire_with_the_last_hour_that_reads_them() {
        let ages = ages(24);
        // 1000 h - 10 h of retention = 990: hour 965 + 24 = 989 ends there.
        assert!(ages.are_clicks_expired(hour(965)));
        assert!(!ages.are_clicks_expired(hour(966)));
        assert!(ages.is_expired(hour(989).end()) && !ages.is_expired(hour(990).end()));
    }

    #[test]
    fn a_neighbour_that_may_be_counted_keeps_an_hour_and_is_named() {
        let states = BTreeMap::from([
            (hour(0), HourState::Final),
            (hour(24), HourState::Needed("is not final yet")),
            (hour(25), HourState::Needed("is not final yet")),
        ]);
        let why = why_clicks_stay(hour(0), &states, ages(24)).expect("stays");
        assert!(why.contains(&hour(24).to_string()) && why.contains("not final"), "{why}");
        assert_eq!(why_clicks_stay(hour(0), &states, ages(23)), None, "beyond the horizon");
        let own = why_clicks_stay(hour(24), &states, ages(0)).expect("stays");
        assert_eq!(own, "it is not final yet");
    }

    #[test]
    fn verdicts_stay_until_every_hour_that_may_read_them_is_over() {
        let mut states = BTreeMap::from([(hour(-500), HourState::Final), (hour(25), HourState::Final)]);
        assert!(why_verdicts_stay(hour(0), &states).is_some(), "verdicts may come long after their click");
        states.insert(hour(-500), HourState::Settled);
        assert_eq!(why_verdicts_stay(hour(0), &states), None);
        states.insert(hour(24), HourState::Final);
        assert!(why_verdicts_stay(hour(0), &states).is_some());
        states.insert(hour(24), HourState::Uncountable);
        assert_eq!(why_verdicts_stay(hour(0), &states), None);
    }

    proptest! {
        /// In whatever order hours go, no hour that may still be counted ever has a neighbour without its clicks.
        #[test]
        fn no_hour_that_may_be_counted_reads_a_deleted_one(
            states in proptest::collection::btree_map(0_i64..40, 0_u8..4, 1..40),
            order in proptest::collection::vec(0_i64..40, 1..80),
            horizon in 0_i64..6,
        ) {
            let mut states: BTreeMap<Hour, HourState> = states.into_iter().map(|(number, state)| {
                let state = match state {
                    0 => HourState::Needed("is not final yet"),
                    1 => HourState::Uncountable,
                    _ => HourState::Final,
                };
                (hour(number), state)
            }).collect();
            for number in order {
                let gone = hour(number);
                if why_clicks_stay(gone, &states, ages(horizon)).is_some() {
                    continue;
                }
                for (other, state) in states.range_mut(gone.plus(-horizon)..=gone.plus(horizon)) {
                    prop_assert!(!matches!(state, HourState::Needed(_)), "{other} reads {gone}");
                    if *state == HourState::Final {
                        *state = HourState::Settled;
                    }
                }
            }
        }
    }
}
