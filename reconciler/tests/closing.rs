//! Closing hours over real files: the order of steps, what a crash leaves, holes, gaps and reruns.

mod support;

use std::sync::Arc;

use support::node::{HangAt, Node};
use support::{at, campaign, click, hour};
use tokio::sync::mpsc;
use twice_log::Click;
use twice_log::archive::{BillingPath, RunOutcome};
use twice_reconciler::recompute::ProcessRecompute;
use twice_reconciler::{Error, ErrorKind, ProgressEvent, Step};
use twice_store::{BillingStore, CampaignStore, PutCampaign};

fn clicks() -> Vec<Click> {
    vec![
        click(1, 1, 10, 1, 0),
        click(1, 2, 20, 1, 0),
        click(1, 1, 10, 30, 0),
        click(2, 7, 3599, 1, 0),
        click(2, 8, 3601, 1, 0),
        click(1, 3, 100, 4000, 0),
    ]
}

async fn put_campaign(node: &Node, number: u8) {
    let put = PutCampaign {
        campaign_id: campaign(number),
        name: "a campaign".to_owned(),
        currency: "EUR".parse().expect("valid currency"),
        cpc_micros: 250_000,
        daily_budget_micros: None,
        strict: false,
        effective_from: Some(at(-7200)),
    };
    node.store.put_campaign(put, at(-7200)).await.expect("campaign is put");
}

#[actix::test]
async fn an_hour_goes_through_its_steps_in_order_and_every_difference_has_a_cause() {
    let node = Node::start().await;
    put_campaign(&node, 1).await;
    node.append(&clicks()).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let (progress, mut events) = mpsc::unbounded_channel();
    let report = reconciler.reconcile(hour(), Some(progress)).await.expect("closed");
    assert_eq!((report.outcome, report.rows, report.billed), (RunOutcome::Committed, 2, 4));
    assert_eq!((report.preliminary, report.late, report.unexplained), (Some(3), Some(1), Some(0)));
    let mut steps = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            ProgressEvent::Step { step, .. } => steps.push(step),
            ProgressEvent::Done(done) => assert_eq!(done, report),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(steps, [Step::Sealing, Step::Cutoff, Step::Archiving, Step::Recomputing, Step::Committing]);
    let rows = node.rows().await;
    let counts: Vec<_> = rows
        .iter()
        .map(|row| (row.counts.gross, row.counts.billable, row.counts.amount_micros, row.counts.unpriced))
        .collect();
    assert_eq!(counts, [(4, 3, 750_000, 0), (1, 1, 0, 1)]);
    let result =
        node.archive.run_result(BillingPath::Lambda, hour(), 1).await.expect("read").expect("result").result;
    assert_eq!(result.rows.len(), 2);
    assert_eq!(result.rows[0].digest, rows[0].digest);
    let explained = reconciler.explain(hour(), campaign(1), 10).await.expect("explained");
    assert_eq!(explained.copies.len(), 1);
    reconciler.stop().await;
    assert!(matches!(reconciler.status().await, Err(Error::Stopped)));
}

#[actix::test]
async fn a_rerun_over_the_same_clicks_is_identical_and_writes_no_version() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.reconcile(hour(), None).await.expect("closed");
    let again = reconciler.reconcile(hour(), None).await.expect("closed again");
    assert_eq!((again.outcome, again.rows_written), (RunOutcome::Identical, 0));
    assert!(node.rows().await.iter().all(|row| row.version == 1));
    node.append(&[click(2, 9, 30, 5000, 0)]).await;
    let later = reconciler.reconcile(hour(), None).await.expect("closed once more");
    assert_eq!((later.outcome, later.rows_written, later.late), (RunOutcome::Committed, 1, Some(2)));
    let first = node.archive.run_inputs(BillingPath::Lambda, hour(), 1).await.expect("read").expect("inputs");
    let third = node.archive.run_inputs(BillingPath::Lambda, hour(), 3).await.expect("read").expect("inputs");
    assert_eq!(first.inputs.seals, third.inputs.seals);
    reconciler.stop().await;
}

