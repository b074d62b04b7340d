//! `twice compare`: lambda against kappa on the same clicks, as a table, as JSON, or as one HTML page.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use twice_actors::ReplayConfig;
use twice_log::Hour;
use twice_reconciler::compare::paths::{
    Comparator, ComparatorParts, CompareProgress, Comparison, PRICES_TOML, Prices, html, summary,
};

use super::client::{Server, json_lines};
use super::offline::{Access, DataDir, Offline};
use super::{Agreement, Outcome};
use crate::ports::Around;

/// Counts hours by both paths anew, on the recorded inputs of their bills, and compares rows and costs.
///
/// Lambda recomputes by SQL over the archive, kappa replays through the stream's code. Nothing is billed by it; what was
/// found is kept in the archive, and listed by GET /v1/comparisons. With --data-dir, on the folder of a stopped node. Exit status 1: rows differ.
#[derive(Debug, Clone, Args)]
pub struct Compare {
    /// First hour in UTC, such as 2025-01-15T12
    #[arg(long, value_name = "HOUR", required_unless_present = "print_prices")]
    from: Option<Hour>,
    /// Hour at which to stop, itself not compared
    #[arg(long, value_name = "HOUR", required_unless_present = "print_prices")]
    to: Option<Hour>,
    /// Report to write: one HTML page for .html, the figures for .json
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Prices of the cost model as TOML
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Print the prices that hold without --prices, as a file to start from
    #[arg(long)]
    print_prices: bool,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    place: DataDir,
}

/// Forms of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Html,
    Json,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Progress,
    Done,
    Failed,
    #[serde(other)]
    Other,
}

/// One line of the node's answer. Fields of all kinds: a comparison must be read as the text it is.
#[derive(Debug, Deserialize)]
struct Line {
    event: Kind,
    path: Option<String>,
    done: Option<u64>,
    total: Option<u64>,
    comparison: Option<Box<RawValue>>,
    detail: Option<String>,
}

/// Runs the command.
pub async fn run(arguments: Compare) -> Result<Outcome> {
    if arguments.print_prices {
        print!("{PRICES_TOML}");
        return Ok(Outcome::Done(Agreement::Agreed));
    }
    let (Some(from), Some(to)) = (arguments.from, arguments.to) else { bail!("--from and --to are needed") };
    let out =
        arguments.out.as_deref().map(|path| Ok::<_, anyhow::Error>((path, form_of(path)?))).transpose()?;
    let prices = arguments.prices.as_deref().map(read_prices).transpose()?;
    let text = match arguments.place.open(Access::Write).await? {
        Some(offline) => compare_offline(&offline, (from, to), prices).await?,
        None => ask(&arguments.server, from, to, prices).await?,
    };
    let comparison: Comparison =
        serde_json::from_str(text.get()).context("the node's comparison is not of this program's version")?;
    if let Some((path, form)) = out {
        let written = match form {
            Form::Html => html(&comparison)?,
            Form::Json => text.get().to_owned(),
        };
        std::fs::write(path, written).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("written: {}", path.display());
    }
    println!("{}", summary(&comparison));
    let agreement = if comparison.equal { Agreement::Agreed } else { Agreement::Differs };
    Ok(Outcome::Done(agreement))
}

/// Compares on the folder of a stopped node: what only a running node measures is null, with that reason.
async fn compare_offline(
    offline: &Offline,
    (from, to): (Hour, Hour),
    prices: Option<Prices>,
) -> Result<Box<RawValue>> {
    let prices = prices.map_or_else(|| Prices::from_toml(PRICES_TOML), Ok)?;
    let around = Around { folder: offline.folder.clone(), log: None, running: None };
    let memory_bytes_max = Some(ReplayConfig::default().memory_bytes_max);
    let deps = offline.reconciler_deps()?;
    let parts = ComparatorParts::of(&deps, &offline.config, memory_bytes_max, Arc::new(around));
    let (sender, mut steps) = mpsc::unbounded_channel::<CompareProgress>();
    let mut shown = Shown::new();
    let show = async {
        while let Some(CompareProgress { path, done, total }) = steps.recv().await {
            shown.step(path.name(), done, total);
        }
    };
    let comparator = Comparator::new(parts);
    let (compared, ()) = tokio::join!(comparator.compare(from, to, prices, Some(sender)), show);
    Ok(RawValue::from_string(serde_json::to_string(&compared?)?)?)
}

/// Lets a node compare; shows how far it is.
async fn ask(server: &Server, from: Hour, to: Hour, prices: Option<Prices>) -> Result<Box<RawValue>> {
    let client = server.client()?;
    let body = serde_json::json!({ "from": from, "to": to, "prices": prices });
    let response = client.send(client.request(Method::POST, "/v1/comparisons").json(&body)).await?;
    let mut shown = Shown::new();
    let mut found = None;
    json_lines(response, |line| {
        let line: Line = serde_json::from_slice(line).context("the node's line is not as documented")?;
        match line.event {
            Kind::Progress => shown.step(
                line.path.as_deref().unwrap_or_default(),
                line.done.unwrap_or(0),
                line.total.unwrap_or(0),
            ),
            Kind::Done => found = line.comparison,
            Kind::Failed => bail!("{}", line.detail.unwrap_or_default()),
            Kind::Other => {}
        }
        Ok(())
    })
    .await?;
    found.context("the node's answer ended without a comparison; its log says why")
}

/// A progress bar a path.
struct Shown {
    path: String,
    bar: ProgressBar,
}

impl Shown {
    fn new() -> Self {
        Self { path: String::new(), bar: ProgressBar::hidden() }
    }

    fn step(&mut self, path: &str, done: u64, total: u64) {
        if self.path != path {
            self.bar.finish_and_clear();
            self.path = path.to_owned();
            let template = match path {
                "kappa" => "{msg} {wide_bar} {human_pos}/{human_len} clicks, {per_sec}, {eta} left",
                _ => "{msg} {wide_bar} {human_pos}/{human_len} hours",
            };
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar = ProgressBar::new(total).with_style(style).with_message(path.to_owned());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn form_of(path: &Path) -> Result<Form> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("html") => Ok(Form::Html),
        Some("json") => Ok(Form::Json),
        _ => bail!("{}: a report ends in .html or .json", path.display()),
    }
}

fn read_prices(path: &Path) -> Result<Prices> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Prices::from_toml(&text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_what_its_name_ends_in() {
        assert_eq!(form_of(Path::new("a/b.html")).expect("a form"), Form::Html);
        assert_eq!(form_of(Path::new("b.json")).expect("a form"), Form::Json);
        assert!(form_of(Path::new("report")).is_err());
    }

    #[test]
    fn a_comparison_is_read_as_the_text_it_is() {
        let line: Line =
            serde_json::from_str(r#"{"event":"done","id":"a","equal":true,"comparison":{"a":0.1}}"#)
                .expect("a line");
        assert_eq!(line.comparison.expect("it").get(), r#"{"a":0.1}"#);
        let line: Line = serde_json::from_str(r#"{"event":"later"}"#).expect("a line");
        assert!(matches!(line.event, Kind::Other));
    }
}
