//! Rows of a file as JSON lines, whatever the file's format.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, FixedSizeBinaryArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use twice_log::event::json::{AgeLimits, JsonClick};
use twice_log::event::{ClickId, Sha256Hex};
use twice_log::{Hour, UtcMillis};

use super::Format;

const FIELDS: [&str; 7] =
    ["click_id", "campaign_id", "ad_id", "user_id", "publisher_id", "event_time", "schema_version"];

/// A reader of rows.
pub struct Rows {
    source: Source,
    line: String,
}

enum Source {
    Ndjson(BufReader<File>),
    Csv(Box<csv::Reader<File>>, csv::StringRecord),
    Parquet(Box<ParquetRecordBatchReader>, Option<(Columns, usize)>),
}

impl Rows {
    /// Opens a file.
    pub fn open(path: &Path, format: Format) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let source = match format {
            Format::Ndjson => Source::Ndjson(BufReader::with_capacity(1 << 20, file)),
            Format::Csv => {
                let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file);
                let headers = reader.headers().context("the header line is not CSV")?.clone();
                if !headers.iter().any(|name| name == "campaign_id") {
                    bail!(
                        "the CSV header has no campaign_id; it names {}",
                        headers.iter().collect::<Vec<_>>().join(", ")
                    );
                }
                Source::Csv(Box::new(reader), headers)
            }
            Format::Parquet => {
                let builder =
                    ParquetRecordBatchReaderBuilder::try_new(file).context("the file is not Parquet")?;
                if builder.schema().field_with_name("campaign_id").is_err() {
                    bail!("the Parquet file has no column campaign_id");
                }
                Source::Parquet(Box::new(builder.with_batch_size(8192).build()?), None)
            }
        };
        Ok(Self { source, line: String::new() })
    }

    /// Passes over `rows` rows.
    pub fn skip(&mut self, rows: u64) -> Result<()> {
        for _ in 0..rows {
            if !self.next()? {
                bail!("the file has fewer rows than were sent of it before");
            }
        }
        Ok(())
    }

    /// Appends up to `rows_max` rows to `body`, a line each, and returns how many.
    pub fn fill(&mut self, body: &mut String, rows_max: u32) -> Result<u32> {
        let mut count = 0;
        while count < rows_max && self.next()? {
            body.push_str(&self.line);
            body.push('\n');
            count += 1;
        }
        Ok(count)
    }

    /// Calls `visit` with each row left.
    pub fn each(&mut self, mut visit: impl FnMut(&str) -> Result<()>) -> Result<()> {
        while self.next()? {
            visit(&self.line)?;
        }
        Ok(())
    }

    /// Reads the next row into `self.line`; false at the end. Empty lines are no rows.
    fn next(&mut self) -> Result<bool> {
        match &mut self.source {
            Source::Ndjson(reader) => loop {
                self.line.clear();
                let bytes = reader.read_line(&mut self.line).context("the file is not UTF-8 text")?;
                if bytes == 0 {
                    return Ok(false);
                }
                let length = self.line.trim_end().len();
                self.line.truncate(length);
                if !self.line.trim_start().is_empty() {
                    return Ok(true);
                }
            },
            Source::Csv(reader, headers) => {
                let mut record = csv::StringRecord::new();
                if !reader.read_record(&mut record).context("a line is not CSV")? {
                    return Ok(false);
                }
                self.line = csv_line(headers, &record);
                Ok(true)
            }
            Source::Parquet(reader, batch) => loop {
                if let Some((columns, row)) = batch
                    && *row < columns.rows
                {
                    self.line = columns.line(*row);
                    *row += 1;
                    return Ok(true);
                }
                match reader.next() {
                    Some(next) => *batch = Some((Columns::new(&next?)?, 0)),
                    None => return Ok(false),
                }
            },
        }
    }
}

fn csv_line(headers: &csv::StringRecord, record: &csv::StringRecord) -> String {
    let mut object = Map::new();
    for (name, value) in headers.iter().zip(record.iter()) {
        if value.is_empty() || !FIELDS.contains(&name) {
            continue;
        }
        let number =
            matches!(name, "event_time" | "schema_version").then(|| value.parse::<i64>().ok()).flatten();
        object.insert(name.to_owned(), number.map_or_else(|| Value::from(value), Value::from));
    }
    Value::Object(object).to_string()
}

