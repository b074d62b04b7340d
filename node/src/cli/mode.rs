//! `twice mode`: which path's rows are the bill.

use anyhow::{Context, Result};
use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use twice_log::Hour;
use twice_log::archive::BillingPath;

use super::client::{Client, Server};
use super::{Agreement, Outcome, replay};

/// Shows which path writes the bill, or chooses it from an hour on.
///
/// Hours billed already keep their mode, unless --restate makes the path their bill too: by new versions with reason
/// `mode_change`, counted over the inputs of each hour's newest run. Without a path, shows the mode, every setting of it, and the hours last billed.
#[derive(Debug, Clone, Args)]
pub struct Mode {
    /// Path whose rows are the bill: lambda (recomputed from the archive) or kappa (replayed through the stream)
    #[arg(value_parser = path)]
    path: Option<BillingPath>,
    /// First hour it is for, such as 2025-01-15T12; default the next to close
    #[arg(long, value_name = "HOUR", requires = "path")]
    from: Option<Hour>,
    /// Restate the billed hours from --from to --to by the path, and leave all others as they are
    #[arg(long, requires_all = ["path", "from", "to"])]
    restate: bool,
    /// Hour at which to stop restating, itself not restated
    #[arg(long, value_name = "HOUR", requires = "restate")]
    to: Option<Hour>,
    /// Return at once; the node goes on restating by itself
    #[arg(long, requires = "restate")]
    no_wait: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Deserialize)]
struct Answer {
    hour: Hour,
    path: BillingPath,
    settings: Vec<Setting>,
    hours: Vec<HourMode>,
}

#[derive(Debug, Deserialize)]
struct Setting {
    from: Hour,
    path: BillingPath,
    recorded_at: String,
}

#[derive(Debug, Deserialize)]
struct HourMode {
    hour: Hour,
    path: BillingPath,
    committed_at: String,
}

#[derive(Debug, Deserialize)]
struct Set {
    detail: String,
    kept: Vec<Hour>,
}

fn path(name: &str) -> Result<BillingPath, String> {
    BillingPath::from_name(name).ok_or_else(|| "must be lambda or kappa".to_owned())
}

/// Runs the command.
pub async fn run(arguments: Mode) -> Result<Outcome> {
    if let (Some(path), Some(from), Some(to)) = (arguments.path, arguments.from, arguments.to) {
        return replay::restate(&arguments.server, (from, to), path, arguments.no_wait).await;
    }
    let client = arguments.server.client()?;
    match arguments.path {
        Some(path) => set(&client, path, arguments.from).await?,
        None => show(&client).await?,
    }
    Ok(Outcome::Done(Agreement::Agreed))
}

async fn set(client: &Client, path: BillingPath, from: Option<Hour>) -> Result<()> {
    let body = serde_json::json!({ "path": path, "from": from });
    let answer = client.send(client.request(Method::PUT, "/v1/mode").json(&body)).await?;
    let set: Set = answer.json().await.context("the node's answer is not the documented JSON")?;
    println!("{}", set.detail);
    for hour in &set.kept {
        println!("  {hour} keeps its mode");
    }
    Ok(())
}

async fn show(client: &Client) -> Result<()> {
    let answer: Option<Answer> = client.get("/v1/mode?limit=24").await?;
    let answer = answer.context("the node knows no modes; is it an older one?")?;
    println!("{} bills {}, the next hour to close", answer.path, answer.hour);
    println!("\nsettings, oldest first{}", if answer.settings.is_empty() { ": none, so lambda" } else { "" });
    for Setting { from, path, recorded_at } in &answer.settings {
        println!("  from {from}  {path:<6}  recorded at {recorded_at}");
    }
    println!("\nhours billed, latest first{}", if answer.hours.is_empty() { ": none" } else { "" });
    for HourMode { hour, path, committed_at } in &answer.hours {
        println!("  {hour}  {path:<6}  since {committed_at}");
    }
    Ok(())
}
