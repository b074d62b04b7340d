//! Takes a body apart into records, so that one bad record is named by its index and the rest counts.
//!
//! Flow: an array is first read straight into typed records that borrow from the body. Only if that fails is it read
//! again as raw elements, each then parsed alone: the price of a bad batch is one more pass, that of a good one none.
//! A body that is not JSON as a whole is refused as a whole, with line and column: its elements have no borders.
//! NDJSON has them, so there each line stands alone, whatever is wrong with it; empty lines are no records.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use twice_log::event::json::{RejectCode, Rejection};

use crate::error::{Error, Result};

/// How a body holds its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One object, or an array of them.
    Json,
    /// One object a line.
    Ndjson,
}

/// A record as parsed, or why it cannot be.
pub(crate) type Parsed<T> = Result<T, Rejection>;

/// Reads every record of `body`, in order; never an empty list.
///
/// # Errors
/// `BadRequest` for a body that is no JSON or no UTF-8, `Unprocessable` for one without records, `TooLarge` above
/// `records_max`.
pub(crate) fn read_batch<'a, T: Deserialize<'a>>(
    body: &'a [u8],
    format: Format,
    records_max: u32,
) -> Result<Vec<Parsed<T>>> {
    let records = match format {
        Format::Json => read_json(body, records_max as usize)?,
        Format::Ndjson => read_lines(body, records_max as usize)?,
    };
    if records.is_empty() {
        return Err(Error::unprocessable("the batch is empty; send at least one object"));
    }
    Ok(records)
}

fn read_json<'a, T: Deserialize<'a>>(body: &'a [u8], records_max: usize) -> Result<Vec<Parsed<T>>> {
    let text = std::str::from_utf8(body).map_err(|error| {
        Error::bad_request(format!("the body is not UTF-8 from byte {} on", error.valid_up_to()))
    })?;
    match text.trim_start().bytes().next() {
        None => Ok(Vec::new()),
        Some(b'{') => match serde_json::from_str(text) {
            Ok(record) => Ok(vec![Ok(record)]),
            Err(error) if error.is_data() => Ok(vec![Err(malformed(&error))]),
            Err(error) => Err(not_json(&error)),
        },
        Some(b'[') => read_array(text, records_max),
        Some(_) => Err(Error::bad_request(
            "the body is no JSON object and no array, at line 1; for one object a line send application/x-ndjson",
        )),
    }
}

fn read_array<'a, T: Deserialize<'a>>(text: &'a str, records_max: usize) -> Result<Vec<Parsed<T>>> {
    // About 150 bytes a record; a body of nothing but commas must not reserve more than it is long.
    let expected = (text.len() / 150).min(records_max);
    if let Ok(records) = read_elements::<T, Parsed<T>>(text, records_max, expected, Ok) {
        return records.ok_or_else(|| too_many(records_max));
    }
    let elements = read_elements::<&RawValue, &RawValue>(text, records_max, expected, |element| element)
        .map_err(|error| not_json(&error))?
        .ok_or_else(|| too_many(records_max))?;
    let parse =
        |element: &'a RawValue| serde_json::from_str(element.get()).map_err(|error| malformed(&error));
    Ok(elements.into_iter().map(parse).collect())
}

fn read_lines<'a, T: Deserialize<'a>>(body: &'a [u8], records_max: usize) -> Result<Vec<Parsed<T>>> {
    let mut records = Vec::with_capacity((body.len() / 150).min(records_max));
    let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    for line in lines {
        if records.len() == records_max {
            return Err(too_many(records_max));
        }
        records.push(match std::str::from_utf8(line) {
            Ok(text) => serde_json::from_str(text).map_err(|error| malformed(&error)),
            Err(error) => {
                let detail = format!("the line is not UTF-8 from byte {} on", error.valid_up_to());
                Err(Rejection::new(RejectCode::Malformed, detail))
            }
        });
    }
    Ok(records)
}

