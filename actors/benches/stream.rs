//! Clicks a second through the stream path on one core, against a bare dedup loop in the same run.
//!
//! `cargo bench -p twice-actors --bench stream [-- CLICKS]` (default 2 000 000): 10 000 campaigns, Zipf 1.05, 0.6 %
//! duplicates, 50 000 clicks a second of event time. Rows: `baseline` = one hash set of ids and a count, no windows, users
//! or lateness; `state` = CampaignState as plain structs; `actors` = a log in memory, decoded, through PartitionActor and
//! one CampaignActor a campaign, published to a store that forgets, with and without checkpoints in sled.
#![allow(clippy::print_stdout)]

mod forgetful;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use twice_actors::campaign::{CampaignState, SealEnds, StreamRules};
use twice_actors::{StreamConfig, StreamParts, StreamPath};
use twice_log::archive::CountingSettings;
use twice_log::event::record::{decode_click, encode_click};
use twice_log::fail::FailPoints;
use twice_log::hot::{AppendRecord, ClickLog, OffsetBounds, ReadBatch};
use twice_log::{
    AdId, CampaignId, Click, ClickCopy, ClickId, Generation, LogOffset, PartitionId, Position, PublisherId,
    Topic, UserId, UtcMillis, WallClock, Watermark,
};

use forgetful::Forgetful;

const CAMPAIGNS: u32 = 10_000;
const ZIPF_EXPONENT: f64 = 1.05;
const DUPLICATES: f64 = 0.006;
const CLICKS_PER_SECOND: i64 = 50_000;
/// Clicks a batch of the plain rows; about what the actors get from 2 MiB of log.
const BATCH: usize = 20_000;
const START_MS: i64 = 1_736_942_400_000;

fn main() {
    let mut arguments =
        std::env::args().skip(1).filter_map(|argument| argument.replace('_', "").parse().ok());
    let count: usize = arguments.next_back().unwrap_or(2_000_000);
    let log = Arc::new(MemoryLog { records: generate(count) });
    println!("{count} clicks, {CAMPAIGNS} campaigns, Zipf {ZIPF_EXPONENT}, seed 7");
    row("baseline: hash set of ids, decoding included", count, || baseline(&log));
    row("state: CampaignState, decoding included", count, || state(&log));
    row("actors: one thread, no checkpoint", count, || actors(&log, 600_000));
    row("actors: one thread, checkpoint every second", count, || actors(&log, 1_000));
}

fn row(name: &str, count: usize, run: impl FnOnce() -> u64) {
    let since = Instant::now();
    let counted = run();
    let seconds = since.elapsed().as_secs_f64();
    println!("{name:<48} {:>10.0} clicks/s   {counted} counted, {seconds:.2} s", count as f64 / seconds);
}

fn generate(count: usize) -> Vec<Bytes> {
    let mut random = StdRng::seed_from_u64(7);
    let zipf = Zipf::new(f64::from(CAMPAIGNS), ZIPF_EXPONENT).expect("a valid distribution");
    let campaigns: Vec<CampaignId> =
        (0..=CAMPAIGNS).map(|number| CampaignId::new(format!("camp_{number}")).expect("valid")).collect();
    let mut records: Vec<Bytes> = Vec::with_capacity(count);
    for index in 0..count {
        if index > 1_000 && random.random_bool(DUPLICATES) {
            let copied = records[index - random.random_range(1..1_000)].clone();
            records.push(copied);
            continue;
        }
        let campaign = zipf.sample(&mut random) as usize;
        let time = UtcMillis::clamped(START_MS + index as i64 * 1_000 / CLICKS_PER_SECOND);
        let click = Click {
            campaign_id: campaigns[campaign].clone(),
            click_id: ClickId::from_bytes(random.random()),
            ad_id: AdId::new(format!("ad_{}", random.random_range(0..4))).expect("valid"),
            user_id: UserId::new(format!("user_{:017}", random.random_range(0..500_000_u64))).expect("valid"),
            publisher_id: PublisherId::default(),
            event_time: time,
            arrival_time: time,
            ip_hash: Some(random.random()),
            schema_version: 2,
        };
        let mut bytes = Vec::with_capacity(128);
        encode_click(&click, &mut bytes);
        records.push(bytes.into());
    }
    records
}

