//! Trims the embedded log by size and age, never by what anyone may still need of it.
//!
//! Guarantee: a segment goes only when manifests cover all of it and, for clicks, the last checkpoint reflects all of it
//! and a dedup horizon of event time beyond it. So neither a bill, which reads the archive, nor a rebuild of the stream's
//! state, which reads checkpoint, archive and log in this order, misses anything. A limit that cannot be kept for this
//! reason is exceeded, with a warning and a metric: a full disk is refused at the door, a lost click is not made good.
//! Flow: segments, ends and times are read -> [`plan`] decides, pure -> the log trims, oldest first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use twice_actors::{Archiving, StreamPath};
use twice_log::archive::CountingSettings;
use twice_log::event::MINUTE_MS;
use twice_log::event::record::{decode_click, decode_verdict};
use twice_log::hot::ClickLog;
use twice_log::hot::embedded::{EmbeddedLog, SegmentInfo};
use twice_log::{Clock, LogOffset, PartitionId, Topic, UtcMillis};
use twice_store::BudgetDecision;

use crate::metrics::{LOG_BYTES, LOG_EARLIEST_OFFSET, LOG_OVER_LIMIT_BYTES, LOG_TRIMMED_SEGMENTS_TOTAL};

/// Settings of trimming. Less log means less disk; a lost sled folder is then rebuilt from the archive, which is slower.
#[derive(Debug, Clone, Copy, Args)]
pub struct TrimConfig {
    /// Size of the log above which its oldest segments go, all partitions together; 0 = no limit.
    #[arg(long, default_value_t = 10_000_000_000, value_name = "BYTES")]
    pub log_bytes_max: u64,
    /// Age of a record above which its segment goes; 0 = no limit. Default 7 d: older clicks are refused anyway.
    #[arg(long, default_value_t = 604_800_000, value_name = "MS")]
    pub log_age_ms_max: i64,
    /// How often it is looked whether something is to be trimmed, at least 100.
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    pub log_trim_interval_ms: u64,
}

/// What trims.
pub struct Trimming {
    pub log: Arc<EmbeddedLog>,
    pub stream: StreamPath,
    pub archiving: Archiving,
    pub clock: Arc<dyn Clock>,
    pub counting: CountingSettings,
    pub config: TrimConfig,
}

/// Bytes read behind a segment for a record that says how old it is, if the first does not decode.
const TIME_READ_BYTES: usize = 1 << 20;

/// Times of the first record after a segment that decodes: about those of its newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Newest {
    arrival: UtcMillis,
    /// Event time, or the arrival time if that is earlier.
    event: UtcMillis,
}

/// A segment that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    topic: Topic,
    partition: PartitionId,
    end: LogOffset,
    bytes: u64,
    /// `None` while no record stands behind it, or none that decodes: its age is unknown, so it stays.
    newest: Option<Newest>,
}

/// What must stay of one partition of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needed {
    /// Everything from here on.
    from: LogOffset,
    /// Everything newer in event time; `None`: offsets alone decide.
    newer_than: Option<UtcMillis>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Offset below which each partition is trimmed.
    before: BTreeMap<(Topic, PartitionId), LogOffset>,
    segments: u64,
    /// Bytes that stay above the limit, because they are needed.
    bytes_over: u64,
}

impl Trimming {
    /// Looks and trims until the task is dropped.
    pub async fn run(self) {
        let every = Duration::from_millis(self.config.log_trim_interval_ms.max(100));
        let mut every = tokio::time::interval(every);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut times = HashMap::new();
        let mut was_over = false;
        loop {
            every.tick().await;
            match self.trim(&mut times).await {
                Ok(bytes_over) => {
                    let is_over = bytes_over > 0;
                    if is_over && !was_over {
                        tracing::warn!(
                            bytes_over,
                            "the log is larger than log_bytes_max and nothing may go: the archive or the checkpoints lag; \
                             see twice_archiver_unarchived_age_seconds and the archiver's errors"
                        );
                    }
                    was_over = is_over;
                }
                Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot trim the log"),
            }
        }
    }

