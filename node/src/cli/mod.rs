//! The commands of `twice`: one file each, and what they end with.

mod audit;
mod campaigns;
mod client;
mod compare;
mod explain;
mod import;
mod keys;
mod limits;
mod log_cat;
mod mode;
pub mod offline;
mod pseudonyms;
mod rebuild;
mod reconcile;
mod replay;
mod retain;
mod shadow;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::settings;

/// Counts ad clicks twice: as a stream for speed, as a batch for truth, and explains every difference.
#[derive(Debug, Parser)]
#[command(name = "twice", version, max_term_width = 110)]
#[command(after_help = "Exit status: 0 done and agreed, 1 done and found a difference, 2 could not run.\n\n\
    Start here:  twice up --data-dir ./data --insecure-no-auth")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(Box<up::Up>),
    Import(import::Import),
    Reconcile(reconcile::Reconcile),
    Replay(Box<replay::Replay>),
    Explain(Box<explain::Explain>),
    Audit(Box<audit::Audit>),
    Retain(retain::Retain),
    #[command(subcommand)]
    Pseudonyms(pseudonyms::Pseudonyms),
    Compare(Box<compare::Compare>),
    #[command(subcommand)]
    Rebuild(rebuild::Rebuild),
    Mode(mode::Mode),
    Campaigns(campaigns::Campaigns),
    Keys(keys::Keys),
    Limits(limits::Limits),
    /// Reads the hot log
    #[command(subcommand)]
    Log(Log),
    /// The counting child of a reconcile; started by the node
    #[command(hide = true)]
    Recompute,
    /// An audit that the node was asked for; started by the node
    #[command(hide = true)]
    AuditChild,
    /// The counting child of a replay; started by the node
    #[command(hide = true)]
    ReplayChild,
}

#[derive(Debug, Subcommand)]
enum Log {
    Cat(log_cat::LogCat),
}

/// Whether what was compared agrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    Agreed,
    Differs,
}

/// How a command ended when it could run.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    Done(Agreement),
    /// A child process told its parent how it ended; this is the status that goes with it.
    Exit(ExitCode),
}

/// Parses the command line and runs the command.
///
/// # Errors
/// Whatever kept the command from running: exit status 2.
pub fn run(arguments: Vec<OsString>) -> Result<Outcome> {
    let command = Cli::command()
        .mut_subcommands(offline::with_variables)
        .mut_subcommand("log", |log| log.mut_subcommand("cat", log_cat::with_variables));
    let matches = settings::parse(command, "up", &arguments)?;
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Up(arguments) => up::run(*arguments),
        Command::Import(arguments) => block_on(import::run(arguments)),
        Command::Reconcile(arguments) => block_on(reconcile::run(arguments)),
        Command::Replay(arguments) => block_on(replay::run(*arguments)),
        Command::Explain(arguments) => block_on(explain::run(*arguments)),
        Command::Retain(arguments) => block_on(retain::run(arguments)),
        Command::Pseudonyms(arguments) => pseudonyms::run(arguments),
        Command::Audit(arguments) => block_on(audit::run(*arguments)),
        Command::Compare(arguments) => block_on(compare::run(*arguments)),
        Command::Rebuild(arguments) => block_on(rebuild::run(arguments)),
        Command::Mode(arguments) => block_on(mode::run(arguments)),
        Command::Campaigns(arguments) => block_on(campaigns::run(arguments)),
        Command::Keys(arguments) => block_on(keys::run(arguments)),
        Command::Limits(arguments) => block_on(limits::run(arguments)),
        Command::Log(Log::Cat(arguments)) => block_on(log_cat::run(arguments)),
        Command::AuditChild => {
            let (input, output) = (std::io::stdin(), std::io::stdout());
            Ok(Outcome::Exit(crate::audit::run_child(input.lock(), output.lock())))
        }
        Command::ReplayChild => {
            let (input, output) = (std::io::stdin(), std::io::stdout());
            Ok(Outcome::Exit(twice_actors::replay::child::run(input.lock(), output)))
        }
        Command::Recompute => {
            let (input, output) = (std::io::stdin(), std::io::stdout());
            Ok(Outcome::Exit(twice_reconciler::recompute::child::run(input.lock(), output.lock())))
        }
    }
}

fn block_on(command: impl Future<Output = Result<Outcome>>) -> Result<Outcome> {
    // With actors, for commands that do offline what a node does with them.
    actix_web::rt::System::new().block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
