use twice_log::archive::RunOutcome;

use super::*;
use crate::error::Error;
use crate::modes::ModeStore;

/// Counts of one campaign: (gross, duplicates, invalid_sivt, amount), the rest billable.
type Numbers = (u64, u64, u64, i64);

fn numbers(name: &str, (gross, duplicates, invalid_sivt, amount_micros): Numbers) -> BillingCounts {
    BillingCounts {
        gross,
        duplicates,
        invalid_sivt,
        billable: gross - duplicates - invalid_sivt,
        amount_micros,
        ..BillingCounts::zero(campaign(name), counts(name, 0).currency)
    }
}

fn run_of(seq: u32, rows: &[(&str, Numbers)]) -> RunCommit {
    let rows = rows.iter().map(|(name, row)| NewBillingRow::new(noon(), numbers(name, *row))).collect();
    RunCommit { rows, ..run(seq, &[]) }
}

fn closing(commit: RunCommit) -> RunCommit {
    RunCommit { status: BillingStatus::Final, ..commit }
}

fn changing_mode(commit: RunCommit) -> RunCommit {
    RunCommit { mode_change: true, ..commit }
}

fn kappa(commit: RunCommit) -> RunCommit {
    moved(commit, BillingPath::Kappa, noon())
}

fn reasons(committed: &CommittedRun) -> Vec<(&str, u32, Reason)> {
    let rows = committed.rows.iter();
    rows.map(|row| (row.counts.campaign_id.as_str(), row.version, row.reason)).collect()
}

pub(super) fn of_noon() -> CorrectionsQuery {
    CorrectionsQuery {
        from: noon(),
        to: noon().plus(1),
        campaigns: None,
        since: None,
        as_of: None,
        include_unchanged: false,
        limit: 1_000,
        cursor: None,
    }
}

async fn corrections(fixture: &Fixture, query: &CorrectionsQuery) -> Vec<Correction> {
    fixture.store.corrections(query).await.expect("reads").rows
}

/// (campaign, path and version, path and version before, delta of gross).
fn short(rows: &[Correction]) -> Vec<(String, String, i64)> {
    let link = |path: BillingPath, version| format!("{path} {version}");
    let rows = rows.iter().map(|row| {
        let before = row.before.map_or("none".to_owned(), |before| link(before.path, before.version));
        let name = row.campaign_id.as_str().to_owned();
        (name, format!("{} after {before}", link(row.path, row.version)), row.delta.gross)
    });
    rows.collect()
}

#[tokio::test]
async fn each_restatement_has_the_reason_of_what_changed() {
    let fixture = Fixture::new().await;
    let mut seq = 0;
    let mut next = || {
        seq += 1;
        seq
    };
    let first = fixture.commit(run_of(next(), &[("a", (10, 0, 0, 50))])).await;
    assert_eq!(reasons(&first), [("a", 1, Reason::First)]);
    let late = fixture.commit(run_of(next(), &[("a", (12, 1, 0, 55)), ("b", (1, 0, 0, 5))])).await;
    assert_eq!(reasons(&late), [("a", 2, Reason::LateClicks), ("b", 1, Reason::LateClicks)]);
    let copies = fixture.commit(run_of(next(), &[("a", (12, 2, 0, 50)), ("b", (2, 1, 0, 5))])).await;
    assert_eq!(reasons(&copies), [("a", 3, Reason::LateDuplicate), ("b", 2, Reason::LateDuplicate)]);
    let fraud = fixture.commit(run_of(next(), &[("a", (12, 2, 3, 35)), ("b", (2, 1, 0, 5))])).await;
    assert_eq!(reasons(&fraud), [("a", 4, Reason::Verdicts)]);
    let dearer = fixture.commit(run_of(next(), &[("a", (12, 2, 3, 70)), ("b", (2, 1, 0, 10))])).await;
    assert_eq!(reasons(&dearer), [("a", 5, Reason::PriceChange), ("b", 3, Reason::PriceChange)]);
    // The close itself, together with a late click of b.
    let closed =
        fixture.commit(closing(run_of(next(), &[("a", (12, 2, 3, 70)), ("b", (3, 1, 0, 20))]))).await;
    assert_eq!(reasons(&closed), [("a", 6, Reason::Close), ("b", 4, Reason::LateClicks)]);
    let gone = fixture.commit(run_of(next(), &[("a", (12, 2, 3, 70))])).await;
    assert_eq!(reasons(&gone), [("b", 5, Reason::Rerun)]);
    assert_eq!(fixture.commit(run_of(next(), &[("a", (12, 2, 3, 70))])).await.outcome, RunOutcome::Identical);
}

