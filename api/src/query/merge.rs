//! Makes rows of facts. Pure: no store, no clock.
//!
//! Per hour, the first that applies: the bill (`billed`), its row or, by ad and minute, its aggregates; zero, where the
//! hour is billed and the campaign has no row (G-6); the stream's windows; unbilled. A sum has the label of its weakest
//! part, and a number only if every part has one.

use std::collections::BTreeSet;

use twice_log::{AdId, Hour, UtcMillis};
use twice_store::{BillingCounts, UserSketch, WindowRow};

use super::answer::{BillingColumns, ClicksRow, RowStatus};
use super::billed::{self, Billed, Found};
use super::range::{Granularity, Range};

/// What the stream counted in one minute.
#[derive(Debug, Clone)]
pub(super) struct MinuteCount {
    pub start: UtcMillis,
    pub clicks: u64,
    pub users: UserSketch,
}

impl MinuteCount {
    /// Takes the counts of one ad from a window, or of the campaign.
    pub fn of(window: WindowRow, ad: Option<&AdId>) -> Option<Self> {
        let WindowRow { window_start: start, clicks, users, ads, .. } = window;
        match ad {
            None => Some(Self { start, clicks, users }),
            Some(ad) => {
                let counts = ads.into_iter().find(|counts| counts.ad_id == *ad)?;
                Some(Self { start, clicks: counts.clicks, users: counts.users })
            }
        }
    }
}

/// Everything rows are made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// The stream's minutes, in order of time; `None` where the stream is not part of the answer.
    pub minutes: Option<Vec<MinuteCount>>,
    /// The ad asked about; `None` for all of them.
    pub ad: Option<AdId>,
    /// Hours whose windows are no longer in the real-time store: nothing is known of their minutes.
    pub gone: BTreeSet<Hour>,
    /// Billed rows; `None` where they are not part of the answer.
    pub billed: Option<Billed>,
}

/// One row, or one part of a row.
pub(super) struct Part {
    clicks: Option<u64>,
    users: Option<UserSketch>,
    status: RowStatus,
    billing: Option<BillingColumns>,
}

impl Part {
    fn preliminary(minutes: &[MinuteCount]) -> Self {
        let mut users = UserSketch::default();
        for minute in minutes {
            users.merge(&minute.users);
        }
        let clicks = minutes.iter().map(|minute| minute.clicks).sum();
        Self { clicks: Some(clicks), users: Some(users), status: RowStatus::Preliminary, billing: None }
    }

    fn unknown(status: RowStatus) -> Self {
        Self { clicks: None, users: None, status, billing: None }
    }

    pub fn billed(
        counts: &BillingCounts,
        version: Option<u32>,
        status: RowStatus,
        users: Option<UserSketch>,
    ) -> Self {
        let billing = Some(BillingColumns::of(counts, version));
        Self { clicks: Some(counts.billable), users, status, billing }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            clicks: self.clicks.zip(other.clicks).map(|(one, two)| one.saturating_add(two)),
            users: self.users.zip(other.users).map(|(mut one, two)| {
                one.merge(&two);
                one
            }),
            status: self.status.min(other.status),
            billing: self.billing.zip(other.billing).map(|(one, two)| one.plus(&two)),
        }
    }

    /// Turns the part into a row; `None` for a row of the future that holds nothing yet.
    fn into_row(self, start: UtcMillis, width_ms: i64, now: UtcMillis) -> Option<ClicksRow> {
        if start > now && self.clicks.unwrap_or(0) == 0 {
            return None;
        }
        Some(ClicksRow {
            window_start: start,
            window_end: start.plus_ms(width_ms),
            clicks: self.clicks,
            unique_users: self.users.map(|users| users.count()),
            status: self.status,
            billing: self.billing,
        })
    }
}

