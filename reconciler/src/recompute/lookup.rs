//! Finds the clicks of verdicts that came after their hours were billed (CR-10).
//!
//! A verdict's click is looked for in the hour it names; one that names none, or is not found there, in the hours before
//! the verdict arrived. A verdict is on an identity, and the bill has one of its copies, which need not be the one that
//! was named: once found, it touches the hour of every copy that is read.
//! The hash table of the join is built from the verdicts, slice by slice, and clicks only stream by:
//! memory does not grow with their number, and row groups of other campaigns are skipped.
//! Guarantee: no verdict between the given positions is left out; what is not found is counted.

use std::collections::BTreeSet;

use arrow::array::RecordBatch;
use datafusion::logical_expr::{Expr, col, lit};
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use twice_log::archive::{Archive, FileEntry, SweptEnd};
use twice_log::{Generation, Hour, LogOffset, PartitionId, Topic};

use super::ResourceLimits;
use super::memory::MemoryBound;
use super::relations::Files;
use super::session::Engine;
use super::slices::{self, CampaignRange, Slice};
use super::values::{contradiction, count, integer};
use crate::error::Result;

const HOUR_MS: u64 = 3_600_000;
/// One part in so many of a slice's rows are verdicts: each may be of several hours.
const VERDICT_PARTS: u64 = 2;

/// Verdicts, and where their clicks may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictLookup {
    pub verdict_files: Vec<FileEntry>,
    /// Verdicts at or above `from` and below `to` are looked at; a partition in neither has none.
    pub from: Vec<SweptEnd>,
    pub to: Vec<SweptEnd>,
    /// Clicks of the hours that verdicts name and of those within the horizon of duplicates, and of the hours before
    /// arrivals; none: only the hours named are asked.
    pub click_files: Vec<FileEntry>,
    /// How long before a verdict's arrival its click may have been.
    pub lookback_ms: u64,
}

/// Verdicts of one partition on clicks of one hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchedHour {
    pub hour: Hour,
    pub generation: Generation,
    pub partition: PartitionId,
    /// The highest position among them.
    pub newest: LogOffset,
}

/// What a lookup found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookedUp {
    pub verdicts: u64,
    pub verdicts_without_click: u64,
    /// Hours that verdicts name.
    pub named_hours: BTreeSet<Hour>,
    pub touched: Vec<TouchedHour>,
}

/// The verdicts of a slice.
const COUNT_SQL: &str = "SELECT count(*) AS verdicts FROM verdicts";
const NAMED_SQL: &str = "SELECT DISTINCT CAST(click_event_time AS BIGINT) / 3600000 AS hour
    FROM verdicts WHERE click_event_time IS NOT NULL";
/// The hours of all copies of the verdicts' identities: whether it is the one the verdict names, and whether a copy is
/// before the verdict's arrival; event times may run a little ahead of it.
const COPIES_SQL: &str = "SELECT verdicts.generation, verdicts.partition, verdicts.log_offset,
        CAST(clicks.event_time AS BIGINT) / 3600000 AS hour,
        max(CASE WHEN CAST(clicks.event_time AS BIGINT) / 3600000 = CAST(verdicts.click_event_time AS BIGINT) / 3600000
            THEN 1 ELSE 0 END) AS is_named,
        max(CASE WHEN CAST(clicks.event_time AS BIGINT) >= CAST(verdicts.arrival_time AS BIGINT) - {lookback_ms}
            AND CAST(clicks.event_time AS BIGINT) <= CAST(verdicts.arrival_time AS BIGINT) + 3600000
            THEN 1 ELSE 0 END) AS is_before
    FROM verdicts
    JOIN clicks ON clicks.campaign_id = verdicts.campaign_id AND clicks.click_id = verdicts.click_id
    GROUP BY verdicts.generation, verdicts.partition, verdicts.log_offset, hour";
/// Verdicts with a click where it is looked for.
const FOUND_SQL: &str = "SELECT DISTINCT generation, partition, log_offset FROM copies
    WHERE is_named = 1 OR is_before = 1";
const TOUCHED_SQL: &str = "SELECT copies.hour, CAST(copies.generation AS BIGINT) AS generation,
        CAST(copies.partition AS BIGINT) AS partition, max(copies.log_offset) AS newest
    FROM found
    JOIN copies ON copies.generation = found.generation AND copies.partition = found.partition
        AND copies.log_offset = found.log_offset
    GROUP BY copies.hour, copies.generation, copies.partition";
const LEFT_SQL: &str = "SELECT count(*) AS verdicts FROM verdicts
    LEFT ANTI JOIN found ON found.generation = verdicts.generation AND found.partition = verdicts.partition
        AND found.log_offset = verdicts.log_offset";

