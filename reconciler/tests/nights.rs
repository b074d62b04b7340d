//! Nights over real files: days that close, what comes after the close, and what a death in the middle leaves.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use support::node::{HangAt, Node};
use support::{at, campaign, click, hour, verdict};
use twice_log::archive::{BillingPath, BillingStatus, RunOutcome};
use twice_log::{Click, Day, Hour, UtcMillis, Verdict, VerdictClass};
use twice_reconciler::compare::Explanation;
use twice_reconciler::recompute::{
    InProcessRecompute, LookedUp, Recompute, RecomputeRequest, Recomputed, ShadowReport,
};
use twice_reconciler::{Error, ProgressEvent, ReconcilerHandle};
use twice_store::{BillingQuery, BillingRow, BillingStore, CampaignStore, PutCampaign};

const HOUR_S: i64 = 3600;
/// Seconds from the start of the tests' hour, noon, to midnight, and to the close of the day with its maturity.
const MIDNIGHT_S: i64 = 12 * HOUR_S;
const CLOSE_S: i64 = MIDNIGHT_S + 6 * HOUR_S;

fn day() -> Day {
    Day::of(hour())
}

/// Every version of every row of an hour, in order.
async fn rows(node: &Node, hour: Hour) -> Vec<BillingRow> {
    let query = BillingQuery {
        from: hour,
        to: hour.plus(1),
        campaigns: None,
        path: Some(BillingPath::Lambda),
        version: None,
        as_of: None,
        limit: 1000,
        cursor: None,
    };
    node.store.billing(&query).await.expect("billing").rows
}

/// The only row of an hour as it stands: (version, status, billable, duplicates, invalid, amount, reason).
async fn row(node: &Node, hour: Hour) -> (u32, BillingStatus, u64, u64, u64, i64, String) {
    let rows = rows(node, hour).await;
    let [row] = rows.as_slice() else { panic!("not one row: {rows:?}") };
    let counts = &row.counts;
    let invalid = counts.invalid_givt + counts.invalid_sivt;
    let figures = (counts.billable, counts.duplicates, invalid, counts.amount_micros);
    (row.version, row.status, figures.0, figures.1, figures.2, figures.3, row.reason.to_string())
}

async fn is_final(node: &Node, hour: Hour) -> bool {
    let rows = rows(node, hour).await;
    !rows.is_empty() && rows.iter().all(|row| row.status == BillingStatus::Final)
}

/// A click of one campaign at `event` seconds after noon, which arrives a second later.
fn one(id: u32, event: i64) -> Click {
    click(1, id, event, 1, 0)
}

/// A ruling on a click of that campaign, decided and arrived at a second.
fn ruling(id: u32, class: VerdictClass, decided: i64) -> Verdict {
    verdict(1, id, class, at(decided), at(decided))
}

async fn put_rate(node: &Node, cpc_micros: i64, effective: i64, recorded: i64) {
    let put = PutCampaign {
        campaign_id: campaign(1),
        name: "a campaign".to_owned(),
        currency: "EUR".parse().expect("valid currency"),
        cpc_micros,
        daily_budget_micros: None,
        strict: false,
        effective_from: Some(at(effective)),
    };
    node.store.put_campaign(put, at(recorded)).await.expect("campaign is put");
}

/// Starts a node after the day's close with these clicks, and closes the day.
async fn closed(clicks: &[Click]) -> (Node, ReconcilerHandle) {
    let node = Node::start().await;
    node.set_clock(at(CLOSE_S + 60));
    put_rate(&node, 1000, -HOUR_S, -HOUR_S).await;
    node.append(clicks).await;
    node.archive_all().await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.close_day(day(), None).await.expect("the day closes");
    (node, reconciler)
}

