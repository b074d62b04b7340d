//! What `verify` prints: a row an hour, the first differences, the verdict.

use std::collections::BTreeMap;
use std::fmt::Write;

use twice_log::Hour;

use super::compare::{Difference, HourTotals};
use super::expect::WrongRefusal;

/// Differences listed; the rest is only counted.
const LISTED_MAX: usize = 20;

const HEADINGS: [&str; 13] = [
    "hour",
    "campaigns",
    "gross",
    "duplicates",
    "conflicts",
    "billable",
    "unpriced",
    "preliminary",
    "late",
    "late sent",
    "late dup.",
    "unexplained",
    "differences",
];

/// The result over all hours.
#[derive(Debug, Default)]
pub(super) struct Summary {
    hours: Vec<(Hour, HourTotals)>,
    /// Differences of no hour that the ledgers touch.
    beyond: Vec<Difference>,
}

impl Summary {
    /// Adds an hour that the ledgers touch.
    pub(super) fn add(&mut self, hour: Hour, totals: HourTotals) {
        self.hours.push((hour, totals));
    }

    /// Adds a billed hour that no ledger touches.
    pub(super) fn add_unknown_hour(&mut self, hour: Hour, rows: usize) {
        if rows > 0 {
            self.beyond.push(Difference {
                hour,
                campaign_id: "(any)".to_owned(),
                field: "rows",
                expected: "0".to_owned(),
                got: rows.to_string(),
            });
        }
    }

    /// Adds a bad click that was not refused with the code of its fault; `hour` is where it is listed.
    pub(super) fn add_wrong_refusal(&mut self, hour: Hour, wrong: &WrongRefusal) {
        self.beyond.push(Difference {
            hour,
            campaign_id: format!("(copy {})", wrong.sequence),
            field: "refusal",
            expected: wrong.due.clone(),
            got: wrong.got.clone(),
        });
    }

    /// Returns whether nothing differs.
    pub(super) fn agreed(&self) -> bool {
        self.differences().next().is_none()
    }

    fn differences(&self) -> impl Iterator<Item = &Difference> {
        self.hours.iter().flat_map(|(_, totals)| &totals.differences).chain(&self.beyond)
    }

    /// Returns everything to print.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![HEADINGS.map(str::to_owned).to_vec()];
        lines.extend(self.hours.iter().map(|(hour, totals)| cells(hour.to_string(), totals)));
        lines.push(cells("total".to_owned(), &self.total()));
        let mut text = table(&lines);
        for (currency, amount) in self.total().amounts {
            let _ = writeln!(text, "billed {currency} {}", money(amount)); // a String takes everything
        }
        text.push_str(&self.notes());
        text.push_str(&self.list());
        text
    }

    fn total(&self) -> HourTotals {
        let mut total = HourTotals::default();
        for (_, hour) in &self.hours {
            total.campaigns += hour.campaigns;
            total.gross += hour.gross;
            total.duplicates += hour.duplicates;
            total.conflicts += hour.conflicts;
            total.invalid += hour.invalid;
            total.billable += hour.billable;
            total.unpriced += hour.unpriced;
            total.preliminary += hour.preliminary;
            total.late += hour.late;
            total.late_sent += hour.late_sent;
            total.late_duplicate += hour.late_duplicate;
            total.unexplained += hour.unexplained;
            total.not_complete += hour.not_complete;
            total.passed_over += hour.passed_over;
            for (currency, amount) in &hour.amounts {
                *total.amounts.entry(currency.clone()).or_default() += amount;
            }
        }
        total.differences = self.differences().cloned().collect();
        total
    }

    fn notes(&self) -> String {
        let total = self.total();
        let mut notes = String::new();
        if total.not_complete > 0 {
            let rows = total.not_complete;
            let _ =
                writeln!(notes, "note: the stream of {rows} rows is not complete; nothing to explain there");
        }
        if total.passed_over > 0 {
            let rows = total.passed_over;
            let _ = writeln!(notes, "note: {rows} rows of campaigns that no ledger names were passed over");
        }
        notes
    }

    fn list(&self) -> String {
        let all: Vec<&Difference> = self.differences().collect();
        if all.is_empty() {
            let total = self.total();
            return format!(
                "agreed: {} rows in {} hours, {} billable clicks, every difference to the stream explained\n",
                total.campaigns,
                self.hours.len(),
                total.billable
            );
        }
        let mut by_field: BTreeMap<&str, usize> = BTreeMap::new();
        for difference in &all {
            *by_field.entry(difference.field).or_default() += 1;
        }
        let mut lines = vec![["campaign", "hour", "field", "expected", "got"].map(str::to_owned).to_vec()];
        for difference in all.iter().take(LISTED_MAX) {
            lines.push(vec![
                difference.campaign_id.clone(),
                difference.hour.to_string(),
                difference.field.to_owned(),
                difference.expected.clone(),
                difference.got.clone(),
            ]);
        }
        let counts: Vec<String> = by_field.iter().map(|(field, count)| format!("{field} {count}")).collect();
        let more = all.len().saturating_sub(LISTED_MAX);
        let more = if more > 0 { format!("… and {more} more\n") } else { String::new() };
        format!("{}{more}DIFFERENT: {} differences ({})\n", table(&lines), all.len(), counts.join(", "))
    }
}

fn cells(label: String, totals: &HourTotals) -> Vec<String> {
    let numbers = [
        totals.campaigns,
        totals.gross,
        totals.duplicates,
        totals.conflicts,
        totals.billable,
        totals.unpriced,
        totals.preliminary,
        totals.late,
        totals.late_sent,
        totals.late_duplicate,
    ];
    let mut cells = vec![label];
    cells.extend(numbers.map(|number| number.to_string()));
    cells.push(totals.unexplained.to_string());
    cells.push(totals.differences.len().to_string());
    cells
}

/// Sets lines of cells in columns: the first to the left, the others to the right.
fn table(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

fn money(micros: i128) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    format!("{sign}{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}
