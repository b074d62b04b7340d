//! Kappa runs in the schedule and on request: their order, what they commit, what a crash leaves, and what a miscount does.
//!
//! The counter is one that counts by SQL and can be told to miscount; the real one is tested where both paths meet.

mod support;

use std::sync::atomic::Ordering;

use support::node::{HangAt, Node};
use support::{at, click, hour};
use tokio::sync::mpsc;
use twice_log::Click;
use twice_log::archive::{BillingPath, RunInputs, RunOutcome, StoredRunInputs};
use twice_reconciler::{ReconcilerHandle, ReplayEvent, ReplayOrder, ReplayReport};
use twice_store::modes::ModeStore;
use twice_store::replay::REPLAY_HOURS_MAX;
use twice_store::{BillingQuery, BillingRow, BillingStore, DivergenceRow};

fn clicks() -> Vec<Click> {
    vec![
        click(1, 1, 10, 1, 0),
        click(1, 2, 20, 1, 0),
        click(1, 1, 10, 30, 0),
        click(2, 7, 3599, 1, 0),
        click(1, 3, 100, 4000, 0),
    ]
}

/// Returns every version of the path's rows, or of the path in force.
async fn rows(node: &Node, path: Option<BillingPath>) -> Vec<BillingRow> {
    let query = BillingQuery {
        from: hour(),
        to: hour().plus(1),
        campaigns: None,
        path,
        version: None,
        as_of: None,
        limit: 1000,
        cursor: None,
    };
    node.store.billing(&query).await.expect("billing").rows
}

async fn divergence(node: &Node) -> Vec<DivergenceRow> {
    node.store.divergence(hour(), None, None, 100, None).await.expect("divergence").rows
}

async fn replay(
    reconciler: &ReconcilerHandle,
    mode_change: Option<BillingPath>,
) -> Result<Vec<ReplayReport>, String> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let order = ReplayOrder { from: hour(), to: hour().plus(1), mode_change };
    reconciler.replay(order, sender).await;
    let mut reports = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            ReplayEvent::Done(report) => reports.push(report),
            ReplayEvent::Failed { detail, .. } => return Err(detail),
            ReplayEvent::Progress(_) => {}
        }
    }
    Ok(reports)
}

fn digests(rows: &[BillingRow]) -> Vec<(String, String)> {
    rows.iter().map(|row| (row.counts.campaign_id.to_string(), row.digest.0.clone())).collect()
}

#[actix::test]
async fn with_mode_kappa_its_rows_are_the_bill_with_causes_and_lambda_stands_beside() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    node.store.set_mode(BillingPath::Kappa, hour(), at(0)).await.expect("mode is set");
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let report = reconciler.reconcile(hour(), None).await.expect("closed");
    assert_eq!(report.run_id, format!("kappa/{}/000001", hour()));
    assert_eq!((report.preliminary, report.late, report.unexplained), (Some(3), Some(1), Some(0)));
    let bill = rows(&node, None).await;
    assert!(!bill.is_empty() && bill.iter().all(|row| row.path == BillingPath::Kappa));
    assert_eq!(digests(&bill), digests(&rows(&node, Some(BillingPath::Lambda)).await));
    let explained = divergence(&node).await;
    assert!(
        explained.iter().all(|row| row.path == BillingPath::Kappa && row.divergence.unexplained == Some(0))
    );
    assert_eq!(explained.len(), 2);

    let of =
        async |path| node.archive.run_result(path, hour(), 1).await.expect("read").expect("result").result;
    let (kappa, lambda) = (of(BillingPath::Kappa).await, of(BillingPath::Lambda).await);
    assert!(kappa.committed_at < lambda.committed_at, "the bill first");
    assert!(!kappa.aggregates.is_empty(), "minutes and ads of the bill");
    assert_eq!(kappa.aggregates, lambda.aggregates);
    let inputs =
        async |path| node.archive.run_inputs(path, hour(), 1).await.expect("read").expect("inputs").inputs;
    let (kappa, lambda) = (inputs(BillingPath::Kappa).await, inputs(BillingPath::Lambda).await);
    assert_eq!(kappa, RunInputs { path: BillingPath::Kappa, ..lambda });

    let again = reconciler.reconcile(hour(), None).await.expect("closed again");
    assert_eq!((again.outcome, again.rows_written), (RunOutcome::Identical, 0));
    reconciler.stop().await;
}

