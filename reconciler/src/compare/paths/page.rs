//! The comparison as one HTML file: charts, tables beside them, nothing to load.
//!
//! Guarantee: a number on the page is taken from the JSON by its pointer, and carries the exact value and the pointer
//! with it (`<data value=… data-path=…>`), so that it cannot say another thing. The JSON itself is in the page.

use askama::Template;
use serde_json::Value;

use super::charts::{self, Bar, Caption, Group, Tone};
use super::figures::{Comparison, Sides};
use super::units;
use crate::error::{Error, Result};

#[derive(Template)]
#[template(path = "comparison.html")]
struct Page<'a> {
    comparison: &'a Comparison,
    headline: Vec<Cell>,
    differences: Vec<Vec<Cell>>,
    sections: Vec<Section>,
    /// With every `<` escaped, so that no text in it ends the element.
    json: String,
}

/// A part of the page: a heading, charts, a table.
struct Section {
    id: &'static str,
    title: &'static str,
    note: String,
    charts: Vec<Chart>,
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    remarks: Vec<String>,
}

struct Chart {
    title: &'static str,
    svg: String,
}

/// A text, or a number of the JSON.
struct Cell {
    text: String,
    pointer: Option<String>,
    /// As it stands in the JSON.
    value: String,
}

impl Cell {
    fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), pointer: None, value: String::new() }
    }
}

/// Writes the page.
///
/// # Errors
/// `Json` if the comparison cannot be written as JSON.
pub fn html(comparison: &Comparison) -> Result<String> {
    let failed = |source| Error::Json { what: "comparison", source };
    let json = serde_json::to_value(comparison).map_err(failed)?;
    let text = serde_json::to_string(comparison).map_err(failed)?;
    let numbers = Numbers { json: &json };
    let page = Page {
        comparison,
        headline: numbers.headline(),
        differences: numbers.differences(comparison),
        sections: vec![
            numbers.costs(comparison),
            numbers.freshness(comparison),
            numbers.authoritative(comparison),
            numbers.storage(comparison),
            numbers.money(comparison),
            numbers.recovery(comparison),
            numbers.lines(comparison),
            numbers.inputs(comparison),
        ],
        json: text.replace('<', "\\u003c"),
    };
    page.render().map_err(|error| Error::Config { reason: format!("the report cannot be written: {error}") })
}

type Format = fn(f64) -> String;

const SIDES: [(&str, &str, Tone); 2] = [("lambda", "lambda", Tone::Lambda), ("kappa", "kappa", Tone::Kappa)];

/// Looks numbers up in the JSON.
struct Numbers<'a> {
    json: &'a Value,
}

