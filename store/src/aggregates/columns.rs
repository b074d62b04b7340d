//! The columns of aggregates. Public, and only ever added to: other tools read these files.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// Counts and amount, in the order of the columns.
pub(super) const NUMBERS: [&str; 8] = [
    "gross",
    "duplicates",
    "conflicts",
    "invalid_givt",
    "invalid_sivt",
    "billable",
    "unpriced",
    "amount_micros",
];

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields = vec![
        Field::new("campaign_id", DataType::Utf8, false),
        Field::new("ad_id", DataType::Utf8, true),
        Field::new("window_start", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
    ];
    fields.extend(NUMBERS.map(|name| Field::new(name, DataType::Int64, false)));
    fields.push(Field::new("unique_users", DataType::Int64, false));
    fields.push(Field::new("users", DataType::Binary, false));
    Arc::new(Schema::new(fields))
});

/// Returns the columns of `aggregates/…`, the same at every level.
///
/// `unique_users` is what `users` counts, for readers that do not read sketches; it does not add up over rows.
pub fn aggregates_schema() -> SchemaRef {
    Arc::clone(&SCHEMA)
}