#[actix::test]
async fn copies_on_both_sides_of_midnight_bill_once_in_the_hour_of_the_first_copy() {
    let node = Node::start().await;
    let (evening, morning) = (hour().plus(11), hour().plus(16));
    // Click 1 comes in the evening first; of click 2 the copy of the morning has the lower position.
    let (late, early) = (MIDNIGHT_S - 600, MIDNIGHT_S + 4 * HOUR_S);
    node.append(&[one(1, late), one(2, early), one(1, early + 9), one(2, late + 9)]).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    node.set_clock(at(MIDNIGHT_S + 5 * HOUR_S + 600));
    for hour in [evening, morning] {
        reconciler.reconcile(hour, None).await.expect("closed");
        assert_eq!(row(&node, hour).await.2, 2, "an hour's horizon does not reach over four hours");
    }
    reconciler.stop().await;
    let scheduled = node.reconciler(true, HangAt::Nowhere);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!is_final(&node, evening).await, "verdicts have not matured");
    node.set_clock(at(CLOSE_S + 60));
    node.wait_until("the evening is final", async || is_final(&node, evening).await).await;
    assert_eq!(row(&node, evening).await, (2, BillingStatus::Final, 1, 1, 0, 0, "late_duplicate".to_owned()));
    assert_eq!(row(&node, morning).await.1, BillingStatus::Reconciled, "its day is not over");
    node.set_clock(at(CLOSE_S + 24 * HOUR_S + 60));
    node.wait_until("the morning is final", async || is_final(&node, morning).await).await;
    assert_eq!(row(&node, morning).await, (2, BillingStatus::Final, 1, 1, 0, 0, "late_duplicate".to_owned()));
    // Whoever asks, and for whatever: it is counted with the nightly horizon and stays final.
    let again = scheduled.reconcile(evening, None).await.expect("closed again");
    assert_eq!(
        (again.outcome, again.status, again.change.rows),
        (RunOutcome::Identical, BillingStatus::Final, 0)
    );
    scheduled.stop().await;
}

#[actix::test]
async fn a_day_is_refused_before_its_end_and_closed_with_a_note_before_its_verdicts_matured() {
    let node = Node::start().await;
    node.append(&[one(1, 10), one(2, -HOUR_S), one(3, MIDNIGHT_S + 10)]).await;
    node.archive_all().await;
    node.set_clock(at(MIDNIGHT_S - 1));
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let refused = reconciler.close_day(day(), None).await.expect_err("not over");
    assert!(
        matches!(refused, Error::DayNotOver { .. }) && refused.to_string().contains("2025-01-15"),
        "{refused}"
    );
    node.set_clock(at(MIDNIGHT_S + 60));
    let (progress, mut events) = tokio::sync::mpsc::unbounded_channel();
    let reports = reconciler.close_day(day(), Some(progress)).await.expect("the day closes");
    let closed: Vec<_> = reports.iter().map(|report| (report.hour, report.status)).collect();
    assert_eq!(closed, [(hour().plus(-1), BillingStatus::Final), (hour(), BillingStatus::Final)]);
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(event);
    }
    assert!(
        matches!(&seen[0], ProgressEvent::Note { detail } if detail.contains("may still come")),
        "{seen:?}"
    );
    assert_eq!(seen.iter().filter(|event| matches!(event, ProgressEvent::Done(_))).count(), 2);
    reconciler.stop().await;
}

#[actix::test]
async fn clicks_after_the_close_are_swept_into_a_new_version_that_is_final() {
    let (node, reconciler) = closed(&[one(1, 10), one(2, 20)]).await;
    assert_eq!(row(&node, hour()).await, (1, BillingStatus::Final, 2, 0, 0, 2000, "first".to_owned()));
    put_rate(&node, 1000, -HOUR_S, CLOSE_S + 60).await; // says what is in force
    let nothing = reconciler.sweep(None).await.expect("swept");
    assert!(nothing.hours.is_empty() && nothing.verdicts == 0, "{nothing:?}");
    node.append(&[click(1, 3, 30, CLOSE_S, 0), click(1, 1, 10, CLOSE_S, 0)]).await;
    node.archive_all().await;
    let swept = reconciler.sweep(None).await.expect("swept");
    assert_eq!((swept.hours_with_clicks, swept.hours.len()), (1, 1));
    let change = &swept.hours[0].change;
    assert_eq!((change.rows, change.billable, change.money[0].amount_micros), (1, 1, 1000));
    assert_eq!(row(&node, hour()).await, (2, BillingStatus::Final, 3, 1, 0, 3000, "late_clicks".to_owned()));
    assert!(reconciler.sweep(None).await.expect("swept").hours.is_empty());
    reconciler.stop().await;
}

