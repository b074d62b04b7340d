//! The door: which bodies are read, and which clicks of them are refused with which code.

use serde_json::Value;
use twice_log::event::json::{AgeLimits, JsonClick};
use twice_log::{ClickId, Clock, WallClock};

use super::http::Request;

/// Returns each click, or the code it is refused with; or the status of a body that cannot be read.
pub fn read_clicks(request: &Request) -> Result<Vec<Result<Value, &'static str>>, u16> {
    let body = std::str::from_utf8(&request.body).map_err(|_| 400_u16)?;
    let array = || match serde_json::from_str(body) {
        Ok(Value::Array(elements)) => Ok(elements),
        _ => Err(400_u16),
    };
    let elements: Vec<Option<Value>> = match request.content_type.as_str() {
        "" | "application/x-ndjson" => {
            let lines = body.lines().filter(|line| !line.is_empty());
            lines.map(|line| serde_json::from_str(line).ok()).collect()
        }
        "application/json" => array()?.into_iter().map(Some).collect(),
        "application/cloudevents-batch+json" => {
            array()?.into_iter().map(|event| Some(of_event(event))).collect()
        }
        "application/cloudevents+json" | "application/vnd.apache.arrow.stream" => return Err(400),
        _ => return Err(415),
    };
    if elements.is_empty() {
        return Err(422);
    }
    Ok(elements.into_iter().map(|element| element.ok_or("malformed").and_then(checked)).collect())
}

fn of_event(event: Value) -> Value {
    let mut click = event["data"].clone();
    if click.is_object() && click["click_id"].is_null() {
        click["click_id"] = event["id"].clone();
    }
    click
}

fn checked(click: Value) -> Result<Value, &'static str> {
    let text = click.to_string();
    let parsed: JsonClick<'_> = serde_json::from_str(&text).map_err(|_| "malformed")?;
    let validated = parsed.validate(WallClock.now(), || ClickId::derived("none"), &AgeLimits::default());
    validated.map(|_| click).map_err(|refusal| match serde_json::to_value(refusal.code) {
        Ok(Value::String(code)) => CODES.into_iter().find(|known| *known == code).unwrap_or("unknown"),
        _ => "unknown",
    })
}

const CODES: [&str; 7] = [
    "malformed",
    "invalid_id",
    "click_id_not_uuid",
    "invalid_time",
    "too_old",
    "in_future",
    "schema_version",
];
