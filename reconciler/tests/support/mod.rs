//! What the tests of the batch path share: clicks made by hand, an archive written from them, and a naive model.

#![allow(dead_code)] // each test file uses a part of it

pub mod model;
pub mod node;
pub mod replay;
pub mod streams;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use twice_log::archive::{
    Archive, ArchiverSettings, BillingPath, BillingStatus, ChainKey, CountingSettings, FileKind,
    ManifestIndex, PartitionArchiver, Rate, RunInputs, Seal, SealInput, SealReference,
};
use twice_log::event::record::{encode_click, encode_verdict};
use twice_log::event::{SCHEMA_VERSION_LATEST, partition_of};
use twice_log::fail::FailPoints;
use twice_log::fs::RealFs;
use twice_log::{
    AdId, CampaignId, Click, ClickId, Generation, Hour, LogOffset, PartitionId, PublisherId, Topic, UserId,
    UtcMillis, Verdict, VerdictClass,
};
use twice_reconciler::recompute::{ResourceLimits, rules_sha256};
use uuid::Uuid;

pub const GENERATION: Generation = Generation(0);

/// The hour every test bills.
pub fn hour() -> Hour {
    "2025-01-15T12".parse().expect("valid hour")
}

/// A moment `seconds` after the hour began.
pub fn at(seconds: i64) -> UtcMillis {
    hour().start().plus_ms(seconds * 1000)
}

pub fn campaign(number: u8) -> CampaignId {
    CampaignId::new(format!("camp_{number:02}")).expect("valid id")
}

pub fn click_id(number: u32) -> ClickId {
    ClickId(Uuid::from_u128(0x0194_f3a0_0000_7000_8000_0000_0000_0000 + u128::from(number)))
}

/// A click of campaign and identity by number, at `event` seconds after the hour began, arriving `delay` later.
pub fn click(campaign_number: u8, id: u32, event: i64, delay: i64, ad: u8) -> Click {
    Click {
        campaign_id: campaign(campaign_number),
        click_id: click_id(id),
        ad_id: AdId::new(format!("ad_{ad}")).expect("valid id"),
        user_id: UserId::default(),
        publisher_id: PublisherId::default(),
        event_time: at(event),
        arrival_time: at(event + delay),
        ip_hash: None,
        schema_version: SCHEMA_VERSION_LATEST,
    }
}

pub fn verdict(
    campaign_number: u8,
    id: u32,
    class: VerdictClass,
    decided: UtcMillis,
    arrival: UtcMillis,
) -> Verdict {
    Verdict {
        campaign_id: campaign(campaign_number),
        click_id: click_id(id),
        verdict: class,
        model_version: Default::default(),
        decided_at: decided,
        click_event_time: None,
        arrival_time: arrival,
        schema_version: 1,
    }
}

pub fn rate(campaign_number: u8, cpc_micros: i64, effective: UtcMillis, recorded: UtcMillis) -> Rate {
    Rate {
        campaign_id: campaign(campaign_number),
        currency: "USD".parse().expect("valid currency"),
        cpc_micros,
        effective_from: effective,
        recorded_at: recorded,
    }
}

/// Records of both topics, by partition, in offset order.
#[derive(Debug, Clone, Default)]
pub struct Records {
    pub clicks: BTreeMap<PartitionId, Vec<Click>>,
    pub verdicts: BTreeMap<PartitionId, Vec<Verdict>>,
}

impl Records {
    pub fn of(clicks: &[Click], verdicts: &[Verdict], partitions: u32) -> Self {
        let mut records = Self::default();
        for partition in (0..partitions).map(PartitionId) {
            records.clicks.entry(partition).or_default();
            records.verdicts.entry(partition).or_default();
        }
        for click in clicks {
            records
                .clicks
                .entry(partition_of(&click.campaign_id, partitions))
                .or_default()
                .push(click.clone());
        }
        for verdict in verdicts {
            let partition = partition_of(&verdict.campaign_id, partitions);
            records.verdicts.entry(partition).or_default().push(verdict.clone());
        }
        records
    }
}

pub fn open_archive(root: &Path) -> Archive {
    Archive::open_local(Arc::new(RealFs), root).expect("archive opens")
}