#[actix::test]
async fn a_replay_on_request_equals_lambda_and_twice_the_same() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    assert_eq!(replay(&reconciler, None).await, Ok(Vec::new()), "nothing is billed yet");
    reconciler.reconcile(hour(), None).await.expect("closed");
    let reports = replay(&reconciler, None).await.expect("replayed");
    assert_eq!(reports.len(), 1);
    assert_eq!(
        (reports[0].outcome, reports[0].rows_written, reports[0].differing),
        (RunOutcome::Committed, 2, 0)
    );
    let bill = rows(&node, None).await;
    assert!(bill.iter().all(|row| row.path == BillingPath::Lambda), "a replay is no bill");
    assert_eq!(digests(&rows(&node, Some(BillingPath::Kappa)).await), digests(&bill));
    let again = replay(&reconciler, None).await.expect("replayed again");
    assert_eq!((again[0].outcome, again[0].rows_written), (RunOutcome::Identical, 0));
    reconciler.stop().await;
}

#[actix::test]
async fn a_replay_that_was_killed_goes_on_with_its_recorded_inputs() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.reconcile(hour(), None).await.expect("closed");
    let lambda =
        node.archive.run_inputs(BillingPath::Lambda, hour(), 1).await.expect("read").expect("inputs");
    let begun = RunInputs { path: BillingPath::Kappa, created_at: at(9_000), ..lambda.inputs };
    let stored: StoredRunInputs = node.archive.put_run_inputs(&begun).await.expect("inputs are put");
    let reports = replay(&reconciler, None).await.expect("replayed");
    assert_eq!(reports[0].run_id, format!("kappa/{}/000001", hour()));
    let result = node.archive.run_result(BillingPath::Kappa, hour(), 1).await.expect("read").expect("result");
    assert_eq!(result.result.inputs_sha256, stored.sha256);
    reconciler.stop().await;
}

#[actix::test]
async fn a_close_ends_a_kappa_run_that_a_crash_left_open() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    node.store.set_mode(BillingPath::Kappa, hour(), at(0)).await.expect("mode is set");
    let stopped = node.reconciler(false, HangAt::AfterCommit);
    let asked = tokio::spawn({
        let stopped = stopped.clone();
        async move { stopped.reconcile(hour(), None).await }
    });
    let run_id = format!("kappa/{}/000001", hour());
    node.wait_until("kappa is committed", async || {
        node.store.committed_run(&run_id).await.expect("read").is_some()
    })
    .await;
    stopped.stop().await;
    asked.await.expect("task").expect_err("stopped");
    assert!(rows(&node, Some(BillingPath::Lambda)).await.is_empty());
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.reconcile(hour(), None).await.expect("closed");
    for path in [BillingPath::Kappa, BillingPath::Lambda] {
        assert!(node.archive.run_result(path, hour(), 1).await.expect("read").is_some(), "{path}");
        assert!(rows(&node, Some(path)).await.iter().all(|row| row.version == 1));
    }
    assert!(rows(&node, None).await.iter().all(|row| row.path == BillingPath::Kappa));
    reconciler.stop().await;
}

#[actix::test]
async fn a_restart_ends_a_replay_that_a_crash_left_open() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    let stopped = node.reconciler(false, HangAt::Nowhere);
    stopped.reconcile(hour(), None).await.expect("closed");
    stopped.stop().await;
    let lambda =
        node.archive.run_inputs(BillingPath::Lambda, hour(), 1).await.expect("read").expect("inputs");
    let begun = RunInputs { path: BillingPath::Kappa, created_at: at(9_000), ..lambda.inputs };
    node.archive.put_run_inputs(&begun).await.expect("inputs are put");
    let reconciler = node.reconciler(true, HangAt::Nowhere);
    node.wait_until("the replay is ended", async || {
        node.archive.run_result(BillingPath::Kappa, hour(), 1).await.expect("read").is_some()
    })
    .await;
    assert_eq!(node.rows().await.iter().map(|row| row.version).max(), Some(1), "lambda is left alone");
    reconciler.stop().await;
}

