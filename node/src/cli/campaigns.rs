//! `twice campaigns`: creates, lists and shows campaigns and their rates.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use twice_log::{CampaignId, Currency, UtcMillis};

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
