//! The program `twice-loadgen`: reads the command line and hands it to the library.

use std::process::ExitCode;

use clap::Parser;
use twice_loadgen::Cli;

fn main() -> ExitCode {
    ExitCode::from(twice_loadgen::execute(Cli::parse()))
}