#[actix::test]
async fn verdicts_in_three_waves_after_the_close_each_have_their_effect() {
    let node_and = closed(&[one(1, 10), one(2, 20), one(3, -3 * HOUR_S)]).await;
    let (node, reconciler) = node_and;
    let wave = async |verdicts: &[Verdict]| {
        node.append_verdicts(verdicts).await;
        node.archive_all().await;
        reconciler.sweep(None).await.expect("swept")
    };
    // The first names no hour; it is found in the hours before it arrived.
    let first = wave(&[ruling(1, VerdictClass::Sivt, CLOSE_S + 100)]).await;
    assert_eq!((first.verdicts, first.verdicts_without_click, first.hours_with_verdicts), (1, 0, 1));
    assert_eq!(row(&node, hour()).await, (2, BillingStatus::Final, 1, 0, 1, 1000, "verdicts".to_owned()));
    // The second takes the first back, and rules on another one, whose hour it names.
    let named = Verdict { click_event_time: Some(at(20)), ..ruling(2, VerdictClass::Givt, CLOSE_S + 200) };
    let second = wave(&[ruling(1, VerdictClass::Valid, CLOSE_S + 200), named]).await;
    assert_eq!((second.verdicts, second.hours.len()), (2, 1));
    assert_eq!(second.hours[0].change.rows, 1, "one click came back and one went");
    assert_eq!(row(&node, hour()).await.0, 3);
    // The third was decided before the second: it arrives, and changes nothing.
    let third = wave(&[ruling(1, VerdictClass::Sivt, CLOSE_S + 150)]).await;
    assert_eq!((third.hours.len(), third.hours[0].outcome), (1, RunOutcome::Identical));
    assert_eq!(row(&node, hour()).await.0, 3);
    assert_eq!(row(&node, hour().plus(-3)).await.0, 1, "an hour without a new verdict is left alone");
    assert_eq!(wave(&[]).await.verdicts, 0);
    reconciler.stop().await;
}

#[actix::test]
async fn a_verdict_that_names_the_hour_of_a_duplicate_restates_the_hour_that_billed_the_click() {
    let (node, reconciler) = closed(&[one(1, HOUR_S - 10), one(1, HOUR_S + 5), one(2, HOUR_S + 10)]).await;
    assert_eq!(row(&node, hour()).await.2, 1);
    // So long after that only the hour it names tells where to look.
    let decided = CLOSE_S + 30 * 24 * HOUR_S;
    node.set_clock(at(decided + 60));
    let named = Verdict { click_event_time: Some(at(HOUR_S + 5)), ..ruling(1, VerdictClass::Sivt, decided) };
    node.append_verdicts(&[named]).await;
    node.archive_all().await;
    let swept = reconciler.sweep(None).await.expect("swept");
    assert_eq!((swept.verdicts, swept.verdicts_without_click, swept.hours_with_verdicts), (1, 0, 2));
    assert_eq!(row(&node, hour()).await, (2, BillingStatus::Final, 0, 0, 1, 0, "verdicts".to_owned()));
    assert_eq!(row(&node, hour().plus(1)).await.0, 1, "the hour of the duplicate bills what it did");
    reconciler.stop().await;
}

#[actix::test]
async fn a_verdict_before_its_click_counts_and_one_without_a_click_is_counted_and_kept() {
    let node = Node::start().await;
    node.set_clock(at(CLOSE_S + 60));
    node.append_verdicts(&[ruling(1, VerdictClass::Givt, -1800)]).await;
    node.append(&[one(1, 10), one(2, 20)]).await;
    node.archive_all().await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.close_day(day(), None).await.expect("the day closes");
    assert_eq!(row(&node, hour()).await.4, 1, "the verdict came before its click");
    node.append_verdicts(&[ruling(9, VerdictClass::Sivt, CLOSE_S + 100)]).await;
    node.archive_all().await;
    let swept = reconciler.sweep(None).await.expect("swept");
    assert_eq!((swept.verdicts, swept.verdicts_without_click, swept.hours.len()), (1, 1, 0));
    let record = node.archive.newest_sweep().await.expect("read").expect("a record");
    assert_eq!((record.verdicts_without_click, record.hours.len()), (1, 0));
    // The click comes at last: the run that it causes finds its verdict.
    node.append(&[click(1, 9, 40, CLOSE_S, 0)]).await;
    node.archive_all().await;
    let swept = reconciler.sweep(None).await.expect("swept");
    assert_eq!((swept.verdicts, swept.hours_with_clicks), (0, 1));
    let (version, status, billable, _, invalid, ..) = row(&node, hour()).await;
    assert_eq!((version, status, billable, invalid), (2, BillingStatus::Final, 1, 2));
    reconciler.stop().await;
}

