//! Recompute of one hour, in a process of its own as the node runs it, against the named baseline, DuckDB, over the
//! same SQL and the same files.
//!
//! `cargo bench --workspace --bench recompute -- [CLICKS] [CAMPAIGNS] [THREADS] [MEMORY_MIB] [HOT_PERCENT]`
//! HOT_PERCENT of the clicks go to one campaign, which then has to be split by id; 0 by default. MEMORY_MIB bounds the
//! peak resident memory of the recompute: the benchmark fails where it is exceeded, or where the engines disagree.
//! Without CLICKS it does nothing, so that `cargo test --benches` stays quick. Set `TWICE_BENCH_DIR` to keep the files,
//! `TWICE_BENCH_ROWS_PER_FILE` to make them smaller, and `TWICE_BENCH_PYTHON` to name a Python with the `duckdb` package.
#![allow(clippy::print_stdout)] // its product is text

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use twice_log::archive::{
    Archive, ArchiverSettings, BillingPath, BillingStatus, ChainKey, CountingSettings, FileKind,
    ManifestIndex, PartitionArchiver, Rate, RunInputs, SealInput, layout,
};
use twice_log::event::record::encode_click;
use twice_log::event::{SCHEMA_VERSION_LATEST, partition_of};
use twice_log::fail::FailPoints;
use twice_log::fs::RealFs;
use twice_log::{
    AdId, CampaignId, Click, ClickId, Generation, Hour, PartitionId, PublisherId, Topic, UserId, UtcMillis,
};
use twice_reconciler::recompute::{
    ArchiveLocation, BILLING_SQL, ProcessRecompute, Recompute, RecomputeRequest, Recomputed, ResourceLimits,
    Task, rules_sha256,
};
use uuid::Uuid;

const PARTITIONS: u32 = 4;
const ROWS_PER_FLUSH: usize = 1_000_000;
/// The argument that makes this program the recompute process itself.
const CHILD: &str = "recompute-child";
/// Share of retries and of late clicks, in a thousand.
const RETRIES_PER_MILLE: u32 = 6;
const LATE_PER_MILLE: u32 = 3;

// The allocator of the node's recompute process: another one has another peak.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == CHILD) {
        return twice_reconciler::recompute::child::run(std::io::stdin(), std::io::stdout());
    }
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let Some(clicks) = numbers.first().copied() else {
        println!("usage: recompute CLICKS [CAMPAIGNS] [THREADS] [MEMORY_MIB] [HOT_PERCENT]");
        return ExitCode::SUCCESS;
    };
    let campaigns = numbers.get(1).copied().unwrap_or(10_000);
    let threads = numbers.get(2).copied().unwrap_or(2) as usize;
    let memory_mib = numbers.get(3).copied().unwrap_or(1024);
    let hot_percent = numbers.get(4).copied().unwrap_or(0);
    let kept = std::env::var_os("TWICE_BENCH_DIR");
    let folder = tempfile::tempdir().expect("folder");
    let root = kept.as_ref().map_or(folder.path(), Path::new).to_path_buf();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = runtime.expect("runtime");
    // A run of an earlier build was begun under that build's rules.
    let _ = std::fs::remove_dir_all(root.join("archive/runs"));
    let archive = Archive::open_local(Arc::new(RealFs), &root.join("archive")).expect("archive opens");
    runtime.block_on(async {
        if archive.chains().await.expect("chains").is_empty() {
            let started = Instant::now();
            generate(&archive, clicks, campaigns, hot_percent).await;
            println!(
                "generated {clicks} clicks of {campaigns} campaigns in {:.1} s",
                started.elapsed().as_secs_f64()
            );
        }
    });
    let inputs = runtime.block_on(inputs(&archive, campaigns));
    let bytes: u64 = inputs.click_files.iter().map(|file| file.bytes).sum();
    println!("{} files, {:.1} bytes a click", inputs.click_files.len(), bytes as f64 / clicks as f64);
    let limits = ResourceLimits {
        threads,
        memory_bytes_max: memory_mib << 20,
        spill_dir: root.join("spill"),
        verify_files: std::env::var_os("TWICE_BENCH_VERIFY").is_some(),
        rows_per_slice_max: None,
    };
    let recomputed = runtime.block_on(recompute(&archive, &root, &inputs, limits));
    let summary = recomputed.summary;
    report("twice (bill and causes)", clicks, summary.cost.wall_seconds, summary.cost.rss_peak_bytes);
    println!("slices: {}", summary.slices);
    let gross: u64 = recomputed.rows.iter().map(|row| row.gross).sum();
    let billable: u64 = recomputed.rows.iter().map(|row| row.billable).sum();
    let amount: i64 = recomputed.rows.iter().map(|row| row.amount_micros).sum();
    println!("twice: gross {gross}, billable {billable}, amount {amount}");
    let totals = [i128::from(gross), i128::from(billable), i128::from(amount)];
    let agrees = baseline(&root.join("archive"), &inputs, threads, memory_mib, clicks, totals);
    let is_bound = summary.cost.rss_peak_bytes <= memory_mib << 20;
    if !is_bound {
        println!("FAILED: the recompute took more than its {memory_mib} MiB");
    }
    if agrees && is_bound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the recompute as the node does: in a child process, from inputs that were put into the archive.
