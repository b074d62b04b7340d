//! Clicks as CloudEvents 1.0: structured, batched, and binary (the event in `ce-` headers, the click as the body).
//!
//! The click is the event's data. What the data leaves open comes from the event: `time` is its event time; its identity
//! (CR-1) is the event's `id` where that is a UUID, else UUIDv5(NS, `event:{API key id}:{bytes of source}:{source}:{id}`).
//! So an event delivered again is a duplicate, as CloudEvents asks of `source` and `id`. The length stands before the
//! source because both parts may hold colons. `type` says the version of the click; extension attributes are ignored.

use actix_web::HttpRequest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use twice_log::ClickId;
use twice_log::event::json::{JsonClick, JsonTime, RejectCode, Rejection, Text};

use super::batch::{Format, Parsed, read_batch};
use super::shape::{GivenId, Incoming};
use crate::error::{Error, Result};

const SPECVERSION: &str = "1.0";
/// Types of event that are clicks: this and the version of the click's schema.
const TYPE_PREFIX: &str = "com.count-twice.click.v";

/// The attributes that matter here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct JsonEvent<'a> {
    #[serde(borrow)]
    specversion: Text<'a>,
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    source: Text<'a>,
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default)]
    time: Option<Text<'a>>,
    #[serde(borrow, default)]
    datacontenttype: Option<Text<'a>>,
    #[serde(borrow, default)]
    data: Option<JsonClick<'a>>,
    #[serde(borrow, default)]
    data_base64: Option<Text<'a>>,
}

/// Reads one event, or an array of them where `batched`.
///
/// # Errors
/// As `read_batch`.
pub(super) fn read_events(
    body: &[u8],
    batched: bool,
    key_id: &str,
    records_max: u32,
    take: &mut dyn FnMut(u32, Parsed<Incoming<'_>>),
) -> Result<()> {
    let first = body.trim_ascii_start().first().copied();
    let wanted = if batched { b'[' } else { b'{' };
    if first.is_some_and(|first| first != wanted) {
        return Err(Error::bad_request(
            "application/cloudevents+json is one event, application/cloudevents-batch+json an array of them",
        ));
    }
    for (index, parsed) in (0..).zip(read_batch::<JsonEvent<'_>>(body, Format::Json, records_max)?) {
        take(index, parsed.and_then(|event| click_of(event, key_id)));
    }
    Ok(())
}

fn click_of<'a>(event: JsonEvent<'a>, key_id: &str) -> Parsed<Incoming<'a>> {
    let JsonEvent { specversion, id, source, kind, time, datacontenttype, data, data_base64 } = event;
    check_content_type(datacontenttype.as_ref().map(Text::as_str))?;
    let click = match (data, data_base64) {
        (Some(click), None) => click,
        (None, Some(packed)) => unpack(packed.as_str())?,
        (Some(_), Some(_)) => return Err(malformed("the event has both data and data_base64")),
        (None, None) => return Err(malformed("the event has no data; a click is an object")),
    };
    let attributes = Attributes {
        specversion: specversion.as_str(),
        id: id.as_str(),
        source: source.as_str(),
        kind: kind.as_str(),
    };
    attributes.complete(click, time, key_id)
}

fn check_content_type(content_type: Option<&str>) -> Parsed<()> {
    let essence =
        content_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    match essence.as_deref() {
        None | Some("application/json") => Ok(()),
        Some(json) if json.ends_with("+json") => Ok(()),
        Some(_) => Err(malformed("datacontenttype of a click is application/json")),
    }
}

fn unpack(packed: &str) -> Parsed<JsonClick<'static>> {
    let bytes = STANDARD.decode(packed).map_err(|_| malformed("data_base64 is not base64"))?;
    let click: JsonClick<'_> =
        serde_json::from_slice(&bytes).map_err(|_| malformed("data_base64 holds no click as JSON"))?;
    Ok(click.into_owned())
}

fn malformed(detail: &str) -> Rejection {
    Rejection::new(RejectCode::Malformed, detail)
}

/// What an event says about its data.
struct Attributes<'a> {
    specversion: &'a str,
    id: &'a str,
    source: &'a str,
    kind: &'a str,
}