/// Makes the rows of `range`, one for each minute, hour or day up to the one `now` lies in.
pub(super) fn rows(facts: &Facts, range: &Range, now: UtcMillis, zero: &BillingCounts) -> Vec<ClicksRow> {
    let width_ms = range.granularity.width_ms();
    let part_of = |start: UtcMillis| match range.granularity {
        Granularity::Minute => Some(part(facts, start, start.plus_ms(width_ms), zero)),
        Granularity::Hour => Some(hour_part(facts, start.hour(), zero)),
        Granularity::Day => (0..24)
            .map(|hour| start.hour().plus(hour))
            .map(|hour| (hour, hour_part(facts, hour, zero)))
            .filter(|(hour, part)| hour.start() <= now || part.clicks.unwrap_or(0) > 0)
            .map(|(_, part)| part)
            .reduce(Part::plus),
    };
    range.starts().filter_map(|start| part_of(start)?.into_row(start, width_ms, now)).collect()
}

fn hour_part(facts: &Facts, hour: Hour, zero: &BillingCounts) -> Part {
    part(facts, hour.start(), hour.end(), zero)
}

/// Returns the part of one hour, or of one minute.
fn part(facts: &Facts, from: UtcMillis, to: UtcMillis, zero: &BillingCounts) -> Part {
    let found = match &facts.billed {
        Some(billed) => billed::find(billed, facts.ad.as_ref(), from, to, zero),
        None => Found::NotBilled,
    };
    match (found, &facts.minutes) {
        (Found::Part(part), _) => part,
        (Found::NotBilled | Found::NoDetail(_), Some(minutes)) => stream_part(facts, minutes, from, to),
        (Found::NoDetail(status), None) => Part::unknown(status),
        (Found::NotBilled, None) => Part::unknown(RowStatus::Unbilled),
    }
}