async fn recompute(archive: &Archive, root: &Path, inputs: &RunInputs, limits: ResourceLimits) -> Recomputed {
    let stored = archive.put_run_inputs(inputs).await.expect("inputs are put");
    let aggregates = root.join("aggregates");
    std::fs::create_dir_all(&aggregates).expect("folder of aggregates");
    let request = RecomputeRequest {
        archive: ArchiveLocation::Local { root: root.join("archive") },
        inputs_path: layout::run_inputs_path(inputs.path, inputs.hour, inputs.seq),
        inputs_sha256: stored.sha256,
        limits,
        task: Task::Bill,
        aggregates_dir: Some(aggregates.clone()),
    };
    let program = std::env::current_exe().expect("this program");
    let child = ProcessRecompute::with_arguments(program, vec![CHILD.to_owned()], 0);
    child.recompute(request).await.expect("recompute")
}

fn report(name: &str, clicks: u64, seconds: f64, rss_peak_bytes: u64) {
    let rate = clicks as f64 / seconds;
    println!("{name}: {seconds:.2} s, {rate:.0} clicks/s, peak {} MiB", rss_peak_bytes >> 20);
}

fn hour() -> Hour {
    "2025-01-15T12".parse().expect("valid hour")
}

fn campaign(number: u64) -> CampaignId {
    CampaignId::new(format!("camp_{number:06}")).expect("valid id")
}

async fn generate(archive: &Archive, clicks: u64, campaigns: u64, hot_percent: u64) {
    let mut random = StdRng::seed_from_u64(7);
    let zipf = Zipf::new(campaigns as f64, 1.05).expect("valid shape");
    let mut archivers = Vec::new();
    for partition in (0..PARTITIONS).map(PartitionId) {
        let chain = ChainKey { topic: Topic::AdClicks, generation: Generation(0), partition };
        let settings = ArchiverSettings::default();
        let opened =
            PartitionArchiver::open(archive.clone(), chain, PARTITIONS, settings, FailPoints::default());
        archivers.push(opened.await.expect("archiver opens"));
    }
    let rows_per_file = std::env::var("TWICE_BENCH_ROWS_PER_FILE").ok().and_then(|rows| rows.parse().ok());
    let rows_per_file = rows_per_file.unwrap_or(ROWS_PER_FLUSH);
    let mut earlier: Vec<Click> = Vec::new();
    let mut bytes = Vec::new();
    for number in 0..clicks {
        let mut click = next_click(&mut random, &zipf, &mut earlier, number, clicks);
        if number % 100 < hot_percent {
            click.campaign_id = campaign(campaigns / 2);
        }
        bytes.clear();
        encode_click(&click, &mut bytes);
        let archiver = &mut archivers[partition_of(&click.campaign_id, PARTITIONS).0 as usize];
        let offset = archiver.next_offset();
        archiver.push(offset, &bytes).expect("record is taken");
        if archiver.rows() >= rows_per_file {
            archiver.flush().await.expect("flush");
        }
    }
    for archiver in &mut archivers {
        archiver.flush().await.expect("flush");
    }
}

