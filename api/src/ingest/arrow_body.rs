//! Clicks as an Arrow IPC stream: columns instead of text, for producers whose JSON would cost them a core.
//!
//! Guarantee: a hostile stream is refused and costs no more memory than a few times its own size. Every length a
//! message declares is checked against the body before the decoder of the `arrow-ipc` crate sees it; rows are counted
//! before any is decoded; compressed buffers are refused, because their unpacked size has no bound here (pack the whole
//! body by `Content-Encoding`, whose decoder counts). The decoder always validates; should it panic on bytes nobody
//! thought of, that is an answer 400 too.
//! Columns have the names of the JSON fields. An unknown column is refused by name: a misspelt one would be lost for
//! every click of the stream. What is wrong with one row refuses that row alone, by its index over all batches.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::{
    AnyDictionaryArray, Array, ArrayRef, AsArray, FixedSizeBinaryArray, LargeStringArray, RecordBatch,
    StringArray, StringViewArray,
};
use arrow::datatypes::{
    DataType, Int8Type, Int16Type, Int32Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::{Endianness, Message, MessageHeader, root_as_message};
use bytes::Bytes;
use twice_log::ClickId;
use twice_log::event::json::{JsonClick, JsonTime, RejectCode, Rejection, Text};

use super::batch::{Parsed, too_many};
use super::shape::{GivenId, Incoming};
use crate::error::{Error, Result};

const COLUMNS: [&str; 7] =
    ["campaign_id", "click_id", "ad_id", "user_id", "publisher_id", "event_time", "schema_version"];
const CONTINUATION: [u8; 4] = [0xFF; 4];

/// Reads the rows of all batches in order and hands each to `take`, with its index over the whole stream.
///
/// # Errors
/// `BadRequest` for a stream that is damaged or cut, `Unprocessable` for columns that make no clicks or a stream without
/// rows, `UnsupportedMediaType` for compressed buffers, `TooLarge` above `records_max` rows.
pub(super) fn read_arrow(
    body: &Bytes,
    records_max: u32,
    take: &mut dyn FnMut(u32, Parsed<Incoming<'_>>),
) -> Result<()> {
    check_frames(body, records_max)?;
    let mut buffer = arrow::buffer::Buffer::from(body.clone());
    let mut decoder = StreamDecoder::new();
    let mut index = 0;
    // The bytes of one batch at a time become arrays, most of them without a copy.
    while let Some(batch) = guarded(|| decoder.decode(&mut buffer))? {
        let columns = Columns::of(&batch)?;
        for row in 0..batch.num_rows() {
            take(index, columns.click(row));
            index += 1; // bounded by records_max
        }
    }
    guarded(|| decoder.finish())?;
    if index == 0 {
        return Err(Error::unprocessable("the stream has no rows; send at least one click"));
    }
    Ok(())
}

/// Runs a step of the decoder; its errors and its panics are both the sender's.
fn guarded<T>(step: impl FnOnce() -> Result<T, arrow::error::ArrowError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(broken(&error.to_string())),
        Err(_) => Err(broken("its messages contradict each other")),
    }
}

fn broken(reason: &str) -> Error {
    Error::bad_request(format!("the body is no Arrow IPC stream: {reason}"))
}

/// Walks the messages of the stream without decoding any data.
fn check_frames(body: &[u8], records_max: u32) -> Result<()> {
    let mut rest = body;
    let mut rows = 0_u64;
    let mut schema_read = false;
    while let Some((message, data)) = next_message(&mut rest)? {
        match message.header_type() {
            MessageHeader::Schema if !schema_read => {
                check_schema(&message)?;
                schema_read = true;
            }
            MessageHeader::Schema => return Err(broken("it has two schemas")),
            MessageHeader::RecordBatch if schema_read => {
                let batch =
                    message.header_as_record_batch().ok_or_else(|| broken("a batch has no header"))?;
                check_batch(&batch, data.len())?;
                rows = rows.saturating_add(batch.length().unsigned_abs());
                if rows > records_max.into() {
                    return Err(too_many(records_max as usize));
                }
            }
            MessageHeader::DictionaryBatch if schema_read => {
                let dictionary = message.header_as_dictionary_batch().and_then(|batch| batch.data());
                check_batch(&dictionary.ok_or_else(|| broken("a dictionary has no data"))?, data.len())?;
            }
            MessageHeader::RecordBatch | MessageHeader::DictionaryBatch => {
                return Err(broken("it does not begin with its schema"));
            }
            other => return Err(broken(&format!("messages of type {other:?} are not read here"))),
        }
    }
    if schema_read { Ok(()) } else { Err(broken("it holds no schema")) }
}

/// Takes the next message and its data off `rest`; `None` at the end of the stream.
fn next_message<'a>(rest: &mut &'a [u8]) -> Result<Option<(Message<'a>, &'a [u8])>> {
    if rest.is_empty() {
        return Ok(None); // the end marker may be left out
    }
    let mut take = |length: usize| {
        rest.split_off(..length).ok_or_else(|| broken("it ends within a message, or a length in it is wrong"))
    };
    let mut prefix = take(4)?;
    if prefix == CONTINUATION {
        prefix = take(4)?;
    }
    let length = prefix.iter().rev().fold(0_usize, |length, byte| (length << 8) | usize::from(*byte));
    if length == 0 {
        return if rest.is_empty() { Ok(None) } else { Err(broken("bytes follow its end marker")) };
    }
    let message =
        root_as_message(take(length)?).map_err(|error| broken(&format!("a message is damaged: {error}")))?;
    let body_length =
        usize::try_from(message.bodyLength()).map_err(|_| broken("a length in it is negative"))?;
    let data = take(body_length)?;
    Ok(Some((message, data)))
}

