//! What other hours, and verdicts, say of the identities of the hour that is counted.
//!
//! A copy in another hour, or a verdict, matters only if its identity has a copy in the hour: a final hour reads 48 hours
//! beside its own, and needs a few rows of them. So the reader keeps only those, by a semi-join whose hash table is built
//! from the hour's own identities; every statement then finds them in memory, and the rest is read once a slice.
//! Guarantee: the answers are the same as over all rows (the statements ask of each identity for a copy in the hour);
//! rows that outgrow their share of the memory are an error, upon which smaller slices are cut.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, new_null_array};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::JoinType;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use futures::StreamExt;

use crate::error::{Error, Result};

/// Columns that the statements read of the hour's own copies only, or not at all: of other hours they stay unread.
const UNREAD: [&str; 6] = ["ad_id", "user_id", "publisher_id", "arrival_time", "ip_hash", "schema_version"];

/// Which columns are read of the rows that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// Those that this build's statements read of other hours; the others are null.
    OfStatements,
    Every,
}

/// Returns the rows of `others` whose identity is among `own`, held in memory.
///
/// # Errors
/// `OutOfMemory` if they take more than `bytes_max`.
pub async fn related(
    context: &SessionContext,
    own: DataFrame,
    others: DataFrame,
    columns: Columns,
    bytes_max: u64,
) -> Result<DataFrame> {
    let failed = Error::engine("find what belongs to the hour's clicks");
    let schema: SchemaRef = Arc::clone(others.schema().inner());
    let read: Vec<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .filter(|name| columns == Columns::Every || !UNREAD.contains(name))
        .collect();
    let identity = ["campaign_id", "click_id"];
    let own = own.select_columns(&identity).and_then(|own| own.alias("own")).map_err(failed)?;
    let others = others.select_columns(&read).and_then(|others| others.alias("others")).map_err(failed)?;
    let joined = own.join(others, JoinType::RightSemi, &identity, &identity, None).map_err(failed)?;
    let mut answer = joined.execute_stream().await.map_err(failed)?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = answer.next().await {
        let batch = compact(&batch.map_err(failed)?, &schema)?;
        bytes += batch.get_array_memory_size() as u64;
        if bytes > bytes_max {
            return Err(Error::OutOfMemory { limit_bytes: bytes_max });
        }
        rows.push(batch);
    }
    let table = MemTable::try_new(Arc::new(nullable(&schema)), vec![rows]).map_err(failed)?;
    context.read_table(Arc::new(table)).map_err(failed)
}

/// Returns the batch in all columns of `schema`, without the buffers that its few rows would keep alive.
fn compact(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let column = |name: &str, data_type: &DataType| -> ArrayRef {
        match batch.column_by_name(name) {
            Some(column) => match column.as_string_view_opt() {
                Some(views) => Arc::new(views.gc()),
                None => Arc::clone(column),
            },
            None => new_null_array(data_type, batch.num_rows()),
        }
    };
    let columns = schema.fields().iter().map(|field| column(field.name(), field.data_type())).collect();
    let schema = Arc::new(nullable(schema));
    Ok(RecordBatch::try_new(schema, columns).map_err(twice_log::Error::from)?)
}

fn nullable(schema: &SchemaRef) -> arrow::datatypes::Schema {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    arrow::datatypes::Schema::new(fields.collect::<Vec<_>>())
}
