//! Questions about clicks and bills.
//!
//! `range` reads what is asked, `actor` gathers the facts from the stores (`aggregates` those by ad and minute), `merge`
//! and `billed` (pure) make rows of them, `clicks` and `billing` are the HTTP handlers.

mod actor;
mod aggregates;
mod answer;
mod billed;
mod billing;
mod clicks;
mod merge;
mod range;

pub(crate) use actor::QueryActor;
pub(crate) use billing::get_billing;
pub(crate) use clicks::{get_ad_clicks, get_campaign_clicks};
