//! The HTTP face over real sockets, on the real log and the real stores.

#![allow(clippy::print_stderr)] // a measurement says what it measured; seen with --nocapture

mod access;
mod aggregates;
mod bad_input;
mod bodies;
mod budgets;
mod clicks;
mod edge;
mod hardening;
mod limits;
mod operations;
mod query;
mod replays;
mod restatements;
mod support;
