//! Replays of real archives against a naive model that looks at every copy before each.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use twice_log::archive::{
    Archive, ArchiverSettings, BillingPath, BillingStatus, ChainKey, CountingSettings, FileKind,
    ManifestIndex, PartitionArchiver, Rate, RunInputs, StoredRunInputs,
};
use twice_log::event::record::{encode_click, encode_verdict};
use twice_log::event::{Sha256Hex, partition_of, payload_hash};
use twice_log::fail::FailPoints;
use twice_log::fs::RealFs;
use twice_log::{
    AdId, CampaignId, Click, ClickId, Generation, Hour, LogOffset, PartitionId, PublisherId, Topic, UserId,
    UtcMillis, Verdict, VerdictClass,
};
use twice_store::{BillingCounts, Replay};

use super::files::Files;
use super::inputs::ReplayInputs;
use super::pass::Pass;
use super::slices::Slice;
use super::{InProcessReplay, ReplayLimits};

const PARTITIONS: u32 = 2;
const HOUR_MS: i64 = 3_600_000;
/// An hour before midnight, so that ranges cross it.
const FIRST_HOUR: i64 = 482_484 + 11;

/// A click in few numbers.
#[derive(Debug, Clone, Copy)]
struct Planned {
    campaign: u8,
    identity: u8,
    ad: u8,
    hour: i64,
    minute: i64,
}

#[derive(Debug, Clone, Copy)]
struct PlannedVerdict {
    campaign: u8,
    identity: u8,
    class: u8,
    decided: i64,
    /// Hours after the first hour.
    arrival: i64,
}

/// One run: hour, horizon and how much of each partition it sees, in hundredths.
#[derive(Debug, Clone, Copy)]
struct PlannedRun {
    hour: i64,
    horizon: u32,
    seen: [i64; 2],
    verdicts_seen: i64,
    rates: usize,
}

fn planned_clicks() -> impl Strategy<Value = Vec<Planned>> {
    let plan = (0..3_u8, 0..8_u8, 0..2_u8, 0..5_i64, 0..3_i64)
        .prop_map(|(campaign, identity, ad, hour, minute)| Planned { campaign, identity, ad, hour, minute });
    proptest::collection::vec(plan, 1..90)
}

fn planned_verdicts() -> impl Strategy<Value = Vec<PlannedVerdict>> {
    let plan = (0..3_u8, 0..8_u8, 0..3_u8, 0..4_i64, -26..8_i64).prop_map(
        |(campaign, identity, class, decided, arrival)| PlannedVerdict {
            campaign,
            identity,
            class,
            decided,
            arrival,
        },
    );
    proptest::collection::vec(plan, 0..25)
}

fn planned_rates() -> impl Strategy<Value = Vec<Rate>> {
    let rate =
        (0..3_u8, 1..9_i64, -2..4_i64, 0..3_i64).prop_map(|(campaign, cpc, effective, recorded)| Rate {
            campaign_id: campaign_id(campaign),
            currency: "EUR".parse().expect("valid"),
            cpc_micros: cpc,
            effective_from: at(effective, 1),
            recorded_at: at(recorded, 0),
        });
    proptest::collection::vec(rate, 0..8)
}

/// Runs of different hours; hours 1 to 3 of the five that have clicks.
fn planned_runs() -> impl Strategy<Value = Vec<PlannedRun>> {
    let run = |hour: i64| {
        (
            prop_oneof![Just(0_u32), Just(1), Just(2), Just(24)],
            [30..=100_i64, 30..=100_i64],
            0..=100_i64,
            0..8_usize,
        )
            .prop_map(move |(horizon, seen, verdicts_seen, rates)| PlannedRun {
                hour,
                horizon,
                seen,
                verdicts_seen,
                rates,
            })
    };
    (run(1), run(2), run(3), 1..=3_usize)
        .prop_map(|(first, second, third, count)| [second, third, first].into_iter().take(count).collect())
}

fn campaign_id(number: u8) -> CampaignId {
    CampaignId::new(format!("camp_{number}")).expect("valid")
}

fn click_id(number: u8) -> ClickId {
    ClickId::derived(&number.to_string())
}