fn check_batch(batch: &arrow_ipc::RecordBatch<'_>, data_bytes: usize) -> Result<()> {
    if batch.compression().is_some() {
        let detail = "compressed Arrow buffers are not read here; send them plain and compress the whole body, with \
             Content-Encoding gzip or zstd";
        return Err(Error::UnsupportedMediaType { detail: detail.to_owned() });
    }
    let nodes = batch.nodes().ok_or_else(|| broken("a batch has no fields"))?;
    let negative = nodes.iter().any(|node| node.length() < 0 || node.null_count() < 0);
    if batch.length() < 0 || negative {
        return Err(broken("a length in it is negative"));
    }
    let buffers = batch.buffers().ok_or_else(|| broken("a batch has no buffers"))?;
    for buffer in buffers.iter() {
        let end = buffer.offset().checked_add(buffer.length());
        let inside = buffer.offset() >= 0 && buffer.length() >= 0;
        if !inside || end.and_then(|end| usize::try_from(end).ok()).is_none_or(|end| end > data_bytes) {
            return Err(broken("a buffer lies outside its batch"));
        }
    }
    let counts = batch.variadicBufferCounts();
    if counts.is_some_and(|counts| counts.iter().any(|count| !(0..=buffers.len() as i64).contains(&count))) {
        return Err(broken("a count of buffers is wrong"));
    }
    Ok(())
}

/// Checks names and types, so that the decoder builds no other arrays than these.
fn check_schema(message: &Message<'_>) -> Result<()> {
    let header = message.header_as_schema().ok_or_else(|| broken("its schema has no header"))?;
    if header.endianness() != Endianness::Little {
        return Err(broken("it is big-endian"));
    }
    let schema: Schema = guarded(|| Ok(arrow_ipc::convert::fb_to_schema(header)))?;
    for (place, field) in schema.fields().iter().enumerate() {
        let name = field.name().as_str();
        let fits = match name {
            "click_id" => is_text(field.data_type()) || *field.data_type() == DataType::FixedSizeBinary(16),
            "event_time" => {
                matches!(field.data_type(), DataType::Timestamp(..) | DataType::Int64)
                    || is_text(field.data_type())
            }
            "schema_version" => field.data_type().is_integer() || *field.data_type() == DataType::Null,
            name if COLUMNS.contains(&name) => is_text(field.data_type()),
            _ => {
                return Err(Error::unprocessable(format!(
                    "column {:?} is unknown; the columns of a click are {}",
                    excerpt(name),
                    COLUMNS.join(", ")
                )));
            }
        };
        if !fits {
            return Err(Error::unprocessable(format!(
                "column {name} cannot be {}; text columns are utf8 (plain, large, view or dictionary), click_id also \
                 16 bytes, event_time also a timestamp or int64 milliseconds, schema_version an integer",
                excerpt(&field.data_type().to_string())
            )));
        }
        if schema.fields().iter().skip(place + 1).any(|other| other.name() == name) {
            return Err(Error::unprocessable(format!("column {name} is there twice")));
        }
    }
    if schema.field_with_name("campaign_id").is_err() {
        return Err(Error::unprocessable("column campaign_id is missing"));
    }
    Ok(())
}