fn baseline(log: &MemoryLog) -> u64 {
    let mut seen: HashSet<ClickId> = HashSet::new();
    log.records
        .iter()
        .filter(|record| decode_click(record).is_ok_and(|click| seen.insert(click.click_id)))
        .count() as u64
}

fn state(log: &MemoryLog) -> u64 {
    let settings = CountingSettings::default();
    let rules = StreamRules::new(&settings);
    let seals = SealEnds::new();
    let mut watermark = Watermark::new(None, settings.disorder_ms);
    let mut states: HashMap<CampaignId, CampaignState> = HashMap::new();
    let mut counted = 0;
    let mut offset = LogOffset(0);
    for records in log.records.chunks(BATCH) {
        let mut groups: HashMap<CampaignId, Vec<ClickCopy>> = HashMap::new();
        for record in records {
            let click = decode_click(record).expect("generated here");
            let at = watermark.at_next();
            watermark.advance(&click);
            let position = Position { generation: Generation(0), offset };
            offset = offset.next();
            let group = groups.entry_ref(&click.campaign_id).or_default();
            group.push(ClickCopy { partition: PartitionId(0), position, watermark: at, click });
        }
        for (campaign, copies) in groups {
            let fresh = || CampaignState::new(campaign.clone(), rules);
            let state = states.entry(campaign.clone()).or_insert_with(fresh);
            counted += state.apply(copies, &seals, |_| {}).counted;
        }
    }
    counted
}

fn actors(log: &Arc<MemoryLog>, checkpoint_interval_ms: u64) -> u64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let parts = StreamParts {
        log: log.clone(),
        windows: Arc::new(Forgetful),
        seals: Arc::new(Forgetful),
        history: Arc::new(Forgetful),
        spend: Arc::default(),
        clock: Arc::new(WallClock),
        settings: CountingSettings::default(),
        checkpoints: folder.path().join("checkpoints"),
        lease_epoch: 0,
        fail_points: FailPoints::default(),
    };
    let config = StreamConfig {
        threads: 1,
        checkpoint_interval_ms,
        read_bytes_max: 2 << 20,
        ..StreamConfig::default()
    };
    actix::System::new().block_on(async move {
        let stream = StreamPath::start(parts, config).await.expect("the stream path starts");
        loop {
            let status = stream.status().await;
            if status.iter().all(|status| status.lag() == 0) {
                return status.iter().map(|status| status.counted).sum();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// One partition of clicks in memory.
struct MemoryLog {
    records: Vec<Bytes>,
}

#[async_trait]
impl ClickLog for MemoryLog {
    fn generation(&self) -> Generation {
        Generation(0)
    }

    fn partitions(&self) -> u32 {
        1
    }

    async fn append(&self, _topic: Topic, _records: Vec<AppendRecord>) -> twice_log::Result<()> {
        Err(twice_log::Error::Stopped)
    }

    async fn read(
        &self,
        _topic: Topic,
        _partition: PartitionId,
        from: LogOffset,
        bytes_max: usize,
    ) -> twice_log::Result<ReadBatch> {
        let mut bytes = 0;
        let mut batch = ReadBatch::default();
        for (index, record) in self.records.iter().enumerate().skip(from.0 as usize) {
            bytes += record.len();
            if bytes > bytes_max && !batch.records.is_empty() {
                break;
            }
            batch.records.push((LogOffset(index as i64), record.clone()));
        }
        Ok(batch)
    }

    async fn wait_for(
        &self,
        _topic: Topic,
        _partition: PartitionId,
        _offset: LogOffset,
    ) -> twice_log::Result<()> {
        std::future::pending().await
    }

    async fn bounds(&self, _topic: Topic, _partition: PartitionId) -> twice_log::Result<OffsetBounds> {
        Ok(OffsetBounds { earliest: LogOffset(0), end: LogOffset(self.records.len() as i64) })
    }

    async fn trim(
        &self,
        _topic: Topic,
        _partition: PartitionId,
        _before: LogOffset,
    ) -> twice_log::Result<()> {
        Ok(())
    }
}
