//! Numbers as people read them: with a unit that fits, and no more digits than mean something.

const MINUTE: f64 = 60.0;
const HOUR: f64 = 3_600.0;
const DAY: f64 = 86_400.0;

/// Writes a time such as `350 ms`, `2.4 s`, `2 min 5 s`, `3 h 20 min`, `2 d 4 h`.
pub(super) fn seconds(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    let value = value.abs();
    let pair = |first: f64, unit: &str, rest: f64, rest_unit: &str| {
        format!("{sign}{first:.0} {unit} {:.0} {rest_unit}", rest.floor())
    };
    match value {
        _ if !value.is_finite() => "unknown".to_owned(),
        _ if value == 0.0 => "0 s".to_owned(),
        _ if value < 0.9995 => format!("{sign}{} ms", significant(value * 1_000.0)),
        _ if value < MINUTE => format!("{sign}{} s", significant(value)),
        _ if value < HOUR => pair((value / MINUTE).floor(), "min", value % MINUTE, "s"),
        _ if value < DAY => pair((value / HOUR).floor(), "h", value % HOUR / MINUTE, "min"),
        _ => pair((value / DAY).floor(), "d", value % DAY / HOUR, "h"),
    }
}

/// Writes bytes such as `512 B`, `1.5 MiB`.
pub(super) fn bytes(value: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    if !value.is_finite() {
        return "unknown".to_owned();
    }
    let mut value = value;
    let mut unit = 0;
    while value.abs() >= 1_024.0 && unit + 1 < UNITS.len() {
        value /= 1_024.0;
        unit += 1;
    }
    format!("{} {}", significant(value), UNITS[unit])
}

/// Writes a whole number with its thousands set apart.
pub(super) fn count(value: f64) -> String {
    if !value.is_finite() {
        return "unknown".to_owned();
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value <= -0.5 { format!("-{text}") } else { text }
}

/// Writes a rate such as `1,234,567 /s`.
pub(super) fn rate(value: f64) -> String {
    format!("{} /s", count(value))
}

/// Writes three significant digits, without an exponent where that stays short.
pub(super) fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return "unknown".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    if !(-9.0..15.0).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    if magnitude >= 2.0 {
        return count(value);
    }
    let decimals = (2.0 - magnitude) as usize;
    let text = format!("{value:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Writes a text with its first letter as a capital.
pub(super) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Writes a factor such as `1.8 times`.
pub(super) fn times(value: f64) -> String {
    if value >= 10.0 { format!("{} times", count(value)) } else { format!("{value:.1} times") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        for (value, text) in [
            (0.0, "0 s"),
            (0.35, "350 ms"),
            (2.4, "2.4 s"),
            (125.0, "2 min 5 s"),
            (12_000.0, "3 h 20 min"),
            (187_200.0, "2 d 4 h"),
            (-2.0, "-2 s"),
        ] {
            assert_eq!(seconds(value), text);
        }
        for (value, text) in
            [(0.0, "0 B"), (512.0, "512 B"), (1_572_864.0, "1.5 MiB"), (1e30, "888,178,419,700,125 PiB")]
        {
            assert_eq!(bytes(value), text);
        }
        for (value, text) in [(0.0, "0"), (999.0, "999"), (1_234_567.0, "1,234,567"), (-1_000.0, "-1,000")] {
            assert_eq!(count(value), text);
        }
        for (value, text) in [(0.034, "0.034"), (0.000_276, "0.000276"), (12.0, "12"), (1e-12, "1.00e-12")] {
            assert_eq!(significant(value), text);
        }
    }

    proptest! {
        #[test]
        fn no_number_makes_an_empty_or_endless_text(value in prop::num::f64::ANY) {
            for text in [seconds(value), bytes(value), count(value), significant(value), rate(value), times(value)] {
                prop_assert!(!text.is_empty() && text.len() < 450, "{text}");
            }
        }
    }
}