#[actix::test]
async fn a_miscount_by_replay_is_seen_by_row_and_is_unexplained() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    node.store.set_mode(BillingPath::Kappa, hour(), at(0)).await.expect("mode is set");
    node.replay.miscounted.store(1, Ordering::SeqCst);
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let report = reconciler.reconcile(hour(), None).await.expect("closed");
    assert_eq!(report.unexplained, Some(1));
    let kappa = node.archive.run_result(BillingPath::Kappa, hour(), 1).await.expect("read").expect("result");
    assert!(kappa.result.aggregates.is_empty(), "lambda's do not sum to these rows");
    let reports = replay(&reconciler, None).await.expect("replayed");
    assert_eq!(reports[0].differing, 1);
    reconciler.stop().await;
}

#[actix::test]
async fn an_hour_that_is_counted_anew_is_not_restated_by_what_was_counted_before() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.reconcile(hour(), None).await.expect("closed");
    node.append(&[click(1, 90, 40, 4_000, 0)]).await;
    let stopped = node.reconciler(false, HangAt::Recompute);
    let asked = tokio::spawn({
        let stopped = stopped.clone();
        async move { stopped.reconcile(hour(), None).await }
    });
    node.wait_until("a close has begun", async || {
        node.archive.run_inputs(BillingPath::Lambda, hour(), 2).await.expect("read").is_some()
    })
    .await;
    let refused = replay(&reconciler, Some(BillingPath::Kappa)).await.expect_err("is counted anew");
    assert!(refused.contains("counted anew"), "{refused}");
    assert_eq!(node.store.mode(hour()).await.expect("mode"), BillingPath::Lambda);
    stopped.stop().await;
    asked.await.expect("task").expect_err("stopped");

    reconciler.reconcile(hour(), None).await.expect("closed");
    let reports = replay(&reconciler, Some(BillingPath::Kappa)).await.expect("restated");
    assert_eq!(reports[0].differing, 0);
    let newest = rows(&node, None).await;
    assert_eq!(newest.iter().map(|row| row.counts.gross).sum::<u64>(), 6);
    reconciler.stop().await;
}

#[actix::test]
async fn a_restatement_that_was_killed_and_overtaken_is_given_up() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.reconcile(hour(), None).await.expect("closed");
    node.append(&[click(1, 90, 40, 4_000, 0)]).await;
    reconciler.reconcile(hour(), None).await.expect("closed again");
    let old = node.archive.run_inputs(BillingPath::Lambda, hour(), 1).await.expect("read").expect("inputs");
    let begun = RunInputs { path: BillingPath::Kappa, mode_change: true, ..old.inputs };
    node.archive.put_run_inputs(&begun).await.expect("inputs are put");

    reconciler.reconcile(hour(), None).await.expect("closed a third time");
    let given_up =
        node.archive.run_result(BillingPath::Kappa, hour(), 1).await.expect("read").expect("ended");
    assert_eq!(given_up.result.outcome, RunOutcome::Abandoned);
    assert_eq!(node.store.mode(hour()).await.expect("mode"), BillingPath::Lambda);
    let reports = replay(&reconciler, Some(BillingPath::Kappa)).await.expect("restated");
    assert_eq!((reports[0].run_id.clone(), reports[0].differing), (format!("kappa/{}/000002", hour()), 0));
    assert_eq!(
        digests(&rows(&node, None).await),
        digests(&rows(&node, Some(BillingPath::Lambda)).await),
        "the newest counts are the bill"
    );
    reconciler.stop().await;
}

#[actix::test]
async fn a_longer_range_than_a_month_is_not_replayed() {
    let node = Node::start().await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let (sender, mut events) = mpsc::unbounded_channel();
    let order = ReplayOrder { from: hour(), to: hour().plus(REPLAY_HOURS_MAX + 1), mode_change: None };
    reconciler.replay(order, sender).await;
    let Some(ReplayEvent::Failed { hour: None, detail }) = events.recv().await else { panic!("is refused") };
    assert!(detail.contains("744"), "{detail}");
    reconciler.stop().await;
}

#[actix::test]
async fn a_restatement_makes_the_other_path_the_bill_there_and_back() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.reconcile(hour(), None).await.expect("closed");
    for path in [BillingPath::Kappa, BillingPath::Lambda] {
        let reports = replay(&reconciler, Some(path)).await.expect("restated");
        assert_eq!((reports[0].outcome, reports[0].rows_written), (RunOutcome::Committed, 2), "{path}");
        assert_eq!(node.store.mode(hour()).await.expect("mode"), path);
        assert!(rows(&node, None).await.iter().all(|row| row.path == path));
    }
    reconciler.stop().await;
}
