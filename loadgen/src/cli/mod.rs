//! The command line: one subcommand a job, exit status 0 done and agreed, 1 done with a difference, 2 could not run.

mod arguments;
mod units;

use clap::{Parser, Subcommand};
use twice_log::WallClock;

pub use arguments::{CampaignsArgs, GenerateArgs, RunArgs, ServerArgs, StreamArgs, VerifyArgs};
pub use units::{EventStart, Share, parse_duration, parse_event_start, parse_share};

use crate::console::tell;
use crate::{campaigns, generate, run, verify};

/// Sends seeded clicks to Count Twice on a fixed schedule, and proves the bill from what it sent.
#[derive(Debug, Parser)]
#[command(name = "twice-loadgen", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send clicks over HTTP and write the ledger.
    ///
    /// Open loop: a fixed schedule says when each batch is due, and latency counts from that moment, so a slow server
    /// shows as latency and not as fewer requests. A batch whose outcome is unknown is sent again with the same ids
    /// until it is acknowledged. Exit status: 0 everything acknowledged, 1 something was rejected or given up,
    /// 2 could not run.
    Run(RunArgs),
    /// Compare a node's bill and divergence with ledgers, to the click.
    ///
    /// Computes every billing row of the hours the ledgers touch from the counting rules, and compares it with
    /// /v1/billing and /v1/divergence. Exit status: 0 agreed, 1 a difference, 2 could not run.
    Verify(VerifyArgs),
    /// Write the same stream to a file in the import format, with its ledger.
    Generate(GenerateArgs),
    /// Put the campaigns and rates of a ledger, as `run` does by itself.
    Campaigns(CampaignsArgs),
}

/// How a command that ran to its end ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything as it should be.
    Agreed,
    /// The command did its work and found something that should not be.
    Difference,
}

/// Runs the command and returns the exit status; errors go to stderr.
pub fn execute(cli: Cli) -> u8 {
    let ended = match cli.command {
        Command::Run(args) => run::run(&args, &WallClock),
        Command::Verify(args) => verify::run(&args),
        Command::Generate(args) => generate::run(&args, &WallClock),
        Command::Campaigns(args) => campaigns::run(&args),
    };
    match ended {
        Ok(Ended::Agreed) => 0,
        Ok(Ended::Difference) => 1,
        Err(error) => {
            tell(&format!("twice-loadgen: {error:#}"));
            2
        }
    }
}
