//! What must hold after every step of the scenario, whatever the step did.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twice_log::{Clock, Hour, WallClock};
use twice_tests::{Node, python, run, workspace_root};

use super::day::Day;
use super::journal::Journal;
use crate::support::text;

const LIMIT: Duration = Duration::from_secs(300);

/// Answers that were given once and may never change (G-6).
#[derive(Debug, Default)]
pub struct Published {
    /// By (hour, campaign, path, version).
    versions: BTreeMap<(String, String, String, u64), Value>,
    /// The bill in force as of a moment.
    moments: Vec<(String, Vec<Value>)>,
}

/// Returns the rows of every hour, newest versions, of `path`, or of the path in force for `None`.
///
/// # Errors
/// On any answer but 200.
pub fn rows(node: &Node, day: &Day, path: Option<&str>, more: &str) -> Result<Vec<Value>> {
    let path = path.map(|path| format!("&path={path}")).unwrap_or_default();
    let mut rows = Vec::new();
    for hour in day.hours() {
        rows.extend(node.client().get_rows(&format!("/v1/billing?hour={hour}{path}{more}"))?);
    }
    Ok(rows)
}

/// Checks every row of `path` against the oracle, and what must hold of all rows.
///
/// # Errors
/// If one count of one row is not the oracle's, a row is not balanced, a difference is unexplained, or a version that
/// was published has changed.
pub fn all_is_right(
    node: &Node,
    day: &Day,
    journal: &Journal,
    published: &mut Published,
    paths: &[&str],
) -> Result<()> {
    for path in paths {
        let rows = rows(node, day, Some(path), "")?;
        ensure!(!rows.is_empty(), "no rows of {path}");
        rows.iter().try_for_each(is_balanced)?;
        agrees_with_oracle(node, journal, path, &rows)?;
        published.remember_versions(node, day, path)?;
    }
    nothing_is_unexplained(node, day)?;
    published.remember_moment(node, day)
}

fn agrees_with_oracle(node: &Node, journal: &Journal, path: &str, rows: &[Value]) -> Result<()> {
    let file = node.root().join(format!("scenario.{path}.json"));
    std::fs::write(&file, json!({ "rows": rows }).to_string())?;
    let mut command = Command::new(python()?);
    command.arg(workspace_root().join("tests/oracle/journal.py")).arg("check");
    command.arg("--journal").arg(journal.path()).arg("--billing").arg(&file).args(["--path", path]);
    run(&mut command, LIMIT)?.expect(0)?;
    Ok(())
}

/// CR-5's identity.
fn is_balanced(row: &Value) -> Result<()> {
    let count = |field: &str| row[field].as_u64().with_context(|| format!("{field} of {row}"));
    let parts = count("duplicates")? + count("invalid_givt")? + count("invalid_sivt")? + count("billable")?;
    ensure!(count("gross")? == parts, "CR-5 does not hold: {row}");
    Ok(())
}

/// G-5, for every hour that has a run.
fn nothing_is_unexplained(node: &Node, day: &Day) -> Result<()> {
    for hour in day.hours() {
        for row in node.client().get_rows(&format!("/v1/divergence?hour={hour}"))? {
            let unexplained = row["unexplained"].as_i64();
            // Where the stream was killed so often that an hour is incomplete, nothing is judged.
            ensure!(unexplained == Some(0) || row["stream"] != "complete", "unexplained: {row}");
        }
    }
    Ok(())
}

impl Published {
    fn remember_versions(&mut self, node: &Node, day: &Day, path: &str) -> Result<()> {
        for version in 1.. {
            let rows = rows(node, day, Some(path), &format!("&version={version}"))?;
            if rows.is_empty() {
                return Ok(());
            }
            for row in rows {
                is_balanced(&row)?;
                let key = (text(&row, "hour_bucket"), text(&row, "campaign_id"), path.to_owned(), version);
                if let Some(before) = self.versions.insert(key, row.clone()) {
                    ensure!(before == row, "a published version changed: {before} became {row}");
                }
            }
        }
        Ok(())
    }

    fn remember_moment(&mut self, node: &Node, day: &Day) -> Result<()> {
        let moment = WallClock.now().to_string();
        let rows = rows(node, day, None, &format!("&as_of={moment}"))?;
        self.moments.push((moment, rows));
        Ok(())
    }

    /// Asks again for every version and every moment remembered (G-6).
    ///
    /// # Errors
    /// If one answer differs from what it was.
    pub fn have_not_changed(&mut self, node: &Node, day: &Day, paths: &[&str]) -> Result<()> {
        let known = self.versions.len();
        paths.iter().try_for_each(|path| self.remember_versions(node, day, path))?;
        ensure!(self.versions.len() == known, "{} versions are new", self.versions.len() - known);
        for (moment, before) in &self.moments {
            let now = rows(node, day, None, &format!("&as_of={moment}"))?;
            ensure!(now == *before, "the bill as of {moment} changed");
        }
        Ok(())
    }

    /// Returns the reasons of the versions of one hour, by campaign and version.
    pub fn reasons(&self, hour: Hour, path: &str) -> Vec<(String, u64, String)> {
        let of_hour =
            self.versions.iter().filter(|((of, _, by, _), _)| *of == hour.to_string() && by == path);
        of_hour
            .map(|((_, campaign, _, version), row)| (campaign.clone(), *version, text(row, "reason")))
            .collect()
    }
}
