//! Why a version of a billing row exists, decided from nothing but the counts before and after.
//!
//! The rule, stated once; the first line that applies is the reason, and the deltas tell all that changed beside it:
//!
//! | reason | when |
//! |---|---|
//! | `mode_change` | the run made its path the bill of the hour: every row gets a version, changed or not |
//! | `first` | the run is the first of this path for the hour |
//! | `late_clicks` | `gross` grew, and so did the clicks counted (`billable` and both `invalid_*` together) |
//! | `late_duplicate` | `duplicates` grew: more copies came, or a wider horizon found more of them (CR-3) |
//! | `verdicts` | the same copies and duplicates, another split of the rest into valid and invalid |
//! | `price_change` | the same clicks, another amount, currency or number of unpriced ones |
//! | `close` | nothing changed but the status, which rose (CR-9) |
//! | `rerun` | anything else: fewer copies or duplicates than before, or other conflicts, as only other rules give them |
//!
//! A row of an hour that had a run before, of a campaign that run did not see, is compared with zeros: its clicks came
//! late. A campaign that vanishes has fewer copies: `rerun`, as an append-only archive loses none. A close that also
//! changes counts has the reason of the change, not `close`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::BillingCounts;

/// Why a version exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    First,
    LateClicks,
    LateDuplicate,
    Verdicts,
    PriceChange,
    ModeChange,
    Close,
    Rerun,
}

/// A text that names no reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no reason of a version")]
pub struct UnknownReason;

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 8] = [
        Reason::First,
        Reason::LateClicks,
        Reason::LateDuplicate,
        Reason::Verdicts,
        Reason::PriceChange,
        Reason::ModeChange,
        Reason::Close,
        Reason::Rerun,
    ];

    /// Returns the name as it stands in rows, run results and answers.
    pub fn name(self) -> &'static str {
        match self {
            Reason::First => "first",
            Reason::LateClicks => "late_clicks",
            Reason::LateDuplicate => "late_duplicate",
            Reason::Verdicts => "verdicts",
            Reason::PriceChange => "price_change",
            Reason::ModeChange => "mode_change",
            Reason::Close => "close",
            Reason::Rerun => "rerun",
        }
    }

    /// Returns the reason of a version after the hour's first run, by the rule above from `late_clicks` on.
    pub(crate) fn of_change(old: &BillingCounts, new: &BillingCounts, status_rose: bool) -> Self {
        let counted = |row: &BillingCounts| row.gross.saturating_sub(row.duplicates);
        if new.gross > old.gross && counted(new) > counted(old) {
            return Reason::LateClicks;
        }
        if new.duplicates > old.duplicates {
            return Reason::LateDuplicate;
        }
        if (new.gross, new.duplicates) != (old.gross, old.duplicates) {
            return Reason::Rerun;
        }
        if (new.invalid_givt, new.invalid_sivt) != (old.invalid_givt, old.invalid_sivt) {
            return Reason::Verdicts;
        }
        if new.conflicts != old.conflicts {
            return Reason::Rerun;
        }
        let price = |row: &BillingCounts| (row.unpriced, row.amount_micros, row.currency);
        if price(new) != price(old) {
            return Reason::PriceChange;
        }
        if status_rose { Reason::Close } else { Reason::Rerun }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Reason::ALL.into_iter().find(|reason| reason.name() == text).ok_or(UnknownReason)
    }
}

#[cfg(test)]
mod tests {
    use twice_log::CampaignId;

    use super::*;

    /// 100 copies: 10 duplicates of them 2 conflicts, 5 givt, 5 sivt, 80 billable of them 4 unpriced.
    fn before() -> BillingCounts {
        BillingCounts {
            gross: 100,
            duplicates: 10,
            conflicts: 2,
            invalid_givt: 5,
            invalid_sivt: 5,
            billable: 80,
            unpriced: 4,
            amount_micros: 760,
            currency: Some("USD".parse().expect("valid currency")),
            ..BillingCounts::zero(CampaignId::new("a").expect("valid id"), None)
        }
    }

