//! Rows of clicks out of Arrow columns, without a text or an allocation a row.

use arrow::array::{Array, AsArray, FixedSizeBinaryArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use twice_log::LogOffset;
use twice_store::Result;

use super::files::Batches;
use super::slices::Slice;

/// Columns of clicks that a bill reads. Generation and partition are in the file's name.
pub(super) const CLICK_COLUMNS: [&str; 5] =
    ["campaign_id", "click_id", "event_time", "log_offset", "payload_hash"];

/// One copy of a campaign.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub offset: i64,
    pub event_ms: i64,
    pub payload_hash: i64,
    pub click_id: [u8; 16],
}

/// Rows of one campaign that follow each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub campaign: u32,
    pub from: usize,
    pub to: usize,
}

/// The rows of one range of offsets, as files hold them: by campaign within each.
#[derive(Debug, Default)]
pub(super) struct RangeRows {
    pub rows: Vec<Row>,
    pub stretches: Vec<Stretch>,
}

impl RangeRows {
    pub fn clear(&mut self) {
        self.rows.clear();
        self.stretches.clear();
    }

    /// Takes the rows of `slice` below `end`; `number` gives each campaign its number.
    ///
    /// # Errors
    /// `Archive` if a file has other columns.
    pub fn take(
        &mut self,
        mut batches: Batches<'_>,
        slice: &Slice,
        end: LogOffset,
        mut number: impl FnMut(&str) -> Result<u32>,
    ) -> Result<()> {
        while let Some(batch) = batches.next_batch()? {
            let columns = Columns::of(&batch).ok_or_else(|| {
                batches.damage("has a column of another type than files of every version have")
            })?;
            let mut from = 0;
            while from < batch.num_rows() {
                let campaign = columns.campaigns.value(from);
                let to = stretch_end(columns.campaigns, from);
                if slice.holds_campaign(campaign) {
                    self.take_stretch(&columns, (from, to), slice, end, || number(campaign))?;
                }
                from = to;
            }
        }
        Ok(())
    }

    fn take_stretch(
        &mut self,
        columns: &Columns<'_>,
        (from, to): (usize, usize),
        slice: &Slice,
        end: LogOffset,
        number: impl FnOnce() -> Result<u32>,
    ) -> Result<()> {
        let first = self.rows.len();
        let ids = columns.click_ids.value_data()[from * 16..to * 16].as_chunks::<16>().0;
        let offsets = &columns.offsets.values()[from..to];
        let (times, hashes) = (&columns.event_times[from..to], &columns.hashes.values()[from..to]);
        for (((click_id, offset), event_ms), payload_hash) in ids.iter().zip(offsets).zip(times).zip(hashes) {
            if *offset < end.0 && slice.holds_id(click_id) {
                self.rows.push(Row {
                    offset: *offset,
                    event_ms: *event_ms,
                    payload_hash: *payload_hash,
                    click_id: *click_id,
                });
            }
        }
        if self.rows.len() > first {
            let campaign = number()?;
            match self.stretches.last_mut() {
                Some(last) if last.campaign == campaign && last.to == first => last.to = self.rows.len(),
                _ => self.stretches.push(Stretch { campaign, from: first, to: self.rows.len() }),
            }
        }
        Ok(())
    }
}

struct Columns<'a> {
    campaigns: &'a StringArray,
    click_ids: &'a FixedSizeBinaryArray,
    event_times: &'a [i64],
    offsets: &'a Int64Array,
    hashes: &'a Int64Array,
}

impl<'a> Columns<'a> {
    /// Returns `None` where a column is absent, of another type, or has nulls.
    fn of(batch: &'a RecordBatch) -> Option<Self> {
        let column = |name| batch.column_by_name(name).filter(|column| column.null_count() == 0);
        Some(Self {
            campaigns: column("campaign_id")?.as_string_opt()?,
            click_ids: column("click_id")?
                .as_fixed_size_binary_opt()
                .filter(|ids| ids.value_length() == 16)?,
            event_times: column("event_time")?.as_primitive_opt::<TimestampMillisecondType>()?.values(),
            offsets: column("log_offset")?.as_primitive_opt::<Int64Type>()?,
            hashes: column("payload_hash")?.as_primitive_opt::<Int64Type>()?,
        })
    }
}

/// Returns where the rows of the campaign at `from` end. Files are in order of campaign: steps double, then halve.
fn stretch_end(campaigns: &StringArray, from: usize) -> usize {
    let campaign = campaigns.value(from);
    let (mut step, mut low) = (1, from);
    while low + step < campaigns.len() && campaigns.value(low + step) == campaign {
        low += step;
        step *= 2;
    }
    let mut high = campaigns.len().min(low + step);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if campaigns.value(middle) == campaign { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_end_where_the_campaign_changes() {
        let lengths = [1_usize, 5, 2, 64, 1, 33];
        let names: Vec<String> = lengths
            .iter()
            .enumerate()
            .flat_map(|(index, count)| vec![format!("camp_{index}"); *count])
            .collect();
        let campaigns = StringArray::from_iter_values(&names);
        let mut from = 0;
        for length in lengths {
            assert_eq!(stretch_end(&campaigns, from), from + length);
            from += length;
        }
        assert_eq!(from, campaigns.len());
    }
}
