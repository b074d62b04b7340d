//! Clicks and verdicts as JSON, and the checks at the door: one reason a fault (CR-4, CR-7).

use std::borrow::Cow;
use std::fmt;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::{
    AdId, CampaignId, Click, ClickId, IdError, ModelVersion, PublisherId, SCHEMA_VERSION_LATEST, UserId,
    UtcMillis, Verdict, VerdictClass,
};

/// Why one click or verdict is refused. The codes are public and do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectCode {
    /// Not JSON, or not an object of the documented shape.
    Malformed,
    /// An identifier is empty, too long or not visible ASCII.
    InvalidId,
    /// `click_id` is not a UUID.
    ClickIdNotUuid,
    /// A time is neither RFC 3339 nor epoch milliseconds.
    InvalidTime,
    /// The click is older than the door allows.
    TooOld,
    /// The click lies further in the future than the door allows.
    InFuture,
    /// The schema version is unknown.
    SchemaVersion,
    /// The API key does not allow the campaign.
    Forbidden,
}

/// One refusal: its code, and a sentence naming the field and the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Rejection {
    pub code: RejectCode,
    pub detail: String,
}

impl Rejection {
    /// Builds a refusal.
    pub fn new(code: RejectCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

/// A string that stays in the body it came in unless it holds escapes.
///
/// `Option<Cow<str>>` with `#[serde(borrow)]` always copies; at some hundred thousand clicks a second that shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn into_owned(self) -> Text<'static> {
        Text(Cow::Owned(self.0.into_owned()))
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Text(Cow::Borrowed(text))
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A time as JSON has it: RFC 3339 text or epoch milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub enum JsonTime<'a> {
    EpochMs(i64),
    EpochMsFloat(f64),
    Text(Text<'a>),
}

struct TimeVisitor;

impl<'de> Visitor<'de> for TimeVisitor {
    type Value = JsonTime<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an RFC 3339 time or epoch milliseconds")
    }

    fn visit_i64<E: serde::de::Error>(self, epoch_ms: i64) -> Result<JsonTime<'de>, E> {
        Ok(JsonTime::EpochMs(epoch_ms))
    }

    fn visit_u64<E: serde::de::Error>(self, epoch_ms: u64) -> Result<JsonTime<'de>, E> {
        // Beyond the range of any time, so that validation names the fault.
        Ok(JsonTime::EpochMs(i64::try_from(epoch_ms).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E: serde::de::Error>(self, epoch_ms: f64) -> Result<JsonTime<'de>, E> {
        Ok(JsonTime::EpochMsFloat(epoch_ms))
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<JsonTime<'de>, E> {
        TextVisitor.visit_borrowed_str(text).map(JsonTime::Text)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<JsonTime<'de>, E> {
        TextVisitor.visit_str(text).map(JsonTime::Text)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonTime<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TimeVisitor)
    }
}

impl JsonTime<'_> {
    fn into_owned(self) -> JsonTime<'static> {
        match self {
            JsonTime::EpochMs(epoch_ms) => JsonTime::EpochMs(epoch_ms),
            JsonTime::EpochMsFloat(epoch_ms) => JsonTime::EpochMsFloat(epoch_ms),
            JsonTime::Text(text) => JsonTime::Text(text.into_owned()),
        }
    }

    fn read(&self, field: &str) -> Result<UtcMillis, Rejection> {
        let time = match self {
            JsonTime::EpochMs(epoch_ms) => UtcMillis::new(*epoch_ms),
            // Floored: a client that measures microseconds may send fractions of a millisecond.
            JsonTime::EpochMsFloat(epoch_ms) => UtcMillis::new(epoch_ms.floor() as i64),
            JsonTime::Text(text) => text.0.parse(),
        };
        time.map_err(|error| Rejection::new(RejectCode::InvalidTime, format!("{field} {error}")))
    }
}

/// A click as it comes over the wire, before any check. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct JsonClick<'a> {
    #[serde(borrow, default)]
    pub click_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub campaign_id: Text<'a>,
    #[serde(borrow, default)]
    pub ad_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub user_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub publisher_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub event_time: Option<JsonTime<'a>>,
    #[serde(default)]
    pub schema_version: Option<u8>,
}

/// How old or how far ahead a click may be at the door (CR-7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgeLimits {
    /// Older than this is refused; `None` where an import lifted the limit.
    pub past_ms_max: Option<i64>,
    /// Further ahead than this is refused.
    pub future_ms_max: i64,
}

