//! Readers of the units on the command line: shares, durations and event times. Each error says what to write.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use twice_log::{Hour, UtcMillis};

/// A share of all copies, kept in parts per million so that it decides without floating point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share {
    pub parts_per_million: u32,
}

/// Reads `0.6%` or `0.006` as a share.
///
/// # Errors
/// A sentence, if the text is no number or lies outside 0 to 100 %.
pub fn parse_share(text: &str) -> Result<Share, String> {
    let (number, scale) = match text.strip_suffix('%') {
        Some(number) => (number, 10_000.0),
        None => (text, 1_000_000.0),
    };
    let share: f64 = number.trim().parse().map_err(|_| "write a share such as 0.6% or 0.006".to_owned())?;
    let parts = (share * scale).round();
    if !(0.0..=1_000_000.0).contains(&parts) {
        return Err("a share lies between 0% and 100%".to_owned());
    }
    Ok(Share { parts_per_million: parts as u32 })
}

/// Reads `500ms`, `30s`, `5m`, `2h` or `1d`; decimals such as `1.5h` are welcome.
///
/// # Errors
/// A sentence, if number or unit is missing, or the duration is longer than 1000 days.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let advice = "write a duration with its unit, such as 500ms, 30s, 5m, 2h or 1d";
    let digits = text.find(|character: char| !character.is_ascii_digit() && character != '.');
    let (number, unit) = text.split_at(digits.ok_or(advice)?);
    let number: f64 = number.parse().map_err(|_| advice.to_owned())?;
    let unit_ms = match unit {
        "ms" => 1.0,
        "s" => 1_000.0,
        "m" | "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return Err(advice.to_owned()),
    };
    let ms = (number * unit_ms).round();
    if ms > 86_400_000_000.0 {
        return Err("a duration is at most 1000d".to_owned());
    }
    Ok(Duration::from_millis(ms as u64))
}

/// Where event time begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventStart {
    /// Event times are the wall clock's, as in production.
    Live,
    /// Event times run through a span that begins here.
    At(UtcMillis),
}

/// Reads `live`, an hour such as `2025-01-15T12`, or an RFC 3339 time.
///
/// # Errors
/// A sentence, if the text is none of these.
pub fn parse_event_start(text: &str) -> Result<EventStart, String> {
    if text == "live" {
        return Ok(EventStart::Live);
    }
    if let Ok(hour) = text.parse::<Hour>() {
        return Ok(EventStart::At(hour.start()));
    }
    text.parse().map(EventStart::At).map_err(|_| {
        "write live, an hour such as 2025-01-15T12, or a time such as 2025-01-15T12:00:00Z".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_read_as_percent_and_as_fraction() {
        assert_eq!(parse_share("0.6%"), Ok(Share { parts_per_million: 6_000 }));
        assert_eq!(parse_share("0.006"), Ok(Share { parts_per_million: 6_000 }));
        assert_eq!(parse_share("0"), Ok(Share { parts_per_million: 0 }));
        assert_eq!(parse_share("100%"), Ok(Share { parts_per_million: 1_000_000 }));
        for wrong in ["", "%", "six", "101%", "-1%", "NaN"] {
            assert!(parse_share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_need_their_unit() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
        for wrong in ["", "30", "s", "3 s", "1y", "-3s", "2000d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn event_starts_are_live_an_hour_or_a_time() {
        assert_eq!(parse_event_start("live"), Ok(EventStart::Live));
        let noon = EventStart::At(UtcMillis::clamped(1_736_942_400_000));
        assert_eq!(parse_event_start("2025-01-15T12"), Ok(noon));
        assert_eq!(parse_event_start("2025-01-15T13:00:00+01:00"), Ok(noon));
        assert!(parse_event_start("yesterday").is_err());
    }
}