fn hour(number: i64) -> Hour {
    Hour::from_since_epoch(FIRST_HOUR + number)
}

fn at(hour_number: i64, minute: i64) -> UtcMillis {
    hour(hour_number).start().plus_ms(minute * 60_000)
}

fn click(plan: &Planned) -> Click {
    Click {
        campaign_id: campaign_id(plan.campaign),
        click_id: click_id(plan.identity),
        ad_id: AdId::new(format!("ad_{}", plan.ad)).expect("valid"),
        user_id: UserId::default(),
        publisher_id: PublisherId::default(),
        event_time: at(plan.hour, plan.minute),
        arrival_time: at(plan.hour, plan.minute),
        ip_hash: None,
        schema_version: 2,
    }
}

fn verdict(plan: &PlannedVerdict) -> Verdict {
    Verdict {
        campaign_id: campaign_id(plan.campaign),
        click_id: click_id(plan.identity),
        verdict: [VerdictClass::Valid, VerdictClass::Givt, VerdictClass::Sivt][usize::from(plan.class)],
        model_version: Default::default(),
        decided_at: at(plan.decided, 0),
        click_event_time: None,
        arrival_time: at(plan.arrival, 0),
        schema_version: 1,
    }
}

/// Records of one topic by partition and offset.
type Records<T> = BTreeMap<PartitionId, Vec<T>>;

fn by_partition<T: Clone>(all: &[T], campaign: impl Fn(&T) -> &CampaignId) -> Records<T> {
    let mut records: Records<T> =
        (0..PARTITIONS).map(|partition| (PartitionId(partition), Vec::new())).collect();
    for one in all {
        records.entry(partition_of(campaign(one), PARTITIONS)).or_default().push(one.clone());
    }
    records
}

async fn put<T>(archive: &Archive, topic: Topic, records: &Records<T>, encode: fn(&T, &mut Vec<u8>)) {
    for (partition, records) in records {
        let chain = ChainKey { topic, generation: Generation(0), partition: *partition };
        let settings = ArchiverSettings { rows_per_file_max: 5, ..ArchiverSettings::default() };
        let archiver =
            PartitionArchiver::open(archive.clone(), chain, PARTITIONS, settings, FailPoints::default());
        let mut archiver = archiver.await.expect("archiver opens");
        for (offset, record) in records.iter().enumerate() {
            let mut bytes = Vec::new();
            encode(record, &mut bytes);
            archiver.push(LogOffset(offset as i64), &bytes).expect("record is taken");
            if archiver.rows() >= 13 {
                archiver.flush().await.expect("flush");
            }
        }
        archiver.flush().await.expect("flush");
    }
}

/// A folder with an archive of the records.
struct World {
    folder: tempfile::TempDir,
    archive: Archive,
    clicks: Records<Click>,
    verdicts: Records<Verdict>,
    rates: Vec<Rate>,
}