impl Default for AgeLimits {
    /// Seven days back, five minutes ahead.
    fn default() -> Self {
        Self { past_ms_max: Some(7 * 24 * 3_600_000), future_ms_max: 5 * 60_000 }
    }
}

impl JsonClick<'_> {
    /// Returns the click with texts of its own, where the body it was read from does not stay.
    pub fn into_owned(self) -> JsonClick<'static> {
        JsonClick {
            click_id: self.click_id.map(Text::into_owned),
            campaign_id: self.campaign_id.into_owned(),
            ad_id: self.ad_id.map(Text::into_owned),
            user_id: self.user_id.map(Text::into_owned),
            publisher_id: self.publisher_id.map(Text::into_owned),
            event_time: self.event_time.map(JsonTime::into_owned),
            schema_version: self.schema_version,
        }
    }

    /// Checks every field and returns the click, with the raw `user_id` still in place.
    ///
    /// `click_id` is used where the sender gave none: derived or minted by the caller (CR-1). The caller replaces
    /// `user_id` by its pseudonym and sets `ip_hash` before the click is stored.
    ///
    /// # Errors
    /// [`Rejection`] for the first fault found.
    pub fn validate(
        &self,
        arrival_time: UtcMillis,
        click_id: impl FnOnce() -> ClickId,
        limits: &AgeLimits,
    ) -> Result<Click, Rejection> {
        let schema_version = self.schema_version.unwrap_or(SCHEMA_VERSION_LATEST);
        if !(1..=SCHEMA_VERSION_LATEST).contains(&schema_version) {
            let detail = format!(
                "schema_version {schema_version} is unknown; this build reads 1 to {SCHEMA_VERSION_LATEST}"
            );
            return Err(Rejection::new(RejectCode::SchemaVersion, detail));
        }
        let campaign_id = id(CampaignId::new(&*self.campaign_id.0), "campaign_id")?;
        let ad_id = id(AdId::new(text(&self.ad_id)), "ad_id")?;
        let user_id = id(UserId::new(text(&self.user_id)), "user_id")?;
        let publisher_text = if schema_version >= 2 { text(&self.publisher_id) } else { "" };
        let publisher_id = id(PublisherId::new(publisher_text), "publisher_id")?;
        let event_time = match &self.event_time {
            Some(time) => time.read("event_time")?,
            None => arrival_time,
        };
        check_age(event_time, arrival_time, limits)?;
        let click_id = match &self.click_id {
            Some(text) => read_click_id(&text.0)?,
            None => click_id(),
        };
        Ok(Click {
            campaign_id,
            click_id,
            ad_id,
            user_id,
            publisher_id,
            event_time,
            arrival_time,
            ip_hash: None,
            schema_version,
        })
    }
}

/// A verdict as it comes over the wire, before any check.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct JsonVerdict<'a> {
    #[serde(borrow)]
    pub campaign_id: Text<'a>,
    #[serde(borrow)]
    pub click_id: Text<'a>,
    #[serde(borrow)]
    pub verdict: Text<'a>,
    #[serde(borrow, default)]
    pub model_version: Option<Text<'a>>,
    #[serde(borrow)]
    pub decided_at: JsonTime<'a>,
    #[serde(borrow, default)]
    pub click_event_time: Option<JsonTime<'a>>,
}

impl JsonVerdict<'_> {
    /// Checks every field and returns the verdict.
    ///
    /// # Errors
    /// [`Rejection`] for the first fault found.
    pub fn validate(&self, arrival_time: UtcMillis) -> Result<Verdict, Rejection> {
        let verdict = match self.verdict.0.as_ref() {
            "valid" => VerdictClass::Valid,
            "givt" => VerdictClass::Givt,
            "sivt" => VerdictClass::Sivt,
            other => {
                let detail = format!("verdict {other:?} is none of valid, givt, sivt");
                return Err(Rejection::new(RejectCode::Malformed, detail));
            }
        };
        Ok(Verdict {
            campaign_id: id(CampaignId::new(&*self.campaign_id.0), "campaign_id")?,
            click_id: read_click_id(&self.click_id.0)?,
            verdict,
            model_version: id(ModelVersion::new(text(&self.model_version)), "model_version")?,
            decided_at: self.decided_at.read("decided_at")?,
            click_event_time: match &self.click_event_time {
                Some(time) => Some(time.read("click_event_time")?),
                None => None,
            },
            arrival_time,
            schema_version: 1,
        })
    }
}

fn text<'a>(field: &'a Option<Text<'_>>) -> &'a str {
    field.as_ref().map_or("", |text| &text.0)
}

