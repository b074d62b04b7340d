//! Reads single values out of the engine's answers.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use twice_log::CampaignId;

use crate::error::{Error, Result};

/// Returns the text in a column, whichever of the engine's text types it has.
pub(crate) fn text(batch: &RecordBatch, name: &str, row: usize) -> Result<Option<String>> {
    let column = column(batch, name)?;
    if column.is_null(row) {
        return Ok(None);
    }
    let value = (column.as_string_view_opt().map(|column| column.value(row)))
        .or_else(|| column.as_string_opt::<i32>().map(|column| column.value(row)))
        .or_else(|| column.as_string_opt::<i64>().map(|column| column.value(row)));
    value
        .map(|value| Some(value.to_owned()))
        .ok_or_else(|| contradiction(format!("column {name} is no text")))
}

/// Returns the number in a BIGINT column.
pub(crate) fn integer(batch: &RecordBatch, name: &str, row: usize) -> Result<i64> {
    let column = column(batch, name)?;
    let value = column.as_primitive_opt::<Int64Type>().filter(|column| column.is_valid(row));
    value.map(|column| column.value(row)).ok_or_else(|| contradiction(format!("column {name} is no number")))
}

/// Returns the count in a BIGINT column.
pub(crate) fn count(batch: &RecordBatch, name: &str, row: usize) -> Result<u64> {
    u64::try_from(integer(batch, name, row)?).map_err(|_| contradiction(format!("{name} is below zero")))
}

/// Returns the campaign a row is of.
pub(crate) fn campaign(batch: &RecordBatch, row: usize) -> Result<CampaignId> {
    let campaign_id = text(batch, "campaign_id", row)?.unwrap_or_default();
    CampaignId::new(&campaign_id).map_err(|error| contradiction(format!("campaign {campaign_id:?} {error}")))
}

/// Returns a column by name.
pub(crate) fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a dyn Array> {
    let column = batch.column_by_name(name);
    column.map(AsRef::as_ref).ok_or_else(|| contradiction(format!("column {name} is missing")))
}

pub(crate) fn contradiction(reason: String) -> Error {
    Error::Contradiction { reason }
}
