//! What a question about clicks covers: its span of time, cut to whole rows and bounded.

use serde::{Deserialize, Serialize};
use twice_log::{Hour, UtcMillis};
use utoipa::ToSchema;

use crate::error::{Error, Result};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Widest span of one question: a leap year and a day, so that a question by day reads a bounded number of hours.
const SPAN_MS_MAX: i64 = 367 * DAY_MS;

/// Width of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Granularity {
    Minute,
    #[default]
    Hour,
    Day,
}

impl Granularity {
    pub fn width_ms(self) -> i64 {
        match self {
            Granularity::Minute => MINUTE_MS,
            Granularity::Hour => HOUR_MS,
            Granularity::Day => DAY_MS,
        }
    }

    /// Span answered where the question names no start.
    fn span_ms_default(self) -> i64 {
        match self {
            Granularity::Minute => HOUR_MS,
            Granularity::Hour => DAY_MS,
            Granularity::Day => 30 * DAY_MS,
        }
    }
}

/// Whose numbers are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QueryPath {
    /// Billed rows of the path in force, else the stream's.
    #[default]
    Merged,
    /// The stream's alone.
    Stream,
    /// Rows recomputed over the archive alone.
    Lambda,
    /// Rows replayed through the stream code alone.
    Kappa,
}

/// A span of whole rows, half open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub from: UtcMillis,
    pub to: UtcMillis,
    pub granularity: Granularity,
}

impl Range {
    /// Reads the span asked for, widened to whole rows. Without `to` it ends now, without `from` it has a usual length.
    ///
    /// # Errors
    /// `Unprocessable` for a time that does not read, an empty span, and one of more than `rows_max` rows.
    pub fn read(
        from: Option<&str>,
        to: Option<&str>,
        granularity: Granularity,
        now: UtcMillis,
        rows_max: u32,
    ) -> Result<Self> {
        let width_ms = granularity.width_ms();
        let to = match to {
            Some(text) => read_time("to", text)?,
            None => now.plus_ms(1),
        };
        let to = ceil(to, width_ms);
        let from = match from {
            Some(text) => floor(read_time("from", text)?, width_ms),
            None => to.plus_ms(-granularity.span_ms_default()),
        };
        let span_ms = to.epoch_ms() - from.epoch_ms();
        if span_ms <= 0 {
            return Err(Error::unprocessable("from must lie before to"));
        }
        let rows = span_ms / width_ms;
        if rows > rows_max.into() || span_ms > SPAN_MS_MAX {
            let days_max = SPAN_MS_MAX / DAY_MS;
            return Err(Error::unprocessable(format!(
                "the range has {rows} rows; at most {rows_max} rows and {days_max} days are answered at once"
            )));
        }
        Ok(Self { from, to, granularity })
    }

    /// Returns the start of each row, in order.
    pub fn starts(&self) -> impl Iterator<Item = UtcMillis> + use<> {
        let Range { from, to, granularity } = *self;
        let step = granularity.width_ms();
        std::iter::successors(Some(from), move |start| Some(start.plus_ms(step)))
            .take_while(move |start| *start < to)
    }

    /// Returns the first hour the range touches and the first after it.
    pub fn hours(&self) -> (Hour, Hour) {
        (self.from.hour(), ceil(self.to, HOUR_MS).hour())
    }
}

fn read_time(field: &str, text: &str) -> Result<UtcMillis> {
    let time = match text.parse::<i64>() {
        Ok(epoch_ms) => UtcMillis::new(epoch_ms),
        Err(_) => text.parse().or_else(|error| text.parse::<Hour>().map(Hour::start).map_err(|_| error)),
    };
    time.map_err(|error| {
        // `+01:00` must be written `%2B01:00` in a query; unescaped it arrives as a space.
        let hint = if text.contains(' ') { " (write + as %2B in a query)" } else { "" };
        Error::unprocessable(format!("{field} {error}{hint}"))
    })
}

fn floor(time: UtcMillis, width_ms: i64) -> UtcMillis {
    time.plus_ms(-time.epoch_ms().rem_euclid(width_ms))
}

fn ceil(time: UtcMillis, width_ms: i64) -> UtcMillis {
    time.plus_ms((-time.epoch_ms()).rem_euclid(width_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(from: Option<&str>, to: Option<&str>, granularity: Granularity) -> Result<Range> {
        let now = "2025-01-15T12:34:56Z".parse().expect("valid time");
        Range::read(from, to, granularity, now, 1_500)
    }

    fn span(from: Option<&str>, to: Option<&str>, granularity: Granularity) -> String {
        let range = read(from, to, granularity).expect("a range");
        format!("{} {}", range.from, range.to)
    }

    #[test]
    fn ranges_are_widened_to_whole_rows() {
        let asked = (Some("2025-01-15T10:30:00Z"), Some("2025-01-15T11:00:00.001Z"));
        let hours = span(asked.0, asked.1, Granularity::Hour);
        assert_eq!(hours, "2025-01-15T10:00:00.000Z 2025-01-15T12:00:00.000Z");
        let days = span(asked.0, asked.1, Granularity::Day);
        assert_eq!(days, "2025-01-15T00:00:00.000Z 2025-01-16T00:00:00.000Z");
    }

    #[test]
    fn a_question_without_times_ends_with_the_row_of_now() {
        let minutes = span(None, None, Granularity::Minute);
        assert_eq!(minutes, "2025-01-15T11:35:00.000Z 2025-01-15T12:35:00.000Z");
    }

    #[test]
    fn hours_epoch_milliseconds_and_offsets_are_times() {
        let hour = span(Some("2025-01-15T10"), Some("1736938800000"), Granularity::Hour);
        assert_eq!(hour, "2025-01-15T10:00:00.000Z 2025-01-15T11:00:00.000Z");
        assert_eq!(hour, span(Some("2025-01-15T11:00:00+01:00"), Some("2025-01-15T11"), Granularity::Hour));
    }

    #[test]
    fn empty_wide_and_unreadable_ranges_are_refused() {
        let refused = |from: &str, to: &str| read(Some(from), Some(to), Granularity::Minute).is_err();
        assert!(refused("2025-01-15T12", "2025-01-15T12"));
        assert!(refused("2025-01-15T12", "2025-01-15T11"));
        assert!(refused("2025-01-14T00", "2025-01-15T12"));
        assert!(refused("noon", "2025-01-15T12"));
        assert!(!refused("2025-01-14T12", "2025-01-15T12"));
        let plus = read(Some("2025-01-15T12:00:00 01:00"), None, Granularity::Hour).expect_err("refused");
        assert!(plus.to_string().contains("%2B"));
    }
}