/// The columns of one Parquet batch, as text or epoch milliseconds.
struct Columns {
    rows: usize,
    columns: Vec<(&'static str, Column)>,
}

enum Column {
    Text(StringArray),
    Number(Int64Array),
    Uuid(FixedSizeBinaryArray),
}

impl Columns {
    fn new(batch: &RecordBatch) -> Result<Self> {
        let mut columns = Vec::new();
        for field in FIELDS {
            if let Some(array) = batch.column_by_name(field) {
                columns.push((field, column(field, array.as_ref())?));
            }
        }
        Ok(Self { rows: batch.num_rows(), columns })
    }

    fn line(&self, row: usize) -> String {
        let mut object = Map::new();
        for (name, column) in &self.columns {
            let value = match column {
                Column::Text(array) if array.is_valid(row) && !array.value(row).is_empty() => {
                    array.value(row).into()
                }
                Column::Number(array) if array.is_valid(row) => array.value(row).into(),
                Column::Uuid(array) if array.is_valid(row) => match array.value(row).try_into() {
                    Ok(bytes) => ClickId::from_bytes(bytes).to_string().into(),
                    Err(_) => continue,
                },
                _ => continue,
            };
            object.insert((*name).to_owned(), value);
        }
        Value::Object(object).to_string()
    }
}

fn column(field: &str, array: &dyn Array) -> Result<Column> {
    let wrong =
        || format!("column {field} has type {}, which cannot be read as a click's", array.data_type());
    let taken = match array.data_type() {
        DataType::FixedSizeBinary(16) => array.as_any().downcast_ref().cloned().map(Column::Uuid),
        DataType::Timestamp(_, zone) => {
            let milliseconds = cast(array, &DataType::Timestamp(TimeUnit::Millisecond, zone.clone()))?;
            cast(&milliseconds, &DataType::Int64)?.as_any().downcast_ref().cloned().map(Column::Number)
        }
        kind if kind.is_integer() => {
            cast(array, &DataType::Int64)?.as_any().downcast_ref().cloned().map(Column::Number)
        }
        _ => cast(array, &DataType::Utf8)
            .with_context(wrong)?
            .as_any()
            .downcast_ref()
            .cloned()
            .map(Column::Text),
    };
    taken.with_context(wrong)
}

/// Returns the event hour of a row; `None` where it has no valid time.
pub fn hour_of(line: &str) -> Option<Hour> {
    let click: JsonClick<'_> = serde_json::from_str(line).ok()?;
    click.event_time.as_ref()?;
    let any_age = AgeLimits { past_ms_max: None, future_ms_max: i64::MAX };
    let click = click.validate(UtcMillis::clamped(0), || ClickId::derived(""), &any_age).ok()?;
    Some(click.event_time.hour())
}

/// Hashes a file.
pub fn sha256(path: &Path) -> Result<Sha256Hex> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let bytes = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if bytes == 0 {
            break;
        }
        hasher.update(&buffer[..bytes]);
    }
    Ok(Sha256Hex(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(name: &str, content: &str, format: Format) -> Vec<String> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join(name);
        File::create(&path).and_then(|mut file| file.write_all(content.as_bytes())).expect("file written");
        let mut lines = Vec::new();
        let mut rows = Rows::open(&path, format).expect("opens");
        rows.each(|line| {
            lines.push(line.to_owned());
            Ok(())
        })
        .expect("reads");
        lines
    }

    #[test]
    fn json_lines_pass_unchanged_and_empty_lines_are_no_rows() {
        assert_eq!(lines("a.ndjson", "{\"a\":1}\n\n{\"b\":2}", Format::Ndjson), ["{\"a\":1}", "{\"b\":2}"]);
    }

    #[test]
    fn csv_rows_become_objects_without_their_empty_fields() {
        let rows = lines(
            "a.csv",
            "campaign_id,ad_id,event_time\nc1,,1736942400000\nc2,a,2025-01-15T12:00:00Z\n",
            Format::Csv,
        );
        assert_eq!(rows[0], r#"{"campaign_id":"c1","event_time":1736942400000}"#);
        assert_eq!(rows[1], r#"{"ad_id":"a","campaign_id":"c2","event_time":"2025-01-15T12:00:00Z"}"#);
        assert_eq!(hour_of(&rows[0]), hour_of(&rows[1]));
        assert_eq!(hour_of(&rows[0]).map(|hour| hour.to_string()).as_deref(), Some("2025-01-15T12"));
    }
}
