//! The harness of the end-to-end tests: real binaries, real files, real signals.
//!
//! Guarantee: a test ends only processes it started itself, by their handle, and leaves nothing behind.
//! Words: *node* = one `twice up` with its data directory, which outlives the process; *load* = one running
//! `twice-loadgen`; *ledger* = what the generator wrote down of everything it sent and saw acknowledged.
//! Flow: build the binaries once -> start a node -> load, kill, restart -> reconcile -> verify -> ask the oracle.

mod binaries;
mod browser;
mod client;
mod command;
mod fluvio;
mod load;
mod node;
mod oracle;
mod ports;
mod random;
mod s3;
mod serial;

pub use binaries::{Binaries, workspace_root};
pub use browser::Browser;
pub use client::{Answer, Client};
pub use command::{Finished, Running, run, spawn, tail};
pub use fluvio::FluvioCluster;
pub use load::{Load, LoadShape};
pub use node::{Node, NodeOptions};
pub use oracle::{Oracle, python};
pub use ports::{free_port, raise_file_limit};
pub use random::Random;
pub use s3::{S3Fault, S3Server, S3Write};
pub use serial::one_at_a_time;
