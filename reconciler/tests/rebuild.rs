//! The billing store written again from the archive: the same rows, versions and answers, also after a kill.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use support::node::{HangAt, Node};
use support::{at, campaign, click, hour, limits, verdict};
use twice_log::archive::{Archive, BillingPath, RunOutcome};
use twice_log::{Hour, UtcMillis, VerdictClass, WallClock};
use twice_reconciler::Error;
use twice_reconciler::audit::{AuditDeps, AuditQuestion, AuditVerdict, audit};
use twice_reconciler::compare::Explanation;
use twice_reconciler::rebuild::{RebuildDeps, put_results_of, rebuild, recorded_rates};
use twice_reconciler::recompute::{
    ArchiveLocation, InProcessRecompute, LookedUp, Recompute, RecomputeRequest, Recomputed, ShadowReport,
};
use twice_store::{
    BillingQuery, BillingStore, CampaignStore, CorrectionsQuery, ModeStore, PutCampaign, Reconciliation,
    SqliteStore, UtcMicros,
};

/// Counts, and fails once it was asked `left` times: what a kill leaves behind.
struct Limited {
    inner: InProcessRecompute,
    left: AtomicU32,
    asked: AtomicU32,
}

impl Limited {
    fn new(archive: &Archive, left: u32) -> Arc<Self> {
        let inner = InProcessRecompute::new(archive.clone());
        Arc::new(Self { inner, left: AtomicU32::new(left), asked: AtomicU32::new(0) })
    }
}

#[async_trait]
impl Recompute for Limited {
    async fn recompute(&self, request: RecomputeRequest) -> twice_reconciler::Result<Recomputed> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(Error::Stopped);
        }
        self.inner.recompute(request).await
    }

    async fn explain(&self, request: RecomputeRequest) -> twice_reconciler::Result<Explanation> {
        self.inner.explain(request).await
    }

    async fn look_up(&self, request: RecomputeRequest) -> twice_reconciler::Result<LookedUp> {
        self.inner.look_up(request).await
    }

    async fn shadow(&self, request: RecomputeRequest) -> twice_reconciler::Result<ShadowReport> {
        self.inner.shadow(request).await
    }
}

async fn put_campaign(node: &Node, number: u8, cpc_micros: i64, from: i64, recorded_at: UtcMillis) {
    let put = PutCampaign {
        campaign_id: campaign(number),
        name: "a campaign".to_owned(),
        currency: "EUR".parse().expect("valid currency"),
        cpc_micros,
        daily_budget_micros: Some(9_000_000),
        strict: false,
        effective_from: Some(at(from)),
    };
    node.store.put_campaign(put, recorded_at).await.expect("campaign is put");
}

/// Bills three hours, two of them more than once: late clicks, a verdict, another price, and a run that changes nothing.
async fn billed() -> Node {
    let node = Node::start().await;
    put_campaign(&node, 1, 250_000, -7_200, at(-7_200)).await;
    put_campaign(&node, 2, 100, -7_200, at(-7_200)).await;
    node.set_clock(hour().plus(3).end());
    let clicks: Vec<_> = (1..=4).map(|number| click(number, u32::from(number), 10, 1, 0)).collect();
    node.append(&clicks).await;
    node.append(&[click(1, 1, 10, 30, 0), click(1, 50, 3_700, 1, 0), click(2, 60, 7_300, 1, 0)]).await;
    // The last hour is billed by replay, and counted by both paths.
    node.store.set_mode(BillingPath::Kappa, hour().plus(2), at(0)).await.expect("mode is set");
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    for hours in 0..3 {
        reconciler.reconcile(hour().plus(hours), None).await.expect("closed");
    }
    node.append(&[click(2, 100, 20, 4_000, 0), click(1, 2, 3_800, 100, 0)]).await;
    reconciler.reconcile(hour(), None).await.expect("run again");
    node.append_verdicts(&[verdict(1, 1, VerdictClass::Sivt, at(7_200), at(7_200))]).await;
    reconciler.reconcile(hour().plus(1), None).await.expect("run again");
    put_campaign(&node, 2, 300, -3_600, hour().plus(3).end()).await;
    reconciler.reconcile(hour(), None).await.expect("run again");
    let same = reconciler.reconcile(hour().plus(2), None).await.expect("run again");
    let same_again = reconciler.reconcile(hour().plus(2), None).await.expect("run again");
    assert_eq!(same_again.outcome, RunOutcome::Identical, "{same:?}");
    reconciler.stop().await;
    node
}

fn hours() -> (Hour, Hour) {
    (hour().plus(-1), hour().plus(4))
}