impl World {
    async fn make(clicks: &[Planned], verdicts: &[PlannedVerdict], rates: Vec<Rate>) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let archive = Archive::open_local(Arc::new(RealFs), &folder.path().join("archive")).expect("opens");
        let clicks: Vec<Click> = clicks.iter().map(click).collect();
        let verdicts: Vec<Verdict> = verdicts.iter().map(verdict).collect();
        let clicks = by_partition(&clicks, |click| &click.campaign_id);
        let verdicts = by_partition(&verdicts, |verdict| &verdict.campaign_id);
        put(&archive, Topic::AdClicks, &clicks, encode_click).await;
        put(&archive, Topic::FraudVerdicts, &verdicts, encode_verdict).await;
        Self { folder, archive, clicks, verdicts, rates }
    }

    fn end(&self, plan: &PlannedRun, topic: Topic, partition: PartitionId) -> usize {
        match topic {
            Topic::AdClicks => self.clicks[&partition].len() * plan.seen[partition.0 as usize] as usize / 100,
            Topic::FraudVerdicts => self.verdicts[&partition].len() * plan.verdicts_seen as usize / 100,
            Topic::BudgetDecisions => 0,
        }
    }

    fn rates(&self, plan: &PlannedRun) -> Vec<Rate> {
        self.rates.iter().take(plan.rates).cloned().collect()
    }

    async fn inputs(&self, plan: &PlannedRun) -> StoredRunInputs {
        let mut index = ManifestIndex::new(self.archive.clone());
        index.refresh().await.expect("manifests read");
        let mut cutoffs = Vec::new();
        for topic in [Topic::AdClicks, Topic::FraudVerdicts] {
            for partition in (0..PARTITIONS).map(PartitionId) {
                let chain = ChainKey { topic, generation: Generation(0), partition };
                let end = LogOffset(self.end(plan, topic, partition) as i64);
                cutoffs.push(index.cutoff(chain, end).expect("covered"));
            }
        }
        let (billed, horizon) = (hour(plan.hour), i64::from(plan.horizon));
        let clicks = billed.plus(-horizon)..=billed.plus(horizon);
        let verdicts = billed.plus(-24)..=Hour::from_since_epoch(i64::MAX);
        let inputs = RunInputs {
            path: BillingPath::Lambda,
            hour: billed,
            seq: 1,
            status: BillingStatus::Reconciled,
            settings: CountingSettings { horizon_hours: plan.horizon, ..CountingSettings::default() },
            click_files: index.files_for_hours(FileKind::Clicks, clicks, &cutoffs).expect("files"),
            verdict_files: index.files_for_hours(FileKind::Verdicts, verdicts, &cutoffs).expect("files"),
            cutoffs,
            seals: Vec::new(),
            rates: self.rates(plan),
            announced: false,
            mode_change: false,
            rules_sha256: Sha256Hex::of(b"rules"),
            created_at: billed.end(),
        };
        let sha256 = Sha256Hex::of(&serde_json::to_vec(&inputs).expect("JSON"));
        StoredRunInputs { inputs, sha256 }
    }

    async fn all_inputs(&self, plans: &[PlannedRun]) -> Vec<StoredRunInputs> {
        let mut all = Vec::new();
        for plan in plans {
            all.push(self.inputs(plan).await);
        }
        all
    }

    async fn replay(&self, runs: &[StoredRunInputs], limits: ReplayLimits) -> Vec<Vec<BillingCounts>> {
        let replayed = InProcessReplay::new(self.archive.clone(), limits).replay(runs, None).await;
        replayed.expect("replay").hours.into_iter().map(|hour| hour.rows).collect()
    }

    /// The rules once more, as plainly as they can be said.
    fn model(&self, plan: &PlannedRun) -> Vec<BillingCounts> {
        let (billed, rates) = (hour(plan.hour), self.rates(plan));
        let mut rows: BTreeMap<CampaignId, BillingCounts> = BTreeMap::new();
        for (partition, clicks) in &self.clicks {
            let seen = &clicks[..self.end(plan, Topic::AdClicks, *partition)];
            for (offset, copy) in seen.iter().enumerate() {
                if copy.event_time.hour() != billed {
                    continue;
                }
                let campaign = &copy.campaign_id;
                let currency =
                    rates.iter().find(|rate| rate.campaign_id == *campaign).map(|rate| rate.currency);
                let zero = || BillingCounts::zero(campaign.clone(), currency);
                let row = rows.entry(campaign.clone()).or_insert_with(zero);
                row.gross += 1;
                let winner = seen.iter().take(offset).find(|other| {
                    let apart = other.event_time.hour().since_epoch() - billed.since_epoch();
                    (&other.campaign_id, other.click_id) == (campaign, copy.click_id)
                        && apart.abs() <= i64::from(plan.horizon)
                });
                match (winner, self.ruling(plan, copy)) {
                    (Some(winner), _) => {
                        row.duplicates += 1;
                        row.conflicts += u64::from(payload_hash(winner) != payload_hash(copy));
                    }
                    (None, VerdictClass::Givt) => row.invalid_givt += 1,
                    (None, VerdictClass::Sivt) => row.invalid_sivt += 1,
                    (None, VerdictClass::Valid) => {
                        row.billable += 1;
                        let price = rates
                            .iter()
                            .filter(|rate| {
                                rate.campaign_id == *campaign && rate.effective_from <= copy.event_time
                            })
                            .max_by_key(|rate| (rate.effective_from, rate.recorded_at, rate.cpc_micros));
                        row.unpriced += u64::from(price.is_none());
                        row.amount_micros += price.map_or(0, |rate| rate.cpc_micros);
                    }
                }
            }
        }
        rows.into_values().collect()
    }

    fn ruling(&self, plan: &PlannedRun, copy: &Click) -> VerdictClass {
        let partition = partition_of(&copy.campaign_id, PARTITIONS);
        let seen = &self.verdicts[&partition][..self.end(plan, Topic::FraudVerdicts, partition)];
        let asked = seen.iter().enumerate().filter(|(_, verdict)| {
            (&verdict.campaign_id, verdict.click_id) == (&copy.campaign_id, copy.click_id)
                && verdict.arrival_time >= hour(plan.hour).start().plus_ms(-24 * HOUR_MS)
        });
        let newest = asked.max_by_key(|(offset, verdict)| (verdict.decided_at, *offset));
        newest.map_or(VerdictClass::Valid, |(_, verdict)| verdict.verdict)
    }
}

