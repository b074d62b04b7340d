use twice_log::UtcMillis;

use super::*;
use crate::stream::CampaignRate;

const NOON: i64 = 1_736_942_400_000;

/// One ledger row: click number, milliseconds after noon, order, payload.
fn row(click: u8, after_noon_ms: i64, sequence: u64, ad_id: &str) -> LedgerRow<'_> {
    LedgerRow {
        campaign_id: "c",
        click_id: [click; 16],
        ad_id,
        user_id: "",
        publisher_id: "",
        event_time_ms: NOON + after_noon_ms,
        kind: "original",
        sequence,
        acknowledged: true,
        attempts_unknown: 0,
        rejected: None,
        verdict: None,
    }
}

fn unknown(row: LedgerRow<'_>, attempts_unknown: u32, acknowledged: bool) -> LedgerRow<'_> {
    LedgerRow { acknowledged, attempts_unknown, ..row }
}

fn expect(rows: &[LedgerRow<'_>]) -> Expected {
    let mut gathered = Gathered::default();
    gathered.begin_ledger(true);
    gathered.expect(rows.len());
    for row in rows {
        gathered.take(row).expect("taken");
    }
    let rate = |cpc_micros, after_noon_ms| CampaignRate {
        campaign_id: "c".to_owned(),
        name: String::new(),
        currency: "USD".to_owned(),
        cpc_micros,
        daily_budget_micros: None,
        effective_from: UtcMillis::clamped(NOON + after_noon_ms),
    };
    let rates = [rate(100, -86_400_000), rate(300, 1_800_000)];
    let prices = Prices::new(&rates, gathered.campaigns_mut());
    gathered.expect_bill(1, &prices)
}

fn at(expected: &Expected, hours_after_noon: i64) -> ExpectedRow {
    let hour = UtcMillis::clamped(NOON).hour().plus(hours_after_noon);
    *expected.row(hour, "c").expect("a row")
}

fn exactly(row: &ExpectedRow) -> [u64; 6] {
    [row.gross, row.duplicates, row.conflicts, row.billable, row.unpriced, row.amount_micros].map(|bounds| {
        assert_eq!(bounds.min, bounds.max);
        bounds.min
    })
}

#[test]
fn duplicates_and_conflicts_bill_once() {
    let expected = expect(&[row(1, 0, 0, "a"), row(1, 0, 1, "a"), row(1, 0, 2, "b"), row(2, 5, 3, "a")]);
    assert_eq!(exactly(&at(&expected, 0)), [4, 2, 1, 2, 0, 200]);
}

#[test]
fn a_moved_copy_is_a_duplicate_in_its_own_hour() {
    let expected = expect(&[row(1, -1, 0, "a"), row(1, 0, 1, "a")]);
    assert_eq!(exactly(&at(&expected, -1)), [1, 0, 0, 1, 0, 100]);
    assert_eq!(exactly(&at(&expected, 0)), [1, 1, 1, 0, 0, 0]);
}

#[test]
fn beyond_the_horizon_a_copy_counts_again() {
    let expected = expect(&[row(1, -3_600_001, 0, "a"), row(1, 0, 1, "a")]);
    assert_eq!(exactly(&at(&expected, -2)), [1, 0, 0, 1, 0, 100]);
    assert_eq!(exactly(&at(&expected, 0)), [1, 0, 0, 1, 0, 100]);
}

#[test]
fn the_price_changes_at_its_millisecond() {
    let expected = expect(&[row(1, 1_799_999, 0, "a"), row(2, 1_800_000, 1, "a")]);
    assert_eq!(exactly(&at(&expected, 0)), [2, 0, 0, 2, 0, 400]);
}

#[test]
fn unknown_sends_widen_gross_and_leave_the_bill_exact() {
    let expected = expect(&[unknown(row(1, 0, 0, "a"), 2, true), unknown(row(1, 0, 1, "b"), 1, true)]);
    let row = at(&expected, 0);
    assert_eq!(row.gross, Bounds { min: 2, max: 5 });
    assert_eq!(row.duplicates, Bounds { min: 1, max: 4 });
    assert_eq!(row.conflicts, Bounds { min: 1, max: 2 });
    assert_eq!((row.billable, row.amount_micros), (Bounds::exactly(1), Bounds::exactly(100)));
}

#[test]
fn a_click_never_acknowledged_may_or_may_not_be_billed() {
    let expected = expect(&[unknown(row(1, 0, 0, "a"), 3, false), row(2, 0, 1, "a")]);
    let row = at(&expected, 0);
    assert_eq!((row.gross, row.billable), (Bounds { min: 1, max: 4 }, Bounds { min: 1, max: 2 }));
    assert_eq!(row.amount_micros, Bounds { min: 100, max: 200 });
}

#[test]
fn a_duplicate_makes_its_never_acknowledged_original_certain() {
    let expected = expect(&[unknown(row(1, 0, 0, "a"), 1, false), row(1, 0, 5, "a")]);
    let row = at(&expected, 0);
    assert_eq!((row.billable, row.gross), (Bounds::exactly(1), Bounds { min: 1, max: 2 }));
}

#[test]
fn what_certainly_was_not_stored_leaves_no_row() {
    let expected = expect(&[unknown(row(1, 0, 0, "a"), 0, false), row(2, 3_600_000, 1, "a")]);
    assert_eq!(expected.hours().count(), 1);
}

#[test]
fn ledgers_follow_one_another() {
    let mut gathered = Gathered::default();
    for _ in 0..2 {
        gathered.begin_ledger(true);
        gathered.expect(1);
        gathered.take(&row(1, 0, 0, "a")).expect("taken");
    }
    let expected = gathered.expect_bill(1, &Prices::default());
    assert_eq!(exactly(&at(&expected, 0)), [2, 1, 0, 1, 1, 0]);
}

#[test]
fn ten_million_rows_fit_into_half_a_gigabyte() {
    assert!(size_of::<Stored>() <= 48);
}