fn stream_part(facts: &Facts, minutes: &[MinuteCount], from: UtcMillis, to: UtcMillis) -> Part {
    let first = minutes.partition_point(|minute| minute.start < from);
    let after = minutes.partition_point(|minute| minute.start < to);
    if first == after && facts.gone.contains(&from.hour()) {
        return Part::unknown(RowStatus::Preliminary);
    }
    Part::preliminary(&minutes[first..after])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use twice_log::archive::{BillingPath, BillingStatus};
    use twice_log::event::Sha256Hex;
    use twice_log::{CampaignId, UserId};
    use twice_store::{AggregateCounts, AggregateRow, BillingRow, Reason, UtcMicros};

    use super::*;

    fn hour(text: &str) -> Hour {
        text.parse().expect("valid hour")
    }

    fn campaign() -> CampaignId {
        CampaignId::new("c").expect("valid id")
    }

    fn minute(start: &str, clicks: u64, users: &[&str]) -> MinuteCount {
        let mut sketch = UserSketch::default();
        for user in users {
            sketch.insert(&UserId::new(user).expect("valid id"));
        }
        MinuteCount { start: start.parse().expect("valid time"), clicks, users: sketch }
    }

    fn billed_row(at: &str, billable: u64, status: BillingStatus) -> BillingRow {
        let currency = Some("USD".parse().expect("valid currency"));
        let zero = BillingCounts::zero(campaign(), currency);
        BillingRow {
            hour: hour(at),
            path: BillingPath::Lambda,
            version: 2,
            status,
            counts: BillingCounts {
                gross: billable + 1,
                duplicates: 1,
                billable,
                amount_micros: billable as i64 * 10,
                ..zero
            },
            digest: Sha256Hex(String::new()),
            run_id: "lambda/x/000001".to_owned(),
            reason: Reason::First,
            committed_at: UtcMicros(0),
        }
    }

    fn billed(rows: Vec<BillingRow>, empty: &[&str]) -> Option<Billed> {
        let mut hours: BTreeSet<Hour> = rows.iter().map(|row| row.hour).collect();
        hours.extend(empty.iter().map(|at| hour(at)));
        let rows = rows.into_iter().map(|row| (row.hour, row)).collect();
        Some(Billed { hours, rows, ..Billed::default() })
    }

    fn aggregate(ad: Option<&str>, start: &str, billable: u64, users: &[&str]) -> AggregateRow {
        let counts =
            AggregateCounts { gross: billable, billable, amount_micros: 1, ..AggregateCounts::default() };
        AggregateRow {
            ad_id: ad.map(|ad| AdId::new(ad).expect("valid id")),
            window_start: start.parse().expect("valid time"),
            counts,
            users: minute(start, 0, users).users,
        }
    }

    fn ask(facts: &Facts, from: &str, to: &str, granularity: Granularity) -> Vec<ClicksRow> {
        let now = "2025-01-15T14:30:00Z".parse().expect("valid time");
        let range = Range::read(Some(from), Some(to), granularity, now, 1_500).expect("a range");
        rows(facts, &range, now, &BillingCounts::zero(campaign(), None))
    }

    fn labels(rows: &[ClicksRow]) -> Vec<(Option<u64>, RowStatus)> {
        rows.iter().map(|row| (row.clicks, row.status)).collect()
    }

    #[test]
    fn a_billed_hour_stands_before_the_stream_and_an_empty_billed_hour_is_zero() {
        let facts = Facts {
            minutes: Some(vec![
                minute("2025-01-15T11:00:00Z", 100, &[]),
                minute("2025-01-15T12:00:00Z", 9, &[]),
                minute("2025-01-15T13:00:00Z", 7, &["a", "b"]),
                minute("2025-01-15T13:59:00Z", 1, &["b"]),
            ]),
            billed: billed(vec![billed_row("2025-01-15T11", 98, BillingStatus::Final)], &["2025-01-15T12"]),
            ..Facts::default()
        };
        let rows = ask(&facts, "2025-01-15T11", "2025-01-15T15", Granularity::Hour);
        assert_eq!(
            labels(&rows),
            [
                (Some(98), RowStatus::Final),
                (Some(0), RowStatus::Reconciled),
                (Some(8), RowStatus::Preliminary),
                (Some(0), RowStatus::Preliminary),
            ]
        );
        assert_eq!(rows[0].billing.as_ref().and_then(|billing| billing.version), Some(2));
        assert_eq!(rows[2].unique_users, Some(2));
        assert_eq!(rows[2].billing, None);
    }

    #[test]
    fn a_sum_has_the_label_of_its_weakest_part() {
        let all_day: Vec<BillingRow> =
            (0..24).map(|at| billed_row(&format!("2025-01-14T{at:02}"), 2, BillingStatus::Final)).collect();
        let mut facts = Facts { billed: billed(all_day.clone(), &[]), ..Facts::default() };
        let day = ask(&facts, "2025-01-14T00", "2025-01-15T00", Granularity::Day);
        assert_eq!(labels(&day), [(Some(48), RowStatus::Final)]);
        let columns = day[0].billing.clone().expect("billed");
        assert_eq!((columns.gross, columns.amount_micros, columns.version), (72, 480, None));

        let mut weaker = all_day.clone();
        weaker[5].status = BillingStatus::Reconciled;
        facts.billed = billed(weaker, &[]);
        let day = ask(&facts, "2025-01-14T00", "2025-01-15T00", Granularity::Day);
        assert_eq!(labels(&day), [(Some(48), RowStatus::Reconciled)]);

        facts.billed = billed(all_day[..23].to_vec(), &[]);
        facts.minutes = Some(vec![minute("2025-01-14T23:10:00Z", 5, &[])]);
        let day = ask(&facts, "2025-01-14T00", "2025-01-15T00", Granularity::Day);
        assert_eq!(labels(&day), [(Some(51), RowStatus::Preliminary)]);
        assert_eq!(day[0].billing, None, "a sum is billed only if all of it is");
    }

    #[test]
    fn without_the_stream_an_hour_that_is_not_billed_is_unbilled_and_has_no_number() {
        let billed = billed(vec![billed_row("2025-01-15T11", 98, BillingStatus::Reconciled)], &[]);
        let facts = Facts { billed, ..Facts::default() };
        let rows = ask(&facts, "2025-01-15T11", "2025-01-15T13", Granularity::Hour);
        assert_eq!(labels(&rows), [(Some(98), RowStatus::Reconciled), (None, RowStatus::Unbilled)]);
        let day = ask(&facts, "2025-01-15T00", "2025-01-16T00", Granularity::Day);
        assert_eq!(labels(&day), [(None, RowStatus::Unbilled)]);
    }

    #[test]
    fn minutes_and_ads_of_a_billed_hour_are_the_aggregates_and_the_users_of_hours_merge() {
        let at = ["2025-01-15T11:00:00Z", "2025-01-15T11:01:00Z"];
        let rows = vec![
            aggregate(Some("a"), at[0], 5, &["x", "y"]),
            aggregate(Some("a"), at[1], 1, &["y"]),
            aggregate(Some("b"), at[0], 2, &["z", "x"]),
        ];
        let mut bill = billed(vec![billed_row("2025-01-15T11", 8, BillingStatus::Final)], &["2025-01-15T12"])
            .expect("billed");
        bill.aggregates.insert(hour("2025-01-15T11"), Arc::new(rows));
        let mut facts = Facts {
            billed: Some(bill),
            minutes: Some(vec![minute(at[0], 99, &[]), minute("2025-01-15T13:00:00Z", 3, &["x", "w"])]),
            ..Facts::default()
        };
        let range = ("2025-01-15T11:00:00Z", "2025-01-15T11:03:00Z");
        let all = ask(&facts, range.0, range.1, Granularity::Minute);
        assert_eq!(labels(&all), [7, 1, 0].map(|clicks| (Some(clicks), RowStatus::Final)));
        assert_eq!(all.iter().map(|row| row.unique_users).collect::<Vec<_>>(), [Some(3), Some(1), Some(0)]);
        let columns = all[0].billing.clone().expect("billed");
        assert_eq!((columns.gross, columns.amount_micros, columns.version), (7, 2, Some(2)));
        assert_eq!(columns.currency, Some("USD".parse().expect("valid currency")));

        facts.ad = Some(AdId::new("b").expect("valid id"));
        let ad = ask(&facts, range.0, range.1, Granularity::Minute);
        assert_eq!(labels(&ad), [2, 0, 0].map(|clicks| (Some(clicks), RowStatus::Final)));
        facts.ad = None;
        let day = ask(&facts, "2025-01-15T11", "2025-01-15T14", Granularity::Hour);
        assert_eq!(day.iter().map(|row| row.unique_users).collect::<Vec<_>>(), [Some(3), Some(0), Some(2)]);
    }

    #[test]
    fn without_aggregates_a_billed_minute_is_the_streams_or_unknown() {
        let mut facts = Facts {
            billed: billed(vec![billed_row("2025-01-15T11", 98, BillingStatus::Final)], &[]),
            minutes: Some(vec![minute("2025-01-15T11:00:00Z", 99, &[])]),
            ..Facts::default()
        };
        let range = ("2025-01-15T11:00:00Z", "2025-01-15T11:01:00Z");
        let rows = ask(&facts, range.0, range.1, Granularity::Minute);
        assert_eq!(labels(&rows), [(Some(99), RowStatus::Preliminary)]);
        facts.minutes = None;
        let rows = ask(&facts, range.0, range.1, Granularity::Minute);
        assert_eq!(labels(&rows), [(None, RowStatus::Final)]);
        let hours = ask(&facts, "2025-01-15T11", "2025-01-15T12", Granularity::Hour);
        assert_eq!(labels(&hours), [(Some(98), RowStatus::Final)]);
        assert_eq!(hours[0].unique_users, None);
    }

    #[test]
    fn windows_that_are_gone_are_not_zero() {
        let facts = Facts {
            minutes: Some(vec![minute("2025-01-15T12:01:00Z", 3, &[])]),
            gone: BTreeSet::from([hour("2025-01-15T11")]),
            ..Facts::default()
        };
        let rows = ask(&facts, "2025-01-15T11:59:00Z", "2025-01-15T12:02:00Z", Granularity::Minute);
        assert_eq!(
            labels(&rows),
            [
                (None, RowStatus::Preliminary),
                (Some(0), RowStatus::Preliminary),
                (Some(3), RowStatus::Preliminary),
            ]
        );
    }

    #[test]
    fn rows_of_the_future_show_only_if_they_hold_clicks() {
        let facts = Facts { minutes: Some(vec![minute("2025-01-15T14:33:00Z", 2, &[])]), ..Facts::default() };
        let rows = ask(&facts, "2025-01-15T14:30:00Z", "2025-01-15T14:40:00Z", Granularity::Minute);
        assert_eq!(labels(&rows), [(Some(0), RowStatus::Preliminary), (Some(2), RowStatus::Preliminary)]);
        assert_eq!(rows[1].window_start.to_string(), "2025-01-15T14:33:00.000Z");
    }
}
