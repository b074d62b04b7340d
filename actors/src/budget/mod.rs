//! Spend against budget: what a campaign has spent on a UTC day, and what follows for serving it (CR-11).
//!
//! Guarantee: a decision is a change of state, numbered per campaign and day; it is stored before anybody hears of it,
//! and no number is issued twice, whatever dies when. Words: *billed* = amounts of billed hours; *preliminary* = the
//! stream's counts of the other hours at the prices in force; *sight* = whether the stream is near enough to the log for
//! the spend to be known; *account* = one campaign's days.
//! Flow: `feed` takes counts of watched campaigns off the stream's path; `account` prices them and proposes decisions
//! (pure); `reader` reads what was set and billed; `keeper` stores what is proposed, `publisher` appends what is stored to the log; `actor` gives them a home.

mod account;
mod actor;
mod book;
mod config;
mod feed;
mod health;
mod keeper;
mod publisher;
mod reader;
mod seed;
mod sight;
#[cfg(test)]
mod tests;

pub use account::{Account, Proposal};
pub use actor::{BudgetActor, BudgetParts, Budgets};
pub use config::BudgetConfig;
pub use feed::{PublishedSpend, SpendFeed, Touched, TouchedBy};
pub use sight::Sight;
