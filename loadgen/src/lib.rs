//! Seeded open-loop load for Count Twice, with a ledger of the truth that bills are checked against.
//!
//! `stream` says which click is number n, from the seed alone; `run` sends the stream over HTTP on a fixed schedule;
//! `generate` writes it to a file; `ledger` keeps one row a copy, with what became of it; `verify` computes the bill
//! from ledger and rates and compares it with what a node answers.

pub mod campaigns;
pub mod cli;
mod console;
pub mod generate;
pub mod ledger;
pub mod run;
pub mod server;
pub mod stream;
pub mod verify;

pub use cli::{Cli, execute};