fn id<T>(result: Result<T, IdError>, field: &str) -> Result<T, Rejection> {
    result.map_err(|error| Rejection::new(RejectCode::InvalidId, format!("{field} {error}")))
}

fn read_click_id(text: &str) -> Result<ClickId, Rejection> {
    Uuid::try_parse(text).map(ClickId).map_err(|_| {
        let detail = "click_id is not a UUID; derive one from your own id with UUIDv5 and send that";
        Rejection::new(RejectCode::ClickIdNotUuid, detail)
    })
}

fn check_age(event_time: UtcMillis, now: UtcMillis, limits: &AgeLimits) -> Result<(), Rejection> {
    let age_ms = now.epoch_ms() - event_time.epoch_ms();
    if let Some(past_ms_max) = limits.past_ms_max
        && age_ms > past_ms_max
    {
        let hours = past_ms_max / 3_600_000;
        let detail =
            format!("event_time {event_time} is older than {hours} h; use `twice import` for old clicks");
        return Err(Rejection::new(RejectCode::TooOld, detail));
    }
    if -age_ms > limits.future_ms_max {
        let seconds = limits.future_ms_max / 1000;
        let detail =
            format!("event_time {event_time} is more than {seconds} s in the future; check the clock");
        return Err(Rejection::new(RejectCode::InFuture, detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_736_942_400_000; // 2025-01-15T12:00:00Z

    fn validate(json: &str) -> Result<Click, Rejection> {
        let click: JsonClick<'_> = serde_json::from_str(json).expect("JSON of the right shape");
        click.validate(UtcMillis::clamped(NOW), || ClickId::derived("minted"), &AgeLimits::default())
    }

    fn code(json: &str) -> RejectCode {
        validate(json).expect_err("must be refused").code
    }

    #[test]
    fn a_full_click_and_a_minimal_click_are_accepted() {
        let full = r#"{"click_id":"0194f3a0-1111-7222-8333-444455556666","campaign_id":"camp_123","ad_id":"ad_9",
            "user_id":"u_7","publisher_id":"pub_4","event_time":"2025-01-15T12:00:00.123Z","schema_version":2}"#;
        assert_eq!(validate(full).expect("valid").event_time.epoch_ms(), NOW + 123);
        let minimal = validate(r#"{"campaign_id":"c"}"#).expect("valid");
        assert_eq!(minimal.event_time.epoch_ms(), NOW);
        assert_eq!(minimal.click_id, ClickId::derived("minted"));
    }

    #[test]
    fn times_may_be_epoch_milliseconds_and_fractions_are_floored() {
        let click = validate(&format!(r#"{{"campaign_id":"c","event_time":{}.9}}"#, NOW - 5)).expect("valid");
        assert_eq!(click.event_time.epoch_ms(), NOW - 5);
    }

    #[test]
    fn each_fault_has_its_own_code() {
        assert_eq!(code(r#"{"campaign_id":""}"#), RejectCode::InvalidId);
        assert_eq!(code(&format!(r#"{{"campaign_id":"{}"}}"#, "c".repeat(65))), RejectCode::InvalidId);
        assert_eq!(code(r#"{"campaign_id":"c","click_id":"123"}"#), RejectCode::ClickIdNotUuid);
        assert_eq!(code(r#"{"campaign_id":"c","event_time":"noon"}"#), RejectCode::InvalidTime);
        assert_eq!(code(r#"{"campaign_id":"c","event_time":"2025-01-07T12:00:00Z"}"#), RejectCode::TooOld);
        assert_eq!(code(r#"{"campaign_id":"c","event_time":"2025-01-15T12:05:01Z"}"#), RejectCode::InFuture);
        assert_eq!(code(r#"{"campaign_id":"c","schema_version":3}"#), RejectCode::SchemaVersion);
    }

    #[test]
    fn escapes_are_read_and_null_is_absent() {
        let click = validate(r#"{"campaign_id":"c\u0041","ad_id":null,"event_time":null}"#).expect("valid");
        assert_eq!((click.campaign_id.as_str(), click.ad_id.as_str()), ("cA", ""));
        assert!(serde_json::from_str::<JsonClick<'_>>(r#"{"campaign_id":5}"#).is_err());
    }

    #[test]
    fn the_border_of_the_age_limit_is_inside() {
        assert!(validate(r#"{"campaign_id":"c","event_time":"2025-01-08T12:00:00Z"}"#).is_ok());
        assert!(validate(r#"{"campaign_id":"c","event_time":"2025-01-15T12:05:00Z"}"#).is_ok());
    }
}