fn query(version: Option<u32>, as_of: Option<UtcMicros>) -> BillingQuery {
    let (from, to) = hours();
    let path = Some(BillingPath::Lambda);
    BillingQuery { from, to, campaigns: None, path, version, as_of, limit: 1_000, cursor: None }
}

fn kappa(query: BillingQuery) -> BillingQuery {
    BillingQuery { path: Some(BillingPath::Kappa), ..query }
}

/// Everything a store answers about the bill, as text.
async fn answers(store: &SqliteStore, moments: &[UtcMicros]) -> Vec<String> {
    let mut answers = Vec::new();
    for version in (1..=4).map(Some).chain([None]) {
        let rows = store.billing(&query(version, None)).await.expect("billing").rows;
        let replayed = store.billing(&kappa(query(version, None))).await.expect("billing").rows;
        answers.push(format!("version {version:?}: {rows:#?} {replayed:#?}"));
    }
    let (from, to) = hours();
    for moment in moments {
        let rows = store.billing(&query(None, Some(*moment))).await.expect("billing as of").rows;
        let in_force = BillingQuery { path: None, ..query(None, Some(*moment)) };
        let in_force = store.billing(&in_force).await.expect("billing in force").rows;
        let hours = store.billed_hours_as_of(None, from, to, *moment).await.expect("billed hours");
        let mut divergence = Vec::new();
        for hours in 0..3 {
            let page = store.divergence(hour().plus(hours), Some(*moment), None, 1_000, None).await;
            divergence.extend(page.expect("divergence").rows);
        }
        answers.push(format!("as of {moment}: {rows:#?} {in_force:#?} {hours:?} {divergence:#?}"));
    }
    let corrections = CorrectionsQuery {
        from,
        to,
        campaigns: None,
        since: None,
        as_of: None,
        include_unchanged: true,
        limit: 1_000,
        cursor: None,
    };
    answers.push(format!("{:#?}", store.corrections(&corrections).await.expect("corrections").rows));
    answers.push(format!("{:?}", store.newest_cutoffs().await.expect("cutoffs")));
    for hours in 0..3 {
        answers.push(format!("{:?}", store.mode(hour().plus(hours)).await.expect("mode")));
    }
    answers
}

async fn runs(store: &SqliteStore) -> Vec<Reconciliation> {
    store.reconciliations(1_000, None).await.expect("runs").rows
}

async fn open(folder: &Path, name: &str) -> SqliteStore {
    SqliteStore::open(&folder.join(name), Arc::new(WallClock)).await.expect("store opens")
}

fn deps(node: &Node, recompute: Arc<Limited>) -> RebuildDeps {
    RebuildDeps {
        archive: node.archive.clone(),
        archive_location: ArchiveLocation::Local { root: node.archive_root() },
        recompute,
        replay: node.replay.clone(),
        limits: limits(node.folder(), 1, None),
    }
}

#[actix::test]
async fn a_store_rebuilt_after_a_kill_gives_every_answer_that_the_old_one_gave() {
    let node = billed().await;
    let stored = runs(&node.store).await;
    let committed = stored.iter().filter(|run| run.outcome == RunOutcome::Committed);
    let mut moments: Vec<UtcMicros> =
        committed.flat_map(|run| [run.committed_at, UtcMicros(run.committed_at.0 - 1)]).collect();
    moments.push(UtcMicros(moments.iter().map(|moment| moment.0).max().expect("a run") + 1));
    let before = answers(&node.store, &moments).await;
    let rows = node.store.billing(&query(Some(3), None)).await.expect("billing").rows;
    assert!(!rows.is_empty(), "some row has three versions");
    let replayed = node.store.billing(&kappa(query(None, None))).await.expect("billing").rows;
    assert!(!replayed.is_empty(), "an hour is billed by replay");

    // Killed after three runs, and started again.
    let store = open(node.folder(), "new.sqlite").await;
    let recompute = Limited::new(&node.archive, 3);
    rebuild(&deps(&node, recompute), &store, None).await.expect_err("was killed");
    drop(store);
    let store = open(node.folder(), "new.sqlite").await;
    let recompute = Limited::new(&node.archive, u32::MAX);
    let rebuilt = rebuild(&deps(&node, recompute.clone()), &store, None).await.expect("rebuilt");
    assert_eq!((rebuilt.runs, rebuilt.open), (stored.len() as u64, 0));
    assert_eq!(u64::from(recompute.asked.load(Ordering::SeqCst)), rebuilt.runs - 3, "none is counted twice");

    assert_eq!(answers(&store, &moments).await, before);
    // When a run began to count, and when an identical one was recorded, is in no archive.
    let known = |runs: Vec<Reconciliation>| {
        let mut known: Vec<_> = runs
            .into_iter()
            .map(|run| {
                let at = (run.outcome == RunOutcome::Committed).then_some(run.committed_at);
                (run.run_id, run.status, run.outcome, run.rows_written, at, run.inputs_sha256)
            })
            .collect();
        known.sort_by(|left, right| left.0.cmp(&right.0));
        known
    };
    assert_eq!(known(runs(&store).await), known(stored));

    // Campaigns from the old file where it can be read, else from what runs recorded.
    store.restore_rates(&recorded_rates(&node.archive).await.expect("rates")).await.expect("restored");
    let rates = |store: SqliteStore| async move {
        store.rates_effective_before(hour().plus(9).start()).await.expect("rates")
    };
    assert_eq!(rates(store.clone()).await, rates((*node.store).clone()).await);
    let named = store.campaign(&campaign(1)).await.expect("read").expect("a campaign");
    assert_eq!((named.name.as_str(), named.daily_budget_micros), ("camp_01", None));
    prove(&node, &store).await;
}

