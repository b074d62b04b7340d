//! The stream of clicks: which copy is number n, from the settings alone.
//!
//! Guarantee: copy n depends on settings and n only, never on what was drawn before, on time or on threads. So a
//! retry, the ledger and a file all say the same about it, and nothing but its number need be remembered.
//! Words: *base* = the first copy of a click (`original` or `late`); a *duplicate* repeats a base byte for byte; a
//! *differing* copy (`conflict`, `moved`) repeats its identity with another payload; a *bad* one must be refused.

mod copies;
mod json;
mod profile;
mod random;
mod rates;
mod settings;

pub use copies::{ClickStream, Content, Copy, Kind};
pub(crate) use json::{FUTURE_MS, TOO_OLD_MS};
pub use json::{Texts, write_click_id, write_faulty, write_line, write_object};
pub use profile::{Fault, Pace, Profile, Ruling, refusal_due};
pub use rates::{CampaignRate, campaign_rates};
#[cfg(test)]
pub(crate) use settings::tests::settings as settings_for_tests;
pub use settings::{StreamSettings, Timing};
