//! Walks the messages of an Arrow IPC stream before the decoder of the `arrow-ipc` crate sees them.
//!
//! Guarantee: what passes declares no length that the body does not have; no more rows than allowed; flat columns of the
//! types of a click only; buffers as long as their rows need; and no more work for the decoder than a few times the body.
//! Compressed buffers are refused: their unpacked size has no bound here, while the decoders of `Content-Encoding` count.
//! So are deltas of dictionaries, each of which copies all that came before it, and string views that together show much
//! more text than the body has, as many may show the same text and the decoder checks each.

use arrow::datatypes::{DataType, Schema};
use arrow_ipc::{Endianness, Message, MessageHeader, TimeUnit, Type, root_as_message};

use super::arrow_body::{broken, guarded};
use super::batch::too_many;
use crate::error::{Error, Result};

const COLUMNS: [&str; 7] =
    ["campaign_id", "click_id", "ad_id", "user_id", "publisher_id", "event_time", "schema_version"];
/// How many times the length of the body its string views may show together; they take 16 bytes each.
const VIEWED_MAX: usize = 16;
/// Views of so many bytes or fewer hold their text themselves.
const VIEW_INLINE_BYTES_MAX: u32 = 12;
const CONTINUATION: [u8; 4] = [0xFF; 4];

/// The types a batch is made of.
struct Layout {
    columns: Vec<DataType>,
    /// Values by the dictionary's id.
    dictionaries: Vec<(i64, DataType)>,
}

impl Layout {
    fn of(header: &arrow_ipc::Schema<'_>, schema: &Schema) -> Self {
        let columns: Vec<DataType> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
        let ids =
            header.fields().into_iter().flatten().map(|field| field.dictionary().map(|found| found.id()));
        let dictionaries = ids.zip(&columns).filter_map(|(id, column)| match (id, column) {
            (Some(id), DataType::Dictionary(_, values)) => Some((id, (**values).clone())),
            _ => None,
        });
        let dictionaries = dictionaries.collect();
        Self { columns, dictionaries }
    }
}

/// Walks the messages of the stream without decoding any data.
pub(super) fn check_frames(body: &[u8], records_max: u32) -> Result<()> {
    let mut rest = body;
    let mut rows = 0_u64;
    let mut viewed_left = body.len().saturating_mul(VIEWED_MAX);
    let mut layout: Option<Layout> = None;
    while let Some((message, data)) = next_message(&mut rest)? {
        match (message.header_type(), &layout) {
            (MessageHeader::Schema, None) => layout = Some(check_schema(&message)?),
            (MessageHeader::Schema, Some(_)) => return Err(broken("it has two schemas")),
            (MessageHeader::RecordBatch, Some(layout)) => {
                let batch =
                    message.header_as_record_batch().ok_or_else(|| broken("a batch has no header"))?;
                check_batch(&batch, data, layout.columns.iter(), &mut viewed_left)?;
                rows = rows.saturating_add(batch.length().unsigned_abs());
                if rows > records_max.into() {
                    return Err(too_many(records_max as usize));
                }
            }
            (MessageHeader::DictionaryBatch, Some(layout)) => {
                let dictionary =
                    message.header_as_dictionary_batch().ok_or_else(|| broken("a batch has no header"))?;
                if dictionary.isDelta() {
                    let detail = "deltas of Arrow dictionaries are not read here; send each dictionary whole";
                    return Err(Error::UnsupportedMediaType { detail: detail.to_owned() });
                }
                let values = layout.dictionaries.iter().find(|(id, _)| *id == dictionary.id());
                let (_, values) = values.ok_or_else(|| broken("a dictionary belongs to no column"))?;
                let data_batch = dictionary.data().ok_or_else(|| broken("a dictionary has no data"))?;
                check_batch(&data_batch, data, std::iter::once(values), &mut viewed_left)?;
            }
            (MessageHeader::RecordBatch | MessageHeader::DictionaryBatch, None) => {
                return Err(broken("it does not begin with its schema"));
            }
            (other, _) => return Err(broken(&format!("messages of type {other:?} are not read here"))),
        }
    }
    if layout.is_some() { Ok(()) } else { Err(broken("it holds no schema")) }
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

/// Checks that every buffer lies within the batch and is as long as its column's rows need.
fn check_batch<'t>(
    batch: &arrow_ipc::RecordBatch<'_>,
    data: &[u8],
    columns: impl Iterator<Item = &'t DataType>,
    viewed_left: &mut usize,
) -> Result<()> {
    if batch.compression().is_some() {
        let detail = "compressed Arrow buffers are not read here; send them plain and compress the whole body, with \
             Content-Encoding gzip or zstd";
        return Err(Error::UnsupportedMediaType { detail: detail.to_owned() });
    }
    let rows = length(batch.length())?;
    let mut nodes = batch.nodes().into_iter().flatten();
    let mut counts = batch.variadicBufferCounts().into_iter().flatten();
    let mut buffers = batch.buffers().into_iter().flatten().map(|buffer| {
        let (offset, bytes) = (length(buffer.offset())?, length(buffer.length())?);
        let inside = offset.checked_add(bytes).and_then(|end| data.get(offset..end));
        inside.ok_or_else(|| broken("a buffer lies outside its batch"))
    });
    let mut next_buffer = || buffers.next().unwrap_or_else(|| Err(broken("a buffer is missing")));
    for column in columns {
        let node = nodes.next().ok_or_else(|| broken("a column is missing"))?;
        if length(node.length())? != rows || length(node.null_count())? > rows {
            return Err(broken("a column has another number of rows than its batch"));
        }
        let Some((width, per_batch)) = width_of(column) else { continue };
        let validity = next_buffer()?;
        if node.null_count() > 0 && validity.len() < rows.div_ceil(8) {
            return Err(broken("a column says less of its nulls than it has rows"));
        }
        let values = next_buffer()?;
        let needed =
            if rows == 0 { Some(0) } else { rows.checked_add(per_batch).and_then(|n| n.checked_mul(width)) };
        if values.len() % width != 0 || needed.is_none_or(|needed| values.len() < needed) {
            return Err(broken("a column is shorter than its batch"));
        }
        let more = match column {
            DataType::Utf8 | DataType::LargeUtf8 => 1,
            DataType::Utf8View => {
                check_views(values, viewed_left)?;
                length(counts.next().ok_or_else(|| broken("a count of buffers is missing"))?)?
            }
            _ => 0,
        };
        for _ in 0..more {
            next_buffer()?; // ends with an error at the first that is missing, however many were declared
        }
    }
    if counts.next().is_some() {
        return Err(broken("it counts buffers of no column"));
    }
    Ok(())
}

