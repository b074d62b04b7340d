//! From the end of an hour, and from a click, to the authoritative number.

use twice_log::Hour;
use twice_store::UtcMicros;

use super::figures::{Authoritative, AuthoritativeHour, Figure, Quantiles};

const MINUTES: u64 = 60;
const SECONDS_PER_MINUTE: f64 = 60.0;
const SECONDS_PER_HOUR: f64 = 3_600.0;

/// Reads when an hour was committed; `None` where the time does not read.
pub(super) fn after_end(hour: Hour, committed_at: &str) -> Option<AuthoritativeHour> {
    let at: UtcMicros = committed_at.parse().ok()?;
    let end = UtcMicros::from_millis(hour.end());
    let seconds_after_end = (at.0 - end.0) as f64 / 1e6;
    Some(AuthoritativeHour { hour, committed_at: committed_at.to_owned(), seconds_after_end })
}

/// Computes a path's times from its first commits, each with the copies of its hour.
pub(super) fn authoritative(commits: Vec<(AuthoritativeHour, u64)>, path: &str) -> Authoritative {
    let by_hour: Vec<(f64, u64)> = commits.iter().map(|(hour, _)| (hour.seconds_after_end, 1)).collect();
    let minutes = commits.iter().flat_map(|(hour, copies)| {
        (0..MINUTES).map(move |minute| {
            let before_end = SECONDS_PER_HOUR - (minute as f64 + 0.5) * SECONDS_PER_MINUTE;
            (hour.seconds_after_end + before_end, *copies)
        })
    });
    let by_click: Vec<(f64, u64)> = minutes.collect();
    let figure = |quantiles: Option<Quantiles>, source: &str| match quantiles {
        Some(quantiles) => Figure::measured(quantiles, source),
        None => Figure::unknown(format!("no hour of the range was billed by {path}")),
    };
    Authoritative {
        seconds_after_end: figure(
            quantiles(by_hour),
            "committed_at of the first committed run of each hour, less the end of the hour",
        ),
        seconds_after_event: figure(
            quantiles(by_click),
            "the same commits, with the clicks of an hour taken as spread evenly over its minutes",
        ),
        hours: commits.into_iter().map(|(hour, _)| hour).collect(),
    }
}

/// Returns the quantiles of values with weights; `None` where nothing weighs.
pub(super) fn quantiles(mut values: Vec<(f64, u64)>) -> Option<Quantiles> {
    values.sort_by(|left, right| left.0.total_cmp(&right.0));
    let total: u64 = values.iter().map(|(_, weight)| weight).sum();
    let quantile = |share: f64| {
        let rank = (total as f64 * share).ceil().max(1.0) as u64;
        let mut below = 0;
        let reached = values.iter().find(|(_, weight)| {
            below += weight;
            below >= rank
        });
        reached.map(|(value, _)| *value)
    };
    Some(Quantiles { p50_seconds: quantile(0.5)?, p99_seconds: quantile(0.99)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hour() -> Hour {
        "2025-01-15T12".parse().expect("an hour")
    }

    #[test]
    fn time_runs_from_the_end_of_the_hour() {
        let commit = after_end(hour(), "2025-01-15T13:02:30.500000Z").expect("a time");
        assert!((commit.seconds_after_end - 150.5).abs() < 1e-9);
        assert_eq!(after_end(hour(), "yesterday"), None);
    }

    #[test]
    fn a_click_of_the_middle_minute_waits_half_an_hour_longer() {
        let commit = after_end(hour(), "2025-01-15T13:02:00Z").expect("a time");
        let times = authoritative(vec![(commit, 1_000)], "lambda");
        let after_event = times.seconds_after_event.value.expect("a commit");
        assert!((after_event.p50_seconds - (120.0 + 1_770.0)).abs() < 1.0, "{after_event:?}");
        assert!((after_event.p99_seconds - (120.0 + 3_570.0)).abs() < 1.0, "{after_event:?}");
    }

    #[test]
    fn without_a_commit_nothing_is_known() {
        let times = authoritative(Vec::new(), "kappa");
        assert!(
            times.seconds_after_end.value.is_none() && times.seconds_after_event.source.contains("kappa")
        );
    }

    proptest! {
        #[test]
        fn quantiles_are_among_the_values_and_in_order(
            values in prop::collection::vec((-1e9..1e9_f64, 1..1_000_u64), 1..60),
        ) {
            let found = quantiles(values.clone()).expect("weights");
            let is_one = |wanted: f64| values.iter().any(|(value, _)| *value == wanted);
            prop_assert!(is_one(found.p50_seconds) && is_one(found.p99_seconds));
            prop_assert!(found.p50_seconds <= found.p99_seconds);
            let below: u64 = values.iter().filter(|(value, _)| *value <= found.p50_seconds).map(|(_, weight)| weight).sum();
            let total: u64 = values.iter().map(|(_, weight)| weight).sum();
            prop_assert!(below * 2 >= total);
        }
    }
}