/// Stops the world at `hang_at`, lets more clicks come, starts again, and lets the schedule go on.
async fn resumes_after(hang_at: HangAt) {
    let node = Node::start().await;
    node.append(&clicks()).await;
    let stopped = node.reconciler(false, hang_at);
    let asked = tokio::spawn({
        let stopped = stopped.clone();
        async move { stopped.reconcile(hour(), None).await }
    });
    let run_id = format!("lambda/{}/000001", hour());
    node.wait_until("the run begins", async || match hang_at {
        HangAt::AfterCommit => node.store.committed_run(&run_id).await.expect("read").is_some(),
        _ => node.archive.run_inputs(BillingPath::Lambda, hour(), 1).await.expect("read").is_some(),
    })
    .await;
    if hang_at == HangAt::BeforeCommit {
        node.wait_until("the rows are computed", async || {
            stopped.status().await.expect("status").step == Some(Step::Committing)
        })
        .await;
    }
    stopped.stop().await;
    assert!(matches!(asked.await.expect("task"), Err(Error::Stopped)));
    assert!(node.archive.run_result(BillingPath::Lambda, hour(), 1).await.expect("read").is_none());
    let inputs =
        node.archive.run_inputs(BillingPath::Lambda, hour(), 1).await.expect("read").expect("inputs");
    assert_eq!(node.rows().await.is_empty(), hang_at != HangAt::AfterCommit);

    node.append(&[click(1, 99, 40, 5000, 0)]).await;
    let resumed = node.reconciler(true, HangAt::Nowhere);
    node.wait_until("the result is put", async || {
        node.archive.run_result(BillingPath::Lambda, hour(), 1).await.expect("read").is_some()
    })
    .await;
    let result =
        node.archive.run_result(BillingPath::Lambda, hour(), 1).await.expect("read").expect("result").result;
    assert_eq!((result.outcome, &result.inputs_sha256), (RunOutcome::Committed, &inputs.sha256));
    assert_eq!(node.rows().await.iter().map(|row| row.counts.billable).sum::<u64>(), 4);

    let report = resumed.reconcile(hour(), None).await.expect("closed");
    assert_eq!(
        (report.outcome, report.run_id.as_str()),
        (RunOutcome::Committed, format!("lambda/{}/000002", hour()).as_str())
    );
    assert_eq!(node.rows().await.iter().map(|row| row.counts.billable).sum::<u64>(), 5);
    resumed.stop().await;
}

#[actix::test]
async fn a_run_stopped_before_it_computed_goes_on_with_its_inputs() {
    resumes_after(HangAt::Recompute).await;
}

#[actix::test]
async fn a_run_stopped_before_its_commit_goes_on_with_its_inputs() {
    resumes_after(HangAt::BeforeCommit).await;
}

#[actix::test]
async fn a_run_stopped_after_its_commit_gets_its_result_and_is_not_computed_again() {
    resumes_after(HangAt::AfterCommit).await;
}

#[actix::test]
async fn a_hole_in_the_manifests_is_an_error_and_no_smaller_bill() {
    let node = Node::start().await;
    let mut manifests = Vec::new();
    for second in 0..3 {
        node.append(&[click(1, second, i64::from(second), 1, 0)]).await;
        node.archive_all().await;
        manifests = node.archive.list("manifests/ad-clicks", None).await.expect("list");
    }
    let middle = node.archive_root().join(manifests[1].location.as_ref());
    std::fs::remove_file(middle).expect("manifest is removed");
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let failed = reconciler.reconcile(hour(), None).await.expect_err("a hole");
    assert_eq!(failed.kind(), ErrorKind::Damage, "{failed}");
    assert!(node.rows().await.is_empty());
    let status = reconciler.status().await.expect("status");
    assert_eq!(status.failures.first().map(|failure| failure.attempts), Some(1));
    reconciler.stop().await;
}