async fn prove(node: &Node, store: &SqliteStore) {
    for hours in 0..3 {
        let deps = AuditDeps {
            clock: Arc::new(WallClock),
            archive: node.archive.clone(),
            archive_location: ArchiveLocation::Local { root: node.archive_root() },
            billing: Arc::new(store.clone()),
            campaigns: Arc::new(store.clone()),
            recompute: Arc::new(InProcessRecompute::new(node.archive.clone())),
            replay: Some(node.replay.clone()),
            limits: limits(node.folder(), 1, None),
        };
        let question = AuditQuestion { hour: hour().plus(hours), campaign: None };
        let certificate = audit(&deps, &question).await.expect("audited");
        assert_eq!(certificate.verdict, AuditVerdict::Proved, "{certificate}");
    }
}

#[actix::test]
async fn a_version_that_was_committed_without_its_result_is_not_lost() {
    let node = billed().await;
    node.append(&[click(1, 70, 50, 1, 0)]).await;
    let killed = node.reconciler(false, HangAt::AfterCommit);
    let asked = tokio::spawn({
        let killed = killed.clone();
        async move { killed.reconcile(hour(), None).await }
    });
    let run_id = format!("lambda/{}/000004", hour());
    node.wait_until("it is committed", async || {
        node.store.committed_run(&run_id).await.expect("read").is_some()
    })
    .await;
    killed.stop().await;
    asked.await.expect("task").expect_err("stopped");

    assert_eq!(put_results_of(&node.archive, node.store.as_ref()).await.expect("results are put"), 1);
    assert_eq!(put_results_of(&node.archive, node.store.as_ref()).await.expect("none is left"), 0);
    let store = open(node.folder(), "new.sqlite").await;
    let recompute = Limited::new(&node.archive, u32::MAX);
    rebuild(&deps(&node, recompute), &store, None).await.expect("rebuilt");
    assert_eq!(answers(&store, &[]).await, answers(&node.store, &[]).await);
    store.restore_rates(&recorded_rates(&node.archive).await.expect("rates")).await.expect("restored");
    prove(&node, &store).await;
}

#[actix::test]
async fn settings_are_copied_from_the_old_file_and_what_runs_recorded_is_added() {
    let node = billed().await;
    let store = open(node.folder(), "new.sqlite").await;
    for _again in 0..2 {
        store.copy_settings(&node.folder().join("twice.sqlite")).await.expect("copied");
        store.restore_rates(&recorded_rates(&node.archive).await.expect("rates")).await.expect("restored");
    }
    let (old, new) = (node.store.campaigns(None, 10, None), store.campaigns(None, 10, None));
    assert_eq!(new.await.expect("campaigns").rows, old.await.expect("campaigns").rows);
    let damaged = node.folder().join("damaged.sqlite");
    std::fs::write(&damaged, [7; 4096]).expect("written");
    store.copy_settings(&damaged).await.expect_err("no database");
    store.copy_settings(&node.folder().join("none.sqlite")).await.expect_err("not there");
    assert!(!node.folder().join("none.sqlite").exists());
}

#[actix::test]
async fn a_run_that_counts_to_something_else_stops_the_rebuild_and_is_named() {
    let node = billed().await;
    let path = node.archive_root().join(format!("runs/lambda/{}/000002.result.json", hour()));
    let text = std::fs::read_to_string(&path).expect("read");
    let mut result: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    result["rows"][0]["digest"] = serde_json::Value::String("0".repeat(64));
    std::fs::write(&path, result.to_string()).expect("written");
    let store = open(node.folder(), "new.sqlite").await;
    let recompute = Limited::new(&node.archive, u32::MAX);
    let error = rebuild(&deps(&node, recompute), &store, None).await.expect_err("edited");
    let text = format!("{error:?}");
    assert!(text.contains(&format!("lambda/{}/000002", hour())), "{text}");
}
