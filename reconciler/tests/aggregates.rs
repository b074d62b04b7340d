//! Aggregates by ad and minute: against the naive model, however the work is cut; what a run puts, and when it dies.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::prelude::*;
use support::model;
use support::node::{HangAt, Node};
use support::streams::{clicks, rates, verdicts};
use support::{Records, Run, archive_records, campaign, click, hour, limits, run_inputs};
use twice_log::archive::{
    AggregateLevel, AggregateSet, Archive, BillingPath, CountingSettings, RunKey, RunOutcome, RunResult,
};
use twice_log::{AdId, CampaignId, Click, UserId, UtcMillis};
use twice_reconciler::recompute::{
    ArchiveLocation, InProcessRecompute, LocalAggregates, Recompute, RecomputeRequest, Recomputed, Task,
};
use twice_store::aggregates::AggregateRows;
use twice_store::{AggregateCounts, AggregateReader, AggregateRow, ArchiveAggregates, UserSketch};

const PARTITIONS: u32 = 2;

/// What one cut of the work made.
struct Made {
    recomputed: Recomputed,
    /// Rows by level, in the order of the files.
    rows: BTreeMap<AggregateLevel, Vec<(CampaignId, AggregateRow)>>,
    hashes: Vec<(AggregateLevel, String)>,
}

fn read_file(local: &LocalAggregates) -> Vec<(CampaignId, AggregateRow)> {
    let file = std::fs::File::open(&local.file).expect("file");
    let rows: Vec<_> =
        AggregateRows::open(file, 1024).expect("opens").map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len() as u64, local.rows);
    assert_eq!(rows.first().map(|(campaign, _)| campaign), Some(&local.campaign_first));
    assert_eq!(rows.last().map(|(campaign, _)| campaign), Some(&local.campaign_last));
    rows
}

async fn make(folder: &Path, archive: &Archive, sha256: &str, threads: usize, rows: Option<u64>) -> Made {
    let aggregates = tempfile::tempdir_in(folder).expect("folder");
    let request = RecomputeRequest {
        archive: ArchiveLocation::Local { root: folder.join("archive") },
        inputs_path: "runs/lambda/2025-01-15T12/000001.json".to_owned(),
        inputs_sha256: twice_log::event::Sha256Hex(sha256.to_owned()),
        limits: limits(&folder.join("spill"), threads, rows),
        task: Task::Bill,
        aggregates_dir: Some(aggregates.path().to_path_buf()),
    };
    let recomputed = InProcessRecompute::new(archive.clone()).recompute(request).await.expect("recompute");
    let files = recomputed.aggregates.clone().expect("aggregates");
    let mut rows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for file in &files {
        rows.entry(file.level).or_default().extend(read_file(file));
    }
    let hashes = files.iter().map(|file| (file.level, file.sha256.to_string())).collect();
    Made { recomputed, rows, hashes }
}

async fn make_all(records: &Records, run: &Run) -> Vec<Made> {
    let folder = tempfile::tempdir().expect("folder");
    let archive = support::open_archive(&folder.path().join("archive"));
    archive_records(&archive, records, 9, 4).await;
    let inputs = run_inputs(&archive, records, run).await;
    let stored = archive.put_run_inputs(&inputs).await.expect("inputs are put");
    let mut made = Vec::new();
    for (threads, rows) in [(1, None), (2, None), (2, Some(25)), (2, Some(8))] {
        made.push(make(folder.path(), &archive, &stored.sha256.to_string(), threads, rows).await);
    }
    made
}

fn sketch<'a>(users: impl IntoIterator<Item = &'a UserId>) -> UserSketch {
    let mut sketch = UserSketch::default();
    users.into_iter().for_each(|user| sketch.insert(user));
    sketch
}

type Sum = (AggregateCounts, BTreeSet<UserId>);
type Expected = BTreeMap<(CampaignId, AdId, UtcMillis), Sum>;

/// The rows of a level that the model's rows by ad and minute make.
fn expected(model: &Expected, level: AggregateLevel) -> Vec<(CampaignId, AggregateRow)> {
    let mut sums: BTreeMap<(CampaignId, Option<AdId>, UtcMillis), Sum> = BTreeMap::new();
    for ((campaign, ad, minute), (counts, users)) in model {
        let key = match level {
            AggregateLevel::AdMinutes => (campaign.clone(), Some(ad.clone()), *minute),
            AggregateLevel::AdHours => (campaign.clone(), Some(ad.clone()), hour().start()),
            AggregateLevel::CampaignHours => (campaign.clone(), None, hour().start()),
        };
        let (sum, all) = sums.entry(key).or_default();
        sum.add(counts);
        all.extend(users.iter().cloned());
    }
    let row = |((campaign, ad_id, window_start), (counts, users)): (_, (_, BTreeSet<UserId>))| {
        (campaign, AggregateRow { ad_id, window_start, counts, users: sketch(&users) })
    };
    sums.into_iter().map(row).collect()
}