fn next_click(
    random: &mut StdRng,
    zipf: &Zipf<f64>,
    earlier: &mut Vec<Click>,
    number: u64,
    clicks: u64,
) -> Click {
    let dice = random.random_range(0..1000);
    if dice < RETRIES_PER_MILLE && !earlier.is_empty() {
        return earlier[random.random_range(0..earlier.len())].clone();
    }
    let arrival = hour().start().plus_ms((number * 3_600_000 / clicks) as i64);
    let late = if dice < RETRIES_PER_MILLE + LATE_PER_MILLE { 200_000 } else { random.random_range(0..2000) };
    let event = UtcMillis::clamped((arrival.epoch_ms() - late).max(hour().start().epoch_ms()));
    let click = Click {
        campaign_id: campaign(zipf.sample(random) as u64),
        click_id: ClickId(Uuid::from_u128(random.random())),
        ad_id: AdId::new(format!("ad_{}", random.random_range(0..10))).expect("valid id"),
        user_id: UserId::new(format!("user_{:07}", random.random_range(0..5_000_000))).expect("valid id"),
        publisher_id: PublisherId::new(format!("pub_{}", random.random_range(0..100))).expect("valid id"),
        event_time: event,
        arrival_time: arrival,
        ip_hash: Some(random.random()),
        schema_version: SCHEMA_VERSION_LATEST,
    };
    if earlier.len() < 10_000 {
        earlier.push(click.clone());
    } else {
        let place = random.random_range(0..earlier.len());
        earlier[place] = click.clone();
    }
    click
}

async fn inputs(archive: &Archive, campaigns: u64) -> RunInputs {
    let mut index = ManifestIndex::new(archive.clone());
    index.refresh().await.expect("manifests read");
    let chains: Vec<ChainKey> = index.chains().collect();
    let cutoffs: Vec<_> =
        chains.iter().filter_map(|chain| index.cutoff(*chain, index.covered_end(*chain))).collect();
    let settings = CountingSettings::default();
    let hours = hour().plus(-1)..=hour().plus(1);
    let rates = (1..=campaigns).step_by(2).map(|number| Rate {
        campaign_id: campaign(number),
        currency: "USD".parse().expect("valid currency"),
        cpc_micros: 1000,
        effective_from: hour().start(),
        recorded_at: hour().start(),
    });
    RunInputs {
        path: BillingPath::Lambda,
        hour: hour(),
        seq: 1,
        status: BillingStatus::Reconciled,
        settings,
        click_files: index.files_for_hours(FileKind::Clicks, hours, &cutoffs).expect("files"),
        verdict_files: Vec::new(),
        seals: seals_of(&chains),
        cutoffs,
        rates: rates.collect(),
        announced: false,
        mode_change: false,
        rules_sha256: rules_sha256(&settings).expect("rules"),
        created_at: hour().end(),
    }
}

fn seals_of(chains: &[ChainKey]) -> Vec<SealInput> {
    let by_partition: BTreeMap<_, _> =
        chains.iter().map(|chain| (chain.partition, chain.generation)).collect();
    let unsealed = |(partition, generation)| SealInput { generation, partition, seal: None };
    by_partition.into_iter().map(unsealed).collect()
}

/// Runs the very statement on DuckDB over the very files, if a Python with `duckdb` is there; returns false if it
/// disagrees.
fn baseline(
    archive: &Path,
    inputs: &RunInputs,
    threads: usize,
    memory_mib: u64,
    clicks: u64,
    totals: [i128; 3],
) -> bool {
    let files: Vec<String> =
        inputs.click_files.iter().map(|file| archive.join(&file.path).display().to_string()).collect();
    let rates: Vec<_> =
        inputs.rates.iter().map(|rate| (rate.campaign_id.as_str(), rate.cpc_micros)).collect();
    let request = serde_json::json!({
        "sql": BILLING_SQL, "files": files, "rates": rates, "threads": threads, "memory_mib": memory_mib,
    });
    let python = std::env::var("TWICE_BENCH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/baseline.py");
    let child = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let answer = child.and_then(|mut child| {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(request.to_string().as_bytes())?;
        }
        child.wait_with_output()
    });
    let output = answer.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let answer: Option<serde_json::Value> = output.and_then(|output| serde_json::from_slice(&output).ok());
    let Some(answer) = answer else {
        println!("duckdb: not run; it needs a Python with the duckdb package (TWICE_BENCH_PYTHON)");
        return true;
    };
    let seconds = answer.get("seconds").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
    // Whole numbers, never by way of a float.
    let whole = |name: &str| answer.get(name).and_then(serde_json::Value::as_i64).map_or(-1, i128::from);
    report("duckdb (bill)", clicks, seconds, u64::try_from(whole("rss_peak_bytes")).unwrap_or(0));
    let theirs = [whole("gross"), whole("billable"), whole("amount")];
    println!("duckdb: gross {}, billable {}, amount {}", theirs[0], theirs[1], theirs[2]);
    if theirs != totals {
        println!("FAILED: the two engines do not agree");
    }
    theirs == totals
}
