//! `twice audit`: proves the bill of an hour from the archive, and writes the certificate.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use reqwest::Method;
use serde_json::Value;
use twice_log::{CampaignId, Hour};
use twice_reconciler::audit::{AuditQuestion, AuditVerdict, Certificate, audit};

use super::client::Server;
use super::offline::{Access, DataDir, Offline};
use super::{Agreement, Outcome};
use crate::audit::audit_deps;

/// Derives the bill of an hour again from the archive alone, and compares it with the billing store.
///
/// Prints a certificate: what was read, what it counts to, and each object or row that was changed, is missing or was
/// added. Two audits of the same thing have the same certificate hash. Exit status 0: proved, or attested
/// where retention has deleted what was counted; 1: something was found.
#[derive(Debug, Clone, Args)]
pub struct Audit {
    /// Hour in UTC, such as 2025-01-15T12
    #[arg(long, value_name = "HOUR")]
    hour: Hour,
    /// Limit rows, and findings about rows, to one campaign; chains and files are examined whole
    #[arg(long)]
    campaign: Option<CampaignId>,
    /// Print the certificate as JSON
    #[arg(long)]
    json: bool,
    /// Write the certificate to a file as well: JSON if its name ends in .json, else text
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    place: DataDir,
}

/// Runs the command.
pub async fn run(arguments: Audit) -> Result<Outcome> {
    let certificate = match arguments.place.open(Access::Read).await? {
        Some(offline) => audit_offline(&offline, &arguments).await?,
        None => audit_on_server(&arguments).await?,
    };
    if let Some(out) = &arguments.out {
        let is_json = out.extension().is_some_and(|extension| extension == "json");
        let text = text_of(&certificate, is_json)?;
        std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
        eprintln!("certificate written to {}", out.display());
    }
    print!("{}", text_of(&certificate, arguments.json)?);
    // Records that agree are no difference; that they could not be counted again is in the certificate's first line.
    let agrees = certificate.verdict != AuditVerdict::NotProved;
    Ok(Outcome::Done(if agrees { Agreement::Agreed } else { Agreement::Differs }))
}

async fn audit_offline(offline: &Offline, arguments: &Audit) -> Result<Certificate> {
    let place = (offline.archive.clone(), offline.archive_location.clone());
    let deps = audit_deps(offline.clock.clone(), place, offline.store.clone(), offline.config.limits())?;
    let question = AuditQuestion { hour: arguments.hour, campaign: arguments.campaign.clone() };
    Ok(audit(&deps, &question).await?)
}

async fn audit_on_server(arguments: &Audit) -> Result<Certificate> {
    let client = arguments.server.client()?;
    let body = match &arguments.campaign {
        Some(campaign) => serde_json::json!({ "hour": arguments.hour, "campaign": campaign }),
        None => serde_json::json!({ "hour": arguments.hour }),
    };
    let response = client.send(client.request(Method::POST, "/v1/audits").json(&body)).await?;
    let certificate: Value = response.json().await.context("the node's answer is no JSON")?;
    serde_json::from_value(certificate)
        .context("the node's certificate is of another version than this program")
}

fn text_of(certificate: &Certificate, json: bool) -> Result<String> {
    Ok(if json { serde_json::to_string_pretty(certificate)? + "\n" } else { certificate.to_string() })
}