    /// Trims once; returns how many bytes the log stays above its limit.
    async fn trim(&self, times: &mut HashMap<(Topic, PartitionId, LogOffset), Newest>) -> Result<u64> {
        let segments = self.log.segments().await?;
        self.show(&segments);
        let needed = self.needed().await;
        let mut candidates = Vec::new();
        for segment in &segments {
            let Some(end) = segment.end else { continue };
            let SegmentInfo { topic, partition, bytes, .. } = *segment;
            let newest = self.newest(times, topic, partition, end).await?;
            candidates.push(Candidate { topic, partition, end, bytes, newest });
        }
        let total = segments.iter().map(|segment| segment.bytes).sum();
        let plan = plan(&candidates, total, &needed, &self.config, self.clock.now());
        for ((topic, partition), before) in &plan.before {
            tracing::info!(%topic, %partition, %before, "trimming the log");
            self.log.trim(*topic, *partition, *before).await?;
            times.retain(|(of, in_partition, end), _| {
                (of, in_partition) != (topic, partition) || end > before
            });
        }
        metrics::counter!(LOG_TRIMMED_SEGMENTS_TOTAL).increment(plan.segments);
        metrics::gauge!(LOG_OVER_LIMIT_BYTES).set(plan.bytes_over as f64);
        Ok(plan.bytes_over)
    }

    fn show(&self, segments: &[SegmentInfo]) {
        metrics::gauge!(LOG_BYTES).set(segments.iter().map(|segment| segment.bytes).sum::<u64>() as f64);
        let mut before = None;
        for segment in segments {
            if before.replace((segment.topic, segment.partition)) != Some((segment.topic, segment.partition))
            {
                let labels = [
                    ("topic", segment.topic.name().to_owned()),
                    ("partition", segment.partition.to_string()),
                ];
                metrics::gauge!(LOG_EARLIEST_OFFSET, &labels).set(segment.base.0 as f64);
            }
        }
    }

    async fn needed(&self) -> HashMap<(Topic, PartitionId), Needed> {
        let archived = self.archiving.status().into_iter();
        let mut needed: HashMap<_, _> = archived
            .map(|status| {
                let needed = Needed { from: status.archived_end, newer_than: None };
                ((status.topic, status.partition), needed)
            })
            .collect();
        for partition in (0..self.log.partitions()).map(PartitionId) {
            // Decisions are kept in the store: the log holds them for those who follow it, as long as there is room.
            let needed_from = Needed { from: LogOffset(i64::MAX), newer_than: None };
            needed.insert((Topic::BudgetDecisions, partition), needed_from);
        }
        let CountingSettings { disorder_ms, grace_ms, stream_dedup_ms, .. } = self.counting;
        let horizon_ms = disorder_ms + grace_ms + stream_dedup_ms + MINUTE_MS;
        for status in self.stream.status().await {
            if let Some(clicks) = needed.get_mut(&(Topic::AdClicks, status.partition)) {
                clicks.from = clicks.from.min(status.checkpoint_end);
                let checkpoint_time = status.checkpoint_time.unwrap_or(UtcMillis::clamped(i64::MIN));
                clicks.newer_than = Some(checkpoint_time.plus_ms(-horizon_ms));
            }
        }
        needed
    }

    /// Returns the times of the first record at or behind `end` that decodes, found once a segment.
    async fn newest(
        &self,
        times: &mut HashMap<(Topic, PartitionId, LogOffset), Newest>,
        topic: Topic,
        partition: PartitionId,
        end: LogOffset,
    ) -> Result<Option<Newest>> {
        if let Some(newest) = times.get(&(topic, partition, end)) {
            return Ok(Some(*newest));
        }
        let newest = first_times(self.log.as_ref(), topic, partition, end).await?;
        times.extend(newest.map(|newest| ((topic, partition, end), newest)));
        Ok(newest)
    }
}

/// Returns the times of the first record from `from` on that decodes; `None` if none does, or there is none.
async fn first_times(
    log: &dyn ClickLog,
    topic: Topic,
    partition: PartitionId,
    from: LogOffset,
) -> Result<Option<Newest>> {
    for bytes_max in [1, TIME_READ_BYTES] {
        let read = log.read(topic, partition, from, bytes_max).await?;
        let newest = read.records.iter().find_map(|(_, bytes)| times_of(topic, bytes));
        if newest.is_some() || read.records.is_empty() {
            return Ok(newest);
        }
    }
    Ok(None)
}

fn times_of(topic: Topic, bytes: &[u8]) -> Option<Newest> {
    match topic {
        Topic::AdClicks => decode_click(bytes)
            .ok()
            .map(|click| Newest { arrival: click.arrival_time, event: click.watermark_time() }),
        Topic::FraudVerdicts => decode_verdict(bytes)
            .ok()
            .map(|verdict| Newest { arrival: verdict.arrival_time, event: verdict.arrival_time }),
        Topic::BudgetDecisions => serde_json::from_slice::<BudgetDecision>(bytes)
            .ok()
            .map(|decision| Newest { arrival: decision.decided_at, event: decision.decided_at }),
    }
}

