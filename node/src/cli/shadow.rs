//! `twice reconcile --shadow --rules FILE.sql --hour H`: what a candidate billing statement would have billed.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use reqwest::Method;
use twice_api::ports::{ShadowChange, ShadowReport, ShadowSide};
use twice_log::{CampaignId, Hour};

use super::client::Server;
use super::offline::{Access, DataDir};
use super::{Agreement, Outcome};
use crate::ports::shadow_of;

/// What a shadow run is given beside the hour.
#[derive(Debug, Clone, Args)]
pub struct Shadow {
    /// Compare a candidate statement with the one in use on the recorded inputs of a billed hour; nothing is written
    #[arg(long, requires_all = ["rules", "hour"])]
    pub shadow: bool,
    /// File with the candidate: one SELECT with the columns of the billing statement
    #[arg(long, value_name = "FILE.sql", requires = "shadow")]
    rules: Option<PathBuf>,
    /// Compare one campaign only
    #[arg(long, requires = "shadow")]
    campaign: Option<CampaignId>,
    /// Print the report as JSON
    #[arg(long, requires = "shadow")]
    json: bool,
}

/// Runs the comparison on a node, or on the data folder of one.
pub async fn run(shadow: Shadow, hour: Hour, server: Server, place: DataDir) -> Result<Outcome> {
    let file = shadow.rules.context("name the candidate: --rules FILE.sql")?;
    let sql = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let report = match place.open(Access::Read).await? {
        Some(offline) => {
            let deps = offline.reconciler_deps()?;
            shadow_of(deps.shadow(&offline.config, hour, sql, shadow.campaign).await?)
        }
        None => {
            let client = server.client()?;
            let body = serde_json::json!({ "hour": hour, "sql": sql, "campaign": shadow.campaign });
            let answer = client.send(client.request(Method::POST, "/v1/shadow-runs").json(&body)).await?;
            answer.json().await.context("the node's answer is not the documented JSON")?
        }
    };
    if shadow.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(Outcome::Done(if report.equal { Agreement::Agreed } else { Agreement::Differs }))
}

fn print(report: &ShadowReport) {
    println!("inputs of run {}; candidate {}", report.run_id, report.candidate_sha256);
    if report.equal {
        println!("equal: {} campaigns, every column the same", report.campaigns);
        return;
    }
    println!("{} of {} campaigns differ", report.differing, report.campaigns);
    println!("\n{:<24} {:<16} {:>18} {:>18} {:>18}", "campaign", "column", "current", "candidate", "delta");
    for row in &report.rows {
        let note = match row.only_in {
            Some(ShadowSide::Current) => "  (no row by the candidate)",
            Some(ShadowSide::Candidate) => "  (no row now)",
            None => "",
        };
        row.changes.iter().for_each(|change| print_change(row.campaign_id.as_str(), change, note));
        if let Some(currencies) = &row.currencies {
            let code = |code: &Option<String>| code.clone().unwrap_or_else(|| "none".to_owned());
            let (old, new) = (code(&currencies.old), code(&currencies.new));
            println!("{:<24} {:<16} {old:>18} {new:>18}{note}", row.campaign_id.as_str(), "currency");
        }
    }
    if report.rows.len() as u64 != report.differing {
        println!("… and {} more campaigns", report.differing - report.rows.len() as u64);
    }
    for total in report.totals.iter().filter(|total| total.delta != 0) {
        print_change("all campaigns", total, "");
    }
    for amount in report.amounts.iter().filter(|amount| amount.delta != 0) {
        let currency = amount.currency.as_deref().unwrap_or("no currency");
        let column = "amount_micros".to_owned();
        let total = ShadowChange { column, old: amount.old, new: amount.new, delta: amount.delta };
        print_change("all campaigns", &total, &format!("  {currency}"));
    }
}

fn print_change(campaign: &str, change: &ShadowChange, note: &str) {
    let ShadowChange { column, old, new, delta } = change;
    println!("{campaign:<24} {column:<16} {old:>18} {new:>18} {delta:>+18}{note}");
}