fn sums(rows: &[(CampaignId, AggregateRow)]) -> BTreeMap<CampaignId, AggregateCounts> {
    let mut sums: BTreeMap<CampaignId, AggregateCounts> = BTreeMap::new();
    for (campaign, row) in rows {
        sums.entry(campaign.clone()).or_default().add(&row.counts);
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn aggregates_equal_the_naive_model_and_sum_to_the_bill_however_the_work_is_cut(
        clicks in clicks(),
        verdicts in verdicts(),
        rates in rates(),
    ) {
        let records = Records::of(&clicks, &verdicts, PARTITIONS);
        let settings = CountingSettings::default();
        let run = Run { click_ends: BTreeMap::new(), rates, settings, seals: Vec::new() };
        let model = model::aggregates(&records, &run, hour());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let made = runtime.expect("runtime").block_on(make_all(&records, &run));
        for cut in &made {
            prop_assert_eq!(&cut.hashes, &made[0].hashes, "the same inputs give the same bytes");
            let bill: BTreeMap<CampaignId, AggregateCounts> = cut.recomputed.rows.iter()
                .map(|row| (row.campaign_id.clone(), AggregateCounts::of(row))).collect();
            for level in AggregateLevel::ALL {
                let rows = cut.rows.get(&level).cloned().unwrap_or_default();
                prop_assert_eq!(&sums(&rows), &bill);
                prop_assert_eq!(rows, expected(&model, level));
            }
        }
    }
}

fn with_user(click: Click, user: &str) -> Click {
    Click { user_id: UserId::new(user).expect("valid id"), ..click }
}

#[actix::test]
async fn a_run_puts_its_aggregates_and_its_result_names_them() {
    let node = Node::start().await;
    let clicks = [
        with_user(click(1, 1, 10, 1, 0), "a"),
        with_user(click(1, 2, 70, 1, 0), "a"),
        with_user(click(1, 3, 80, 1, 1), "b"),
        with_user(click(1, 1, 10, 30, 0), "a"),
        with_user(click(2, 4, 20, 1, 0), ""),
    ];
    node.append(&clicks).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.reconcile(hour(), None).await.expect("closed");
    let key = RunKey { path: BillingPath::Lambda, hour: hour(), seq: 1 };
    let set = node.archive.aggregate_set(key).await.expect("reads").expect("is there");
    let result =
        node.archive.run_result(BillingPath::Lambda, hour(), 1).await.expect("reads").expect("ended");
    assert_eq!(result.result.aggregates, set.files);
    for file in &set.files {
        let bytes = node.archive.get(&file.path).await.expect("reads").expect("is there");
        assert_eq!(
            (bytes.len() as u64, twice_log::event::Sha256Hex::of(&bytes)),
            (file.bytes, file.sha256.clone())
        );
    }
    let reader = ArchiveAggregates::new(node.archive.clone(), 1 << 20);
    let read = async |level| reader.read(key, level, &campaign(1)).await.expect("reads").expect("there");
    let minutes = read(AggregateLevel::AdMinutes).await;
    let seen: Vec<_> = minutes
        .iter()
        .map(|row| (row.ad_id.clone().unwrap_or_default().to_string(), row.counts.gross, row.counts.billable))
        .collect();
    assert_eq!(seen, [("ad_0".into(), 2, 1), ("ad_0".into(), 1, 1), ("ad_1".into(), 1, 1)]);
    let hours = read(AggregateLevel::CampaignHours).await;
    assert_eq!((hours.len(), hours[0].counts.billable, hours[0].users.count()), (1, 3, 2));

    let before = objects(&node).await;
    let again = reconciler.reconcile(hour(), None).await.expect("closed again");
    assert_eq!(again.outcome, RunOutcome::Identical);
    let after = objects(&node).await;
    let new: Vec<_> = after.difference(&before).collect();
    assert_eq!(
        new,
        ["aggregates/lambda/2025-01-15T12/000002.json"],
        "its rows are in the files that were there"
    );
    let left = std::fs::read_dir(node.folder().join("spill")).expect("folder").count();
    assert_eq!(left, 0, "nothing stays on local disk");
    reconciler.stop().await;
}

async fn objects(node: &Node) -> BTreeSet<String> {
    let listed = node.archive.list("aggregates", None).await.expect("lists");
    listed.into_iter().map(|object| object.location.to_string()).collect()
}

#[actix::test]
async fn a_run_that_died_before_its_commit_finds_its_aggregates_put() {
    let node = Node::start().await;
    node.append(&[with_user(click(1, 1, 10, 1, 0), "a"), with_user(click(2, 2, 10, 1, 0), "b")]).await;
    let stopped = node.reconciler(false, HangAt::BeforeCommit);
    let asked = tokio::spawn({
        let stopped = stopped.clone();
        async move { stopped.reconcile(hour(), None).await }
    });
    let key = RunKey { path: BillingPath::Lambda, hour: hour(), seq: 1 };
    node.wait_until("the aggregates are put", async || {
        node.archive.aggregate_set(key).await.expect("reads").is_some()
    })
    .await;
    stopped.stop().await;
    let _ = asked.await;
    assert!(node.rows().await.is_empty());
    let before = objects(&node).await;
    // More clicks come: the run goes on with its own inputs all the same.
    node.append(&[with_user(click(1, 99, 40, 5000, 0), "c")]).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.reconcile(hour(), None).await.expect("closed");
    let results = node.archive.run_results(BillingPath::Lambda, hour()).await.expect("reads");
    let first: &RunResult = &results[0].result;
    let set: AggregateSet = node.archive.aggregate_set(key).await.expect("reads").expect("there");
    assert_eq!(first.aggregates, set.files);
    assert!(before.is_subset(&objects(&node).await));
    let reader = ArchiveAggregates::new(node.archive.clone(), 1 << 20);
    for row in node.rows().await {
        let run: RunKey = row.run_id.parse().expect("a run");
        let level = AggregateLevel::AdHours;
        let rows = reader.read(run, level, &row.counts.campaign_id).await.expect("reads").expect("there");
        let mut sum = AggregateCounts::default();
        rows.iter().for_each(|row| sum.add(&row.counts));
        assert_eq!(sum, AggregateCounts::of(&row.counts), "{}", row.run_id);
    }
    reconciler.stop().await;
}
