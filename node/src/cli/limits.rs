//! `twice limits`: how many clicks a second each tier's keys may send.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, Server};
use super::{Agreement, Outcome};

/// Shows the rate limits, tries new ones on a share of the keys, or takes them back.
#[derive(Debug, Clone, Args)]
pub struct Limits {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Shows what holds now, and every version with what became of it
    Show(Server),
    /// Stores a new version and tries it on a share of the keys; what is left out stays as it is in force
    Put(Put),
    /// Takes back the version being tried, else the one in force; the one before holds again at once
    Revert(Server),
}

#[derive(Debug, Clone, Args)]
struct Put {
    /// Tier whose limits to change
    #[arg(long, value_enum)]
    tier: Tier,
    /// Clicks a second that a key may always send
    #[arg(long, value_name = "CLICKS")]
    floor: Option<u32>,
    /// Clicks a second that a key may send while there is room
    #[arg(long, value_name = "CLICKS")]
    ceiling: Option<u32>,
    /// Clicks that a key may send at once after a pause
    #[arg(long, value_name = "CLICKS")]
    burst: Option<u32>,
    /// How long it is tried before it holds for all; the node's setting if left out
    #[arg(long, value_name = "MS")]
    canary_ms: Option<u64>,
    /// Why, kept with the version
    #[arg(long, default_value = "")]
    note: String,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Tier {
    Standard,
    Premium,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct TierLimits {
    floor: u32,
    ceiling: u32,
    burst: u32,
}

#[derive(Debug, Deserialize)]
struct Held {
    version: u32,
    tiers: BTreeMap<String, TierLimits>,
    clicks_per_second: BTreeMap<String, u32>,
}

#[derive(Debug, Deserialize)]
struct Canary {
    #[serde(flatten)]
    held: Held,
    share_percent: u8,
    ends_at: String,
    figures: Figures,
}

#[derive(Debug, Deserialize)]
struct Figures {
    canary: Counts,
    rest: Counts,
}

#[derive(Debug, Deserialize)]
struct Counts {
    requests: u64,
    over: u64,
}

#[derive(Debug, Deserialize)]
struct Version {
    version: u32,
    created_at: String,
    note: String,
    ends: Vec<End>,
}

#[derive(Debug, Deserialize)]
struct End {
    outcome: String,
    at: String,
    detail: String,
}

#[derive(Debug, Deserialize)]
struct Answer {
    in_force: Held,
    canary: Option<Canary>,
    signal: String,
    versions: Vec<Version>,
}

#[derive(Debug, Deserialize)]
struct Changed {
    detail: String,
}

/// Runs the command.
pub async fn run(arguments: Limits) -> Result<Outcome> {
    match arguments.command {
        Command::Show(server) => show(&server.client()?).await?,
        Command::Put(put) => change(&put.server.client()?, &put).await?,
        Command::Revert(server) => {
            let client = server.client()?;
            let request = client.request(Method::POST, "/v1/rate-limits/revert");
            println!("{}", changed(&client, request).await?);
        }
    }
    Ok(Outcome::Done(Agreement::Agreed))
}

async fn read(client: &Client) -> Result<Answer> {
    let answer: Option<Answer> = client.get("/v1/rate-limits?limit=20").await?;
    answer.context("the node knows no rate limits; is it an older one?")
}

async fn change(client: &Client, put: &Put) -> Result<()> {
    let tier = put.tier.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let now = read(client).await?;
    let before = now.in_force.tiers.get(&tier).context("the node's answer is not the documented JSON")?;
    let limits = json!({
        "floor": put.floor.unwrap_or(before.floor),
        "ceiling": put.ceiling.unwrap_or(before.ceiling),
        "burst": put.burst.unwrap_or(before.burst),
    });
    let body = json!({ "tiers": { tier: limits }, "note": put.note, "canary_ms": put.canary_ms });
    println!("{}", changed(client, client.request(Method::PUT, "/v1/rate-limits").json(&body)).await?);
    Ok(())
}

async fn changed(client: &Client, request: reqwest::RequestBuilder) -> Result<String> {
    let answer = client.send(request).await?;
    let changed: Changed = answer.json().await.context("the node's answer is not the documented JSON")?;
    Ok(changed.detail)
}

async fn show(client: &Client) -> Result<()> {
    let answer = read(client).await?;
    let built_in = if answer.in_force.version == 0 { ", built in" } else { "" };
    println!(
        "in force: version {}{built_in}; clicks a second and key, decided by {}",
        answer.in_force.version, answer.signal
    );
    print_tiers(&answer.in_force);
    if let Some(Canary { held, share_percent, ends_at, figures }) = &answer.canary {
        println!("\ntried on {share_percent} % of the keys until {ends_at}: version {}", held.version);
        print_tiers(held);
        let Figures { canary, rest } = figures;
        println!(
            "  {} of {} requests were over the limit, of other keys {} of {}",
            canary.over, canary.requests, rest.over, rest.requests
        );
        if canary.requests == 0 {
            println!("  no key it is tried on has sent anything yet");
        }
    }
    println!("\nversions, newest first{}", if answer.versions.is_empty() { ": none" } else { "" });
    for Version { version, created_at, note, ends } in &answer.versions {
        println!("  {version}  {created_at}  {}", if note.is_empty() { "-" } else { note });
        for End { outcome, at, detail } in ends {
            println!("     {outcome} at {at}: {detail}");
        }
    }
    Ok(())
}

fn print_tiers(held: &Held) {
    for (tier, TierLimits { floor, ceiling, burst }) in &held.tiers {
        let now = held.clicks_per_second.get(tier).copied().unwrap_or(*floor);
        println!("  {tier:<9} {now:>9}  between {floor} and {ceiling}, burst {burst}");
    }
}