/// Archives all records, `rows_per_flush` a manifest and `rows_per_file` a file.
pub async fn archive_records(
    archive: &Archive,
    records: &Records,
    rows_per_flush: usize,
    rows_per_file: usize,
) {
    let partitions = records.clicks.len() as u32;
    for (partition, clicks) in &records.clicks {
        let bytes = clicks.iter().map(|click| {
            let mut bytes = Vec::new();
            encode_click(click, &mut bytes);
            bytes
        });
        put(archive, Topic::AdClicks, *partition, partitions, bytes.collect(), rows_per_flush, rows_per_file)
            .await;
    }
    for (partition, verdicts) in &records.verdicts {
        let bytes = verdicts.iter().map(|verdict| {
            let mut bytes = Vec::new();
            encode_verdict(verdict, &mut bytes);
            bytes
        });
        let bytes = bytes.collect();
        put(archive, Topic::FraudVerdicts, *partition, partitions, bytes, rows_per_flush, rows_per_file)
            .await;
    }
}

async fn put(
    archive: &Archive,
    topic: Topic,
    partition: PartitionId,
    partitions: u32,
    records: Vec<Vec<u8>>,
    rows_per_flush: usize,
    rows_per_file_max: usize,
) {
    let chain = ChainKey { topic, generation: GENERATION, partition };
    let settings = ArchiverSettings { rows_per_file_max, ..ArchiverSettings::default() };
    let opened =
        PartitionArchiver::open(archive.clone(), chain, partitions, settings, FailPoints::default()).await;
    let mut archiver = opened.expect("archiver opens");
    for (offset, bytes) in records.iter().enumerate() {
        archiver.push(LogOffset(offset as i64), bytes).expect("record is taken");
        if archiver.rows() >= rows_per_flush {
            archiver.flush().await.expect("flush");
        }
    }
    archiver.flush().await.expect("flush");
}

/// The ends and seals of a run over hand-made records.
#[derive(Debug, Clone)]
pub struct Run {
    /// Cutoff of clicks, by partition; everything if a partition is missing.
    pub click_ends: BTreeMap<PartitionId, i64>,
    pub rates: Vec<Rate>,
    pub settings: CountingSettings,
    pub seals: Vec<Seal>,
}

/// Puts the seals and returns the inputs of a run over what is archived.
pub async fn run_inputs(archive: &Archive, records: &Records, run: &Run) -> RunInputs {
    let mut index = ManifestIndex::new(archive.clone());
    index.refresh().await.expect("manifests read");
    let mut cutoffs = Vec::new();
    for topic in Topic::ARCHIVED {
        for partition in records.clicks.keys() {
            let chain = ChainKey { topic, generation: GENERATION, partition: *partition };
            let covered = index.covered_end(chain);
            let end = match (topic, run.click_ends.get(partition)) {
                (Topic::AdClicks, Some(end)) => LogOffset(*end).min(covered),
                _ => covered,
            };
            cutoffs.push(index.cutoff(chain, end).expect("covered"));
        }
    }
    let mut seals = Vec::new();
    for partition in records.clicks.keys() {
        let mut reference = None;
        if let Some(seal) = run.seals.iter().find(|seal| seal.partition == *partition) {
            let stored = archive.put_seal(seal).await.expect("seal is put");
            reference = Some(SealReference { end: seal.end, complete: seal.complete, sha256: stored.sha256 });
        }
        seals.push(SealInput { generation: GENERATION, partition: *partition, seal: reference });
    }
    let horizon = i64::from(run.settings.horizon_hours);
    let clicks = hour().plus(-horizon)..=hour().plus(horizon);
    let verdicts = hour().plus(-24)..=Hour::from_since_epoch(i64::MAX);
    RunInputs {
        path: BillingPath::Lambda,
        hour: hour(),
        seq: 1,
        status: BillingStatus::Reconciled,
        settings: run.settings,
        click_files: index.files_for_hours(FileKind::Clicks, clicks, &cutoffs).expect("files"),
        verdict_files: index.files_for_hours(FileKind::Verdicts, verdicts, &cutoffs).expect("files"),
        cutoffs,
        seals,
        rates: run.rates.clone(),
        announced: false,
        mode_change: false,
        rules_sha256: rules_sha256(&run.settings).expect("rules"),
        created_at: hour().end(),
    }
}

pub fn limits(spill_dir: &Path, threads: usize, rows_per_slice_max: Option<u64>) -> ResourceLimits {
    ResourceLimits {
        threads,
        memory_bytes_max: 256 << 20,
        spill_dir: spill_dir.to_path_buf(),
        verify_files: true,
        rows_per_slice_max,
    }
}
