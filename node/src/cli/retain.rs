//! `twice retain`: deletes what is older than the retention, or shows what that would be.

use anyhow::{Context, Result};
use clap::Args;
use reqwest::Method;
use twice_log::Hour;
use twice_reconciler::{Buried, Kept, RetentionReport};

use super::client::Server;
use super::{Agreement, Outcome};

/// Deletes raw clicks, verdicts and quarantined records that are older than the node's `archive_retention_ms`.
///
/// Only what no bill needs any more goes: hours that are final, with all their neighbours within the horizon of duplicates.
/// Their bills are put into the archive for good before that, and an audit still attests them. The node does the same by
/// itself each night. Exit status 0: done; 2: could not run.
#[derive(Debug, Clone, Args)]
pub struct Retain {
    #[command(flatten)]
    which: Which,
    /// Show what would go, and delete nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// One hour in UTC, such as 2025-01-15T12, by the same conditions; files that reappeared are removed again
    #[arg(long, value_name = "HOUR")]
    hour: Option<Hour>,
    /// Everything that is expired
    #[arg(long)]
    due: bool,
}

/// Runs the command.
pub async fn run(arguments: Retain) -> Result<Outcome> {
    let client = arguments.server.client()?;
    let body = match arguments.which {
        Which { hour: Some(hour), .. } => serde_json::json!({ "hour": hour, "dry_run": arguments.dry_run }),
        Which { .. } => serde_json::json!({ "dry_run": arguments.dry_run }),
    };
    let response = client.send(client.request(Method::POST, "/v1/retention").json(&body)).await?;
    let report: RetentionReport =
        response.json().await.context("the node's report is of another version than this program")?;
    lines(&report).iter().for_each(|line| println!("{line}"));
    Ok(Outcome::Done(Agreement::Agreed))
}

fn lines(report: &RetentionReport) -> Vec<String> {
    let verb = if report.dry_run { "would go" } else { "deleted" };
    let mut lines = Vec::new();
    let (mut files, mut rows, mut bytes) = (0, 0, 0);
    for buried in &report.deleted {
        let Buried { grave, hour, never_billed, .. } = buried;
        let never = if *never_billed { ", in no bill: they came too late" } else { "" };
        lines.push(format!(
            "{hour}  {grave}: {verb}: {} files, {} rows, {} bytes{never}",
            buried.files, buried.rows, buried.bytes
        ));
        files += buried.files;
        rows += buried.rows;
        bytes += buried.bytes;
    }
    for Kept { grave, hour, reason } in &report.kept {
        lines.push(format!("{hour}  {grave}: stays: {reason}"));
    }
    if report.finished > 0 {
        lines.push(format!("{} tombstones of before had files left: removed", report.finished));
    }
    if report.spool_objects > 0 {
        lines.push(format!(
            "copies of spools {verb}: {} objects, {} bytes",
            report.spool_objects, report.spool_bytes
        ));
    }
    lines.push(format!(
        "in all {verb}: {files} files, {rows} rows, {bytes} bytes; {} stay",
        report.kept.len()
    ));
    lines
}

#[cfg(test)]
mod tests {
    use twice_log::archive::Grave;

    use super::*;

    #[test]
    fn each_hour_is_a_line_with_rows_and_bytes_and_a_dry_run_says_so() {
        let hour: Hour = "2025-01-15T12".parse().expect("valid");
        let buried =
            Buried { grave: Grave::AdClicks, hour, files: 2, rows: 10, bytes: 300, never_billed: false };
        let kept = Kept { grave: Grave::FraudVerdicts, hour, reason: "it is needed".to_owned() };
        let report = RetentionReport {
            dry_run: true,
            deleted: vec![buried],
            kept: vec![kept],
            ..RetentionReport::default()
        };
        let lines = lines(&report);
        assert_eq!(lines[0], "2025-01-15T12  ad-clicks: would go: 2 files, 10 rows, 300 bytes");
        assert_eq!(lines[1], "2025-01-15T12  fraud-verdicts: stays: it is needed");
        assert_eq!(lines[2], "in all would go: 2 files, 10 rows, 300 bytes; 1 stay");
    }
}
