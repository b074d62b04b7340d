//! Lists of billing as JSON, CSV or Parquet, by what the client accepts: one description of the columns serves both tables.
//!
//! Guarantee: the three forms carry the same rows and the same column names. Numbers are decimal integers, money in
//! millionths of the currency's unit; a CSV cell that others chose never starts a formula in a spreadsheet.

use std::sync::Arc;

use actix_web::http::header::ACCEPT;
use actix_web::{HttpRequest, HttpResponse, web};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use twice_store::{Page, UtcMicros};

use crate::error::{Error, Result};

pub(crate) const PARQUET: &str = "application/vnd.apache.parquet";
pub(crate) const CSV: &str = "text/csv";
/// Carries the cursor of the next page where the body is a table.
const NEXT_CURSOR: &str = "x-next-cursor";

/// How a column's value is read from a row.
pub(crate) enum Value<R> {
    /// Chosen by others, as ids are: made harmless in CSV.
    Foreign(fn(&R) -> &str),
    /// Ours; `None` is an empty cell.
    Text(fn(&R) -> Option<String>),
    Integer(fn(&R) -> Option<i64>),
    /// RFC 3339 with microseconds in CSV, a UTC timestamp in Parquet.
    Moment(fn(&R) -> UtcMicros),
}

/// A column of a table.
pub(crate) struct Column<R> {
    pub name: &'static str,
    pub value: Value<R>,
}

/// Builds a column.
pub(crate) const fn column<R>(name: &'static str, value: Value<R>) -> Column<R> {
    Column { name, value }
}

/// A row that has columns.
pub(crate) trait TableRow: Sized + Send + Sync + 'static {
    /// Name of a downloaded file, without its ending.
    const NAME: &'static str;

    fn columns() -> Vec<Column<Self>>;
}

/// Answers a page in the form the client accepts; `json` makes a row of the JSON body.
pub(crate) async fn respond<R: TableRow, J: Serialize>(
    request: &HttpRequest,
    page: Page<R>,
    json: impl FnOnce(Page<R>) -> J,
) -> Result<HttpResponse> {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let write: fn(&[R]) -> Result<Vec<u8>>;
    let (content_type, ending) = if accept.contains(PARQUET) {
        write = write_parquet;
        (PARQUET, "parquet")
    } else if accept.contains(CSV) {
        write = write_csv;
        ("text/csv; charset=utf-8; header=present", "csv")
    } else {
        return Ok(HttpResponse::Ok().json(json(page)));
    };
    let Page { rows, next_cursor } = page;
    // Ten thousand rows take milliseconds, which belong to no worker that serves others.
    let body = web::block(move || write(&rows)).await;
    let body = body.map_err(|error| internal("writing a table", error))??;
    let mut response = HttpResponse::Ok();
    response.content_type(content_type);
    let disposition = format!("attachment; filename=\"{}.{ending}\"", R::NAME);
    response.insert_header(("content-disposition", disposition));
    if let Some(cursor) = next_cursor {
        response.insert_header((NEXT_CURSOR, cursor));
    }
    Ok(response.body(body))
}

fn write_csv<R: TableRow>(rows: &[R]) -> Result<Vec<u8>> {
    let failed = |error: csv::Error| internal("writing CSV", error);
    let columns = R::columns();
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(columns.iter().map(|column| column.name)).map_err(failed)?;
    for row in rows {
        writer.write_record(columns.iter().map(|column| cell(&column.value, row))).map_err(failed)?;
    }
    writer.into_inner().map_err(|error| internal("writing CSV", error.into_error()))
}

fn cell<R>(value: &Value<R>, row: &R) -> String {
    match value {
        Value::Foreign(read) => inert(read(row)),
        Value::Text(read) => read(row).unwrap_or_default(),
        Value::Integer(read) => read(row).map(|number| number.to_string()).unwrap_or_default(),
        Value::Moment(read) => read(row).to_string(),
    }
}

/// Makes a text that others chose harmless in a spreadsheet, which would run `=…`, `+…`, `-…` and `@…` as formulas.
///
/// It can be taken back: whoever reads the file takes one `'` off each text that begins with one. So a text that begins
/// with one of its own gets another.
fn inert(text: &str) -> String {
    match text.bytes().next() {
        Some(b'=' | b'+' | b'-' | b'@' | b'\t' | b'\r' | b'\n' | b'\'') => format!("'{text}"),
        _ => text.to_owned(),
    }
}

fn write_parquet<R: TableRow>(rows: &[R]) -> Result<Vec<u8>> {
    let (mut fields, mut arrays) = (Vec::new(), Vec::new());
    for Column { name, value } in R::columns() {
        let (array, nullable) = array_of(&value, rows);
        fields.push(Field::new(name, array.data_type().clone(), nullable));
        arrays.push(array);
    }
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), arrays);
    let batch = batch.map_err(|error| internal("laying out Parquet", error))?;
    let properties =
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let failed = |error| internal("writing Parquet", error);
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties)).map_err(failed)?;
    writer.write(&batch).map_err(failed)?;
    writer.into_inner().map_err(failed)
}