#[tokio::test]
async fn a_new_campaign_of_nothing_but_duplicates_in_an_old_hour_is_a_late_duplicate() {
    let fixture = Fixture::new().await;
    fixture.commit(run_of(1, &[])).await;
    let late = fixture.commit(run_of(2, &[("a", (1, 1, 0, 0))])).await;
    assert_eq!(reasons(&late), [("a", 1, Reason::LateDuplicate)]);
}

#[tokio::test]
async fn a_change_of_mode_writes_every_row_and_makes_its_path_the_bill_at_once() {
    let fixture = Fixture::new().await;
    fixture.commit(closing(run_of(1, &[("a", (10, 0, 0, 50)), ("b", (5, 0, 0, 25))]))).await;
    let before = UtcMicros::from_millis(fixture.clock.now());
    fixture.clock.advance(10);
    // Kappa never ran and does not know b, which lambda billed: b becomes zero, not a row of the other path.
    let commit = changing_mode(closing(kappa(run_of(1, &[("a", (10, 0, 0, 50))]))));
    let hourly = RunCommit { status: BillingStatus::Reconciled, ..commit.clone() };
    let refused =
        fixture.store.commit_run(hourly).await.expect_err("counted with less than the nightly horizon");
    assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
    let changed = fixture.commit(commit.clone()).await;
    assert_eq!(changed.mode, BillingPath::Kappa);
    assert_eq!(reasons(&changed), [("a", 1, Reason::ModeChange), ("b", 1, Reason::ModeChange)]);
    assert!(changed.rows.iter().all(|row| row.status == BillingStatus::Final), "a final bill stays final");
    assert_eq!(changed.rows[1].counts, numbers("b", (0, 0, 0, 0)));
    assert_eq!(fixture.rows(&at_noon()).await, changed.rows);
    assert_eq!(fixture.store.mode(noon()).await.expect("reads"), BillingPath::Kappa);
    assert_eq!(brief(&fixture.rows(&as_of(before)).await), [("a", 1, 10), ("b", 1, 5)]);
    assert_eq!(fixture.commit(commit).await, changed, "a repeated commit changes nothing");

    let again = run_of(2, &[("a", (10, 0, 0, 50)), ("b", (5, 0, 0, 25))]);
    let back = fixture.commit(changing_mode(closing(again))).await;
    assert_eq!(reasons(&back), [("a", 2, Reason::ModeChange), ("b", 2, Reason::ModeChange)]);
    let modes = fixture.store.hour_modes(noon(), noon().plus(1), 2, None).await.expect("lists");
    let paths: Vec<_> = modes.rows.iter().map(|mode| mode.path).collect();
    assert_eq!(paths, [BillingPath::Lambda, BillingPath::Kappa]);
    let last = fixture.store.hour_modes(noon(), noon().plus(1), 2, modes.next_cursor).await.expect("lists");
    assert_eq!((last.rows[0].path, last.rows.len()), (BillingPath::Lambda, 1));

    let changes: Vec<_> = corrections(&fixture, &of_noon()).await;
    let expected = [("b", "kappa 1 after lambda 1", -5), ("b", "lambda 2 after kappa 1", 5)]
        .map(|(name, link, delta)| (name.to_owned(), link.to_owned(), delta));
    assert_eq!(short(&changes), expected);
    let all = corrections(&fixture, &CorrectionsQuery { include_unchanged: true, ..of_noon() }).await;
    assert_eq!(all.len(), 4, "with a, whose counts are the same in both");
}

