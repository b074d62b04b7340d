//! The columns of the archive's Parquet files: public, additions only.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

static CLICKS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("campaign_id", DataType::Utf8, false),
        Field::new("ad_id", DataType::Utf8, false),
        Field::new("user_id", DataType::Utf8, false),
        Field::new("publisher_id", DataType::Utf8, false),
        Field::new("click_id", DataType::FixedSizeBinary(16), false),
        Field::new("event_time", timestamp(), false),
        Field::new("arrival_time", timestamp(), false),
        Field::new("watermark", timestamp(), true),
        Field::new("generation", DataType::Int32, false),
        Field::new("partition", DataType::Int32, false),
        Field::new("log_offset", DataType::Int64, false),
        Field::new("payload_hash", DataType::Int64, false),
        Field::new("ip_hash", DataType::FixedSizeBinary(16), true),
        Field::new("schema_version", DataType::Int32, false),
    ]))
});

static VERDICTS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("campaign_id", DataType::Utf8, false),
        Field::new("click_id", DataType::FixedSizeBinary(16), false),
        Field::new("verdict", DataType::Utf8, false),
        Field::new("model_version", DataType::Utf8, false),
        Field::new("decided_at", timestamp(), false),
        Field::new("click_event_time", timestamp(), true),
        Field::new("arrival_time", timestamp(), false),
        Field::new("generation", DataType::Int32, false),
        Field::new("partition", DataType::Int32, false),
        Field::new("log_offset", DataType::Int64, false),
        Field::new("schema_version", DataType::Int32, false),
    ]))
});

static QUARANTINE: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("log_offset", DataType::Int64, false),
        Field::new("bytes", DataType::Binary, false),
        Field::new("reason", DataType::Utf8, false),
    ]))
});

/// Returns the columns of `clicks/…`: one row a copy.
pub fn clicks_schema() -> SchemaRef {
    Arc::clone(&CLICKS)
}

/// Returns the columns of `verdicts/…`: one row a stored verdict.
pub fn verdicts_schema() -> SchemaRef {
    Arc::clone(&VERDICTS)
}

/// Returns the columns of `quarantine/…`: one row a record that did not decode.
pub fn quarantine_schema() -> SchemaRef {
    Arc::clone(&QUARANTINE)
}
