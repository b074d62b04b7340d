//! G-7: kappa equals lambda. The stream's code and the SQL count the same recorded inputs; every digest must be equal.
//!
//! Only this crate knows both paths, so the test that puts them side by side is here; its streams, archive and inputs are
//! those of the batch path's own tests.

#[path = "../../reconciler/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use support::streams::{clicks, rates, verdicts};
use support::{Records, Run, archive_records, hour, limits, model, run_inputs};
use twice_actors::{InProcessReplay, ReplayLimits};
use twice_log::archive::{Archive, CountingSettings, StoredRunInputs};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Click, PartitionId};
use twice_reconciler::recompute::recompute_inputs;
use twice_store::{BillingCounts, Replay, row_digest};

const PARTITIONS: u32 = 2;

fn digests(rows: &[BillingCounts]) -> BTreeMap<CampaignId, Sha256Hex> {
    rows.iter().map(|row| (row.campaign_id.clone(), row_digest(hour(), row))).collect()
}

/// A share of each partition, in percent, as an offset.
fn ends(records: &Records, percent: [usize; 2]) -> BTreeMap<PartitionId, i64> {
    let share = |(index, (partition, clicks)): (usize, (&PartitionId, &Vec<Click>))| {
        (*partition, (clicks.len() * percent[index] / 100) as i64)
    };
    records.clicks.iter().enumerate().map(share).collect()
}

async fn replay(archive: &Archive, run: &StoredRunInputs, slice: Option<u64>) -> Vec<BillingCounts> {
    let limits = ReplayLimits {
        threads: 2,
        memory_bytes_max: 256 << 20,
        verify_files: true,
        copies_per_slice_max: slice,
        scratch_dir: None,
    };
    let replayed =
        InProcessReplay::new(archive.clone(), limits).replay(std::slice::from_ref(run), None).await;
    replayed.expect("replay").hours.remove(0).rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kappa_equals_lambda_digest_for_digest(
        clicks in clicks(),
        verdicts in verdicts(),
        rates in rates(),
        cutoff in [40_usize..=100, 40_usize..=100],
        horizon_hours in prop_oneof![Just(1_u32), Just(2), Just(24)],
        slice in prop_oneof![Just(None), (3..40_u64).prop_map(Some)],
    ) {
        let records = Records::of(&clicks, &verdicts, PARTITIONS);
        let settings = CountingSettings { horizon_hours, ..CountingSettings::default() };
        let run = Run { click_ends: ends(&records, cutoff), rates, settings, seals: Vec::new() };
        let expected: Vec<BillingCounts> = model::bill(&records, &run, hour()).into_values().collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let (lambda, kappa, again) = runtime.expect("runtime").block_on(async {
            let folder = tempfile::tempdir().expect("folder");
            let archive = support::open_archive(&folder.path().join("archive"));
            archive_records(&archive, &records, 9, 4).await;
            let inputs = run_inputs(&archive, &records, &run).await;
            let stored = archive.put_run_inputs(&inputs).await.expect("inputs are put");
            let limits = limits(&folder.path().join("spill"), 2, None);
            let lambda = recompute_inputs(&archive, &inputs, &limits).await.expect("recompute").rows;
            let kappa = replay(&archive, &stored, slice).await;
            (lambda, kappa, replay(&archive, &stored, None).await)
        });
        prop_assert_eq!(digests(&kappa), digests(&lambda));
        prop_assert_eq!(&kappa, &expected);
        prop_assert_eq!(&again, &kappa);
    }
}
