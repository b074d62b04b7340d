//! Replay of some hours, in a process of its own as the node runs it, against the named baseline: real time at 200 000
//! clicks a second, at which a replay that is slower never catches up.
//!
//! `cargo bench --workspace --bench replay -- [CLICKS] [HOURS] [CAMPAIGNS] [THREADS] [MEMORY_MIB] [HOT_PERCENT]`
//! CLICKS over HOURS hours (default 4) of 10 000 campaigns, Zipf 1.05, 0.6 % duplicates, five partitions' flushes of a
//! million rows; HOT_PERCENT of the clicks go to one campaign. MEMORY_MIB (1024) bounds the peak resident memory: the
//! benchmark fails where it is exceeded, or where the rows do not sum to the clicks. Without CLICKS it does nothing, so
//! that `cargo test --benches` stays quick. Set `TWICE_BENCH_DIR` to keep the files, `TWICE_BENCH_VERIFY` to hash them.
#![allow(clippy::print_stdout)] // its product is text

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use twice_actors::{ProcessReplay, ReplayLimits};
use twice_log::archive::{
    Archive, ArchiveLocation, ArchiverSettings, BillingPath, BillingStatus, ChainKey, CountingSettings,
    FileKind, ManifestIndex, PartitionArchiver, Rate, RunInputs, StoredRunInputs,
};
use twice_log::event::record::encode_click;
use twice_log::event::{SCHEMA_VERSION_LATEST, Sha256Hex, partition_of};
use twice_log::fail::FailPoints;
use twice_log::fs::RealFs;
use twice_log::{
    AdId, CampaignId, Click, ClickId, Generation, Hour, PartitionId, PublisherId, Topic, UserId, UtcMillis,
};
use twice_store::{Replay, Replayed};
use uuid::Uuid;

const PARTITIONS: u32 = 4;
const ROWS_PER_FLUSH: usize = 1_000_000;
/// The argument that makes this program the replay process itself.
const CHILD: &str = "replay-child";
const RETRIES_PER_MILLE: u32 = 6;
/// Clicks a second of the baseline.
const REAL_TIME: f64 = 200_000.0;

// The allocator of the node's replay process: another one has another peak.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

struct Arguments {
    clicks: u64,
    hours: i64,
    campaigns: u64,
    threads: usize,
    memory_mib: u64,
    hot_percent: u64,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == CHILD) {
        return twice_actors::replay::child::run(std::io::stdin(), std::io::stdout());
    }
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let number = |index: usize, default: u64| numbers.get(index).copied().unwrap_or(default);
    let Some(clicks) = numbers.first().copied() else {
        println!("usage: replay CLICKS [HOURS] [CAMPAIGNS] [THREADS] [MEMORY_MIB] [HOT_PERCENT]");
        return ExitCode::SUCCESS;
    };
    let arguments = Arguments {
        clicks,
        hours: number(1, 4) as i64,
        campaigns: number(2, 10_000),
        threads: number(3, 2) as usize,
        memory_mib: number(4, 1024),
        hot_percent: number(5, 0),
    };
    let kept = std::env::var_os("TWICE_BENCH_DIR");
    let folder = tempfile::tempdir().expect("folder");
    let root = kept.as_ref().map_or(folder.path(), Path::new);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("runtime").block_on(measure(&arguments, root))
}

