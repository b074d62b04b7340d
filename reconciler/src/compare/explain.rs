//! The very copies by which preliminary and billed of one campaign differ, with the files they lie in.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, TimestampMillisecondType};
use futures::FutureExt;
use twice_log::archive::{Archive, RunInputs};
use twice_log::{CampaignId, ClickId, Generation, LogOffset, PartitionId, UtcMillis};

use super::causes::divergence_rows;
use super::{Cause, ExplainedCopy, Explanation};
use crate::error::Result;
use crate::recompute::relations::file_span;
use crate::recompute::values::{column, contradiction, integer, text};
use crate::recompute::{CampaignRange, HourRecompute, MemoryBound, ResourceLimits, read_seals};

/// Lists the copies of `campaign`, at most `limit`, in order of position.
///
/// # Errors
/// Those of a recompute.
pub(crate) async fn explain_inputs(
    archive: &Archive,
    inputs: &RunInputs,
    limits: &ResourceLimits,
    memory: MemoryBound,
    campaign: &CampaignId,
    limit: u32,
) -> Result<Explanation> {
    let seals = read_seals(archive, inputs).await?;
    let hour = HourRecompute::open(archive, inputs, limits, memory, seals).await?;
    let range = hour.range_of(campaign).await?;
    let (_, (rows, causes)) = hour.count(&range).await?;
    let divergence = divergence_rows(inputs, &hour.seals, &range, &rows, &causes)?;
    // One more than asked for tells whether there are more.
    let listed = format!(
        "SELECT * FROM (\n{}\n) AS causes ORDER BY generation, log_offset LIMIT {}",
        hour.rules.causes(&inputs.settings),
        u64::from(limit) + 1
    );
    let (hour_of, listed) = (&hour, &listed);
    let list = |range: CampaignRange| async move { list(hour_of, &range, listed, inputs).await }.boxed();
    let (_, mut copies) = hour.within_memory(&range, list).await?;
    copies.sort_by_key(|copy| (copy.generation, copy.log_offset));
    let truncated = copies.len() > limit as usize;
    copies.truncate(limit as usize);
    let divergence = divergence.into_iter().find(|row| row.campaign_id == *campaign);
    Ok(Explanation { divergence, copies, truncated })
}

async fn list(
    hour: &HourRecompute<'_>,
    range: &CampaignRange,
    listed: &str,
    inputs: &RunInputs,
) -> Result<Vec<ExplainedCopy>> {
    let mut copies = Vec::new();
    for slice in range.slices() {
        for batch in hour.session(&slice).await?.query("list differences", listed).await? {
            for row in 0..batch.num_rows() {
                copies.push(explained_copy(&batch, row, inputs)?);
            }
        }
    }
    Ok(copies)
}

fn explained_copy(batch: &RecordBatch, row: usize, inputs: &RunInputs) -> Result<ExplainedCopy> {
    let wrong = |name: &str| contradiction(format!("column {name} has another type"));
    let small = |name: &'static str| -> Result<u32> {
        let column = column(batch, name)?.as_primitive_opt::<Int32Type>().ok_or_else(|| wrong(name))?;
        u32::try_from(column.value(row)).map_err(|_| wrong(name))
    };
    let cause = text(batch, "cause", row)?.unwrap_or_default();
    let cause =
        Cause::from_name(&cause).ok_or_else(|| contradiction("a copy differs without a cause".to_owned()))?;
    let ids = column(batch, "click_id")?.as_fixed_size_binary_opt().ok_or_else(|| wrong("click_id"))?;
    let id: [u8; 16] = ids.value(row).try_into().map_err(|_| wrong("click_id"))?;
    let times = column(batch, "event_time")?.as_primitive_opt::<TimestampMillisecondType>();
    let time = times.filter(|times| times.is_valid(row)).ok_or_else(|| wrong("event_time"))?.value(row);
    let generation = Generation(small("generation")?);
    let partition = PartitionId(small("partition")?);
    let log_offset = LogOffset(integer(batch, "log_offset", row)?);
    let files = inputs.click_files.iter().filter(|file| {
        file.hour == Some(inputs.hour)
            && file_span(&file.path).is_some_and(|span| {
                (span.generation, span.partition) == (generation, partition)
                    && (span.first..=span.last).contains(&log_offset)
            })
    });
    Ok(ExplainedCopy {
        cause,
        click_id: ClickId::from_bytes(id),
        event_time: UtcMillis::clamped(time),
        generation,
        partition,
        log_offset,
        files: files.map(|file| file.path.clone()).collect(),
    })
}