#[actix::test]
async fn an_archive_that_does_not_reach_the_cutoff_bills_nothing() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    node.put_archiver_to_sleep();
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let failed = reconciler.reconcile(hour(), None).await.expect_err("behind");
    assert!(matches!(failed, Error::ArchiveBehind { .. }), "{failed}");
    assert!(node.archive.latest_run(BillingPath::Lambda, hour()).await.expect("read").is_none());
    reconciler.stop().await;
}

#[actix::test]
async fn an_hour_without_a_stream_is_billed_unsealed() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    node.without_stream();
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let report = reconciler.reconcile(hour(), None).await.expect("closed");
    assert_eq!((report.billed, report.preliminary, report.unexplained), (4, None, None));
    reconciler.stop().await;
}

#[actix::test]
async fn an_hour_that_is_not_over_is_refused() {
    let node = Node::start().await;
    node.set_clock(at(3599));
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let refused = reconciler.reconcile(hour(), None).await.expect_err("not over");
    assert!(matches!(refused, Error::HourNotOver { .. }));
    reconciler.stop().await;
}

#[actix::test]
async fn due_hours_are_closed_oldest_first_and_once() {
    let node = Node::start().await;
    node.append(&[click(1, 1, 10, 1, 0), click(1, 2, -3000, 1, 0), click(2, 3, 4000, 1, 0)]).await;
    node.archive_all().await;
    // Manifests were put by the machine's clock: quiet for long by the test's.
    node.set_clock("2100-01-01T00:00:00Z".parse().expect("valid time"));
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let reports = reconciler.reconcile_due(None).await.expect("closed");
    let hours: Vec<_> = reports.iter().map(|report| report.hour).collect();
    assert_eq!(hours, [hour().plus(-1), hour(), hour().plus(1)]);
    assert!(reconciler.reconcile_due(None).await.expect("nothing").is_empty());
    assert_eq!(reconciler.status().await.expect("status").newest_reconciled, Some(hour().plus(1)));
    reconciler.stop().await;
}

/// The child of the test below: this test binary again. Without the variable it has nothing to do.
#[test]
fn child_entry() {
    if std::env::var_os("TWICE_TEST_RECOMPUTE_CHILD").is_some() {
        use std::io::Write;
        // Ends the line on which the harness announced this test.
        let _ = std::io::stdout().write_all(b"\n");
        let status = twice_reconciler::recompute::child::run(std::io::stdin(), std::io::stdout());
        std::process::exit(if status == std::process::ExitCode::SUCCESS { 0 } else { 2 });
    }
}

fn child_process() -> ProcessRecompute {
    let this = std::env::current_exe().expect("path of this test");
    let script = format!(
        "TWICE_TEST_RECOMPUTE_CHILD=1 '{}' --exact child_entry --nocapture --test-threads=1 | grep '^{{'",
        this.display()
    );
    ProcessRecompute::with_arguments("/bin/sh".into(), vec!["-c".to_owned(), script], 10)
}

#[actix::test]
async fn a_child_process_bills_what_this_process_would() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    let reconciler = node.reconciler_with(false, HangAt::Nowhere, Arc::new(child_process()));
    let report = reconciler.reconcile(hour(), None).await.expect("closed");
    assert_eq!((report.billed, report.late, report.unexplained), (4, Some(1), Some(0)));
    reconciler.stop().await;
    let here = node.reconciler(false, HangAt::Nowhere);
    let again = here.reconcile(hour(), None).await.expect("closed again");
    assert_eq!(again.outcome, RunOutcome::Identical);
    let file = node.archive.run_inputs(BillingPath::Lambda, hour(), 1).await.expect("read").expect("inputs");
    std::fs::remove_file(node.archive_root().join(&file.inputs.click_files[0].path))
        .expect("file is removed");
    here.stop().await;
    let broken = node.reconciler_with(false, HangAt::Nowhere, Arc::new(child_process()));
    let failed = broken.reconcile(hour(), None).await.expect_err("a file is missing");
    assert!(failed.to_string().contains(&file.inputs.click_files[0].path), "{failed}");
    assert!(node.folder().join("archive").exists());
    broken.stop().await;
}