impl Numbers<'_> {
    fn number(&self, pointer: &str) -> Option<f64> {
        self.json.pointer(pointer).and_then(Value::as_f64)
    }

    fn cell(&self, pointer: impl Into<String>, format: Format) -> Cell {
        let pointer = pointer.into();
        match self.json.pointer(&pointer) {
            Some(value @ Value::Number(number)) => Cell {
                text: number.as_f64().map_or_else(|| number.to_string(), format),
                value: value.to_string(),
                pointer: Some(pointer),
            },
            _ => Cell::text("not known"),
        }
    }

    fn bar(&self, label: &str, pointer: &str, format: Format, tone: Tone) -> Option<Bar> {
        let value = self.number(pointer)?;
        Some(Bar { label: label.to_owned(), value, text: format(value), tone })
    }

    /// Returns a chart of what is known; none where nothing is.
    fn chart(
        &self,
        id: &str,
        title: &'static str,
        bars: Vec<Option<Bar>>,
        limit: Option<f64>,
    ) -> Option<Chart> {
        let bars: Vec<Bar> = bars.into_iter().flatten().collect();
        if bars.is_empty() {
            return None;
        }
        let said: Vec<String> = bars.iter().map(|bar| format!("{} {}", bar.label, bar.text)).collect();
        let description = format!("{title}: {}.", said.join(", "));
        let caption = Caption { id, title, description: &description };
        Some(Chart { title, svg: charts::bars(&caption, &bars, limit) })
    }

    fn both(&self, id: &str, title: &'static str, field: &str, format: Format) -> Option<Chart> {
        let bar = |(label, side, tone): (&str, &str, Tone)| {
            self.bar(label, &format!("/costs/{side}/{field}"), format, tone)
        };
        self.chart(id, title, SIDES.map(bar).into(), None)
    }

    fn row_of_both(&self, name: &str, pointers: [String; 2], format: Format) -> Vec<Cell> {
        let [lambda, kappa] = pointers.map(|pointer| self.cell(pointer, format));
        vec![Cell::text(name), lambda, kappa]
    }

    fn headline(&self) -> Vec<Cell> {
        vec![
            self.cell("/counted/rows", units::count),
            self.cell("/counted/hours", units::count),
            self.cell("/counted/copies", units::count),
            self.cell("/differences/rows_differing", units::count),
        ]
    }

    fn differences(&self, comparison: &Comparison) -> Vec<Vec<Cell>> {
        let row = |(place, row): (String, &super::RowDifference)| {
            let columns = row.columns.iter().map(|column| {
                let name = serde_json::to_value(column).unwrap_or_default();
                name.as_str().unwrap_or_default().to_owned()
            });
            let columns: Vec<String> = columns.collect();
            let of = |side: &str, name: &str| {
                let pointer = format!("{place}/{side}/{name}");
                match self.json.pointer(&format!("{place}/{side}")) {
                    Some(Value::Object(_)) if name != "currency" => self.cell(pointer, units::count),
                    Some(Value::Object(counts)) => {
                        Cell::text(counts.get(name).and_then(Value::as_str).unwrap_or("none"))
                    }
                    _ => Cell::text("no row"),
                }
            };
            columns
                .into_iter()
                .map(|name| {
                    let asked = if name == "row" { "gross" } else { &name };
                    let (lambda, kappa) = (of("lambda", asked), of("kappa", asked));
                    vec![
                        Cell::text(row.hour.to_string()),
                        Cell::text(row.campaign_id.to_string()),
                        Cell::text(name),
                        lambda,
                        kappa,
                    ]
                })
                .collect::<Vec<_>>()
        };
        let now = &comparison.differences.rows;
        let counted =
            now.iter().enumerate().map(|(index, found)| (format!("/differences/rows/{index}"), found));
        let stored = comparison.stored.iter().enumerate().filter(|(_, hour)| hour.same_inputs);
        let stored = stored.flat_map(|(at, hour)| {
            let rows = hour.differences.rows.iter().enumerate();
            rows.map(move |(index, found)| (format!("/stored/{at}/differences/rows/{index}"), found))
        });
        counted.chain(stored).flat_map(row).collect()
    }

    fn costs(&self, comparison: &Comparison) -> Section {
        let memory = {
            let bar = |(label, side, tone): (&str, &str, Tone)| {
                self.bar(label, &format!("/costs/{side}/rss_peak_bytes"), units::bytes, tone)
            };
            let limit = comparison.costs.lambda.memory_limit_bytes.map(|limit| limit as f64);
            self.chart("memory", "Peak memory; the line is lambda's limit", SIDES.map(bar).into(), limit)
        };
        let charts = [
            self.both("wall", "Time by the clock", "wall_seconds", units::seconds),
            self.both("cpu", "CPU time", "cpu_seconds", units::seconds),
            self.both("speed", "Clicks a second", "clicks_per_second", units::rate),
            memory,
            self.both("read", "Bytes read", "bytes_read", units::bytes),
            self.both("written", "Bytes written", "bytes_written", units::bytes),
        ];
        let fields: [(&str, &str, Format); 11] = [
            ("Time by the clock", "wall_seconds", units::seconds),
            ("CPU time", "cpu_seconds", units::seconds),
            ("Clicks a second", "clicks_per_second", units::rate),
            ("Peak memory", "rss_peak_bytes", units::bytes),
            ("Memory limit", "memory_limit_bytes", units::bytes),
            ("Bytes read", "bytes_read", units::bytes),
            ("Bytes written", "bytes_written", units::bytes),
            ("Copies read", "copies_read", units::count),
            ("Files to read", "files_read", units::count),
            ("Processes", "processes", units::count),
            ("Slices", "slices", units::count),
        ];
        let row = |(name, field, format): (&str, &str, Format)| {
            self.row_of_both(name, ["lambda", "kappa"].map(|side| format!("/costs/{side}/{field}")), format)
        };
        Section {
            id: "costs",
            title: "Cost of counting the same clicks",
            note: "Measured by the processes that counted. Lambda counts hour by hour and reads the neighbouring \
                   hours each time; kappa counts all hours in one pass."
                .to_owned(),
            charts: charts.into_iter().flatten().collect(),
            head: vec!["", "lambda", "kappa"],
            rows: fields.map(row).into(),
            remarks: Vec::new(),
        }
    }

    fn freshness(&self, comparison: &Comparison) -> Section {
        let places: [(&str, &str); 4] = [
            ("arrival to visible, p50", "/freshness/value/arrival/p50_seconds"),
            ("arrival to visible, p99", "/freshness/value/arrival/p99_seconds"),
            ("event to visible, p50", "/freshness/value/event/p50_seconds"),
            ("event to visible, p99", "/freshness/value/event/p99_seconds"),
        ];
        let bar = |(label, pointer): &(&str, &str)| self.bar(label, pointer, units::seconds, Tone::Neither);
        let (arrival, event) = places.split_at(2);
        let charts = [
            self.chart("arrival", "From arrival to visible", arrival.iter().map(bar).collect(), None),
            self.chart(
                "event",
                "From the click's own time to visible",
                event.iter().map(bar).collect(),
                None,
            ),
        ];
        let row = |(name, pointer): (&str, &str)| vec![Cell::text(name), self.cell(pointer, units::seconds)];
        let mut rows: Vec<Vec<Cell>> = places.map(row).into();
        rows.push(vec![Cell::text("clicks measured"), self.cell("/freshness/value/clicks", units::count)]);
        Section {
            id: "freshness",
            title: "Freshness of the live numbers",
            note: units::sentence(&comparison.freshness.source),
            charts: charts.into_iter().flatten().collect(),
            head: vec!["", "stream"],
            rows,
            remarks: Vec::new(),
        }
    }

    fn authoritative(&self, comparison: &Comparison) -> Section {
        let Sides { lambda, kappa } = &comparison.authoritative;
        let seconds = |hours: &[super::AuthoritativeHour], hour| {
            hours.iter().find(|commit| commit.hour == hour).map(|commit| commit.seconds_after_end)
        };
        let groups = comparison.inputs.iter().map(|inputs| Group {
            label: inputs.hour.to_string().get(5..).unwrap_or_default().replace('T', " h "),
            lambda: seconds(&lambda.hours, inputs.hour),
            kappa: seconds(&kappa.hours, inputs.hour),
        });
        let groups: Vec<Group> = groups.collect();
        let title = "From the end of each hour to its first bill";
        let is_known = groups.iter().any(|group| group.lambda.is_some() || group.kappa.is_some());
        let description = format!("{title}, by path; the table has every value.");
        let caption = Caption { id: "authoritative-hours", title, description: &description };
        let chart =
            is_known.then(|| Chart { title, svg: charts::columns(&caption, &groups, units::seconds) });
        let quantile = |name: &str, field: &str| {
            self.row_of_both(
                name,
                ["lambda", "kappa"].map(|side| format!("/authoritative/{side}/{field}")),
                units::seconds,
            )
        };
        let mut rows = vec![
            quantile("end of hour to bill, p50", "seconds_after_end/value/p50_seconds"),
            quantile("end of hour to bill, p99", "seconds_after_end/value/p99_seconds"),
            quantile("click to bill, p50", "seconds_after_event/value/p50_seconds"),
            quantile("click to bill, p99", "seconds_after_event/value/p99_seconds"),
        ];
        for inputs in &comparison.inputs {
            let place = |side: &str, hours: &[super::AuthoritativeHour]| {
                let at = hours.iter().position(|commit| commit.hour == inputs.hour);
                at.map_or_else(
                    || Cell::text("not billed"),
                    |at| {
                        self.cell(
                            format!("/authoritative/{side}/hours/{at}/seconds_after_end"),
                            units::seconds,
                        )
                    },
                )
            };
            let (lambda, kappa) = (place("lambda", &lambda.hours), place("kappa", &kappa.hours));
            rows.push(vec![Cell::text(inputs.hour.to_string()), lambda, kappa]);
        }
        Section {
            id: "authoritative",
            title: "Time to the authoritative number",
            note: format!(
                "Hour: {}. Click: {}.",
                lambda.seconds_after_end.source, lambda.seconds_after_event.source
            ),
            charts: chart.into_iter().collect(),
            head: vec!["", "lambda", "kappa"],
            rows,
            remarks: vec![
                "An hour whose clicks came after its end, such as an import, waited for them too.".to_owned(),
            ],
        }
    }

    fn storage(&self, comparison: &Comparison) -> Section {
        let storage = &comparison.storage;
        let places = [
            ("log", "log", &storage.log),
            ("archive", "archive", &storage.archive),
            ("stream state", "stream_state", &storage.stream_state),
            ("billing database", "billing", &storage.billing),
        ];
        let bar = |(label, field, _): &(&str, &str, _)| {
            let pointer = format!("/storage/{field}/value/bytes_each");
            self.bar(&format!("{label}, a click"), &pointer, units::bytes, Tone::Neither)
        };
        let chart = self.chart("storage-click", "Bytes a click", places[..2].iter().map(bar).collect(), None);
        let row = |(label, field, figure): (&str, &str, &super::Figure<super::Stored>)| {
            let per = figure.value.as_ref().map_or("", |stored| &stored.per);
            vec![
                Cell::text(label),
                self.cell(format!("/storage/{field}/value/bytes"), units::bytes),
                self.cell(format!("/storage/{field}/value/count"), units::count),
                self.cell(format!("/storage/{field}/value/bytes_each"), units::bytes),
                Cell::text(per),
                Cell::text(figure.source.clone()),
            ]
        };
        Section {
            id: "storage",
            title: "Storage",
            note: "What is kept by whichever path bills.".to_owned(),
            charts: chart.into_iter().collect(),
            head: vec!["", "bytes", "holds", "bytes each", "each is a", "how known"],
            rows: places.map(row).into(),
            remarks: Vec::new(),
        }
    }

    fn money(&self, comparison: &Comparison) -> Section {
        let bar = |(label, side, tone): (&str, &str, Tone)| {
            let pointer = format!("/money/paths/{side}/total_per_million_clicks");
            let mut bar = self.bar(label, &pointer, units::significant, tone)?;
            bar.text = format!("{} {}", bar.text, comparison.money.prices.currency);
            Some(bar)
        };
        let chart = self.chart("money-total", "Money for a million clicks", SIDES.map(bar).into(), None);
        let items = &comparison.money.paths;
        let mut rows = Vec::new();
        for (at, item) in items.lambda.items.iter().enumerate() {
            let amounts = ["lambda", "kappa"].map(|side| format!("/money/paths/{side}/items/{at}/amount"));
            let mut row = self.row_of_both(&item.name, amounts, units::significant);
            let kappa = items.kappa.items.get(at).map_or("", |item| &item.arithmetic);
            row.push(Cell::text(item.arithmetic.clone()));
            row.push(Cell::text(kappa));
            rows.push(row);
        }
        let totals = ["lambda", "kappa"].map(|side| format!("/money/paths/{side}/total_per_million_clicks"));
        let mut total = self.row_of_both("sum", totals, units::significant);
        total.extend([Cell::text(""), Cell::text("")]);
        rows.push(total);
        Section {
            id: "money",
            title: "Money for a million clicks",
            note: format!(
                "In {}, from the figures above and a list of prices.",
                comparison.money.prices.currency
            ),
            charts: chart.into_iter().collect(),
            head: vec!["", "lambda", "kappa", "how lambda's", "how kappa's"],
            rows,
            remarks: comparison.money.assumptions.clone(),
        }
    }

    fn recovery(&self, comparison: &Comparison) -> Section {
        let recovery = &comparison.recovery;
        let row = |name: &str, pointer: &str, source: &str| {
            vec![Cell::text(name), self.cell(pointer, units::seconds), Cell::text(source)]
        };
        let after = match recovery.stream.value {
            Some(value) if value.after_unclean_end => "stream, caught up after an unclean end",
            _ => "stream, caught up after a start",
        };
        Section {
            id: "recovery",
            title: "Recovery",
            note: "How long until each part is right again after its process died.".to_owned(),
            charts: Vec::new(),
            head: vec!["", "time", "how known"],
            rows: vec![
                row(after, "/recovery/stream/value/seconds", &recovery.stream.source),
                row("lambda, the runs done again", "/recovery/lambda/value", &recovery.lambda.source),
                row("kappa, the runs done again", "/recovery/kappa/value", &recovery.kappa.source),
            ],
            remarks: Vec::new(),
        }
    }

    fn lines(&self, comparison: &Comparison) -> Section {
        let places: [(&str, &str, Tone); 4] = [
            ("only lambda", "/lines_of_code/lambda", Tone::Lambda),
            ("only kappa", "/lines_of_code/kappa", Tone::Kappa),
            ("stream", "/lines_of_code/stream", Tone::Neither),
            ("shared", "/lines_of_code/shared", Tone::Neither),
        ];
        let bars = places.map(|(label, pointer, tone)| self.bar(label, pointer, units::count, tone));
        let row =
            |(name, pointer, _): (&str, &str, Tone)| vec![Cell::text(name), self.cell(pointer, units::count)];
        Section {
            id: "lines",
            title: "Lines of code",
            note: units::sentence(&comparison.lines_of_code.source),
            charts: self.chart("lines-of-code", "Lines of code", bars.into(), None).into_iter().collect(),
            head: vec!["", "lines"],
            rows: places.map(row).into(),
            remarks: Vec::new(),
        }
    }

    fn inputs(&self, comparison: &Comparison) -> Section {
        let versions = &comparison.versions;
        let build = if versions.release_build {
            "release build"
        } else {
            "development build: costs are not those of a release"
        };
        let row = |(at, inputs): (usize, &super::HourInputs)| {
            vec![
                Cell::text(inputs.run_id.clone()),
                self.cell(format!("/inputs/{at}/copies"), units::count),
                self.cell(format!("/inputs/{at}/click_files"), units::count),
                self.cell(format!("/inputs/{at}/verdict_files"), units::count),
                self.cell(format!("/inputs/{at}/horizon_hours"), units::count),
                Cell::text(inputs.inputs_sha256.0.get(..12).unwrap_or_default()),
                Cell::text(inputs.rules_sha256.0.get(..12).unwrap_or_default()),
            ]
        };
        let unbilled = &comparison.counted.hours_unbilled;
        let left_out: Vec<String> = unbilled.iter().map(ToString::to_string).collect();
        let mut remarks = Vec::new();
        if !left_out.is_empty() {
            remarks.push(format!("Not billed, so not compared: {}.", left_out.join(", ")));
        }
        let other = comparison.stored.iter().filter(|hour| !hour.same_inputs).count();
        if other > 0 {
            remarks.push(format!(
                "Hours billed by both paths on other inputs, whose stored rows say nothing: {other}."
            ));
        }
        Section {
            id: "inputs",
            title: "Inputs and versions",
            note: format!(
                "twice {}, {build}, {} cores. Both paths counted these recorded inputs.",
                versions.twice, versions.cores
            ),
            charts: Vec::new(),
            head: vec!["run", "copies", "click files", "verdict files", "horizon, hours", "inputs", "rules"],
            rows: comparison.inputs.iter().enumerate().map(row).collect(),
            remarks,
        }
    }
}
