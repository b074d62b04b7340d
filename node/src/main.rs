//! `twice`: the node and the commands that act on it.

#![allow(clippy::print_stdout, clippy::print_stderr)] // a command line program speaks on both

mod archive;
mod audit;
mod budgets;
mod cli;
mod clock_watch;
mod database;
mod disk;
mod housekeeping;
mod keys;
mod lines;
mod listen;
mod log;
mod metrics;
mod node;
mod note;
mod ports;
mod privacy;
mod recovery;
mod settings;
mod spool;
mod stores;
mod swap;
mod telemetry;
mod trim;

use std::process::ExitCode;

use cli::{Agreement, Outcome};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match cli::run(std::env::args_os().collect()) {
        Ok(Outcome::Done(Agreement::Agreed)) => ExitCode::SUCCESS,
        Ok(Outcome::Done(Agreement::Differs)) => ExitCode::from(1),
        Ok(Outcome::Exit(status)) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
