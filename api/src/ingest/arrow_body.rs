//! Clicks as an Arrow IPC stream: columns instead of text, for producers whose JSON would cost them a core.
//!
//! Guarantee: a hostile stream is refused and costs no more memory than a few times its own size: `arrow_frames` checks
//! every length before the decoder of the `arrow-ipc` crate sees it. The decoder always validates; should it panic on bytes
//! nobody thought of, that is an answer 400 too.
//! Columns have the names of the JSON fields. An unknown column is refused by name: a misspelt one would be lost for
//! every click of the stream. What is wrong with one row refuses that row alone, by its index over all batches.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::{
    AnyDictionaryArray, Array, ArrayRef, AsArray, FixedSizeBinaryArray, LargeStringArray, RecordBatch,
    StringArray, StringViewArray,
};
use arrow::datatypes::{
    DataType, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_ipc::reader::StreamDecoder;
use bytes::Bytes;
use twice_log::ClickId;
use twice_log::event::json::{JsonClick, JsonTime, RejectCode, Rejection, Text};

use super::arrow_frames::check_frames;
use super::batch::Parsed;
use super::shape::{GivenId, Incoming};
use crate::error::{Error, Result};

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
pub(super) fn guarded<T>(step: impl FnOnce() -> Result<T, arrow::error::ArrowError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(broken(&error.to_string())),
        Err(_) => Err(broken("its messages contradict each other")),
    }
}

pub(super) fn broken(reason: &str) -> Error {
    Error::bad_request(format!("the body is no Arrow IPC stream: {reason}"))
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

/// Longest text that is handed on: longer than every field may be, so that whatever is cut is refused all the same. One
/// value of megabytes may stand in every row, and each row's refusal would look at all of it.
const TEXT_BYTES_MAX: usize = 1 << 10;

fn cut(text: &str) -> &str {
    if text.len() <= TEXT_BYTES_MAX { text } else { &text[..text.floor_char_boundary(TEXT_BYTES_MAX)] }
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
            Self::Plain(column) => column.is_valid(row).then(|| cut(column.value(row))),
            Self::Large(column) => column.is_valid(row).then(|| cut(column.value(row))),
            Self::View(column) => column.is_valid(row).then(|| cut(column.value(row))),
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