impl Attributes<'_> {
    /// Fills in what the click leaves open.
    fn complete<'c>(
        &self,
        mut click: JsonClick<'c>,
        time: Option<Text<'c>>,
        key_id: &str,
    ) -> Parsed<Incoming<'c>> {
        if self.specversion != SPECVERSION {
            return Err(malformed("specversion is not 1.0"));
        }
        if self.id.is_empty() || self.source.is_empty() {
            return Err(malformed("id and source of an event cannot be empty"));
        }
        let version = self.version()?;
        if *click.schema_version.get_or_insert(version) != version {
            let detail = format!("schema_version of the data is not that of type {TYPE_PREFIX}{version}");
            return Err(Rejection::new(RejectCode::SchemaVersion, detail));
        }
        if click.event_time.is_none() {
            click.event_time = time.map(JsonTime::Text);
        }
        let id =
            if click.click_id.is_some() { GivenId::OfClick } else { GivenId::OfEvent(self.click_id(key_id)) };
        Ok(Incoming { click, id })
    }

    fn version(&self) -> Parsed<u8> {
        let Some(version) = self.kind.strip_prefix(TYPE_PREFIX) else {
            return Err(malformed("type of the event is none of com.count-twice.click.v1 and .v2"));
        };
        match version {
            "1" => Ok(1),
            "2" => Ok(2),
            _ => {
                let detail = "type of the event names an unknown version of a click; v1 and v2 are read";
                Err(Rejection::new(RejectCode::SchemaVersion, detail))
            }
        }
    }

    fn click_id(&self, key_id: &str) -> ClickId {
        let Attributes { id, source, .. } = self;
        uuid::Uuid::try_parse(id).map_or_else(
            |_| ClickId::derived(&format!("event:{key_id}:{}:{source}:{id}", source.len())),
            ClickId,
        )
    }
}

/// An event whose attributes stand in `ce-` headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BinaryEvent {
    specversion: String,
    id: String,
    source: String,
    kind: String,
    time: Option<String>,
}

impl BinaryEvent {
    /// Reads the headers; `None` where there is no event.
    ///
    /// # Errors
    /// `BadRequest` if an attribute is missing or no text.
    pub fn of(request: &HttpRequest) -> Result<Option<Self>> {
        let Some(specversion) = header(request, "ce-specversion")? else { return Ok(None) };
        let required = |name: &str| {
            header(request, name)?
                .ok_or_else(|| Error::bad_request(format!("the event has no header {name}")))
        };
        Ok(Some(Self {
            specversion,
            id: required("ce-id")?,
            source: required("ce-source")?,
            kind: required("ce-type")?,
            time: header(request, "ce-time")?,
        }))
    }

    /// Reads the body as the data of this event.
    ///
    /// # Errors
    /// As `read_batch`; an array too.
    pub fn read(
        &self,
        body: &[u8],
        key_id: &str,
        take: &mut dyn FnMut(u32, Parsed<Incoming<'_>>),
    ) -> Result<()> {
        if body.trim_ascii_start().first() == Some(&b'[') {
            return Err(Error::bad_request("an event in ce- headers carries one click, and no array"));
        }
        for parsed in read_batch::<JsonClick<'_>>(body, Format::Json, 1)? {
            let attributes = Attributes {
                specversion: &self.specversion,
                id: &self.id,
                source: &self.source,
                kind: &self.kind,
            };
            let time = self.time.as_deref().map(Text::from);
            take(0, parsed.and_then(|click| attributes.complete(click, time, key_id)));
        }
        Ok(())
    }
}

/// Returns a header's text, percent-decoded as CloudEvents' HTTP binding says.
fn header(request: &HttpRequest, name: &str) -> Result<Option<String>> {
    let Some(value) = request.headers().get(name) else { return Ok(None) };
    let unreadable = || Error::bad_request(format!("header {name} is no percent-encoded UTF-8"));
    let text = value.to_str().map_err(|_| unreadable())?;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let byte = match (first, after) {
            (b'%', [high, low, ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                // Two digits are at most 255.
                digit(*high).zip(digit(*low)).map(|(high, low)| (high * 16 + low) as u8)
            }
            _ => None,
        };
        // A percent sign that encodes nothing stands for itself, as the binding's older senders have it.
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).map(Some).map_err(|_| unreadable())
}
