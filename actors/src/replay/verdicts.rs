//! The verdicts of one slice, by campaign.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMillisecondType};
use hashbrown::HashMap;
use tokio::runtime::Handle;
use twice_log::{Generation, LogOffset, PartitionId, Position, VerdictClass};
use twice_store::Result;

use super::files::{Batches, Files};
use super::slices::Slice;
use crate::campaign::Ruling;

const COLUMNS: [&str; 8] = [
    "campaign_id",
    "click_id",
    "verdict",
    "decided_at",
    "arrival_time",
    "generation",
    "partition",
    "log_offset",
];

/// Rulings by campaign.
pub(super) type Rulings = HashMap<String, Vec<Ruling>>;

/// Reads all verdicts on the identities of `slice`.
///
/// # Errors
/// `Archive` if a file cannot be read or says something unknown.
pub(super) fn read(files: &Files, runtime: &Handle, slice: &Slice) -> Result<Rulings> {
    let mut rulings = Rulings::new();
    for place in 0..files.entries().len() {
        if let Some(batches) = files.open(runtime, place, &COLUMNS, slice)? {
            take(batches, place as u32, slice, &mut rulings)?; // a place in a list of files
        }
    }
    Ok(rulings)
}

fn take(mut batches: Batches<'_>, file: u32, slice: &Slice, rulings: &mut Rulings) -> Result<()> {
    while let Some(batch) = batches.next_batch()? {
        let wrong = || batches.damage("has a column of another type than files of every version have");
        let column =
            |name| batch.column_by_name(name).filter(|column| column.null_count() == 0).ok_or_else(wrong);
        let campaigns = column("campaign_id")?.as_string_opt::<i32>().ok_or_else(wrong)?;
        let ids = column("click_id")?.as_fixed_size_binary_opt().ok_or_else(wrong)?;
        let classes = column("verdict")?.as_string_opt::<i32>().ok_or_else(wrong)?;
        let time = |name| column(name)?.as_primitive_opt::<TimestampMillisecondType>().ok_or_else(wrong);
        let (decided, arrivals) = (time("decided_at")?, time("arrival_time")?);
        let number = |name| column(name)?.as_primitive_opt::<Int32Type>().ok_or_else(wrong);
        let (generations, partitions) = (number("generation")?, number("partition")?);
        let offsets = column("log_offset")?.as_primitive_opt::<Int64Type>().ok_or_else(wrong)?;
        for row in 0..batch.num_rows() {
            let campaign = campaigns.value(row);
            if !slice.holds_campaign(campaign) || !slice.holds_id(ids.value(row)) {
                continue;
            }
            let class = [VerdictClass::Valid, VerdictClass::Givt, VerdictClass::Sivt]
                .into_iter()
                .find(|class| class.name() == classes.value(row))
                .ok_or_else(|| batches.damage(format!("verdict {:?} is unknown", classes.value(row))))?;
            let ruling = Ruling {
                click_id: ids.value(row).try_into().map_err(|_| wrong())?,
                class,
                decided_ms: decided.value(row),
                arrival_ms: arrivals.value(row),
                position: Position {
                    generation: Generation(generations.value(row) as u32), // written from an unsigned number
                    offset: LogOffset(offsets.value(row)),
                },
                partition: PartitionId(partitions.value(row) as u32),
                file,
            };
            rulings.entry_ref(campaign).or_default().push(ruling);
        }
    }
    Ok(())
}