/// Decides what goes: oldest first, until the size is kept, and whatever is too old; nothing that is needed.
fn plan(
    candidates: &[Candidate],
    bytes_total: u64,
    needed: &HashMap<(Topic, PartitionId), Needed>,
    config: &TrimConfig,
    now: UtcMillis,
) -> Plan {
    let mut held = Vec::new();
    let mut free: Vec<(UtcMillis, &Candidate)> = Vec::new();
    for candidate in candidates {
        let key = (candidate.topic, candidate.partition);
        // Segments of a partition go in order: behind one that stays, all stay.
        let needed = needed.get(&key).filter(|_| !held.contains(&key));
        let Some(newest) = needed.and_then(|needed| free_since(candidate, needed)) else {
            held.push(key);
            continue;
        };
        let before = free.iter().rev().find(|(_, other)| (other.topic, other.partition) == key);
        free.push((before.map_or(newest, |(before, _)| newest.max(*before)), candidate));
    }
    free.sort_by_key(|(newest, _)| *newest); // stable: a partition's segments keep their order
    let size_max = if config.log_bytes_max == 0 { u64::MAX } else { config.log_bytes_max };
    let oldest_kept = (config.log_age_ms_max > 0).then(|| now.plus_ms(-config.log_age_ms_max));
    let mut plan = Plan::default();
    let mut bytes = bytes_total;
    for (newest, candidate) in free {
        if bytes <= size_max && Some(newest) >= oldest_kept {
            break; // those left are as new or newer, whosever they are
        }
        bytes -= candidate.bytes;
        plan.segments += 1;
        plan.before.insert((candidate.topic, candidate.partition), candidate.end);
    }
    plan.bytes_over = bytes.saturating_sub(size_max);
    plan
}

/// Returns when the newest record of a segment that nobody needs arrived; `None` if it must stay or that is unknown.
fn free_since(candidate: &Candidate, needed: &Needed) -> Option<UtcMillis> {
    let newest = candidate.newest?;
    let is_within_horizon = needed.newer_than.is_some_and(|newer_than| newest.event > newer_than);
    (candidate.end <= needed.from && !is_within_horizon).then_some(newest.arrival)
}

#[cfg(test)]
mod tests {
    use twice_log::event::record::encode_verdict;
    use twice_log::event::{CampaignId, ClickId, ModelVersion, Verdict, VerdictClass};
    use twice_log::fail::FailPoints;
    use twice_log::fs::RealFs;
    use twice_log::hot::AppendRecord;
    use twice_log::hot::embedded::EmbeddedConfig;

    use super::*;

    const CLICKS: Topic = Topic::AdClicks;
    const VERDICTS: Topic = Topic::FraudVerdicts;

    fn at(epoch_ms: i64) -> UtcMillis {
        UtcMillis::clamped(epoch_ms)
    }

    /// A segment of 100 bytes that ends at `end`, its newest record of `newest_ms`.
    fn segment(topic: Topic, partition: u32, end: i64, newest_ms: i64) -> Candidate {
        let newest = Some(Newest { arrival: at(newest_ms), event: at(newest_ms) });
        Candidate { topic, partition: PartitionId(partition), end: LogOffset(end), bytes: 100, newest }
    }

    fn config(log_bytes_max: u64, log_age_ms_max: i64) -> TrimConfig {
        TrimConfig { log_bytes_max, log_age_ms_max, log_trim_interval_ms: 1_000 }
    }

    fn needed(rows: &[(Topic, u32, i64, Option<i64>)]) -> HashMap<(Topic, PartitionId), Needed> {
        let needed = |(topic, partition, from, newer): &(Topic, u32, i64, Option<i64>)| {
            let needed = Needed { from: LogOffset(*from), newer_than: newer.map(at) };
            ((*topic, PartitionId(*partition)), needed)
        };
        rows.iter().map(needed).collect()
    }

    fn before(plan: &Plan) -> Vec<(Topic, u32, i64)> {
        plan.before.iter().map(|((topic, partition), before)| (*topic, partition.0, before.0)).collect()
    }

    #[test]
    fn the_oldest_of_all_partitions_go_until_the_size_is_kept() {
        let all = [
            segment(CLICKS, 0, 10, 1_000),
            segment(CLICKS, 0, 20, 4_000),
            segment(CLICKS, 1, 10, 2_000),
            segment(VERDICTS, 0, 5, 3_000),
        ];
        let free = needed(&[(CLICKS, 0, 99, None), (CLICKS, 1, 99, None), (VERDICTS, 0, 99, None)]);
        let plan = plan(&all, 400, &free, &config(150, 0), at(10_000));
        assert_eq!(before(&plan), [(CLICKS, 0, 10), (CLICKS, 1, 10), (VERDICTS, 0, 5)]);
        assert_eq!((plan.segments, plan.bytes_over), (3, 0));
    }

