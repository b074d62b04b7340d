//! UTC days of event time: what the nightly close of bills takes as one.

use std::fmt;
use std::str::FromStr;

use super::time::{Hour, TimeError, UtcMillis};
use serde::{Deserialize, Serialize};

const HOURS: i64 = 24;

/// One UTC day of event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(i64);

impl Day {
    /// Returns the day an hour lies in.
    pub fn of(hour: Hour) -> Self {
        Self(hour.since_epoch().div_euclid(HOURS))
    }

    /// Wraps a number of days since 1970.
    pub fn from_since_epoch(days: i64) -> Self {
        Self(days)
    }

    /// Returns the number of days since 1970.
    pub fn since_epoch(self) -> i64 {
        self.0
    }

    /// Returns the day `days` later.
    pub fn plus(self, days: i64) -> Self {
        Self(self.0 + days)
    }

    /// Returns its first moment.
    pub fn start(self) -> UtcMillis {
        Hour::from_since_epoch(self.0 * HOURS).start()
    }

    /// Iterates over its hours, in order.
    pub fn hours(self) -> impl Iterator<Item = Hour> {
        (0..HOURS).map(move |hour| Hour::from_since_epoch(self.0 * HOURS + hour))
    }

    /// Returns the first moment after the day.
    pub fn end(self) -> UtcMillis {
        Hour::from_since_epoch((self.0 + 1) * HOURS).start()
    }
}

impl fmt::Display for Day {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hour = Hour::from_since_epoch(self.0 * HOURS).to_string();
        formatter.write_str(hour.split('T').next().unwrap_or_default())
    }
}

impl FromStr for Day {
    type Err = TimeError;

    /// Reads `2025-01-15`.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        let hour: Hour = format!("{text}T00").parse()?;
        Ok(Self::of(hour))
    }
}

impl Serialize for Day {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_read_as_it_is_written_and_has_the_hours_of_its_date() {
        let day: Day = "2025-01-15".parse().expect("a day");
        assert_eq!(day.to_string(), "2025-01-15");
        let hours: Vec<String> = day.hours().map(|hour| hour.to_string()).collect();
        assert_eq!(
            (hours.len(), hours[0].as_str(), hours[23].as_str()),
            (24, "2025-01-15T00", "2025-01-15T23")
        );
        assert_eq!(day.end(), "2025-01-16T00:00:00Z".parse().expect("a time"));
        assert!(
            ["2025-01-15T12", "2025-13-01", "yesterday", ""].iter().all(|text| text.parse::<Day>().is_err())
        );
    }
}