#[tokio::test]
async fn corrections_are_the_restatements_of_the_bill_in_force_with_their_differences() {
    let fixture = Fixture::new().await;
    fixture.commit(run_of(1, &[("a", (10, 0, 0, 50)), ("b", (5, 0, 0, 25))])).await;
    // Beside the bill: kappa's versions correct nothing.
    fixture.commit(kappa(run_of(1, &[("a", (9, 0, 0, 45))]))).await;
    fixture.commit(kappa(run_of(2, &[("a", (10, 0, 0, 50)), ("c", (1, 0, 0, 5))]))).await;
    assert!(corrections(&fixture, &of_noon()).await.is_empty());

    let restated =
        fixture.commit(run_of(2, &[("a", (12, 1, 2, 45)), ("b", (5, 0, 0, 25)), ("c", (1, 0, 0, 5))])).await;
    let rows = corrections(&fixture, &of_noon()).await;
    let [a, c] = rows.as_slice() else { panic!("expected two corrections: {rows:?}") };
    assert_eq!((a.version, a.before), (2, Some(VersionLink { path: BillingPath::Lambda, version: 1 })));
    let delta = CountsDelta {
        gross: 2,
        duplicates: 1,
        invalid_sivt: 2,
        billable: -1,
        amount_micros: -5,
        ..CountsDelta::default()
    };
    assert_eq!((a.delta, a.reason), (delta, Reason::LateClicks));
    assert_eq!((&a.run_id, Some(a.committed_at)), (&run(2, &[]).run_id, restated.committed_at));
    // New in an hour billed before: a correction against zero.
    assert_eq!((c.version, c.before, c.reason), (1, None, Reason::LateClicks));
    assert_eq!((c.delta.billable, c.delta.amount_micros, c.currency), (1, 5, counts("c", 0).currency));

    // The close changes no count: listed only on demand.
    fixture
        .commit(closing(run_of(3, &[("a", (12, 1, 2, 45)), ("b", (5, 0, 0, 25)), ("c", (1, 0, 0, 5))])))
        .await;
    assert_eq!(corrections(&fixture, &of_noon()).await, rows);
    let all = corrections(&fixture, &CorrectionsQuery { include_unchanged: true, ..of_noon() }).await;
    assert_eq!(all.len(), 5);
    assert!(all[2..].iter().all(|row| row.reason == Reason::Close && row.delta == CountsDelta::default()));
}

#[tokio::test]
async fn since_and_as_of_cut_time_into_ranges_that_meet_without_overlap() {
    let fixture = Fixture::new().await;
    let mut moments = Vec::new();
    for seq in 1..=4 {
        fixture.clock.advance(10);
        let committed = fixture.commit(run(seq, &[("a", 10 + u64::from(seq)), ("b", 3)])).await;
        moments.push(committed.committed_at.expect("wrote versions"));
    }
    let between = |since: Option<UtcMicros>, as_of| CorrectionsQuery { since, as_of, ..of_noon() };
    let all = corrections(&fixture, &of_noon()).await;
    assert_eq!(all.iter().map(|row| row.version).collect::<Vec<_>>(), [2, 3, 4]);
    let early = corrections(&fixture, &between(None, Some(moments[2]))).await;
    let late = corrections(&fixture, &between(Some(moments[2]), None)).await;
    assert_eq!([early.clone(), late].concat(), all);
    fixture.clock.advance(10);
    fixture.commit(run(5, &[("a", 99), ("b", 3)])).await;
    assert_eq!(corrections(&fixture, &between(None, Some(moments[2]))).await, early);
    let future = UtcMicros(moments[3].0 + 3_600_000_000);
    let refused =
        fixture.store.corrections(&between(None, Some(future))).await.expect_err("is in the future");
    assert!(matches!(refused, Error::AsOfInFuture));
}