#[actix::test]
async fn a_price_recorded_after_the_close_restates_the_hours_it_is_in_force() {
    let (node, reconciler) =
        closed(&[one(1, 10), one(2, 2000), one(3, HOUR_S + 5), one(4, 3 * HOUR_S)]).await;
    put_rate(&node, 5000, 1800, CLOSE_S + 100).await;
    put_rate(&node, 1000, 2 * HOUR_S, CLOSE_S + 100).await;
    node.set_clock(at(CLOSE_S + 200));
    let swept = reconciler.sweep(None).await.expect("swept");
    let hours: Vec<_> = swept.hours.iter().map(|report| report.hour).collect();
    // From the second rate on the price is what it was: that hour is run again and stays as it is.
    assert_eq!(hours, [hour(), hour().plus(1), hour().plus(3)]);
    assert_eq!(swept.hours[2].outcome, RunOutcome::Identical);
    assert_eq!(row(&node, hour()).await, (2, BillingStatus::Final, 2, 0, 0, 6000, "price_change".to_owned()));
    assert_eq!(row(&node, hour().plus(1)).await.5, 5000);
    assert_eq!(row(&node, hour().plus(3)).await.0, 1);
    let money: i64 =
        swept.hours.iter().flat_map(|report| &report.change.money).map(|delta| delta.amount_micros).sum();
    assert_eq!(money, 8000);
    reconciler.stop().await;
}

/// Stops the world in the close of a day's second hour, and lets the schedule go on after a restart.
async fn a_close_resumes_after(hang_at: HangAt) {
    let node = Node::start().await;
    node.set_clock(at(CLOSE_S - 600));
    node.append(&[one(1, -HOUR_S), one(2, 10), one(3, HOUR_S), one(4, 10 + 2 * HOUR_S)]).await;
    node.append(&[one(1, HOUR_S + 5)]).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    for offset in -1..=2 {
        reconciler.reconcile(hour().plus(offset), None).await.expect("closed");
    }
    // One hour is final before the death.
    let first = node.archive.latest_run(BillingPath::Lambda, hour().plus(-1)).await.expect("read");
    assert!(first.is_some_and(|run| run.result.is_some()));
    reconciler.stop().await;
    node.set_clock(at(CLOSE_S + 60));
    let stopped = node.reconciler(true, hang_at);
    let begun = async || {
        let run = node.archive.latest_run(BillingPath::Lambda, hour().plus(-1)).await.expect("read");
        run.is_some_and(|run| run.inputs.inputs.status == BillingStatus::Final)
    };
    node.wait_until("the close begins", begun).await;
    stopped.stop().await;
    assert!(!is_final(&node, hour()).await);
    let resumed = node.reconciler(true, HangAt::Nowhere);
    node.wait_until("the day is closed", async || is_final(&node, hour().plus(2)).await).await;
    for offset in -1..=2 {
        let hour = hour().plus(offset);
        let (version, status, ..) = row(&node, hour).await;
        assert_eq!((version, status), (2, BillingStatus::Final), "{hour}");
        let runs = node.archive.run_results(BillingPath::Lambda, hour).await.expect("results");
        assert_eq!(runs.len(), 2, "{hour}: a run that was begun is ended, not begun again");
    }
    let billed: u64 = futures::future::join_all((-1..=2).map(|offset| row(&node, hour().plus(offset))))
        .await
        .iter()
        .map(|row| row.2)
        .sum();
    assert_eq!(billed, 4, "click 1 has a copy two hours later");
    resumed.stop().await;
}

#[actix::test]
async fn a_close_that_died_before_it_computed_is_resumed() {
    a_close_resumes_after(HangAt::Recompute).await;
}

#[actix::test]
async fn a_close_that_died_before_its_commit_is_resumed() {
    a_close_resumes_after(HangAt::BeforeCommit).await;
}

#[actix::test]
async fn a_close_that_died_after_its_commit_is_resumed() {
    a_close_resumes_after(HangAt::AfterCommit).await;
}

#[actix::test]
async fn a_sweep_on_request_finds_what_is_acknowledged_and_not_yet_archived() {
    let (node, reconciler) = closed(&[one(1, 10), one(2, 20)]).await;
    node.append_verdicts(&[ruling(1, VerdictClass::Sivt, CLOSE_S + 100)]).await;
    node.append(&[click(1, 3, 40, CLOSE_S, 0)]).await;
    let swept = reconciler.sweep(None).await.expect("swept");
    assert_eq!((swept.verdicts, swept.hours_with_clicks), (1, 1));
    let (_, _, billable, _, invalid, ..) = row(&node, hour()).await;
    assert_eq!((billable, invalid), (2, 1));
    reconciler.stop().await;
}

