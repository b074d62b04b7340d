//! `twice explain`: the very clicks that make preliminary and billed differ.

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;
use twice_api::ports::ExplainQuery;
use twice_log::{CampaignId, Hour};

use super::campaigns::path_segment;
use super::client::Server;
use super::offline::{Access, DataDir, Offline};
use super::{Agreement, Outcome};
use crate::ports::explanation_of;

/// Explains why the preliminary number of an hour and its bill differ, click by click.
#[derive(Debug, Clone, Args)]
pub struct Explain {
    /// Hour in UTC, such as 2025-01-15T12
    #[arg(long, value_name = "HOUR")]
    hour: Hour,
    /// Campaign to explain
    #[arg(long)]
    campaign: CampaignId,
    /// Clicks listed at most
    #[arg(long, default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    place: DataDir,
}

#[derive(Debug, Deserialize)]
struct Explanation {
    stream: String,
    preliminary: Option<u64>,
    billed: u64,
    late: Option<u64>,
    late_duplicate: Option<u64>,
    fraud: Option<u64>,
    unexplained: Option<i64>,
    copies: Vec<CauseCopy>,
    #[serde(default)]
    truncated: bool,
}

#[derive(Debug, Deserialize)]
struct CauseCopy {
    cause: String,
    click_id: String,
    event_time: String,
    generation: u32,
    partition: u32,
    log_offset: i64,
    #[serde(default)]
    files: Vec<String>,
}

/// Runs the command.
pub async fn run(arguments: Explain) -> Result<Outcome> {
    let explanation = match arguments.place.open(Access::Read).await? {
        Some(offline) => explain_offline(&offline, &arguments).await?,
        None => explain_on_server(&arguments).await?,
    };
    print(&explanation);
    let agreed = explanation.unexplained.unwrap_or(0) == 0;
    Ok(Outcome::Done(if agreed { Agreement::Agreed } else { Agreement::Differs }))
}

async fn explain_offline(offline: &Offline, arguments: &Explain) -> Result<Explanation> {
    let (hour, campaign, limit) = (arguments.hour, arguments.campaign.clone(), arguments.limit);
    let deps = offline.reconciler_deps()?;
    let explained = deps.explain(&offline.config, hour, campaign.clone(), limit).await?;
    let answer = explanation_of(ExplainQuery { hour, campaign, limit }, explained)?;
    // The same shape as a node's answer.
    serde_json::from_value(serde_json::to_value(answer)?).context("the explanation is not as documented")
}

async fn explain_on_server(arguments: &Explain) -> Result<Explanation> {
    let client = arguments.server.client()?;
    let campaign = path_segment(arguments.campaign.as_str());
    let path = format!("/v1/explain?hour={}&campaign={campaign}&limit={}", arguments.hour, arguments.limit);
    client.get(&path).await?.with_context(|| {
        let (hour, campaign) = (arguments.hour, &arguments.campaign);
        format!(
            "campaign {campaign} has no bill for {hour}; close the hour first: twice reconcile --hour {hour}"
        )
    })
}

fn print(explanation: &Explanation) {
    let number = |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), |value| value.to_string());
    println!("preliminary      {:>10}  (stream: {})", number(explanation.preliminary), explanation.stream);
    println!(
        "- late_duplicate {:>10}  counted by the stream, duplicates by the bill's wider horizon",
        number(explanation.late_duplicate)
    );
    println!("- fraud          {:>10}  counted by the stream, invalid by verdict", number(explanation.fraud));
    println!(
        "+ late           {:>10}  too late for the stream, billed all the same",
        number(explanation.late)
    );
    let unexplained = explanation.unexplained.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    println!("- unexplained    {unexplained:>10}");
    println!("= billed         {:>10}", explanation.billed);
    if explanation.copies.is_empty() {
        return;
    }
    println!("\n{:<15} {:<36} {:<24} {:>12}  file", "cause", "click_id", "event_time", "position");
    for copy in &explanation.copies {
        let position = format!("{}-{}:{}", copy.generation, copy.partition, copy.log_offset);
        let file = copy.files.join(" ");
        println!("{:<15} {:<36} {:<24} {position:>12}  {file}", copy.cause, copy.click_id, copy.event_time);
    }
    if explanation.truncated {
        println!("… more; list them with a higher --limit");
    }
}
