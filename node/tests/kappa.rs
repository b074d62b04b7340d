//! G-7: kappa equals lambda. The stream's code and the SQL count the same recorded inputs; every digest must be equal.
//!
//! Only this crate knows both paths, so the test that puts them side by side is here; its streams, archive and inputs are
//! those of the batch path's own tests.

#[path = "../../reconciler/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use support::streams::{clicks, rates, verdicts};
use support::{Records, Run, archive_records, click, hour, limits, model, run_inputs};
use twice_actors::{InProcessReplay, ProcessReplay, ReplayLimits};
use twice_log::archive::{Archive, ArchiveLocation, CountingSettings, StoredRunInputs, layout};
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

/// Starts the child that counts, and kills it once it has said that `slices` are finished. It cannot come further than a
/// pipe's worth of lines beyond that.
fn kill_after(slices: u64, archive: &Path, run: &StoredRunInputs, limits: &ReplayLimits) {
    let path = layout::run_inputs_path(run.inputs.path, run.inputs.hour, run.inputs.seq);
    let request = serde_json::json!({
        "archive": ArchiveLocation::Local { root: archive.to_path_buf() },
        "runs": [{ "path": path, "sha256": run.sha256 }],
        "limits": limits,
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_twice"))
        .arg("replay-child")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(request.to_string().as_bytes()).expect("the request is written");
    drop(input);
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut done = lines.map(|line| {
        let line: serde_json::Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        line["progress"]["slices_done"].as_u64().unwrap_or_else(|| panic!("it said {line}"))
    });
    assert!(done.any(|done| done >= slices), "it ended early");
    child.kill().expect("killed");
    child.wait().expect("gone");
}

#[tokio::test]
async fn a_replay_killed_in_the_middle_goes_on_after_its_last_slice() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("archive");
    let archive = support::open_archive(&root);
    let clicks: Vec<Click> =
        (0..120).map(|number| click((number % 4) as u8, number % 90, i64::from(number), 1, 0)).collect();
    let records = Records::of(&clicks, &[], PARTITIONS);
    archive_records(&archive, &records, 5, 3).await;
    let settings = CountingSettings::default();
    let run = Run { click_ends: BTreeMap::new(), rates: Vec::new(), settings, seals: Vec::new() };
    let inputs = run_inputs(&archive, &records, &run).await;
    let stored = archive.put_run_inputs(&inputs).await.expect("inputs are put");
    let scratch = folder.path().join("replay");
    let limits = ReplayLimits {
        threads: 1,
        memory_bytes_max: 256 << 20,
        verify_files: true,
        copies_per_slice_max: Some(1),
        scratch_dir: Some(scratch.clone()),
    };
    kill_after(3, &root, &stored, &limits);
    let kept = std::fs::read_dir(&scratch).expect("listed").next().expect("one replay").expect("read").path();
    assert!(kept.join("slice-0002.json").exists(), "finished slices stay");
    let written =
        |name: &str| std::fs::metadata(kept.join(name)).and_then(|file| file.modified()).expect("there");
    let first = written("slice-0000.json");
    kill_after(5, &root, &stored, &limits);
    assert_eq!(written("slice-0000.json"), first, "it was not counted again");

    let location = ArchiveLocation::Local { root };
    let child = ProcessReplay::new(env!("CARGO_BIN_EXE_twice").into(), 10, location, limits);
    let replayed = child.replay(std::slice::from_ref(&stored), None).await.expect("replay");
    let expected: Vec<BillingCounts> = model::bill(&records, &run, hour()).into_values().collect();
    assert_eq!(replayed.hours[0].rows, expected);
    assert!(replayed.slices > 50 && replayed.copies == 120, "{replayed:?}");
    assert_eq!(std::fs::read_dir(&scratch).expect("listed").count(), 0);
}