/// Looks up the clicks of verdicts.
///
/// # Errors
/// `Archive` or `Engine` if a file does not read; `OutOfMemory` if the limit is too low for even small slices.
pub(crate) async fn look_up(
    archive: &Archive,
    lookup: &VerdictLookup,
    limits: &ResourceLimits,
    memory: MemoryBound,
) -> Result<(LookedUp, u32)> {
    let pool_bytes = memory.pool_bytes();
    let mut size = memory.slice_size(pool_bytes);
    size.rows = (limits.rows_per_slice_max.unwrap_or(size.rows) / VERDICT_PARTS).max(1);
    let engine = Engine::new(archive, &limits.spill_dir, pool_bytes, size.streams)?;
    let mut answer = LookedUp::default();
    let mut slices = 0;
    for range in slices::plan(archive, &lookup.verdict_files, &[], size.rows).await? {
        let engine = &engine;
        let work = |range: CampaignRange| async move { look_up_range(engine, lookup, &range).await }.boxed();
        let (used, found) = memory.within(&range, work).await?;
        slices += used;
        answer.verdicts += found.verdicts;
        answer.verdicts_without_click += found.verdicts_without_click;
        answer.named_hours.extend(found.named_hours);
        answer.touched.extend(found.touched);
    }
    Ok((answer, slices))
}

async fn look_up_range(engine: &Engine, lookup: &VerdictLookup, range: &CampaignRange) -> Result<LookedUp> {
    let mut answer = LookedUp::default();
    for slice in range.slices() {
        look_up_slice(engine, lookup, &slice, &mut answer).await?;
    }
    Ok(answer)
}

async fn look_up_slice(
    engine: &Engine,
    lookup: &VerdictLookup,
    slice: &Slice,
    answer: &mut LookedUp,
) -> Result<()> {
    let session = engine.bare();
    let verdicts = Files { below: Vec::new(), cut: lookup.verdict_files.clone() };
    let between = between(&lookup.from, &lookup.to);
    engine.register(&session, "verdicts", (Topic::FraudVerdicts, &verdicts, &between), slice)?;
    let verdicts = session.query("count verdicts", COUNT_SQL).await?;
    let verdicts = sum(&verdicts)?;
    if verdicts == 0 {
        return Ok(());
    }
    answer.verdicts += verdicts;
    for batch in session.query("list the hours that verdicts name", NAMED_SQL).await? {
        for row in 0..batch.num_rows() {
            answer.named_hours.insert(Hour::from_since_epoch(integer(&batch, "hour", row)?));
        }
    }
    if lookup.click_files.is_empty() {
        answer.verdicts_without_click += verdicts;
        return Ok(());
    }
    let clicks = Files { below: lookup.click_files.clone(), cut: Vec::new() };
    engine.register(&session, "clicks", (Topic::AdClicks, &clicks, &lit(true)), slice)?;
    let copies = COPIES_SQL.replace("{lookback_ms}", &lookup.lookback_ms.to_string());
    let action = "find the clicks of verdicts";
    session.hold(action, "copies", &copies).await?;
    session.hold(action, "found", FOUND_SQL).await?;
    answer.verdicts_without_click += sum(&session.query(action, LEFT_SQL).await?)?;
    for batch in session.query(action, TOUCHED_SQL).await? {
        for row in 0..batch.num_rows() {
            answer.touched.push(touched(&batch, row)?);
        }
    }
    Ok(())
}

fn sum(batches: &[RecordBatch]) -> Result<u64> {
    batches.iter().filter(|batch| batch.num_rows() > 0).map(|batch| count(batch, "verdicts", 0)).sum()
}

fn touched(batch: &RecordBatch, row: usize) -> Result<TouchedHour> {
    let small = |name: &str| -> Result<u32> {
        u32::try_from(integer(batch, name, row)?)
            .map_err(|_| contradiction(format!("{name} is out of range")))
    };
    Ok(TouchedHour {
        hour: Hour::from_since_epoch(integer(batch, "hour", row)?),
        generation: Generation(small("generation")?),
        partition: PartitionId(small("partition")?),
        newest: LogOffset(integer(batch, "newest", row)?),
    })
}

/// Returns the condition that a verdict lies between the two positions of its partition.
fn between(from: &[SweptEnd], to: &[SweptEnd]) -> Expr {
    let condition = |to: &SweptEnd| {
        let from =
            from.iter().find(|from| (from.generation, from.partition) == (to.generation, to.partition));
        let from = from.map_or(LogOffset(0), |from| from.end);
        col("generation")
            .eq(lit(to.generation.0 as i32))
            .and(col("partition").eq(lit(to.partition.0 as i32)))
            .and(col("log_offset").gt_eq(lit(from.0)))
            .and(col("log_offset").lt(lit(to.end.0)))
    };
    to.iter().map(condition).reduce(Expr::or).unwrap_or_else(|| lit(false))
}

/// Returns the hours before arrivals in which clicks are looked for that no verdict names; a click may be a little ahead.
pub fn hours_before(first: Hour, last: Hour, lookback_ms: u64) -> std::ops::RangeInclusive<Hour> {
    let hours = i64::try_from(lookback_ms.div_ceil(HOUR_MS)).unwrap_or(i64::MAX);
    first.plus(hours.saturating_neg())..=last.plus(2)
}
