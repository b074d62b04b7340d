//! The comparison as a short table for a terminal.

use super::figures::{Comparison, PathCost, Quantiles};
use super::units;

/// Writes the table and the conclusion.
pub fn summary(comparison: &Comparison) -> String {
    let (lambda, kappa) = (&comparison.costs.lambda, &comparison.costs.kappa);
    let both = |write: &dyn Fn(&PathCost) -> String| [write(lambda), write(kappa)];
    let optional = |value: Option<f64>, write: fn(f64) -> String| value.map_or_else(|| "-".to_owned(), write);
    let bill =
        |quantiles: Option<Quantiles>| optional(quantiles.map(|found| found.p50_seconds), units::seconds);
    let money = |total: Option<f64>| optional(total, units::significant);
    let (paths, times) = (&comparison.money.paths, &comparison.authoritative);
    let lines = [
        ("time by the clock".to_owned(), both(&|cost| units::seconds(cost.wall_seconds))),
        ("CPU time".to_owned(), both(&|cost| units::seconds(cost.cpu_seconds))),
        ("clicks a second".to_owned(), both(&|cost| optional(cost.clicks_per_second, units::count))),
        ("peak memory".to_owned(), both(&|cost| units::bytes(cost.rss_peak_bytes as f64))),
        ("bytes read".to_owned(), both(&|cost| units::bytes(cost.bytes_read as f64))),
        ("bytes written".to_owned(), both(&|cost| units::bytes(cost.bytes_written as f64))),
        (
            "end of hour to bill, p50".to_owned(),
            [bill(times.lambda.seconds_after_end.value), bill(times.kappa.seconds_after_end.value)],
        ),
        (
            format!("{} a million clicks", comparison.money.prices.currency),
            [money(paths.lambda.total_per_million_clicks), money(paths.kappa.total_per_million_clicks)],
        ),
    ];
    let mut text = format!("{:<26} {:>16} {:>16}\n", "", "lambda", "kappa");
    for (name, [lambda, kappa]) in lines {
        text.push_str(&format!("{name:<26} {lambda:>16} {kappa:>16}\n"));
    }
    let shown = comparison.differences.rows.iter().take(10);
    for row in shown {
        let columns: Vec<String> = row.columns.iter().map(|column| format!("{column:?}")).collect();
        text.push_str(&format!("DIFFERS  {}  {}  {}\n", row.hour, row.campaign_id, columns.join(", ")));
    }
    text.push('\n');
    text.push_str(&comparison.conclusion);
    text
}