/// Returns the values of a column, and whether it may hold nulls.
fn array_of<R>(value: &Value<R>, rows: &[R]) -> (ArrayRef, bool) {
    match value {
        Value::Foreign(read) => (Arc::new(StringArray::from_iter_values(rows.iter().map(read))), false),
        Value::Text(read) => (Arc::new(rows.iter().map(read).collect::<StringArray>()), true),
        Value::Integer(read) => (Arc::new(rows.iter().map(read).collect::<Int64Array>()), true),
        Value::Moment(read) => {
            let moments = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| read(row).0));
            let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
            (Arc::new(moments.with_data_type(utc)), false)
        }
    }
}

fn internal(what: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Internal { what, source: Some(source.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Row(&'static str, i64, Option<i64>);

    impl TableRow for Row {
        const NAME: &'static str = "rows";

        fn columns() -> Vec<Column<Self>> {
            vec![
                column("id", Value::Foreign(|row| row.0)),
                column("delta", Value::Integer(|row| Some(row.1))),
                column("before", Value::Integer(|row| row.2)),
                column("kind", Value::Text(|_| Some("-ours".to_owned()))),
                column("at", Value::Moment(|_| UtcMicros(1))),
            ]
        }
    }

    #[test]
    fn formulas_in_ids_are_inert_and_numbers_stay_numbers() {
        let rows = [
            Row(r#"=HYPERLINK("http://x","y")"#, -5, None),
            Row("+1", 0, Some(2)),
            Row("-1", 0, None),
            Row("@a", 0, None),
            Row("\ta", 0, None),
            Row("a=b", 0, None),
        ];
        let csv = String::from_utf8(write_csv(&rows).expect("writes")).expect("UTF-8");
        let lines: Vec<&str> = csv.split("\r\n").collect();
        assert_eq!(lines[0], "id,delta,before,kind,at");
        assert_eq!(lines[1], r#""'=HYPERLINK(""http://x"",""y"")",-5,,-ours,1970-01-01T00:00:00.000001Z"#);
        assert_eq!(lines[2], "'+1,0,2,-ours,1970-01-01T00:00:00.000001Z");
        assert!(
            lines[3].starts_with("'-1,") && lines[4].starts_with("'@a,") && lines[5].starts_with("'\ta,")
        );
        assert!(lines[6].starts_with("a=b,"));
    }

    #[test]
    fn what_csv_makes_harmless_can_be_taken_back() {
        let texts = [
            "=1+1",
            "'=1+1",
            "''",
            "'",
            "-5",
            "+x",
            "@x",
            "\tx",
            "\rx",
            "plain",
            "a'b",
            "=cmd|'/C calc'!A0",
            "",
        ];
        let rows: Vec<Row> = texts.iter().map(|text| Row(text, -5, None)).collect();
        let file = write_csv(&rows).expect("writes");
        let mut reader = csv::Reader::from_reader(&file[..]);
        let mut read = Vec::new();
        for record in reader.records() {
            let record = record.expect("reads");
            assert!(!record[0].starts_with(['=', '+', '-', '@', '\t', '\r']), "{record:?}");
            assert_eq!(record[1].parse::<i64>(), Ok(-5), "a negative number stays a number");
            read.push(record[0].strip_prefix('\'').unwrap_or(&record[0]).to_owned());
        }
        assert_eq!(read, texts);
    }

    #[test]
    fn parquet_carries_ids_as_they_are_and_reads_back() {
        let file = write_parquet(&[Row("=a", -5, None), Row("b", 7, Some(2))]).expect("writes");
        let reader =
            parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(bytes::Bytes::from(file), 10);
        let batches: Vec<RecordBatch> = reader.expect("opens").map(|batch| batch.expect("reads")).collect();
        let ids = batches[0].column(0).as_any().downcast_ref::<StringArray>().expect("texts");
        let before = batches[0].column(2).as_any().downcast_ref::<Int64Array>().expect("integers");
        assert_eq!((ids.value(0), ids.value(1)), ("=a", "b"));
        assert!(arrow::array::Array::is_null(before, 0) && before.value(1) == 2);
        assert_eq!(batches[0].schema().field(4).data_type().to_string(), "Timestamp(µs, \"UTC\")");
    }

    #[test]
    fn a_table_without_rows_has_its_columns() {
        let csv = write_csv::<Row>(&[]).expect("writes");
        assert_eq!(csv, b"id,delta,before,kind,at\r\n");
        assert!(write_parquet::<Row>(&[]).expect("writes").starts_with(b"PAR1"));
    }
}
