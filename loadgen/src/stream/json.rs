//! Copies as JSON lines, written by hand into a buffer: at 200 000 clicks a second a serializer would cost a core.

use serde_json::{Value, json};
use uuid::Uuid;

use super::copies::Content;
use super::profile::Fault;
use super::settings::StreamSettings;

/// So far back that no door takes it, whose limit is at most 400 days.
pub(crate) const TOO_OLD_MS: i64 = 500 * 86_400_000;
/// The year 2100.
pub(crate) const FUTURE_MS: i64 = 4_102_444_800_000;

/// Writes the identifiers of a stream's clicks as text.
#[derive(Debug, Clone)]
pub struct Texts {
    campaign_prefix: Vec<u8>,
}

impl Texts {
    /// Takes the prefix of campaigns from the settings.
    pub fn new(settings: &StreamSettings) -> Self {
        Self { campaign_prefix: settings.campaign_prefix.clone().into_bytes() }
    }

    /// Appends the campaign's id.
    pub fn campaign_id(&self, buffer: &mut Vec<u8>, campaign: u32) {
        buffer.extend_from_slice(&self.campaign_prefix);
        push_number(buffer, u64::from(campaign));
    }

    /// Appends the ad's id. Ads of two campaigns are two ads.
    pub fn ad_id(&self, buffer: &mut Vec<u8>, content: &Content) {
        buffer.extend_from_slice(b"ad_");
        push_number(buffer, u64::from(content.campaign));
        buffer.push(b'_');
        push_number(buffer, u64::from(content.ad));
    }

    /// Appends the user's id; nothing where the click names none.
    pub fn user_id(&self, buffer: &mut Vec<u8>, content: &Content) {
        if let Some(user) = content.user {
            buffer.extend_from_slice(b"u_");
            push_number(buffer, u64::from(user));
        }
    }

    /// Appends the publisher's id.
    pub fn publisher_id(&self, buffer: &mut Vec<u8>, content: &Content) {
        buffer.extend_from_slice(b"pub_");
        push_number(buffer, u64::from(content.publisher));
    }
}

/// Appends one click as a JSON object and a line feed.
pub fn write_line(buffer: &mut Vec<u8>, texts: &Texts, content: &Content) {
    buffer.extend_from_slice(br#"{"click_id":""#);
    write_click_id(buffer, content);
    buffer.extend_from_slice(br#"","#);
    write_fields(buffer, texts, content);
    buffer.extend_from_slice(b"}\n");
}

/// Appends one click as a JSON object without its id, which the event around it has.
pub fn write_object(buffer: &mut Vec<u8>, texts: &Texts, content: &Content) {
    buffer.push(b'{');
    write_fields(buffer, texts, content);
    buffer.push(b'}');
}

/// Appends the id of a click as text.
pub fn write_click_id(buffer: &mut Vec<u8>, content: &Content) {
    let mut encoded = Uuid::encode_buffer();
    let click_id = Uuid::from_bytes(content.click_id);
    buffer.extend_from_slice(click_id.hyphenated().encode_lower(&mut encoded).as_bytes());
}

/// Appends one bad click: JSON all the same, so that its neighbours in an array stand.
pub fn write_faulty(buffer: &mut Vec<u8>, texts: &Texts, content: &Content, fault: Fault) {
    let mut campaign = Vec::new();
    texts.campaign_id(&mut campaign, content.campaign);
    let mut click_id = Vec::new();
    write_click_id(&mut click_id, content);
    let mut click = json!({
        "click_id": String::from_utf8_lossy(&click_id),
        "campaign_id": String::from_utf8_lossy(&campaign),
        "event_time": content.event_time_ms,
    });
    match fault {
        Fault::Broken => click = json!("no click"),
        Fault::NoCampaign => click["campaign_id"] = Value::Null,
        Fault::LongCampaign => click["campaign_id"] = json!("c".repeat(65)),
        Fault::ClickId => click["click_id"] = json!(content.event_time_ms.to_string()),
        Fault::Time => click["event_time"] = json!("noon"),
        Fault::TooOld => click["event_time"] = json!(content.event_time_ms - TOO_OLD_MS),
        Fault::Future => click["event_time"] = json!(FUTURE_MS),
        Fault::Version => click["schema_version"] = json!(9),
    }
    buffer.extend_from_slice(click.to_string().as_bytes());
}

fn write_fields(buffer: &mut Vec<u8>, texts: &Texts, content: &Content) {
    buffer.extend_from_slice(br#""campaign_id":""#);
    texts.campaign_id(buffer, content.campaign);
    buffer.extend_from_slice(br#"","ad_id":""#);
    texts.ad_id(buffer, content);
    if content.user.is_some() {
        buffer.extend_from_slice(br#"","user_id":""#);
        texts.user_id(buffer, content);
    }
    buffer.extend_from_slice(br#"","publisher_id":""#);
    texts.publisher_id(buffer, content);
    buffer.extend_from_slice(br#"","event_time":"#);
    if content.event_time_ms < 0 {
        buffer.push(b'-');
    }
    push_number(buffer, content.event_time_ms.unsigned_abs());
}

fn push_number(buffer: &mut Vec<u8>, number: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    buffer.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use twice_log::event::json::{AgeLimits, JsonClick};
    use twice_log::{ClickId, UtcMillis};

    use super::*;
    use crate::stream::ClickStream;
    use crate::stream::settings::tests::settings;

    #[test]
    fn numbers_are_decimal() {
        for number in [0, 7, 10, 1_736_942_400_123, u64::MAX] {
            let mut buffer = Vec::new();
            push_number(&mut buffer, number);
            assert_eq!(buffer, number.to_string().into_bytes());
        }
    }

    #[test]
    fn lines_are_clicks_that_the_door_accepts() {
        let stream = ClickStream::new(settings("--seed 7 --conflicts 5%", 2_000).expect("valid"));
        let texts = Texts::new(stream.settings());
        for copy in stream.iter() {
            let mut buffer = Vec::new();
            write_line(&mut buffer, &texts, &copy.content);
            let click: JsonClick<'_> = serde_json::from_slice(&buffer).expect("JSON");
            let now = UtcMillis::clamped(1_736_944_496_000);
            let click = click
                .validate(now, || ClickId::derived("never"), &AgeLimits::default())
                .expect("accepted at the door");
            assert_eq!(click.click_id.as_bytes(), &copy.content.click_id);
            assert_eq!(click.event_time.epoch_ms(), copy.content.event_time_ms);
            assert_eq!(click.user_id.is_empty(), copy.content.user.is_none());
        }
    }

    #[test]
    fn the_bytes_of_a_seed_never_change() {
        let stream = ClickStream::new(settings("--seed 7", 100).expect("valid"));
        let texts = Texts::new(stream.settings());
        let mut buffer = Vec::new();
        write_line(&mut buffer, &texts, &stream.copy(3).content);
        let golden = concat!(
            r#"{"click_id":"051ea6fd-70a6-4b23-b569-5c90e5c5a400","campaign_id":"load7-219","ad_id":"ad_219_1","#,
            r#""user_id":"u_85107","publisher_id":"pub_42","event_time":1736935415950}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(buffer).expect("text"), golden);
    }
}
