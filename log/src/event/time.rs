//! UTC time in whole milliseconds, the hour a bill is made for, and the clock that is passed in.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Milliseconds of one window.
pub const MINUTE_MS: i64 = 60_000;
/// Milliseconds of one hour.
pub const HOUR_MS: i64 = 3_600_000;

/// The text is not a time this software understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Neither RFC 3339 nor in the range of years 0 to 9999.
    #[error("is not an RFC 3339 time such as 2025-01-15T12:00:00.123Z, nor epoch milliseconds")]
    NotATime,
    /// Not an hour in the form `2025-01-15T12`.
    #[error("is not an hour such as 2025-01-15T12 (UTC)")]
    NotAnHour,
}

/// A moment in UTC, in milliseconds since 1970. Years 0 to 9999, so that every value has an RFC 3339 form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcMillis(i64);

impl UtcMillis {
    const MIN: i64 = -62_167_219_200_000;
    const MAX: i64 = 253_402_300_799_999;

    /// Wraps epoch milliseconds.
    ///
    /// # Errors
    /// [`TimeError::NotATime`] outside the years 0 to 9999.
    pub fn new(epoch_ms: i64) -> Result<Self, TimeError> {
        if (Self::MIN..=Self::MAX).contains(&epoch_ms) {
            Ok(Self(epoch_ms))
        } else {
            Err(TimeError::NotATime)
        }
    }

    /// Wraps epoch milliseconds, moving a value outside the years 0 to 9999 to the nearest bound.
    pub fn clamped(epoch_ms: i64) -> Self {
        Self(epoch_ms.clamp(Self::MIN, Self::MAX))
    }

    /// Returns epoch milliseconds.
    pub fn epoch_ms(self) -> i64 {
        self.0
    }

    /// Returns the start of the one-minute window this moment lies in.
    pub fn minute_start(self) -> Self {
        Self(self.0.div_euclid(MINUTE_MS) * MINUTE_MS)
    }

    /// Returns the UTC hour this moment lies in.
    pub fn hour(self) -> Hour {
        Hour(self.0.div_euclid(HOUR_MS))
    }

    /// Returns the moment `ms` later (earlier if negative), kept within the years 0 to 9999.
    pub fn plus_ms(self, ms: i64) -> Self {
        Self::clamped(self.0.saturating_add(ms))
    }
}

impl fmt::Display for UtcMillis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time: DateTime<Utc> = DateTime::from_timestamp_millis(self.0).unwrap_or(DateTime::<Utc>::MIN_UTC);
        formatter.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl FromStr for UtcMillis {
    type Err = TimeError;

    /// Reads RFC 3339, floored to milliseconds.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        let time = DateTime::parse_from_rfc3339(text).map_err(|_| TimeError::NotATime)?;
        Self::new(time.timestamp_millis())
    }
}

impl Serialize for UtcMillis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UtcMillis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One UTC hour, half open. Written `2025-01-15T12`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(i64);

impl Hour {
    /// Returns the first moment of the hour.
    pub fn start(self) -> UtcMillis {
        UtcMillis::clamped(self.0.saturating_mul(HOUR_MS))
    }

    /// Returns the first moment after the hour.
    pub fn end(self) -> UtcMillis {
        self.plus(1).start()
    }

    /// Returns the hour `hours` later (earlier if negative).
    pub fn plus(self, hours: i64) -> Self {
        Self(self.0.saturating_add(hours))
    }

    /// Returns the number of hours since 1970.
    pub fn since_epoch(self) -> i64 {
        self.0
    }

    /// Wraps a number of hours since 1970.
    pub fn from_since_epoch(hours: i64) -> Self {
        Self(hours)
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time: DateTime<Utc> =
            DateTime::from_timestamp_millis(self.start().epoch_ms()).unwrap_or(DateTime::<Utc>::MIN_UTC);
        write!(formatter, "{}", time.format("%Y-%m-%dT%H"))
    }
}

impl FromStr for Hour {
    type Err = TimeError;

    /// Reads `2025-01-15T12`, or a full RFC 3339 time that lies on the hour.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        let full = if text.len() == 13 { format!("{text}:00:00Z") } else { text.to_owned() };
        let time: UtcMillis = full.parse().map_err(|_| TimeError::NotAnHour)?;
        let hour = time.hour();
        if hour.start() == time { Ok(hour) } else { Err(TimeError::NotAnHour) }
    }
}

impl Serialize for Hour {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hour {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Wall-clock time, passed in so that tests choose it.
pub trait Clock: Send + Sync + 'static {
    /// Returns the present moment.
    fn now(&self) -> UtcMillis;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct WallClock;

impl Clock for WallClock {
    #[allow(clippy::disallowed_methods)] // the one place that reads the machine's clock
    fn now(&self) -> UtcMillis {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        UtcMillis::clamped(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_reads_and_prints_the_same() {
        let hour: Hour = "2025-01-15T12".parse().expect("valid hour");
        assert_eq!(hour.to_string(), "2025-01-15T12");
        assert_eq!(hour.start().to_string(), "2025-01-15T12:00:00.000Z");
        assert_eq!(hour.end().to_string(), "2025-01-15T13:00:00.000Z");
        assert!("2025-01-15T12:30:00Z".parse::<Hour>().is_err());
        assert!("2025-01-15".parse::<Hour>().is_err());
    }

    #[test]
    fn times_are_floored_to_milliseconds_also_before_1970() {
        let time: UtcMillis = "1969-12-31T23:59:59.9999Z".parse().expect("valid time");
        assert_eq!(time.epoch_ms(), -1);
        assert_eq!(time.minute_start().to_string(), "1969-12-31T23:59:00.000Z");
    }

    #[test]
    fn offsets_are_turned_into_utc() {
        let time: UtcMillis = "2025-01-15T13:00:00.123+01:00".parse().expect("valid time");
        assert_eq!(time.to_string(), "2025-01-15T12:00:00.123Z");
    }
}
