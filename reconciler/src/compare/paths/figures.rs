//! What a comparison says, as JSON. Fields may be added; `format` rises when one changes its meaning.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use twice_log::event::Sha256Hex;
use twice_log::{Hour, UtcMillis};

use super::differences::Differences;
use super::money::Money;
use crate::error::{Error, Result};

/// The value of [`Comparison::format`] of this build.
pub(super) const FORMAT: u32 = 1;

/// One comparison of both paths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub format: u32,
    /// Name of the object in the archive, without folder and ending.
    pub id: String,
    pub created_at: UtcMillis,
    pub from: Hour,
    /// Exclusive.
    pub to: Hour,
    /// Whether no row differs: neither as counted now, nor as stored where both paths billed the same inputs.
    pub equal: bool,
    /// One paragraph, computed from the numbers.
    pub conclusion: String,
    pub counted: Counted,
    /// The recorded inputs that both paths counted, hour by hour.
    pub inputs: Vec<HourInputs>,
    /// Between the rows that both paths counted now.
    pub differences: Differences,
    /// Hours that both paths have billed, and by what their stored rows differ.
    pub stored: Vec<StoredHour>,
    pub costs: Sides<PathCost>,
    /// From a click to the live numbers, which the stream path shows whichever path bills.
    pub freshness: Figure<Freshness>,
    /// From the end of an hour to its bill.
    pub authoritative: Sides<Authoritative>,
    pub storage: Storage,
    pub recovery: Recovery,
    pub lines_of_code: LinesOfCode,
    pub money: Money,
    pub versions: Versions,
}

/// One value a path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sides<T> {
    pub lambda: T,
    pub kappa: T,
}

/// A value and where it comes from; without a value, why it is not known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure<T> {
    pub value: Option<T>,
    pub source: String,
}

impl Comparison {
    /// Rounds every number to twelve digits, which any reader of JSON reads back as exactly the same number.
    pub(super) fn rounded(&self) -> Result<Self> {
        let failed = |source| Error::Json { what: "comparison", source };
        let mut json = serde_json::to_value(self).map_err(failed)?;
        round(&mut json);
        serde_json::from_value(json).map_err(failed)
    }
}

fn round(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(round),
        Value::Object(fields) => fields.values_mut().for_each(round),
        Value::Number(number) if number.is_f64() => {
            let rounded = number.as_f64().and_then(|exact| rounded_text(exact).parse().ok());
            if let Some(rounded) = rounded.and_then(serde_json::Number::from_f64) {
                *number = rounded;
            }
        }
        _ => {}
    }
}

/// Writes twelve digits, and none below the 22nd decimal: up to there powers of ten are exact numbers.
fn rounded_text(exact: f64) -> String {
    if exact.abs() < 1e-11 { format!("{exact:.22}") } else { format!("{exact:.11e}") }
}

impl<T> Figure<T> {
    /// A value that was measured as `source` says.
    pub fn measured(value: T, source: impl Into<String>) -> Self {
        Self { value: Some(value), source: source.into() }
    }

    /// No value, for this reason.
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self { value: None, source: reason.into() }
    }
}

/// How much was compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    pub hours: u64,
    /// Hours of the range without an ended lambda run; they are not compared.
    pub hours_unbilled: Vec<Hour>,
    /// Rows of campaign and hour.
    pub rows: u64,
    /// Copies of the hours, each once: `gross` of lambda's rows.
    pub copies: u64,
    pub billable: u64,
}

/// The inputs of one hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourInputs {
    pub hour: Hour,
    pub run_id: String,
    pub inputs_sha256: Sha256Hex,
    pub rules_sha256: Sha256Hex,
    pub horizon_hours: u32,
    pub click_files: u64,
    pub verdict_files: u64,
    /// Copies of the hour.
    pub copies: u64,
}

/// An hour that both paths have billed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredHour {
    pub hour: Hour,
    /// Newest ended run of each path.
    pub lambda_run: String,
    pub kappa_run: String,
    /// Whether both runs read the same; if not, a difference is one of inputs and says nothing of the paths.
    pub same_inputs: bool,
    pub differences: Differences,
}

/// What a path cost on the same copies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PathCost {
    pub wall_seconds: f64,
    /// Of all threads, user and system together.
    pub cpu_seconds: f64,
    /// The highest of its processes.
    pub rss_peak_bytes: u64,
    /// The limit its processes were given; null where the path has none.
    pub memory_limit_bytes: Option<u64>,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Copies of the hours compared by wall seconds; null where nothing was counted.
    pub clicks_per_second: Option<f64>,
    /// Copies in the files it read, those of neighbouring hours too, and again for each hour that reads them.
    pub copies_read: u64,
    /// Files it was given to read.
    pub files_read: u64,
    /// Child processes, one after the other.
    pub processes: u64,
    pub slices: u64,
}

/// The middle and the slow end of what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50_seconds: f64,
    pub p99_seconds: f64,
}

/// How soon clicks were in the live numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Freshness {
    /// Start of the node: clicks that arrived before are not among them.
    pub since: UtcMillis,
    pub clicks: u64,
    /// From the click's own time.
    pub event: Quantiles,
    /// From its arrival at the gateway.
    pub arrival: Quantiles,
}

/// When a path's first bills of the hours were there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Authoritative {
    pub hours: Vec<AuthoritativeHour>,
    pub seconds_after_end: Figure<Quantiles>,
    pub seconds_after_event: Figure<Quantiles>,
}

/// The first commit of one hour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuthoritativeHour {
    pub hour: Hour,
    pub committed_at: String,
    pub seconds_after_end: f64,
}

/// What is kept where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    pub log: Figure<Stored>,
    pub stream_state: Figure<Stored>,
    pub archive: Figure<Stored>,
    pub billing: Figure<Stored>,
}

/// Bytes, and of how many things.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    pub bytes: u64,
    /// Null where the place does not tell.
    pub count: Option<u64>,
    /// What is counted, such as `click` or `campaign`.
    pub per: String,
    pub bytes_each: Option<f64>,
}

impl Stored {
    /// Divides bytes by what they hold.
    pub fn new(bytes: u64, count: Option<u64>, per: &str) -> Self {
        let bytes_each = count.filter(|count| *count > 0).map(|count| bytes as f64 / count as f64);
        Self { bytes, count, per: per.to_owned(), bytes_each }
    }
}

/// How long until each part is right again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    pub stream: Figure<StreamRecovery>,
    /// Seconds of the runs done again from their inputs, all hours.
    pub lambda: Figure<f64>,
    pub kappa: Figure<f64>,
}

/// The last start of the stream path.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StreamRecovery {
    /// From the start of the process until every partition had applied what was in the log then.
    pub seconds: f64,
    /// Whether the process before ended without a graceful stop.
    pub after_unclean_end: bool,
    pub partitions: u64,
}

/// Non-blank lines without comments and tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinesOfCode {
    /// The stream path, which runs whichever path bills.
    pub stream: u64,
    /// What only kappa has.
    pub kappa: u64,
    /// What only lambda has.
    pub lambda: u64,
    /// Log, archive and stores.
    pub shared: u64,
    pub source: String,
}

/// What was compared by what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub twice: String,
    /// Whether it was built with optimisation for speed; without, costs are not those of a release.
    pub release_build: bool,
    pub cores: u64,
}