#[tokio::test]
async fn the_first_commit_fixes_the_mode_whatever_is_set_by_then() {
    let fixture = Fixture::new().await;
    // Set after the paths of the close were chosen: kappa has no rows, and the hour must not be without a bill.
    fixture.store.set_mode(BillingPath::Kappa, noon(), fixture.clock.now()).await.expect("sets");
    let first = fixture.commit(run(1, &[("a", 10)])).await;
    assert_eq!(first.mode, BillingPath::Lambda);
    assert_eq!(brief(&fixture.rows(&at_noon()).await), [("a", 1, 10)]);
    assert_eq!(fixture.store.mode(noon()).await.expect("reads"), BillingPath::Lambda);
}

#[tokio::test]
async fn corrections_come_in_pages_filtered_by_hour_and_campaign() {
    let fixture = Fixture::new().await;
    for hour in 0..3 {
        for seq in 1..=3 {
            let rows = [("a", 10 + u64::from(seq)), ("b", 20 + u64::from(seq)), ("c", 5)];
            fixture.commit(moved(run(seq, &rows), BillingPath::Lambda, noon().plus(hour))).await;
        }
    }
    let wide = CorrectionsQuery { to: noon().plus(3), ..of_noon() };
    let all = corrections(&fixture, &wide).await;
    assert_eq!(all.len(), 12);
    let key = |row: &Correction| (row.committed_at, row.campaign_id.clone());
    assert!(all.windows(2).all(|pair| key(&pair[0]) < key(&pair[1])));
    for limit in [1, 2, 5] {
        let mut paged = Vec::new();
        let mut query = CorrectionsQuery { limit, ..wide.clone() };
        loop {
            let page = fixture.store.corrections(&query).await.expect("reads");
            paged.extend(page.rows);
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                break;
            }
        }
        assert_eq!(paged, all, "in pages of {limit}");
    }
    let one = CorrectionsQuery { campaigns: Some([campaign("b")].into()), ..of_noon() };
    let b = corrections(&fixture, &one).await;
    assert!(b.len() == 2 && b.iter().all(|row| row.campaign_id == campaign("b") && row.hour == noon()));
    let foreign = fixture.store.reconciliations(1, None).await.expect("lists").next_cursor;
    let refused = fixture.store.corrections(&CorrectionsQuery { cursor: foreign, ..wide }).await;
    assert!(matches!(refused, Err(Error::Cursor)));
}

#[tokio::test]
async fn a_page_of_corrections_starts_at_its_run_and_sorts_nothing() {
    let fixture = Fixture::new().await;
    let mut writer = fixture.store.writer().await.expect("the writer");
    for after in [None, Some((1, campaign("a")))] {
        for filter in [None, Some([campaign("a")].into())] {
            let query = CorrectionsQuery { campaigns: filter, ..of_noon() };
            let restated = "SEARCH r USING INDEX billing_rows_restated (run_id=?";
            let sql = crate::sqlite::corrections::corrections_query(&query, i64::MAX, after.clone(), 10);
            let plan = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", sql.into_string()));
            let steps = sqlx::query(plan).fetch_all(&mut *writer).await.expect("explains");
            let steps: Vec<String> = steps.iter().map(|row| sqlx::Row::get(row, "detail")).collect();
            assert!(steps[0].contains("SEARCH u") && steps[0].contains("committed_at_us>"), "{steps:?}");
            assert!(steps.iter().any(|step| step.contains(restated)), "{steps:?}");
            assert!(!steps.iter().any(|step| step.contains("SCAN") || step.contains("B-TREE")), "{steps:?}");
        }
    }
}
