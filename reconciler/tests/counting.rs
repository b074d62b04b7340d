//! The SQL against the naive model: bill and causes, over small random streams, however the work is cut.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use support::model;
use support::streams::{clicks, rates, verdicts};
use support::{Records, Run, archive_records, campaign, click, hour, limits, run_inputs};
use twice_log::archive::CountingSettings;
use twice_log::{Click, PartitionId};
use twice_reconciler::compare::Explanation;
use twice_reconciler::recompute::{
    ArchiveLocation, InProcessRecompute, Recompute, RecomputeRequest, Recomputed, Task, recompute_inputs,
};
use twice_store::{BillingCounts, Divergence, StreamState};

const PARTITIONS: u32 = 2;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

/// A share of each partition, in percent, as an offset.
fn ends(records: &Records, percent: [usize; 2]) -> BTreeMap<PartitionId, i64> {
    let share = |(index, (partition, clicks)): (usize, (&PartitionId, &Vec<Click>))| {
        (*partition, (clicks.len() * percent[index] / 100) as i64)
    };
    records.clicks.iter().enumerate().map(share).collect()
}

struct Answers {
    one: Recomputed,
    two_threads: Recomputed,
    sliced: Recomputed,
    split_by_id: Recomputed,
    explained: Vec<Explanation>,
}

async fn recompute_all(records: &Records, run: &Run, campaigns: &BTreeSet<twice_log::CampaignId>) -> Answers {
    let folder = tempfile::tempdir().expect("folder");
    let archive = support::open_archive(&folder.path().join("archive"));
    archive_records(&archive, records, 9, 4).await;
    let inputs = run_inputs(&archive, records, run).await;
    let spill = folder.path().join("spill");
    let recompute = async |threads, rows| {
        recompute_inputs(&archive, &inputs, &limits(&spill, threads, rows)).await.expect("recompute")
    };
    let stored = archive.put_run_inputs(&inputs).await.expect("inputs are put");
    let mut explained = Vec::new();
    for campaign in campaigns {
        let request = RecomputeRequest {
            archive: ArchiveLocation::Local { root: folder.path().join("archive") },
            inputs_path: "runs/lambda/2025-01-15T12/000001.json".to_owned(),
            inputs_sha256: stored.sha256.clone(),
            limits: limits(&spill, 2, None),
            task: Task::Explain { campaign: campaign.clone(), limit: 1000 },
            aggregates_dir: None,
        };
        explained.push(InProcessRecompute::new(archive.clone()).explain(request).await.expect("explain"));
    }
    Answers {
        one: recompute(1, None).await,
        two_threads: recompute(2, None).await,
        sliced: recompute(2, Some(25)).await,
        split_by_id: recompute(2, Some(8)).await,
        explained,
    }
}

fn check_divergence(row: &Divergence, counts: Option<&BillingCounts>) {
    assert_eq!(row.billed, counts.map_or(0, |counts| counts.billable));
    assert_eq!(row.unexplained, Some(0), "{row:?}");
    let value = |value: Option<u64>| value.expect("known") as i64;
    let explained = value(row.late_duplicate) + value(row.fraud) - value(row.late);
    assert_eq!(value(row.preliminary) - row.billed as i64, explained, "{row:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bill_and_causes_equal_the_naive_model_however_the_work_is_cut(
        clicks in clicks(),
        verdicts in verdicts(),
        rates in rates(),
        cutoff in [60_usize..=100, 60_usize..=100],
        horizon_hours in prop_oneof![Just(1_u32), Just(24)],
        sealed in [40_usize..=100, 40_usize..=100],
    ) {
        let records = Records::of(&clicks, &verdicts, PARTITIONS);
        let click_ends = ends(&records, cutoff);
        let settings = CountingSettings { horizon_hours, ..CountingSettings::default() };
        let mut run = Run { click_ends, rates, settings, seals: Vec::new() };
        let mut seal_ends = ends(&records, sealed);
        for (partition, end) in &mut seal_ends {
            *end = (*end).min(run.click_ends[partition]);
        }
        run.seals = model::seals(&records, &run, hour(), &seal_ends);
        let bill = model::bill(&records, &run, hour());
        let causes = model::causes(&records, &run, hour());
        let campaigns = bill.keys().cloned().collect();
        let answers = runtime().block_on(recompute_all(&records, &run, &campaigns));

        let expected: Vec<BillingCounts> = bill.values().cloned().collect();
        prop_assert_eq!(&answers.one.rows, &expected);
        for other in [&answers.two_threads, &answers.sliced, &answers.split_by_id] {
            prop_assert_eq!(&other.rows, &expected);
            prop_assert_eq!(&other.divergence, &answers.one.divergence);
        }
        for row in &answers.one.divergence {
            check_divergence(row, bill.get(&row.campaign_id));
        }
        let listed: BTreeSet<_> = campaigns.iter().zip(&answers.explained).flat_map(|(campaign, explained)| {
            explained.copies.iter().map(move |copy| (campaign.clone(), copy.cause.name(), copy.partition, copy.log_offset.0))
        }).collect();
        prop_assert_eq!(listed, causes);
        for copy in answers.explained.iter().flat_map(|explained| &explained.copies) {
            prop_assert!(!copy.files.is_empty());
        }
    }
}