/// A column of nulls only is written as type null by some producers.
fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => true,
        DataType::Dictionary(key, value) => {
            key.is_integer() && matches!(**value, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
        }
        _ => false,
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The columns of a batch, each behind one way to ask for a row.
struct Columns<'a> {
    campaign_id: TextColumn<'a>,
    click_id: IdColumn<'a>,
    ad_id: TextColumn<'a>,
    user_id: TextColumn<'a>,
    publisher_id: TextColumn<'a>,
    event_time: TimeColumn<'a>,
    /// Wide enough for every integer type; only 0 to 255 can be a version.
    schema_version: Option<Vec<Option<i128>>>,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let text = |name: &str| TextColumn::of(batch.column_by_name(name));
        Ok(Self {
            campaign_id: text("campaign_id")?,
            click_id: IdColumn::of(batch.column_by_name("click_id"))?,
            ad_id: text("ad_id")?,
            user_id: text("user_id")?,
            publisher_id: text("publisher_id")?,
            event_time: TimeColumn::of(batch.column_by_name("event_time"))?,
            schema_version: batch.column_by_name("schema_version").map(integers).transpose()?.flatten(),
        })
    }

    fn click(&self, row: usize) -> Parsed<Incoming<'a>> {
        let Some(campaign_id) = self.campaign_id.get(row) else {
            return Err(Rejection::new(RejectCode::Malformed, "campaign_id is null"));
        };
        let (click_id, id) = match &self.click_id {
            IdColumn::Text(column) => (column.get(row).map(Text::from), GivenId::OfClick),
            IdColumn::Bytes(column) if column.is_null(row) => (None, GivenId::OfClick),
            IdColumn::Bytes(column) => {
                let id = uuid::Uuid::from_slice(column.value(row)).map(ClickId);
                let wrong = |_| Rejection::new(RejectCode::ClickIdNotUuid, "click_id is not 16 bytes");
                (None, GivenId::AsBytes(id.map_err(wrong)?))
            }
        };
        let version = self.schema_version.as_ref().and_then(|versions| versions.get(row).copied().flatten());
        let schema_version = match version.map(u8::try_from) {
            None => None,
            Some(Ok(version)) => Some(version),
            Some(Err(_)) => {
                return Err(Rejection::new(RejectCode::SchemaVersion, "schema_version is unknown"));
            }
        };
        let text = |column: &TextColumn<'a>| column.get(row).map(Text::from);
        let click = JsonClick {
            click_id,
            campaign_id: Text::from(campaign_id),
            ad_id: text(&self.ad_id),
            user_id: text(&self.user_id),
            publisher_id: text(&self.publisher_id),
            event_time: self.event_time.get(row),
            schema_version,
        };
        Ok(Incoming { click, id })
    }
}

