//! A million campaigns of which one in a hundred is active: memory, and the time a start takes.
//!
//! `cargo bench -p twice-actors --bench resting [-- CAMPAIGNS]` (default 1 000 000), each step in a process of its own, so
//! that memory is that of the step. `fill`: one click a campaign, until all are at rest in the checkpoint store. `start`:
//! a start over that store, then ten clicks of every hundredth campaign. It fails if a click is counted twice or lost.
#![allow(clippy::print_stdout)]

mod forgetful;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use twice_actors::{PartitionStatus, StreamConfig, StreamParts, StreamPath};
use twice_log::archive::CountingSettings;
use twice_log::event::record::encode_click;
use twice_log::fail::FailPoints;
use twice_log::hot::{AppendRecord, ClickLog, OffsetBounds, ReadBatch};
use twice_log::{
    AdId, CampaignId, Click, ClickId, Generation, LogOffset, PartitionId, PublisherId, Topic, UserId,
    UtcMillis, WallClock,
};

use forgetful::Forgetful;

const START_MS: i64 = 1_736_942_400_000;
const CLICKS_PER_SECOND: u64 = 50_000;
/// One campaign in so many is active after the start, with so many clicks.
const ACTIVE_SHARE: u64 = 100;
const ACTIVE_CLICKS: u64 = 10;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [step, folder, campaigns] = words.as_slice() {
        let campaigns: u64 = campaigns.parse().expect("a number of campaigns");
        return actix::System::new().block_on(run(step.clone(), folder.clone(), campaigns));
    }
    let campaigns = words.iter().find_map(|word| word.replace('_', "").parse().ok()).unwrap_or(1_000_000_u64);
    println!("{campaigns} campaigns, 1 in {ACTIVE_SHARE} active after the start");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for step in ["fill", "start"] {
        let program = std::env::current_exe().expect("this program");
        let arguments = [step, &folder.path().to_string_lossy(), &campaigns.to_string()].map(str::to_owned);
        let status = Command::new(program).args(arguments).status().expect("runs");
        assert!(status.success(), "{step} failed");
    }
}

async fn run(step: String, folder: String, campaigns: u64) {
    let active = campaigns / ACTIVE_SHARE;
    let more = if step == "fill" { 0 } else { active * ACTIVE_CLICKS };
    let log = Arc::new(GeneratedLog { campaigns, active, end: campaigns + more });
    let parts = StreamParts {
        log,
        windows: Arc::new(Forgetful),
        seals: Arc::new(Forgetful),
        history: Arc::new(Forgetful),
        spend: Arc::default(),
        clock: Arc::new(WallClock),
        settings: CountingSettings::default(),
        checkpoints: Path::new(&folder).join("checkpoints"),
        lease_epoch: 0,
        fail_points: FailPoints::default(),
    };
    let idle_ms = if step == "fill" { 2_000 } else { 600_000 };
    let config = StreamConfig { campaign_idle_ms: idle_ms, ..StreamConfig::default() };
    let since = Instant::now();
    let stream = StreamPath::start(parts, config).await.expect("the stream path starts");
    println!("{step}: started in {:.2} s, memory {} MB", since.elapsed().as_secs_f64(), memory_mb("VmRSS"));
    let since = Instant::now();
    let status = until(&stream, |status| status.lag() == 0).await;
    let (seconds, peak) = (since.elapsed().as_secs_f64(), memory_mb("VmHWM"));
    println!("{step}: {} clicks applied in {seconds:.2} s, peak {peak} MB", status.applied);
    if step == "fill" {
        assert_eq!(status.counted, campaigns);
        until(&stream, |status| status.campaigns == 0).await;
    } else {
        assert_eq!((status.applied, status.counted), (more, more), "nothing twice, nothing lost");
        assert_eq!((status.campaigns, status.campaigns_resting), (active, campaigns - active));
    }
    println!("{step}: memory in the end {} MB", memory_mb("VmRSS"));
    let since = Instant::now();
    stream.flush_and_stop().await.expect("stops");
    println!("{step}: stopped in {:.2} s", since.elapsed().as_secs_f64());
}

async fn until(stream: &StreamPath, is_so: impl Fn(&PartitionStatus) -> bool) -> PartitionStatus {
    loop {
        let status = stream.status().await.remove(0);
        if is_so(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads a line of this process's status, in megabytes.
fn memory_mb(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or(0) / 1_000
}

/// One partition whose records are made when they are read: they take no memory.
struct GeneratedLog {
    campaigns: u64,
    active: u64,
    end: u64,
}

impl GeneratedLog {
    fn record(&self, offset: u64) -> Vec<u8> {
        let campaign = match offset.checked_sub(self.campaigns) {
            None => offset,
            Some(more) => more % self.active * ACTIVE_SHARE,
        };
        let time = UtcMillis::clamped(START_MS + (offset * 1_000 / CLICKS_PER_SECOND) as i64);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&offset.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        let click = Click {
            campaign_id: CampaignId::new(format!("camp_{campaign}")).expect("valid"),
            click_id: ClickId::from_bytes(id),
            ad_id: AdId::new("ad_1").expect("valid"),
            user_id: UserId::new(format!("user_{offset}")).expect("valid"),
            publisher_id: PublisherId::default(),
            event_time: time,
            arrival_time: time,
            ip_hash: None,
            schema_version: 2,
        };
        let mut bytes = Vec::with_capacity(128);
        encode_click(&click, &mut bytes);
        bytes
    }
}

#[async_trait]
impl ClickLog for GeneratedLog {
    fn generation(&self) -> Generation {
        Generation(0)
    }

    fn partitions(&self) -> u32 {
        1
    }

    async fn append(&self, _: Topic, _: Vec<AppendRecord>) -> twice_log::Result<()> {
        Err(twice_log::Error::Stopped)
    }

    async fn read(
        &self,
        _: Topic,
        _: PartitionId,
        from: LogOffset,
        bytes_max: usize,
    ) -> twice_log::Result<ReadBatch> {
        let mut bytes = 0;
        let mut batch = ReadBatch::default();
        for offset in from.0 as u64..self.end {
            let record = self.record(offset);
            bytes += record.len();
            batch.records.push((LogOffset(offset as i64), record.into()));
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(batch)
    }

    async fn wait_for(&self, _: Topic, _: PartitionId, _: LogOffset) -> twice_log::Result<()> {
        std::future::pending().await
    }

    async fn bounds(&self, _: Topic, _: PartitionId) -> twice_log::Result<OffsetBounds> {
        Ok(OffsetBounds { earliest: LogOffset(0), end: LogOffset(self.end as i64) })
    }

    async fn trim(&self, _: Topic, _: PartitionId, _: LogOffset) -> twice_log::Result<()> {
        Ok(())
    }
}