    #[test]
    fn what_is_not_archived_or_not_in_a_checkpoint_stays_and_the_excess_is_said() {
        let all =
            [segment(CLICKS, 0, 10, 1_000), segment(CLICKS, 0, 20, 2_000), segment(CLICKS, 1, 10, 1_500)];
        let held = needed(&[(CLICKS, 0, 19, None), (CLICKS, 1, 9, None)]);
        let plan = plan(&all, 300, &held, &config(1, 1), at(10_000));
        assert_eq!(before(&plan), [(CLICKS, 0, 10)]);
        assert_eq!(plan.bytes_over, 199);
    }

    #[test]
    fn what_lies_within_the_horizon_of_the_checkpoint_stays_with_all_behind_it() {
        let all =
            [segment(CLICKS, 0, 10, 1_000), segment(CLICKS, 0, 20, 5_000), segment(CLICKS, 0, 30, 3_000)];
        let held = needed(&[(CLICKS, 0, 99, Some(4_000))]);
        let plan = plan(&all, 300, &held, &config(1, 0), at(10_000));
        assert_eq!(before(&plan), [(CLICKS, 0, 10)]);
    }

    #[test]
    fn a_partition_nobody_speaks_for_is_not_trimmed() {
        let plan = plan(&[segment(CLICKS, 3, 10, 1)], 100, &needed(&[]), &config(1, 1), at(10_000));
        assert!(before(&plan).is_empty());
    }

    #[test]
    fn age_trims_though_there_is_room_and_zero_is_no_limit() {
        let all = [segment(CLICKS, 0, 10, 1_000), segment(CLICKS, 0, 20, 9_000)];
        let free = needed(&[(CLICKS, 0, 99, None)]);
        let by_age = plan(&all, 200, &free, &config(1_000, 5_000), at(10_000));
        assert_eq!(before(&by_age), [(CLICKS, 0, 10)]);
        let unlimited = plan(&all, 200, &free, &config(0, 0), at(10_000));
        assert!(before(&unlimited).is_empty());
    }

    #[test]
    fn a_segment_of_unknown_age_holds_up_its_own_partition_and_no_other() {
        let unknown = Candidate { newest: None, ..segment(CLICKS, 0, 10, 0) };
        let all = [unknown, segment(CLICKS, 0, 20, 1_000), segment(CLICKS, 1, 10, 1_000)];
        let free = needed(&[(CLICKS, 0, 99, None), (CLICKS, 1, 99, None)]);
        let by_age = plan(&all, 300, &free, &config(0, 5_000), at(10_000));
        assert_eq!(before(&by_age), [(CLICKS, 1, 10)]);
        let by_size = plan(&all, 300, &free, &config(250, 0), at(10_000));
        assert_eq!(before(&by_size), [(CLICKS, 1, 10)], "it does not go before one known to be old");
    }

    #[actix_web::test]
    async fn a_record_that_does_not_decode_does_not_hide_the_age_of_those_behind_it() {
        let directory = tempfile::tempdir().expect("directory");
        let (fs, fail_points) = (Arc::new(RealFs), FailPoints::default());
        let log =
            EmbeddedLog::open(fs, directory.path(), EmbeddedConfig::default(), fail_points).expect("log");
        let partition = PartitionId(0);
        let first = async || first_times(&log, VERDICTS, partition, LogOffset(0)).await.expect("read");
        assert_eq!(first().await, None, "nothing stands there");
        let noise = AppendRecord { partition, bytes: b"noise".to_vec().into() };
        log.append(VERDICTS, vec![noise.clone(), noise]).await.expect("append");
        assert_eq!(first().await, None, "nothing decodes");
        let verdict = Verdict {
            campaign_id: CampaignId::new("camp_1").expect("valid"),
            click_id: ClickId::derived("a click"),
            verdict: VerdictClass::Valid,
            model_version: ModelVersion::default(),
            decided_at: at(7_000),
            click_event_time: None,
            arrival_time: at(7_000),
            schema_version: 1,
        };
        let mut bytes = Vec::new();
        encode_verdict(&verdict, &mut bytes);
        log.append(VERDICTS, vec![AppendRecord { partition, bytes: bytes.into() }]).await.expect("append");
        assert_eq!(first().await, Some(Newest { arrival: at(7_000), event: at(7_000) }));
    }
}