/// Reads an array into `wrap`ped elements; `None` if it has more than `elements_max`.
fn read_elements<'a, T: Deserialize<'a>, E>(
    text: &'a str,
    elements_max: usize,
    expected: usize,
    wrap: fn(T) -> E,
) -> Result<Option<Vec<E>>, serde_json::Error> {
    let mut elements = Vec::with_capacity(expected);
    let mut overflowed = false;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let seed =
        Bounded { elements: &mut elements, elements_max, overflowed: &mut overflowed, wrap, of: PhantomData };
    match seed.deserialize(&mut deserializer) {
        Ok(()) => deserializer.end().map(|()| Some(elements)),
        Err(_) if overflowed => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fills `elements` from an array and stops with an error at the first one too many.
struct Bounded<'e, 'a, T, E> {
    elements: &'e mut Vec<E>,
    elements_max: usize,
    /// Tells the error at the first element too many from one of the text.
    overflowed: &'e mut bool,
    wrap: fn(T) -> E,
    of: PhantomData<(&'a (), T)>,
}

impl<'a, T: Deserialize<'a>, E> DeserializeSeed<'a> for Bounded<'_, 'a, T, E> {
    type Value = ();
    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'a, T: Deserialize<'a>, E> Visitor<'a> for Bounded<'_, 'a, T, E> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut sequence: A) -> Result<(), A::Error> {
        while self.elements.len() < self.elements_max {
            match sequence.next_element()? {
                Some(element) => self.elements.push((self.wrap)(element)),
                None => return Ok(()),
            }
        }
        match sequence.next_element::<serde::de::IgnoredAny>()? {
            None => Ok(()),
            Some(_) => {
                *self.overflowed = true;
                Err(serde::de::Error::custom("too many elements"))
            }
        }
    }
}

pub(super) fn too_many(records_max: usize) -> Error {
    Error::TooLarge { limit: records_max as u64, unit: "records" }
}

fn not_json(error: &serde_json::Error) -> Error {
    Error::bad_request(format!("the body is not JSON: {error}"))
}

/// Names what is wrong with one record. The place serde adds is dropped: it counts from the record's own start.
fn malformed(error: &serde_json::Error) -> Rejection {
    let text = error.to_string();
    let detail = text.split(" at line ").next().unwrap_or(&text);
    Rejection::new(RejectCode::Malformed, detail)
}

#[cfg(test)]
mod tests {
    use twice_log::event::json::JsonClick;

    use super::*;

    fn read(body: &[u8], format: Format) -> Result<Vec<Parsed<JsonClick<'_>>>> {
        read_batch(body, format, 4)
    }

    fn accepted(body: &str, format: Format) -> Vec<bool> {
        read(body.as_bytes(), format).expect("a batch").iter().map(Result::is_ok).collect()
    }

    fn refusal(body: &[u8]) -> String {
        read(body, Format::Json).expect_err("refused").to_string()
    }

    #[test]
    fn an_object_an_array_and_lines_are_batches() {
        assert_eq!(accepted(r#" {"campaign_id":"c"} "#, Format::Json), [true]);
        assert_eq!(accepted(r#"[{"campaign_id":"c"},{"campaign_id":"d"}]"#, Format::Json), [true, true]);
        assert_eq!(
            accepted("{\"campaign_id\":\"c\"}\n\r\n{\"campaign_id\":\"d\"}", Format::Ndjson),
            [true, true]
        );
    }

    #[test]
    fn a_bad_element_leaves_its_neighbours_standing() {
        let array = r#"[{"campaign_id":"c"},{"campaign_id":7},"x",{"campaign_id":"d"}]"#;
        assert_eq!(accepted(array, Format::Json), [true, false, false, true]);
        let lines = "{\"campaign_id\":\"c\"}\n{broken\n{\"campaign_id\":\"d\"}\n";
        assert_eq!(accepted(lines, Format::Ndjson), [true, false, true]);
    }

    #[test]
    fn a_line_that_is_not_utf8_is_refused_alone() {
        let lines =
            read(b"{\"campaign_id\":\"\xff\"}\n{\"campaign_id\":\"c\"}", Format::Ndjson).expect("a batch");
        assert!(lines[0].is_err() && lines[1].is_ok());
    }

    #[test]
    fn a_body_that_is_no_json_is_refused_with_its_place() {
        assert!(refusal(br#"[{"campaign_id":"c"},"#).contains("line 1 column"), "cut array");
        assert!(
            refusal(b"{\"campaign_id\":\"c\"}\n{\"campaign_id\":\"c\"}").contains("line 2"),
            "lines as JSON"
        );
        assert!(refusal(b"{\"campaign_id\":\"\xff\"}").contains("byte 16"), "not UTF-8");
        assert!(refusal(b"hello").contains("line 1"), "no JSON at all");
    }

    #[test]
    fn an_empty_batch_is_refused() {
        for (body, format) in [("", Format::Json), ("[]", Format::Json), (" \n\n", Format::Ndjson)] {
            assert!(matches!(read(body.as_bytes(), format), Err(Error::Unprocessable { .. })), "{body:?}");
        }
    }

    #[test]
    fn more_records_than_allowed_are_refused_even_where_they_are_bad() {
        let good = format!("[{}]", [r#"{"campaign_id":"c"}"#; 5].join(","));
        let bad = format!("[{}]", ["{}"; 5].join(","));
        let lines = "{}\n".repeat(5);
        for (body, format) in [(good, Format::Json), (bad, Format::Json), (lines, Format::Ndjson)] {
            assert!(matches!(read(body.as_bytes(), format), Err(Error::TooLarge { limit: 4, .. })), "{body}");
        }
        assert_eq!(
            accepted(&format!("[{}]", [r#"{"campaign_id":"c"}"#; 4].join(",")), Format::Json).len(),
            4
        );
    }

    #[test]
    fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
        let array = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(accepted(&array, Format::Json), [false]);
        let object = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        assert_eq!(accepted(&object, Format::Json), [false]);
    }
}
