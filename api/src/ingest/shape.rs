//! The shapes a click body may have, and one way to read them all.
//!
//! Whatever the shape, each click comes out as an [`Incoming`] with its index, and passes the same door.

use actix_web::HttpRequest;
use actix_web::http::header::CONTENT_TYPE;
use bytes::Bytes;
use twice_log::ClickId;
use twice_log::event::json::JsonClick;

use super::arrow_body::read_arrow;
use super::batch::{Format, Parsed, read_batch};
use super::body::{essence_of, format_of};
use super::cloudevents::{BinaryEvent, read_events};
use crate::error::{Error, Result};

/// A click as a body holds it, before any check.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Incoming<'a> {
    pub click: JsonClick<'a>,
    pub id: GivenId,
}

/// Where the identity of a click comes from (CR-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenId {
    /// Its `click_id`; the gateway gives it one where there is none.
    OfClick,
    /// Sent as 16 bytes.
    AsBytes(ClickId),
    /// The event around it; its own `click_id` goes before.
    OfEvent(ClickId),
}

/// How a body holds its clicks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// Objects as they are.
    Clicks(Format),
    /// An Arrow IPC stream.
    Arrow,
    /// One CloudEvent as JSON.
    Event,
    /// An array of CloudEvents as JSON.
    Events,
    /// One click whose event stands in the headers.
    EventData(BinaryEvent),
}

impl Shape {
    /// Returns the shape the headers claim.
    ///
    /// # Errors
    /// `UnsupportedMediaType`, and `BadRequest` for headers of an event that cannot be read.
    pub fn of(request: &HttpRequest) -> Result<Self> {
        let essence = request.headers().get(CONTENT_TYPE).map(essence_of).unwrap_or_default();
        let shape = match essence.as_str() {
            "application/vnd.apache.arrow.stream" => Shape::Arrow,
            "application/cloudevents+json" => Shape::Event,
            "application/cloudevents-batch+json" => Shape::Events,
            _ => Shape::Clicks(format_of(request).map_err(with_more_types)?),
        };
        match BinaryEvent::of(request)? {
            None => Ok(shape),
            Some(event) if shape == Shape::Clicks(Format::Json) => Ok(Shape::EventData(event)),
            Some(_) => Err(Error::UnsupportedMediaType {
                detail: "an event in ce- headers carries one click as application/json".to_owned(),
            }),
        }
    }

    /// Hands every click of `body` to `take` with its index; `key_id` names the sender where ids of events are derived.
    ///
    /// # Errors
    /// Whatever makes the body as a whole unreadable; nothing of it is stored then.
    pub fn read(
        &self,
        body: &Bytes,
        key_id: &str,
        records_max: u32,
        take: &mut dyn FnMut(u32, Parsed<Incoming<'_>>),
    ) -> Result<()> {
        match self {
            Shape::Clicks(format) => {
                for (index, parsed) in (0..).zip(read_batch::<JsonClick<'_>>(body, *format, records_max)?) {
                    take(index, parsed.map(|click| Incoming { click, id: GivenId::OfClick }));
                }
                Ok(())
            }
            Shape::Arrow => read_arrow(body, records_max, take),
            Shape::Event => read_events(body, false, key_id, records_max, take),
            Shape::Events => read_events(body, true, key_id, records_max, take),
            Shape::EventData(event) => event.read(body, key_id, take),
        }
    }
}

fn with_more_types(error: Error) -> Error {
    match error {
        Error::UnsupportedMediaType { detail } => Error::UnsupportedMediaType {
            detail: format!(
                "{detail}; clicks also as application/cloudevents+json, application/cloudevents-batch+json or \
                 application/vnd.apache.arrow.stream"
            ),
        },
        other => other,
    }
}