fn limits(threads: usize, copies_per_slice_max: Option<u64>, scratch: Option<&Path>) -> ReplayLimits {
    ReplayLimits {
        threads,
        memory_bytes_max: 256 << 20,
        verify_files: true,
        copies_per_slice_max,
        scratch_dir: scratch.map(Path::to_path_buf),
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn rows_equal_the_naive_model_whatever_the_slices_and_threads(
        clicks in planned_clicks(),
        verdicts in planned_verdicts(),
        rates in planned_rates(),
        plans in planned_runs(),
        slice in prop_oneof![Just(None), (1..40_u64).prop_map(Some)],
        threads in 1..3_usize,
    ) {
        block_on(async {
            let world = World::make(&clicks, &verdicts, rates).await;
            let runs = world.all_inputs(&plans).await;
            let expected: Vec<_> = plans.iter().map(|plan| world.model(plan)).collect();
            for limits in [limits(threads, slice, None), limits(threads, slice, Some(world.folder.path()))] {
                prop_assert_eq!(&world.replay(&runs, limits).await, &expected);
            }
            // Together or each by itself: the same rows.
            for (run, rows) in runs.iter().zip(&expected) {
                let alone = world.replay(std::slice::from_ref(run), limits(1, None, None)).await;
                prop_assert_eq!(&alone[0], rows);
            }
            Ok(())
        })?;
    }
}

fn day() -> (Vec<Planned>, PlannedRun) {
    let clicks: Vec<Planned> = (0..60)
        .map(|number: u8| Planned {
            campaign: number % 3,
            identity: number % 25,
            ad: number % 2,
            hour: i64::from(number % 3),
            minute: 0,
        })
        .collect();
    (clicks, PlannedRun { hour: 1, horizon: 1, seen: [100, 100], verdicts_seen: 100, rates: 0 })
}

/// Counts until `slices` of them are kept, and then fails as if the process had died.
fn die_after(world: &World, runs: &[StoredRunInputs], limits: &ReplayLimits, slices: u32) -> u32 {
    let runtime = super::child::runtime().expect("runtime");
    let reached = Mutex::new(0);
    let say = |said| match said {
        super::count::Said::Progress(progress) => {
            *reached.lock().expect("lock") = progress.slices_done;
            if progress.slices_done >= slices {
                return Err(super::inputs::refused("dead"));
            }
            Ok(())
        }
        super::count::Said::Row(..) => Ok(()),
    };
    let scope = super::count::Scope::Share;
    let ended = super::count::count(&world.archive, runs, limits, scope, runtime.handle(), &say);
    assert!(ended.is_err(), "it was to die");
    reached.into_inner().expect("lock")
}

#[test]
fn halves_are_counted_when_the_slice_given_up_has_freed_its_memory() {
    let (clicks, plan) = day();
    let world = block_on(World::make(&clicks, &[], Vec::new()));
    let inputs = ReplayInputs::of(&block_on(world.all_inputs(&[plan]))).expect("inputs");
    let clicks = Files::new(world.archive.clone(), inputs.clicks.clone());
    let verdicts = Files::new(world.archive.clone(), inputs.verdicts.clone());
    let (runtime, is_full) = (super::child::runtime().expect("runtime"), AtomicBool::new(true));
    let pass = Pass {
        inputs: &inputs,
        clicks: &clicks,
        verdicts: &verdicts,
        runtime: runtime.handle(),
        threads: 1,
        is_full: &|| is_full.load(Ordering::SeqCst),
        settle: &|| is_full.store(false, Ordering::SeqCst),
        counted: &|_| (),
    };
    let counts = super::count::count_halving(&pass, &Slice::all(), 1).expect("one halving suffices");
    assert_eq!(counts.runs[0], world.model(&plan));
}

#[test]
fn a_killed_replay_goes_on_after_its_last_slice_and_leaves_nothing_behind() {
    let (clicks, plan) = day();
    let world = block_on(World::make(&clicks, &[], Vec::new()));
    let runs = block_on(world.all_inputs(&[plan]));
    let scratch = world.folder.path().join("replay");
    let limits = limits(1, Some(10), Some(&scratch));
    assert_eq!(die_after(&world, &runs, &limits, 3), 3);
    let runtime = super::child::runtime().expect("runtime");
    let rows = Mutex::new(Vec::new());
    let say = |said| {
        if let super::count::Said::Row(_, row) = said {
            rows.lock().expect("lock").push(row);
        }
        Ok(())
    };
    let scope = super::count::Scope::Share;
    let summary = super::count::count(&world.archive, &runs, &limits, scope, runtime.handle(), &say);
    let summary = summary.expect("replay");
    assert_eq!(summary.slices_found, 3);
    assert!(summary.slices > 3, "{summary:?}");
    assert_eq!(summary.copies, 60);
    assert_eq!(rows.into_inner().expect("lock"), world.model(&plan));
    assert_eq!(std::fs::read_dir(&scratch).expect("listed").count(), 0);
}

#[test]
fn a_damaged_slice_of_an_earlier_try_is_counted_anew() {
    let (clicks, plan) = day();
    let world = block_on(World::make(&clicks, &[], Vec::new()));
    let runs = block_on(world.all_inputs(&[plan]));
    let scratch = world.folder.path().join("replay");
    let limits = limits(1, Some(10), Some(&scratch));
    die_after(&world, &runs, &limits, 2);
    let folder = std::fs::read_dir(&scratch).expect("listed").next().expect("one").expect("read").path();
    let slice = folder.join("slice-0000.json");
    let bytes = std::fs::read(&slice).expect("kept");
    std::fs::write(&slice, &bytes[..bytes.len() / 2]).expect("torn");
    assert_eq!(block_on(world.replay(&runs, limits))[0], world.model(&plan));
}

#[test]
fn a_file_that_is_not_the_one_recorded_stops_the_replay_and_is_named() {
    let (clicks, plan) = day();
    let world = block_on(World::make(&clicks, &[], Vec::new()));
    let runs = block_on(world.all_inputs(&[plan]));
    let path = &runs[0].inputs.click_files[0].path;
    let file = world.folder.path().join("archive").join(path);
    let mut bytes = std::fs::read(&file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    let replay = InProcessReplay::new(world.archive.clone(), limits(1, None, None));
    let error = block_on(replay.replay(&runs, None)).expect_err("damaged");
    let twice_store::Error::Archive(twice_log::Error::ArchiveDamage { path: named, .. }) = &error else {
        panic!("{error}");
    };
    assert_eq!(named, path);
}

#[test]
fn two_runs_of_one_hour_are_refused() {
    let (clicks, plan) = day();
    let world = block_on(World::make(&clicks, &[], Vec::new()));
    let runs = block_on(world.all_inputs(&[plan, plan]));
    let replay = InProcessReplay::new(world.archive.clone(), limits(1, None, None));
    assert!(block_on(replay.replay(&runs, None)).is_err());
}