/// Recounts the hour over `clicks` as they arrived, in one partition.
async fn recount(
    clicks: &[Click],
    rates: Vec<twice_log::archive::Rate>,
    settings: CountingSettings,
) -> Vec<BillingCounts> {
    let folder = tempfile::tempdir().expect("folder");
    let archive = support::open_archive(&folder.path().join("archive"));
    let records = Records::of(clicks, &[], PARTITIONS);
    archive_records(&archive, &records, 9, 4).await;
    let run = Run { click_ends: BTreeMap::new(), rates, settings, seals: Vec::new() };
    let inputs = run_inputs(&archive, &records, &run).await;
    recompute_inputs(&archive, &inputs, &limits(folder.path(), 2, None)).await.expect("recompute").rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_arrival_changes_no_bill_where_all_copies_of_an_identity_are_equal(
        clicks in clicks(),
        rates in rates(),
        order in any::<u64>(),
        horizon_hours in prop_oneof![Just(1_u32), Just(24)],
    ) {
        let mut first: BTreeMap<_, Click> = BTreeMap::new();
        let equal: Vec<Click> = clicks
            .iter()
            .map(|click| first.entry((click.campaign_id.clone(), click.click_id)).or_insert_with(|| click.clone()).clone())
            .collect();
        let mut numbered: Vec<(u64, Click)> = (0_u64..)
            .zip(equal.iter().cloned())
            .map(|(index, click)| ((order ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15), click))
            .collect();
        numbered.sort_by_key(|(key, _)| *key);
        let other: Vec<Click> = numbered.into_iter().map(|(_, click)| click).collect();
        let settings = CountingSettings { horizon_hours, ..CountingSettings::default() };
        let (as_sent, otherwise) = runtime().block_on(async {
            (recount(&equal, rates.clone(), settings).await, recount(&other, rates, settings).await)
        });
        prop_assert_eq!(as_sent, otherwise);
    }
}

/// A run over a few clicks in one partition, everything sealed and complete.
async fn small(clicks: &[Click], change: impl FnOnce(&mut Run)) -> Recomputed {
    let folder = tempfile::tempdir().expect("folder");
    let archive = support::open_archive(&folder.path().join("archive"));
    let records = Records::of(clicks, &[], 1);
    archive_records(&archive, &records, 100, 100).await;
    let mut run = Run {
        click_ends: BTreeMap::new(),
        rates: Vec::new(),
        settings: CountingSettings::default(),
        seals: Vec::new(),
    };
    run.seals =
        model::seals(&records, &run, hour(), &BTreeMap::from([(PartitionId(0), clicks.len() as i64)]));
    change(&mut run);
    let inputs = run_inputs(&archive, &records, &run).await;
    recompute_inputs(&archive, &inputs, &limits(folder.path(), 2, None)).await.expect("recompute")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_click_the_seal_has_and_the_archive_has_not_is_unexplained() {
    let clicks = [click(1, 1, 10, 1, 0), click(1, 2, 20, 1, 0)];
    let recomputed = small(&clicks, |run| {
        *run.seals[0].counts.entry(campaign(1)).or_default() += 3;
        run.seals[0].counts.insert(campaign(9), 2);
    })
    .await;
    let unexplained: Vec<_> = recomputed.divergence.iter().map(|row| (row.billed, row.unexplained)).collect();
    assert_eq!(unexplained, [(2, Some(3)), (0, Some(2))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsealed_hour_is_billed_and_its_causes_are_unknown() {
    let recomputed = small(&[click(1, 1, 10, 1, 0)], |run| run.seals.clear()).await;
    assert_eq!(recomputed.rows[0].billable, 1);
    let row = &recomputed.divergence[0];
    assert_eq!(
        (row.stream, row.preliminary, row.late, row.unexplained),
        (StreamState::Unsealed, None, None, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incomplete_stream_has_causes_and_no_unexplained() {
    let recomputed = small(&[click(1, 1, 10, 1, 0)], |run| run.seals[0].complete = false).await;
    let row = &recomputed.divergence[0];
    assert_eq!(
        (row.stream, row.preliminary, row.late, row.unexplained),
        (StreamState::Incomplete, Some(1), Some(0), None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_without_clicks_has_no_rows() {
    let recomputed = small(&[click(1, 1, -3700, 1, 0)], |_| {}).await;
    assert!(recomputed.rows.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let archive = support::open_archive(&folder.path().join("archive"));
    let records = Records::of(&[click(1, 1, 10, 1, 0)], &[], 1);
    archive_records(&archive, &records, 100, 100).await;
    let run = Run {
        click_ends: BTreeMap::new(),
        rates: Vec::new(),
        settings: CountingSettings::default(),
        seals: Vec::new(),
    };
    let inputs = run_inputs(&archive, &records, &run).await;
    let path = folder.path().join("archive").join(&inputs.click_files[0].path);
    let mut bytes = std::fs::read(&path).expect("file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("write");
    let refused = recompute_inputs(&archive, &inputs, &limits(folder.path(), 2, None)).await;
    assert!(refused.expect_err("changed").to_string().contains("SHA-256"));
}