#[actix::test]
async fn a_day_closed_on_request_has_what_is_acknowledged_and_not_yet_archived() {
    let node = Node::start().await;
    node.set_clock(at(CLOSE_S + 60));
    node.append(&[one(1, 10)]).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let reports = reconciler.close_day(day(), None).await.expect("the day closes");
    assert_eq!(reports.len(), 1);
    assert!(is_final(&node, hour()).await);
    reconciler.stop().await;
}

#[actix::test]
async fn a_sweep_that_died_among_its_hours_misses_none_of_them() {
    let (node, reconciler) = closed(&[one(1, 10), one(2, HOUR_S + 10)]).await;
    reconciler.sweep(None).await.expect("swept");
    reconciler.stop().await;
    node.append_verdicts(&[
        ruling(1, VerdictClass::Sivt, CLOSE_S + 100),
        ruling(2, VerdictClass::Sivt, CLOSE_S + 100),
    ])
    .await;
    node.archive_all().await;
    let next_night: UtcMillis = at(CLOSE_S + 24 * HOUR_S + 60);
    node.set_clock(next_night);
    let before = node.archive.newest_sweep().await.expect("read").map(|record| record.seq);
    let stopped = node.reconciler(true, HangAt::BeforeCommit);
    let begun = async || {
        let run = node.archive.run_inputs(BillingPath::Lambda, hour(), 2).await.expect("read");
        run.is_some()
    };
    node.wait_until("the sweep runs its first hour", begun).await;
    stopped.stop().await;
    assert_eq!(node.archive.newest_sweep().await.expect("read").map(|record| record.seq), before);
    let resumed = node.reconciler(true, HangAt::Nowhere);
    node.wait_until("the sweep is recorded", async || {
        node.archive.newest_sweep().await.expect("read").map(|record| record.seq) > before
    })
    .await;
    for hour in [hour(), hour().plus(1)] {
        let (version, status, billable, _, invalid, ..) = row(&node, hour).await;
        assert_eq!((version, status, billable, invalid), (2, BillingStatus::Final, 0, 1), "{hour}");
    }
    resumed.stop().await;
}

/// Fails to count an hour for as long as it is told to.
struct FailsIn {
    inner: InProcessRecompute,
    hour: Hour,
    fails: AtomicBool,
}

#[async_trait]
impl Recompute for FailsIn {
    async fn recompute(&self, request: RecomputeRequest) -> Result<Recomputed, Error> {
        if self.fails.load(Ordering::SeqCst) && request.inputs_path.contains(&self.hour.to_string()) {
            return Err(Error::Stopped);
        }
        self.inner.recompute(request).await
    }

    async fn explain(&self, request: RecomputeRequest) -> Result<Explanation, Error> {
        self.inner.explain(request).await
    }

    async fn look_up(&self, request: RecomputeRequest) -> Result<LookedUp, Error> {
        self.inner.look_up(request).await
    }

    async fn shadow(&self, request: RecomputeRequest) -> Result<ShadowReport, Error> {
        self.inner.shadow(request).await
    }
}

#[actix::test]
async fn an_hour_that_cannot_be_run_is_owed_and_does_not_undo_what_the_sweep_did() {
    let (node, reconciler) = closed(&[one(1, 10), one(2, HOUR_S + 10)]).await;
    reconciler.stop().await;
    let rulings = [1, 2].map(|id| ruling(id, VerdictClass::Sivt, CLOSE_S + 100));
    node.append_verdicts(&rulings).await;
    node.archive_all().await;
    let inner = InProcessRecompute::new(node.archive.clone());
    let recompute = Arc::new(FailsIn { inner, hour: hour(), fails: AtomicBool::new(true) });
    let reconciler = node.reconciler_with(false, HangAt::Nowhere, recompute.clone());
    for _ in 0..2 {
        reconciler.sweep(None).await.expect_err("an hour fails");
        let record = node.archive.newest_sweep().await.expect("read").expect("a record");
        assert_eq!((record.seq, record.verdicts), (1, 2), "what says nothing new is not recorded");
        assert_eq!((record.hours, record.owed), (vec![hour().plus(1)], vec![hour()]));
    }
    recompute.fails.store(false, Ordering::SeqCst);
    let swept = reconciler.sweep(None).await.expect("swept");
    assert_eq!((swept.verdicts, swept.hours.len()), (0, 1), "only what is owed is left");
    let (version, status, billable, _, invalid, ..) = row(&node, hour()).await;
    assert_eq!((version, status, billable, invalid), (2, BillingStatus::Final, 0, 1));
    let record = node.archive.newest_sweep().await.expect("read").expect("a record");
    assert_eq!((record.seq, record.owed), (2, Vec::new()));
    reconciler.stop().await;
}
