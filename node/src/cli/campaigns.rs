//! `twice campaigns`: creates, lists and shows campaigns and their rates.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use twice_log::{CampaignId, Currency, Day, UtcMillis};

use super::client::{Client, Server};
use super::{Agreement, Outcome};

/// Creates campaigns, sets their price, and lists them.
#[derive(Debug, Clone, Args)]
pub struct Campaigns {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Creates a campaign, or gives it a new rate; older rates stay
    Put(Put),
    /// Lists campaigns with the newest rate of each
    List,
    /// Tells what a campaign has spent of its daily budget
    Budget {
        /// Campaign to tell of
        campaign: CampaignId,
        /// UTC day, as 2025-01-15; today if left out
        #[arg(long)]
        day: Option<Day>,
    },
    /// Shows one campaign with every rate, as JSON
    Show {
        /// Campaign to show
        campaign: CampaignId,
    },
}

#[derive(Debug, Clone, Args)]
struct Put {
    /// Campaign to create or change
    campaign: CampaignId,
    /// Name shown to people; the id if left out
    #[arg(long)]
    name: Option<String>,
    /// ISO 4217 code; never changes once set
    #[arg(long, value_name = "CODE")]
    currency: Currency,
    /// Price of a click in millionths of the currency: 500000 is 0.50
    #[arg(long, value_name = "MICROS")]
    cpc_micros: u64,
    /// Budget of a UTC day in millionths of the currency
    #[arg(long, value_name = "MICROS")]
    daily_budget_micros: Option<u64>,
    /// Stops the campaign while its spend is not known, rather than letting it serve on
    #[arg(long)]
    strict: bool,
    /// From when the price counts, by event time; now if left out
    #[arg(long, value_name = "TIME")]
    effective_from: Option<UtcMillis>,
}

#[derive(Debug, Deserialize)]
struct CampaignPage {
    rows: Vec<CampaignRow>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize)]
struct CampaignRow {
    campaign_id: CampaignId,
    name: String,
    currency: Currency,
    rates: Vec<RateRow>,
}

#[derive(Debug, Deserialize)]
struct RateRow {
    cpc_micros: i64,
    effective_from: UtcMillis,
}

/// Runs the command.
pub async fn run(arguments: Campaigns) -> Result<Outcome> {
    let client = arguments.server.client()?;
    match arguments.command {
        Command::Put(put) => put_campaign(&client, put).await?,
        Command::List => list(&client).await?,
        Command::Budget { campaign, day } => budget(&client, &campaign, day).await?,
        Command::Show { campaign } => show(&client, &campaign).await?,
    }
    Ok(Outcome::Done(Agreement::Agreed))
}

async fn put_campaign(client: &Client, put: Put) -> Result<()> {
    let body = serde_json::json!({
        "name": put.name.unwrap_or_else(|| put.campaign.to_string()),
        "currency": put.currency,
        "cpc_micros": put.cpc_micros,
        "daily_budget_micros": put.daily_budget_micros,
        "strict": put.strict,
        "effective_from": put.effective_from,
    });
    let path = format!("/v1/campaigns/{}", path_segment(put.campaign.as_str()));
    client.send(client.request(Method::PUT, &path).json(&body)).await?;
    println!("{} costs {} micro-{} a click", put.campaign, put.cpc_micros, put.currency);
    Ok(())
}

async fn list(client: &Client) -> Result<()> {
    let mut cursor: Option<String> = None;
    println!("{:<32} {:<24} {:>4} {:>12}  since", "campaign", "name", "", "cpc_micros");
    loop {
        let query = cursor.map_or_else(String::new, |cursor| format!("&cursor={cursor}"));
        let page: CampaignPage = client
            .get(&format!("/v1/campaigns?limit=1000{query}"))
            .await?
            .context("the node does not know /v1/campaigns; is it an older build?")?;
        for row in page.rows {
            let rate = row.rates.last();
            let price = rate.map_or_else(|| "-".to_owned(), |rate| rate.cpc_micros.to_string());
            let since = rate.map_or_else(|| "-".to_owned(), |rate| rate.effective_from.to_string());
            println!("{:<32} {:<24} {:>4} {price:>12}  {since}", row.campaign_id, row.name, row.currency);
        }
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}

#[derive(Debug, Deserialize)]
struct BudgetRow {
    day: Day,
    currency: Currency,
    budget_micros: Option<i64>,
    strict: bool,
    spend_micros: i64,
    billed_micros: i64,
    preliminary_micros: i64,
    state: Option<String>,
    overspend_micros: i64,
    forecast_exhausted_at: Option<UtcMillis>,
    decision_number: Option<u32>,
    decision_cause: Option<String>,
    decided_at: Option<UtcMillis>,
}

async fn budget(client: &Client, campaign: &CampaignId, day: Option<Day>) -> Result<()> {
    let query = day.map_or_else(String::new, |day| format!("?day={day}"));
    let path = format!("/v1/campaigns/{}/budget{query}", path_segment(campaign.as_str()));
    let Some(row) = client.get::<BudgetRow>(&path).await? else {
        bail!("campaign {campaign} does not exist; `twice campaigns list` shows those that do");
    };
    let money = |micros: i64| {
        let sign = if micros < 0 { "-" } else { "" };
        let micros = micros.unsigned_abs();
        format!("{sign}{}.{:06} {}", micros / 1_000_000, micros % 1_000_000, row.currency)
    };
    println!("{campaign} on {}: {}", row.day, row.state.as_deref().unwrap_or("no budget"));
    println!("  budget    {}", row.budget_micros.map_or_else(|| "none".to_owned(), money));
    let parts = (money(row.billed_micros), money(row.preliminary_micros));
    println!("  spend     {}  ({} billed, {} preliminary)", money(row.spend_micros), parts.0, parts.1);
    if row.overspend_micros > 0 {
        println!("  overspend {}", money(row.overspend_micros));
    }
    if let Some(moment) = row.forecast_exhausted_at {
        println!("  used up   at about {moment}, at the rate of the last minutes");
    }
    if row.strict {
        println!("  strict    stops while its spend is not known");
    }
    if let (Some(number), Some(at)) = (row.decision_number, row.decided_at) {
        let cause = row.decision_cause.unwrap_or_default();
        println!("  decided   {at}, as number {number} of the day ({cause})");
    }
    Ok(())
}

async fn show(client: &Client, campaign: &CampaignId) -> Result<()> {
    let path = format!("/v1/campaigns/{}", path_segment(campaign.as_str()));
    match client.get::<serde_json::Value>(&path).await? {
        Some(value) => println!("{}", serde_json::to_string_pretty(&value)?),
        None => bail!("campaign {campaign} does not exist; `twice campaigns list` shows those that do"),
    }
    Ok(())
}

/// Escapes an identifier for use as one segment of a path or value of a query.
pub fn path_segment(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    id.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::path_segment;

    #[test]
    fn slashes_and_percents_are_escaped() {
        assert_eq!(path_segment("a/b%c-1"), "a%2Fb%25c-1");
    }
}