/// Counts what the views of a column show.
fn check_views(views: &[u8], viewed_left: &mut usize) -> Result<()> {
    for view in views.chunks_exact(16) {
        let shown = view.first_chunk().map_or(0, |length| u32::from_le_bytes(*length));
        if shown > VIEW_INLINE_BYTES_MAX {
            let left = usize::try_from(shown).ok().and_then(|shown| viewed_left.checked_sub(shown));
            *viewed_left = left.ok_or_else(|| broken("its string views show far more text than it has"))?;
        }
    }
    Ok(())
}

fn length(declared: i64) -> Result<usize> {
    usize::try_from(declared).map_err(|_| broken("a length in it is negative"))
}

/// Returns the bytes of a row in the first buffer after the nulls, and the entries that buffer has beyond its rows; `None`
/// for a column without buffers.
fn width_of(column: &DataType) -> Option<(usize, usize)> {
    match column {
        DataType::Null => None,
        DataType::Utf8 => Some((4, 1)),
        DataType::LargeUtf8 => Some((8, 1)),
        DataType::Utf8View => Some((16, 0)),
        DataType::FixedSizeBinary(_) => Some((16, 0)), // `check_schema` takes no other
        DataType::Dictionary(key, _) => key.primitive_width().map(|width| (width, 0)),
        other => other.primitive_width().map(|width| (width, 0)),
    }
}

/// Checks names and types, so that the decoder builds no other arrays than these.
fn check_schema(message: &Message<'_>) -> Result<Layout> {
    let header = message.header_as_schema().ok_or_else(|| broken("its schema has no header"))?;
    if header.fields().is_none() {
        return Err(broken("its schema has no columns"));
    }
    if header.endianness() != Endianness::Little {
        return Err(broken("it is big-endian"));
    }
    for field in header.fields().into_iter().flatten() {
        check_field(&field)?;
    }
    let schema: Schema = guarded(|| Ok(arrow_ipc::convert::fb_to_schema(header)))?;
    if header.fields().is_none_or(|fields| fields.len() != schema.fields().len()) {
        return Err(broken("its schema contradicts itself"));
    }
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
            _ => return Err(unknown_column(&excerpt(name))),
        };
        if !fits {
            return Err(unfit_column(name, &excerpt(&field.data_type().to_string())));
        }
        if schema.fields().iter().skip(place + 1).any(|other| other.name() == name) {
            return Err(Error::unprocessable(format!("column {name} is there twice")));
        }
    }
    if schema.field_with_name("campaign_id").is_err() {
        return Err(Error::unprocessable("column campaign_id is missing"));
    }
    Ok(Layout::of(&header, &schema))
}

/// Checks a field as it stands in the message: the decoder's own reading of a schema panics on what it does not know.
fn check_field(field: &arrow_ipc::Field<'_>) -> Result<()> {
    let name = excerpt(field.name().unwrap_or_default());
    if !COLUMNS.contains(&name.as_str()) {
        return Err(unknown_column(&name));
    }
    let readable = match field.type_type() {
        Type::Utf8 | Type::LargeUtf8 | Type::Utf8View | Type::Null => true,
        Type::Int => field.type_as_int().is_some_and(|int| is_width(&int)),
        Type::Timestamp => field
            .type_as_timestamp()
            .is_some_and(|timestamp| (0..=TimeUnit::NANOSECOND.0).contains(&timestamp.unit().0)),
        Type::FixedSizeBinary => {
            field.type_as_fixed_size_binary().is_some_and(|binary| binary.byteWidth() == 16)
        }
        _ => false,
    };
    let keys = field.dictionary().is_none_or(|found| found.indexType().is_some_and(|int| is_width(&int)));
    if readable && keys {
        Ok(())
    } else {
        Err(unfit_column(&name, field.type_type().variant_name().unwrap_or("?")))
    }
}

fn is_width(int: &arrow_ipc::Int<'_>) -> bool {
    [8, 16, 32, 64].contains(&int.bitWidth())
}

fn unknown_column(name: &str) -> Error {
    Error::unprocessable(format!(
        "column {name:?} is unknown; the columns of a click are {}",
        COLUMNS.join(", ")
    ))
}

fn unfit_column(name: &str, data_type: &str) -> Error {
    Error::unprocessable(format!(
        "column {name} cannot be {data_type}; text columns are utf8 (plain, large, view or dictionary), click_id also 16 \
         bytes, event_time also a timestamp or int64 milliseconds, schema_version an integer"
    ))
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
