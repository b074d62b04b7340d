//! A recompute process that runs out of memory, or is killed: what it says, and what it leaves.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use support::{Records, Run, archive_records, click, limits, run_inputs};
use twice_log::archive::CountingSettings;
use twice_reconciler::Error;
use twice_reconciler::recompute::{
    ArchiveLocation, BILLING_SQL, ProcessRecompute, Recompute, RecomputeRequest, ResourceLimits, Task,
};

/// The child of the tests below: this test binary again. Without the variable it has nothing to do.
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

fn shell(script: String) -> ProcessRecompute {
    ProcessRecompute::with_arguments("/bin/sh".into(), vec!["-c".to_owned(), script], 0)
}

fn child_process() -> ProcessRecompute {
    let this = std::env::current_exe().expect("path of this test");
    shell(format!(
        "TWICE_TEST_RECOMPUTE_CHILD=1 '{}' --exact child_entry --nocapture --test-threads=1 | grep '^{{'",
        this.display()
    ))
}

/// A request for the bill of three clicks, within `memory_bytes_max`.
async fn request(folder: &Path, memory_bytes_max: u64) -> RecomputeRequest {
    let root = folder.join("archive");
    let archive = support::open_archive(&root);
    let clicks = [click(1, 1, 10, 1, 0), click(1, 1, 10, 1, 0), click(2, 2, 20, 1, 0)];
    let records = Records::of(&clicks, &[], 1);
    archive_records(&archive, &records, 100, 100).await;
    let run = Run {
        click_ends: BTreeMap::new(),
        rates: Vec::new(),
        settings: CountingSettings::default(),
        seals: Vec::new(),
    };
    let stored = archive.put_run_inputs(&run_inputs(&archive, &records, &run).await).await;
    RecomputeRequest {
        archive: ArchiveLocation::Local { root },
        inputs_path: "runs/lambda/2025-01-15T12/000001.json".to_owned(),
        inputs_sha256: stored.expect("inputs are put").sha256,
        limits: ResourceLimits { memory_bytes_max, ..limits(&folder.join("spill"), 2, None) },
        task: Task::Bill,
        aggregates_dir: None,
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_too_low_is_an_error_that_names_the_setting_and_nothing_is_left() {
    let folder = tempfile::tempdir().expect("folder");
    let request = request(folder.path(), 4 << 20).await;
    let refused = child_process().recompute(request).await.expect_err("too little");
    assert!(matches!(refused, Error::OutOfMemory { limit_bytes } if limit_bytes == 4 << 20), "{refused:?}");
    assert!(refused.to_string().contains("recompute_memory_bytes_max"), "{refused}");
    assert_eq!(names_in(&folder.path().join("spill")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_for_memory_says_which_setting_to_change() {
    let folder = tempfile::tempdir().expect("folder");
    let request = request(folder.path(), 256 << 20).await;
    let killed = shell("cat >/dev/null; kill -9 $$".to_owned()).recompute(request).await;
    let killed = killed.expect_err("killed").to_string();
    assert!(killed.contains("memory") && killed.contains("--recompute-memory-bytes-max"), "{killed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_processes_killed_for_memory_smaller_slices_count_the_same_and_the_report_says_so() {
    let folder = tempfile::tempdir().expect("folder");
    let made = folder.path().join("made");
    std::fs::create_dir(&made).expect("folder");
    let request =
        RecomputeRequest { aggregates_dir: Some(made.clone()), ..request(folder.path(), 1 << 30).await };
    let straight = child_process().recompute(request.clone()).await.expect("billed");
    for name in names_in(&made) {
        std::fs::remove_file(made.join(name)).expect("removed");
    }

    // Two processes die as the kernel's killer ends them, the second with half a file written.
    let this = std::env::current_exe().expect("path of this test");
    let script = format!(
        "cd '{}'; echo x >> tries; tries=$(wc -l < tries); cat > request.$tries; \
         if [ $tries -lt 3 ]; then echo half > '{}/half-a-file'; kill -9 $$; fi; \
         TWICE_TEST_RECOMPUTE_CHILD=1 '{}' --exact child_entry --nocapture --test-threads=1 \
         < request.$tries | grep '^{{'",
        folder.path().display(),
        made.display(),
        this.display()
    );
    let billed = shell(script).recompute(request).await.expect("billed");
    assert_eq!((billed.rows, billed.divergence), (straight.rows, straight.divergence));
    assert_eq!(billed.aggregates.map(|files| files.len()), straight.aggregates.map(|files| files.len()));
    assert_eq!((billed.summary.memory_retries, straight.summary.memory_retries), (2, 0));
    assert!(!made.join("half-a-file").exists(), "what the killed ones left is gone");
    let limits = |number: u32| -> ResourceLimits {
        let text = std::fs::read(folder.path().join(format!("request.{number}"))).expect("request");
        serde_json::from_slice::<RecomputeRequest>(&text).expect("reads").limits
    };
    let memory = [1, 2, 3].map(|number| limits(number).memory_bytes_max >> 20);
    assert_eq!(memory, [1024, 512, 256]);
    let rows = [2, 3].map(|number| limits(number).rows_per_slice_max.expect("bounded"));
    assert!(rows[1] <= rows[0] / 2, "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_spilled_is_removed_by_the_next() {
    let folder = tempfile::tempdir().expect("folder");
    let request = request(folder.path(), 512 << 20).await;
    let spill = folder.path().join("spill");
    let left = spill.join("twice-recompute-4711-0/datafusion-abc");
    std::fs::create_dir_all(&left).expect("folder");
    std::fs::write(left.join("rows"), vec![7_u8; 100_000]).expect("file");
    let billed = child_process().recompute(request).await.expect("billed");
    assert_eq!(billed.rows.iter().map(|row| (row.gross, row.billable)).collect::<Vec<_>>(), [(2, 1), (1, 1)]);
    assert!(billed.summary.cost.rss_peak_bytes > 0 && billed.summary.cost.rss_peak_bytes < 512 << 20);
    assert_eq!(names_in(&spill), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_statement_is_compared_and_refused_by_the_process_as_it_is_here() {
    let folder = tempfile::tempdir().expect("folder");
    let request = request(folder.path(), 512 << 20).await;
    let shadow = |sql: &str| {
        let task = Task::Shadow { sql: sql.to_owned(), campaign: None };
        let request = RecomputeRequest { task, ..request.clone() };
        async move { child_process().shadow(request).await }
    };
    let report = shadow(BILLING_SQL).await.expect("compares");
    assert_eq!((report.campaigns, report.differing), (2, 0));
    let refused = shadow("DROP TABLE clicks").await.expect_err("is no SELECT");
    assert!(matches!(refused, Error::Candidate { .. }), "{refused:?}");
}

/// Clicks of one campaign in each of 21 hours, with a few ids that come back hours later.
fn clicks_of_many_hours(per_hour: u32) -> Vec<twice_log::Click> {
    let hours = (-10_i64..=10).flat_map(|hour| (0..per_hour).map(move |number| (hour, number)));
    let one = |(hour, number): (i64, u32)| {
        let of_hour = u32::try_from(hour + 10).expect("not below zero") * per_hour;
        // Every hundredth is a click of ten hours before, sent again.
        let is_again = hour >= 0 && number % 100 == 7;
        let (id, event) = if is_again { (of_hour - 10 * per_hour, hour) } else { (of_hour, hour) };
        click(1, id + number, event * 3600 + i64::from(number % 3600), 1, 0)
    };
    hours.map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nightly_horizon_takes_the_memory_of_the_hour_and_not_of_its_day() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("archive");
    let archive = support::open_archive(&root);
    let per_hour = 50_000;
    let records = Records::of(&clicks_of_many_hours(per_hour), &[], 1);
    archive_records(&archive, &records, 500_000, 500_000).await;
    let settings = CountingSettings { horizon_hours: 24, ..CountingSettings::default() };
    let run = Run { click_ends: BTreeMap::new(), rates: Vec::new(), settings, seals: Vec::new() };
    let inputs = run_inputs(&archive, &records, &run).await;
    assert_eq!(inputs.click_files.iter().map(|file| file.rows).sum::<u64>(), 21 * u64::from(per_hour));
    let stored = archive.put_run_inputs(&inputs).await.expect("inputs are put");
    let limit = 320 << 20;
    let request = RecomputeRequest {
        archive: ArchiveLocation::Local { root },
        inputs_path: "runs/lambda/2025-01-15T12/000001.json".to_owned(),
        inputs_sha256: stored.sha256,
        limits: ResourceLimits { memory_bytes_max: limit, ..limits(&folder.path().join("spill"), 2, None) },
        task: Task::Bill,
        aggregates_dir: None,
    };
    let billed = child_process().recompute(request).await.expect("billed");
    let again = u64::from(per_hour / 100);
    let row = &billed.rows[0];
    assert_eq!((row.gross, row.duplicates), (u64::from(per_hour), again));
    assert_eq!(billed.summary.slices, 1, "slices are sized by the hour's own rows");
    assert!(billed.summary.cost.rss_peak_bytes < limit, "{:?}", billed.summary);
}