    fn reason_after(change: fn(&mut BillingCounts)) -> Reason {
        let mut after = before();
        change(&mut after);
        assert!(after.is_balanced(), "the case itself is wrong: {after:?}");
        Reason::of_change(&before(), &after, false)
    }

    #[test]
    fn more_clicks_are_late_clicks_whatever_their_verdict_and_whatever_came_with_them() {
        assert_eq!(reason_after(|row| (row.gross, row.billable) = (101, 81)), Reason::LateClicks);
        assert_eq!(reason_after(|row| (row.gross, row.invalid_sivt) = (101, 6)), Reason::LateClicks);
        // With a late duplicate beside it, and a verdict on another click.
        let mixed = |row: &mut BillingCounts| {
            (row.gross, row.duplicates, row.invalid_givt, row.billable) = (102, 11, 6, 80);
        };
        assert_eq!(reason_after(mixed), Reason::LateClicks);
    }

    #[test]
    fn more_duplicates_are_late_duplicates_whether_they_came_or_were_found() {
        assert_eq!(reason_after(|row| (row.gross, row.duplicates) = (101, 11)), Reason::LateDuplicate);
        assert_eq!(reason_after(|row| (row.duplicates, row.billable) = (11, 79)), Reason::LateDuplicate);
        assert_eq!(reason_after(|row| (row.duplicates, row.invalid_givt) = (11, 4)), Reason::LateDuplicate);
        // A late click whose hour lost two to a wider horizon: fewer are counted than before.
        let mixed = |row: &mut BillingCounts| (row.gross, row.duplicates, row.billable) = (101, 12, 79);
        assert_eq!(reason_after(mixed), Reason::LateDuplicate);
    }

    #[test]
    fn another_split_of_the_same_clicks_is_verdicts_also_where_it_moves_money() {
        let fraud = |row: &mut BillingCounts| {
            (row.invalid_sivt, row.billable, row.amount_micros) = (7, 78, 740);
        };
        assert_eq!(reason_after(fraud), Reason::Verdicts);
        assert_eq!(reason_after(|row| (row.invalid_givt, row.invalid_sivt) = (4, 6)), Reason::Verdicts);
        assert_eq!(reason_after(|row| (row.invalid_givt, row.billable) = (4, 81)), Reason::Verdicts);
    }

    #[test]
    fn the_same_clicks_for_other_money_are_a_price_change() {
        assert_eq!(reason_after(|row| row.amount_micros = 800), Reason::PriceChange);
        assert_eq!(reason_after(|row| row.unpriced = 0), Reason::PriceChange);
        assert_eq!(reason_after(|row| row.currency = None), Reason::PriceChange);
    }

    #[test]
    fn fewer_copies_duplicates_or_other_conflicts_are_a_rerun() {
        let gone = BillingCounts::zero(before().campaign_id, before().currency);
        assert_eq!(Reason::of_change(&before(), &gone, false), Reason::Rerun);
        assert_eq!(reason_after(|row| (row.duplicates, row.billable) = (9, 81)), Reason::Rerun);
        assert_eq!(reason_after(|row| row.conflicts = 3), Reason::Rerun);
    }

    #[test]
    fn a_close_that_changes_counts_has_the_reason_of_the_change() {
        assert_eq!(Reason::of_change(&before(), &before(), true), Reason::Close);
        let late = BillingCounts { gross: 101, billable: 81, ..before() };
        assert_eq!(Reason::of_change(&before(), &late, true), Reason::LateClicks);
    }

    #[test]
    fn names_are_what_rows_carry_and_read_back() {
        for reason in Reason::ALL {
            assert_eq!(reason.name().parse(), Ok(reason));
            assert_eq!(serde_json::to_value(reason).expect("writes"), reason.name());
        }
        assert_eq!("late".parse::<Reason>(), Err(UnknownReason));
    }
}
