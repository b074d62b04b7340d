//! The HTTP face of Count Twice: the ingest gateway, the merged query view, billing, operations and the dashboard.
//!
//! Guarantee: a 202 leaves only after every click it counts as accepted is durable in the hot log (G-1); `rejected`
//! means certainly not stored. Words: *door* = the checks a click passes before it is stored; *port* = a trait by
//! which this crate asks something of another part, implemented in the node.

mod access;
mod budgets;
mod caller;
mod config;
mod dashboard;
mod document;
mod edge;
mod error;
mod ingest;
mod limits;
pub mod metrics;
mod operations;
pub mod ports;
mod problem;
mod query;
mod routes;
mod server;
mod turns;

pub use access::{Access, KeyRing, KeyText, NewKey};
pub use config::ApiConfig;
pub use edge::EdgeConfig;
pub use error::{Error, Result};
#[doc(hidden)]
pub use ingest::fuzzing;
pub use ingest::{MonthOfKeys, PseudonymKeys};
pub use limits::{LimitsConfig, RateLimits};
pub use server::{ApiDeps, Listeners, serve};