async fn measure(arguments: &Arguments, root: &Path) -> ExitCode {
    let _ = std::fs::remove_dir_all(root.join("archive/runs")); // of an earlier build, perhaps
    let archive = Archive::open_local(Arc::new(RealFs), &root.join("archive")).expect("archive opens");
    if archive.chains().await.expect("chains").is_empty() {
        let started = Instant::now();
        generate(&archive, arguments).await;
        println!("generated {} clicks in {:.1} s", arguments.clicks, started.elapsed().as_secs_f64());
    }
    let mut index = ManifestIndex::new(archive.clone());
    index.refresh().await.expect("manifests read");
    let mut runs = Vec::new();
    for number in 0..arguments.hours {
        let inputs = inputs(&index, hour(number), arguments.campaigns);
        runs.push(archive.put_run_inputs(&inputs).await.expect("inputs are put"));
    }
    let replayed = replay(arguments, root, &runs).await;
    let cost = replayed.cost;
    let rate = replayed.copies as f64 / cost.wall_seconds;
    println!(
        "replay: {} clicks in {:.2} s, {rate:.0} clicks/s, {:.2} CPU s, peak {} MiB, {} slices",
        replayed.copies,
        cost.wall_seconds,
        cost.cpu_seconds,
        cost.rss_peak_bytes >> 20,
        replayed.slices
    );
    println!("real time at {REAL_TIME:.0} clicks/s: {:.1} times as fast", rate / REAL_TIME);
    let gross: u64 = replayed.hours.iter().flat_map(|hour| &hour.rows).map(|row| row.gross).sum();
    let billable: u64 = replayed.hours.iter().flat_map(|hour| &hour.rows).map(|row| row.billable).sum();
    println!("gross {gross}, billable {billable}");
    let is_whole = gross == arguments.clicks && replayed.copies == arguments.clicks;
    let is_bound = cost.rss_peak_bytes <= arguments.memory_mib << 20;
    if !is_whole {
        println!("FAILED: the rows do not sum to the clicks");
    }
    if !is_bound {
        println!("FAILED: the replay took more than its {} MiB", arguments.memory_mib);
    }
    if is_whole && is_bound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn replay(arguments: &Arguments, root: &Path, runs: &[StoredRunInputs]) -> Replayed {
    let limits = ReplayLimits {
        threads: arguments.threads,
        memory_bytes_max: arguments.memory_mib << 20,
        verify_files: std::env::var_os("TWICE_BENCH_VERIFY").is_some(),
        copies_per_slice_max: None,
        scratch_dir: Some(root.join("replay")),
    };
    let program = std::env::current_exe().expect("this program");
    let location = ArchiveLocation::Local { root: root.join("archive") };
    let child = ProcessReplay::with_arguments(program, vec![CHILD.to_owned()], 0, location, limits);
    child.replay(runs, None).await.expect("replay")
}

fn hour(number: i64) -> Hour {
    "2025-01-15T12".parse::<Hour>().expect("valid hour").plus(number)
}

fn campaign(number: u64) -> CampaignId {
    CampaignId::new(format!("camp_{number:06}")).expect("valid id")
}

async fn generate(archive: &Archive, arguments: &Arguments) {
    let mut random = StdRng::seed_from_u64(7);
    let zipf = Zipf::new(arguments.campaigns as f64, 1.05).expect("valid shape");
    let mut archivers = Vec::new();
    for partition in (0..PARTITIONS).map(PartitionId) {
        let chain = ChainKey { topic: Topic::AdClicks, generation: Generation(0), partition };
        let settings = ArchiverSettings::default();
        let opened =
            PartitionArchiver::open(archive.clone(), chain, PARTITIONS, settings, FailPoints::default());
        archivers.push(opened.await.expect("archiver opens"));
    }
    let mut earlier: Vec<Click> = Vec::new();
    let mut bytes = Vec::new();
    for number in 0..arguments.clicks {
        let mut click = next_click(&mut random, &zipf, &mut earlier, number, arguments);
        if number % 100 < arguments.hot_percent {
            click.campaign_id = campaign(arguments.campaigns / 2);
        }
        bytes.clear();
        encode_click(&click, &mut bytes);
        let archiver = &mut archivers[partition_of(&click.campaign_id, PARTITIONS).0 as usize];
        let offset = archiver.next_offset();
        archiver.push(offset, &bytes).expect("record is taken");
        if archiver.rows() >= ROWS_PER_FLUSH {
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
    arguments: &Arguments,
) -> Click {
    if random.random_range(0..1000) < RETRIES_PER_MILLE && !earlier.is_empty() {
        return earlier[random.random_range(0..earlier.len())].clone();
    }
    let start_ms = hour(0).start().epoch_ms();
    let span_ms = u64::try_from(arguments.hours).unwrap_or(1) * 3_600_000;
    let arrival_ms = start_ms + (number as u128 * u128::from(span_ms) / u128::from(arguments.clicks)) as i64;
    let event_ms = (arrival_ms - random.random_range(0..2000)).max(start_ms);
    let click = Click {
        campaign_id: campaign(zipf.sample(random) as u64),
        click_id: ClickId(Uuid::from_u128(random.random())),
        ad_id: AdId::new(format!("ad_{}", random.random_range(0..10))).expect("valid id"),
        user_id: UserId::new(format!("user_{:07}", random.random_range(0..5_000_000))).expect("valid id"),
        publisher_id: PublisherId::new(format!("pub_{}", random.random_range(0..100))).expect("valid id"),
        event_time: UtcMillis::clamped(event_ms),
        arrival_time: UtcMillis::clamped(arrival_ms),
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

fn inputs(index: &ManifestIndex, hour: Hour, campaigns: u64) -> RunInputs {
    let chains: Vec<ChainKey> = index.chains().collect();
    let cutoffs: Vec<_> =
        chains.iter().filter_map(|chain| index.cutoff(*chain, index.covered_end(*chain))).collect();
    let hours = hour.plus(-1)..=hour.plus(1);
    let rates = (1..=campaigns).step_by(2).map(|number| Rate {
        campaign_id: campaign(number),
        currency: "USD".parse().expect("valid currency"),
        cpc_micros: 1000,
        effective_from: hour.start(),
        recorded_at: hour.start(),
    });
    RunInputs {
        path: BillingPath::Kappa,
        hour,
        seq: 1,
        status: BillingStatus::Reconciled,
        settings: CountingSettings::default(),
        click_files: index.files_for_hours(FileKind::Clicks, hours, &cutoffs).expect("files"),
        verdict_files: Vec::new(),
        seals: Vec::new(),
        cutoffs,
        rates: rates.collect(),
        announced: false,
        mode_change: false,
        rules_sha256: Sha256Hex::of(b"the benchmark's"),
        created_at: hour.end(),
    }
}
