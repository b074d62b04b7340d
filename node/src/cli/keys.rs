//! `twice keys`: API keys of a node, made, listed and revoked; and the way back in where the last one is lost.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde::Deserialize;
use twice_api::{Access, KeyRing};
use twice_log::{CampaignId, Clock, UtcMillis, WallClock};
use twice_store::SqliteStore;

use super::campaigns::path_segment;
use super::client::{Client, Server};
use super::{Agreement, Outcome};
use crate::database::DATABASE;
use crate::{keys, node};

/// Makes, lists and revokes API keys, and shows what was done with those of scope admin.
#[derive(Debug, Clone, Args)]
pub struct Keys {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    Create(Create),
    /// Lists keys with what they allow and when they were last used, revoked ones included
    List(Server),
    Revoke(Revoke),
    Actions(Actions),
    ResetAdmin(ResetAdmin),
}

/// Makes a key and shows it, this once
#[derive(Debug, Clone, Args)]
struct Create {
    /// What people call it
    #[arg(long)]
    name: String,
    /// What it may do; may be given several times
    #[arg(long, value_enum, required = true)]
    scope: Vec<ScopeName>,
    /// Campaign it is for; may be given several times. Left out, it is for all
    #[arg(long, value_name = "ID")]
    campaign: Vec<CampaignId>,
    /// What happens to clicks over its limit: answered 429 (standard), or kept on disk and counted later (premium)
    #[arg(long, value_enum, default_value = "standard")]
    tier: TierName,
    /// From when on it is refused, such as 2026-12-31T00:00:00Z; left out, never
    #[arg(long, value_name = "TIME")]
    expires: Option<UtcMillis>,
    #[command(flatten)]
    server: Server,
}

/// Revokes a key: it is refused from then on
#[derive(Debug, Clone, Args)]
struct Revoke {
    /// Its id: the part of the key between the underscores
    #[arg(value_name = "KEY_ID")]
    key_id: String,
    #[command(flatten)]
    server: Server,
}

/// Shows what administrators asked for, newest first
#[derive(Debug, Clone, Args)]
struct Actions {
    /// How many notes to show
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    server: Server,
}

/// Makes a key with scope admin on a stopped node: for when the only one is lost
///
/// Whoever can write to the data folder can do this; there is nothing in it that a key would protect from them.
#[derive(Debug, Clone, Args)]
struct ResetAdmin {
    /// Data folder of the stopped node
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeName {
    /// Send clicks and announce imports
    Ingest,
    /// Read clicks, bills, budgets and differences
    Query,
    /// Send fraud rulings
    Verdicts,
    /// Everything, keys included
    Admin,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TierName {
    Standard,
    Premium,
}

#[derive(Debug, Deserialize)]
struct Created {
    key: String,
    #[serde(flatten)]
    row: KeyRow,
}

#[derive(Debug, Deserialize)]
struct KeyPage {
    rows: Vec<KeyRow>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize)]
struct KeyRow {
    key_id: String,
    name: String,
    scopes: Vec<String>,
    campaigns: Option<Vec<String>>,
    tier: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    last_used_at: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ActionPage {
    rows: Vec<ActionRow>,
}

#[derive(Debug, Deserialize)]
struct ActionRow {
    at: String,
    key_id: String,
    address: Option<String>,
    request_id: String,
    action: String,
    status: Option<u16>,
}

/// Runs the command.
pub async fn run(arguments: Keys) -> Result<Outcome> {
    match arguments.command {
        Command::Create(create) => create_key(create).await?,
        Command::List(server) => list(&server.client()?).await?,
        Command::Revoke(revoke) => {
            let client = revoke.server.client()?;
            let path = format!("/v1/keys/{}", path_segment(&revoke.key_id));
            client.send(client.request(Method::DELETE, &path)).await?;
            println!("key {} is revoked", revoke.key_id);
        }
        Command::Actions(actions) => show_actions(&actions).await?,
        Command::ResetAdmin(reset) => reset_admin(&reset).await?,
    }
    Ok(Outcome::Done(Agreement::Agreed))
}

async fn create_key(create: Create) -> Result<()> {
    let client = create.server.client()?;
    let scopes: Vec<String> = create.scope.iter().map(name_of).collect();
    let body = serde_json::json!({
        "name": create.name,
        "scopes": scopes,
        "campaigns": if create.campaign.is_empty() { None } else { Some(&create.campaign) },
        "tier": name_of(&create.tier),
        "expires_at": create.expires,
    });
    let answer = client.send(client.request(Method::POST, "/v1/keys").json(&body)).await?;
    let Created { key, row } = answer.json().await.context("the node's answer is not the documented JSON")?;
    eprintln!("key {} ({}) is made. It is stored nowhere and will not be shown again:", row.key_id, row.name);
    println!("{key}");
    Ok(())
}

async fn list(client: &Client) -> Result<()> {
    println!(
        "{:<16} {:<20} {:<22} {:<8} {:<24} {:<24} campaigns",
        "key", "name", "scopes", "tier", "last used", "ends"
    );
    let mut cursor = String::new();
    loop {
        let page: Option<KeyPage> = client.get(&format!("/v1/keys?limit=1000{cursor}")).await?;
        let page = page.context("the node knows no keys; is it an older one?")?;
        for row in page.rows {
            let ends = match (&row.revoked_at, &row.expires_at) {
                (Some(_), _) => "revoked",
                (None, Some(expires_at)) => expires_at,
                (None, None) => "-",
            };
            let campaigns = row.campaigns.map_or_else(|| "all".to_owned(), |campaigns| campaigns.join(" "));
            println!(
                "{:<16} {:<20} {:<22} {:<8} {:<24} {ends:<24} {campaigns}",
                row.key_id,
                row.name,
                row.scopes.join(","),
                row.tier,
                row.last_used_at.as_deref().unwrap_or("-"),
            );
        }
        match page.next_cursor {
            Some(next) => cursor = format!("&cursor={}", path_segment(&next)),
            None => return Ok(()),
        }
    }
}

async fn show_actions(actions: &Actions) -> Result<()> {
    let client = actions.server.client()?;
    let page: Option<ActionPage> = client.get(&format!("/v1/admin-actions?limit={}", actions.limit)).await?;
    let page = page.context("the node has no log of actions; is it an older one?")?;
    for row in page.rows {
        let ActionRow { at, key_id, address, request_id, action, status } = row;
        let status = status.map_or_else(|| "asked".to_owned(), |status| status.to_string());
        let key_id = if key_id.is_empty() { "-" } else { &key_id };
        println!(
            "{at}  {status:<5}  {key_id:<16}  {:<15}  {action}  {request_id}",
            address.unwrap_or_default()
        );
    }
    Ok(())
}

async fn reset_admin(reset: &ResetAdmin) -> Result<()> {
    let folder = &reset.data_dir;
    let database = folder.join(DATABASE);
    if !database.exists() {
        bail!("there is no {}; --data-dir names the data folder of a node that has run", database.display());
    }
    let _lock = node::lock(folder)?;
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    let store = Arc::new(SqliteStore::open(&database, clock.clone()).await?);
    let ring = KeyRing::open(store.clone(), clock.clone(), Access::Keyed).await?;
    let text = keys::create_admin(&ring, clock.as_ref(), "reset admin", "twice keys reset-admin").await?;
    keys::show(&text, "A new key with scope admin; those there were go on until they are revoked:")?;
    store.close().await;
    Ok(())
}

/// Returns the name of a value as the command line and the API have it.
fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
