//! Seals and run records: put once, read by hour, no number taken before its turn.

use super::*;
use crate::archive::{
    BillingPath, BillingStatus, CountingSettings, RunInputs, RunOutcome, RunResult, Seal, layout,
};
use crate::error::Error;
use crate::event::{Hour, Sha256Hex};

fn hour() -> Hour {
    "2025-01-15T12".parse().expect("valid hour")
}

fn seal(hour: Hour, partition: u32, end: i64) -> Seal {
    let counts = [(CampaignId::new("c").expect("valid"), 5)].into();
    let (generation, partition) = (Generation(0), PartitionId(partition));
    Seal { hour, generation, partition, end: LogOffset(end), complete: true, counts }
}

fn inputs(seq: u32, created_at: i64) -> RunInputs {
    RunInputs {
        path: BillingPath::Lambda,
        hour: hour(),
        seq,
        status: BillingStatus::Reconciled,
        settings: CountingSettings::default(),
        cutoffs: Vec::new(),
        seals: Vec::new(),
        click_files: Vec::new(),
        verdict_files: Vec::new(),
        rates: Vec::new(),
        announced: false,
        mode_change: false,
        rules_sha256: Sha256Hex::of(b"rules"),
        created_at: UtcMillis::clamped(created_at),
    }
}

fn result(seq: u32, outcome: RunOutcome) -> RunResult {
    RunResult {
        path: BillingPath::Lambda,
        hour: hour(),
        seq,
        outcome,
        committed_at: None,
        mode: BillingPath::Lambda,
        inputs_sha256: Sha256Hex::of(b"inputs"),
        rows: Vec::new(),
        aggregates: Vec::new(),
    }
}

#[tokio::test]
async fn a_seal_stands_as_first_put_and_is_found_by_hour_and_by_partition() {
    let archive = memory();
    let first = archive.put_seal(&seal(hour(), 10, 7)).await.expect("puts");
    let second = archive.put_seal(&seal(hour(), 10, 9)).await.expect("puts");
    assert_eq!(first, second);
    let path = layout::seal_path(hour(), Generation(0), PartitionId(10));
    let bytes = archive.get(&path).await.expect("reads").expect("is there");
    assert_eq!(first.sha256, Sha256Hex::of(&bytes));
    archive.put_seal(&seal(hour(), 2, 3)).await.expect("puts");
    archive.put_seal(&seal(hour().plus(1), 10, 8)).await.expect("puts");
    let partitions: Vec<u32> =
        archive.seals(hour()).await.expect("reads").iter().map(|stored| stored.seal.partition.0).collect();
    assert_eq!(partitions, [2, 10]);
    let of_partition = archive.seals_of_partition(Generation(0), PartitionId(10)).await.expect("reads");
    assert_eq!(of_partition.iter().map(|stored| stored.seal.end.0).collect::<Vec<_>>(), [7, 8]);
    assert!(archive.seals(hour().plus(5)).await.expect("reads").is_empty());
}

#[tokio::test]
async fn a_run_uses_the_inputs_that_were_put_first() {
    let archive = memory();
    let first = archive.put_run_inputs(&inputs(1, 1)).await.expect("puts");
    let second = archive.put_run_inputs(&inputs(1, 2)).await.expect("puts");
    assert_eq!(first, second);
    assert_eq!(second.inputs.created_at, UtcMillis::clamped(1));
    assert_eq!(archive.run_inputs(BillingPath::Lambda, hour(), 1).await.expect("reads"), Some(first));
}

#[tokio::test]
async fn a_run_number_is_taken_only_when_the_run_before_has_a_result() {
    let archive = memory();
    assert!(matches!(archive.put_run_inputs(&inputs(0, 1)).await, Err(Error::Config { .. })));
    assert!(matches!(archive.put_run_inputs(&inputs(2, 1)).await, Err(Error::Config { .. })));
    archive.put_run_inputs(&inputs(1, 1)).await.expect("puts");
    assert!(matches!(archive.put_run_inputs(&inputs(2, 1)).await, Err(Error::Config { .. })));
    let run = archive.latest_run(BillingPath::Lambda, hour()).await.expect("reads").expect("a run");
    assert!(run.result.is_none());
    let put = archive.put_run_result(&result(1, RunOutcome::Committed)).await.expect("puts");
    let again = archive.put_run_result(&result(1, RunOutcome::Abandoned)).await.expect("puts");
    assert_eq!(put, again);
    archive.put_run_inputs(&inputs(2, 1)).await.expect("puts");
    let run = archive.latest_run(BillingPath::Lambda, hour()).await.expect("reads").expect("a run");
    assert_eq!((run.inputs.inputs.seq, run.result), (2, None));
    let results = archive.run_results(BillingPath::Lambda, hour()).await.expect("reads");
    assert_eq!(results, [put]);
    assert_eq!(archive.run_hours(BillingPath::Lambda).await.expect("lists"), [hour()]);
    assert_eq!(archive.run_hours(BillingPath::Kappa).await.expect("lists"), []);
    assert_eq!(archive.latest_run(BillingPath::Kappa, hour()).await.expect("reads"), None);
}

#[tokio::test]
async fn a_missing_run_number_or_result_is_damage() {
    let archive = memory();
    let bytes = serde_json::to_vec(&inputs(2, 1)).expect("encodes");
    let path = layout::run_inputs_path(BillingPath::Lambda, hour(), 2);
    archive.put_if_absent(&path, bytes.into()).await.expect("puts");
    let latest = archive.latest_run(BillingPath::Lambda, hour()).await;
    assert!(matches!(latest, Err(Error::ArchiveDamage { .. })), "run 1 is missing");
    let bytes = serde_json::to_vec(&inputs(1, 1)).expect("encodes");
    let path = layout::run_inputs_path(BillingPath::Lambda, hour(), 1);
    archive.put_if_absent(&path, bytes.into()).await.expect("puts");
    let results = archive.run_results(BillingPath::Lambda, hour()).await;
    assert!(matches!(results, Err(Error::ArchiveDamage { .. })), "run 1 has no result");
}

#[tokio::test]
async fn an_object_under_the_path_of_another_is_damage() {
    let archive = memory();
    let bytes = serde_json::to_vec(&seal(hour(), 4, 1)).expect("encodes");
    let path = layout::seal_path(hour(), Generation(0), PartitionId(5));
    archive.put_if_absent(&path, bytes.into()).await.expect("puts");
    assert!(matches!(archive.seals(hour()).await, Err(Error::ArchiveDamage { .. })));
}
