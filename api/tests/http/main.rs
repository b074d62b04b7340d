//! The HTTP face over real sockets, on the real log and the real stores.

mod aggregates;
mod bad_input;
mod clicks;
mod operations;
mod query;
mod support;
