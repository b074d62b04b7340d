//! `twice pseudonyms`: the month keys of users' pseudonyms, and their end.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use twice_api::PseudonymKeys;
use twice_log::{Clock, WallClock};

use super::{Agreement, Outcome};
use crate::node;

/// Lists the month keys of pseudonyms, or destroys one for good.
#[derive(Debug, Clone, Subcommand)]
pub enum Pseudonyms {
    /// Lists the months that have a key, or had one
    List(Place),
    /// Destroys the key of a month: nobody can then tell whose pseudonyms those of the month are, and later clicks of it
    /// store no user. The node must be stopped; by itself it does so after `pseudonym_retention_ms`
    Destroy(Destroy),
}

/// Where the keys are.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// Data folder of the node
    #[arg(long, env = "TWICE_DATA_DIR", default_value = "./twice-data", value_name = "DIR")]
    data_dir: PathBuf,
}

/// Which key to destroy.
#[derive(Debug, Clone, Args)]
pub struct Destroy {
    /// Month in UTC, such as 2025-01
    #[arg(long, value_name = "MONTH")]
    month: String,
    #[command(flatten)]
    place: Place,
}

/// Runs the command.
pub fn run(arguments: Pseudonyms) -> Result<Outcome> {
    match arguments {
        Pseudonyms::List(place) => {
            let folder = place.data_dir.join("keys");
            if !folder.is_dir() {
                bail!(
                    "{} has no month keys; --data-dir names the data folder of a node",
                    place.data_dir.display()
                );
            }
            for month in PseudonymKeys::list(&folder)? {
                match month.destroyed_at {
                    Some(at) => println!("{}  destroyed {at}", month.month),
                    None => println!("{}  key in use", month.month),
                }
            }
        }
        Pseudonyms::Destroy(Destroy { month, place }) => {
            let folder = place.data_dir.join("keys");
            if !folder.is_dir() {
                bail!(
                    "{} has no month keys; --data-dir names the data folder of a node",
                    place.data_dir.display()
                );
            }
            let _lock = node::take_lock(&place.data_dir)?;
            let keys = PseudonymKeys::open(folder).context("cannot open the month keys")?;
            keys.destroy(&month, WallClock.now())?;
            println!(
                "the key of {month} is destroyed; copies of it in backups and snapshots are yours to destroy"
            );
        }
    }
    Ok(Outcome::Done(Agreement::Agreed))
}
