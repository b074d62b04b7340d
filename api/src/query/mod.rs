//! Questions about clicks and bills.
//!
//! `range` reads what is asked, `actor` gathers the facts from the stores (`aggregates` those by ad and minute), `merge`
//! and `billed` (pure) make rows of them, `clicks`, `billing` and `corrections` are the HTTP handlers, and `table` writes
//! what the latter two list as CSV and Parquet.

mod actor;
mod aggregates;
mod answer;
mod billed;
mod billing;
mod clicks;
mod corrections;
mod merge;
mod range;
mod table;

pub(crate) use actor::QueryActor;
pub(crate) use billing::get_billing;
pub(crate) use clicks::{get_ad_clicks, get_campaign_clicks};
pub(crate) use corrections::get_corrections;
