//! `twice explain`: the very clicks that make preliminary and billed differ.

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;
use twice_log::{CampaignId, Hour};

use super::campaigns::path_segment;
use super::client::Server;
use super::{Agreement, Outcome};

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
    let client = arguments.server.client()?;
    let campaign = path_segment(arguments.campaign.as_str());
    let path = format!("/v1/explain?hour={}&campaign={campaign}&limit={}", arguments.hour, arguments.limit);
    let explanation: Explanation = client.get(&path).await?.with_context(|| {
        let (hour, campaign) = (arguments.hour, &arguments.campaign);
        format!(
            "campaign {campaign} has no bill for {hour}; close the hour first: twice reconcile --hour {hour}"
        )
    })?;
    print(&explanation);
    let agreed = explanation.unexplained.unwrap_or(0) == 0;
    Ok(Outcome::Done(if agreed { Agreement::Agreed } else { Agreement::Differs }))
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