enum TextColumn<'a> {
    /// Not there, or null throughout.
    Absent,
    Plain(&'a StringArray),
    Large(&'a LargeStringArray),
    View(&'a StringViewArray),
    /// Looked up row by row: written out, one long value under many keys would grow without bound.
    Dictionary {
        keys: &'a dyn AnyDictionaryArray,
        places: Vec<usize>,
        values: Box<TextColumn<'a>>,
    },
}

impl<'a> TextColumn<'a> {
    fn of(column: Option<&'a ArrayRef>) -> Result<Self> {
        let Some(column) = column else { return Ok(Self::Absent) };
        Ok(match column.data_type() {
            DataType::Null => Self::Absent,
            DataType::Utf8 => Self::Plain(column.as_string_opt().ok_or_else(other_type)?),
            DataType::LargeUtf8 => Self::Large(column.as_string_opt().ok_or_else(other_type)?),
            DataType::Utf8View => Self::View(column.as_string_view_opt().ok_or_else(other_type)?),
            _ => {
                let keys = column.as_any_dictionary_opt().ok_or_else(other_type)?;
                if keys.values().is_empty() {
                    return Ok(Self::Absent);
                }
                let values = Box::new(Self::of(Some(keys.values()))?);
                Self::Dictionary { keys, places: keys.normalized_keys(), values }
            }
        })
    }

    fn get(&self, row: usize) -> Option<&'a str> {
        match self {
            Self::Absent => None,
            Self::Plain(column) => column.is_valid(row).then(|| column.value(row)),
            Self::Large(column) => column.is_valid(row).then(|| column.value(row)),
            Self::View(column) => column.is_valid(row).then(|| column.value(row)),
            Self::Dictionary { keys, places, values } => {
                if keys.keys().is_null(row) {
                    return None;
                }
                places.get(row).and_then(|place| values.get(*place))
            }
        }
    }
}

enum IdColumn<'a> {
    Text(TextColumn<'a>),
    Bytes(&'a FixedSizeBinaryArray),
}

impl<'a> IdColumn<'a> {
    fn of(column: Option<&'a ArrayRef>) -> Result<Self> {
        match column.and_then(|column| column.as_fixed_size_binary_opt()) {
            Some(bytes) => Ok(Self::Bytes(bytes)),
            None => TextColumn::of(column).map(Self::Text),
        }
    }
}

enum TimeColumn<'a> {
    Text(TextColumn<'a>),
    /// Milliseconds since the epoch; beyond the range of any time where the unit does not fit.
    EpochMs(Vec<Option<i64>>),
}

impl<'a> TimeColumn<'a> {
    /// A timestamp counts from the epoch in UTC, whatever zone it names for display; one without zone is UTC.
    fn of(column: Option<&'a ArrayRef>) -> Result<Self> {
        let Some(array) = column else { return Ok(Self::Text(TextColumn::Absent)) };
        macro_rules! epoch_ms {
            ($kind:ty, $convert:expr) => {{
                let values = array.as_primitive_opt::<$kind>().ok_or_else(other_type)?;
                Self::EpochMs(values.iter().map(|value| value.map($convert)).collect())
            }};
        }
        Ok(match array.data_type() {
            DataType::Timestamp(TimeUnit::Second, _) => {
                epoch_ms!(TimestampSecondType, |s: i64| s.saturating_mul(1_000))
            }
            DataType::Timestamp(TimeUnit::Millisecond, _) => epoch_ms!(TimestampMillisecondType, |ms| ms),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                epoch_ms!(TimestampMicrosecondType, |us: i64| us.div_euclid(1_000))
            }
            DataType::Timestamp(TimeUnit::Nanosecond, _) => {
                epoch_ms!(TimestampNanosecondType, |ns: i64| ns.div_euclid(1_000_000))
            }
            DataType::Int64 => epoch_ms!(Int64Type, |ms| ms),
            _ => Self::Text(TextColumn::of(column)?),
        })
    }

    fn get(&self, row: usize) -> Option<JsonTime<'a>> {
        match self {
            Self::Text(column) => column.get(row).map(|text| JsonTime::Text(Text::from(text))),
            Self::EpochMs(times) => times.get(row).copied().flatten().map(JsonTime::EpochMs),
        }
    }
}

/// Reads an integer column of any width; `None` for one of nulls.
fn integers(array: &ArrayRef) -> Result<Option<Vec<Option<i128>>>> {
    macro_rules! widened {
        ($kind:ty) => {{
            let values = array.as_primitive_opt::<$kind>().ok_or_else(other_type)?;
            values.iter().map(|value| value.map(i128::from)).collect()
        }};
    }
    Ok(Some(match array.data_type() {
        DataType::Int8 => widened!(Int8Type),
        DataType::Int16 => widened!(Int16Type),
        DataType::Int32 => widened!(Int32Type),
        DataType::Int64 => widened!(Int64Type),
        DataType::UInt8 => widened!(UInt8Type),
        DataType::UInt16 => widened!(UInt16Type),
        DataType::UInt32 => widened!(UInt32Type),
        DataType::UInt64 => widened!(UInt64Type),
        _ => return Ok(None),
    }))
}

/// The schema was checked before: a column of another type can only be a decoder at odds with its own schema.
fn other_type() -> Error {
    broken("a column has another type than its schema says")
}
