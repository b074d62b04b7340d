//! The columns of the archive's Parquet files: public, additions only.
//!
//! Guarantee: files of every layout there ever was read together, and none is ever rewritten. A column that came later
//! reads from older files as null, or as empty text where it is text that is never null; columns of a newer build are
//! left out; a file without a column that all layouts have is damaged. Words: *layout* = the columns of a kind of file,
//! and what those that came later read as where they are absent.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::FileKind;

/// What a column reads as in a file that has none of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// Every layout has it: a file without it is damaged.
    Damage,
    /// It came later and may be null.
    Null,
    /// It came later and is text that is never null.
    EmptyText,
}

/// Columns of clicks that the first layout had not. A column added to a schema below is added here as well.
const CLICKS_ADDED: [(&str, Absent); 2] = [("publisher_id", Absent::EmptyText), ("ip_hash", Absent::Null)];

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

/// The columns of one kind of data file, however old the file is.
#[derive(Debug, Clone)]
pub struct Layout {
    schema: SchemaRef,
    added: Vec<(String, Absent)>,
}

impl Layout {
    /// Returns the newest layout of `kind`.
    pub fn of(kind: FileKind) -> Self {
        let (schema, added) = match kind {
            FileKind::Clicks => (clicks_schema(), &CLICKS_ADDED[..]),
            FileKind::Verdicts => (verdicts_schema(), &[][..]),
            FileKind::Quarantine => (quarantine_schema(), &[][..]),
        };
        let added = added.iter().map(|(name, absent)| ((*name).to_owned(), *absent));
        Self { schema, added: added.collect() }
    }

    /// Adds a column that may be null: what the next schema version does.
    #[must_use]
    pub fn adding(mut self, name: &str, data_type: DataType) -> Self {
        let added = Arc::new(Field::new(name, data_type, true));
        let fields: Vec<_> = self.schema.fields().iter().cloned().chain([added]).collect();
        self.schema = Arc::new(Schema::new(fields));
        self.added.push((name.to_owned(), Absent::Null));
        self
    }

    /// Returns the columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns what a column reads as in files without it.
    pub fn absent(&self, column: &str) -> Absent {
        let added = self.added.iter().find(|(name, _)| name == column);
        added.map_or(Absent::Damage, |(_, absent)| *absent)
    }

    /// Returns rows of a file of any layout in the columns of this one.
    ///
    /// # Errors
    /// A reason that names the column, where one is missing or has another type.
    pub fn adapt(&self, batch: &RecordBatch) -> std::result::Result<RecordBatch, String> {
        let columns = self.schema.fields().iter().map(|field| self.column(field, batch));
        let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
        RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(|error| error.to_string())
    }

    fn column(&self, field: &Field, batch: &RecordBatch) -> std::result::Result<ArrayRef, String> {
        let (name, rows) = (field.name(), batch.num_rows());
        match (batch.column_by_name(name), self.absent(name)) {
            (Some(column), _) if column.data_type() == field.data_type() => Ok(Arc::clone(column)),
            (Some(column), _) => {
                Err(format!("column {name} is {}, not {}", column.data_type(), field.data_type()))
            }
            (None, Absent::Null) => Ok(new_null_array(field.data_type(), rows)),
            (None, Absent::EmptyText) => Ok(Arc::new(StringArray::from_iter_values(vec![""; rows]))),
            (None, Absent::Damage) => Err(format!("has no column {name}, which files of every version have")),
        }
    }
}
