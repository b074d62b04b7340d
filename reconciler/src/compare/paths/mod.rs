//! Lambda against kappa on the same clicks: what differs (nothing may, G-7), and what each path costs.
//!
//! Guarantee: nothing authoritative is read as truth or written. Both paths count the recorded inputs of the newest
//! ended lambda run of each hour anew, each in its child process; what is kept is the [`Comparison`] alone, under
//! `comparisons/` in the archive. Words: *figure* = a number with where it comes from, or with why it is not known;
//! *copies* = stored records of the hours compared, each counted once however often a path reads it.
//! Flow: `runs` finds the inputs -> `comparator` counts by both paths -> `differences` compares row by row ->
//! `timing`, `money` and `conclusion` compute from what was measured -> `page` shows it as one HTML file.

mod charts;
mod comparator;
mod conclusion;
mod differences;
mod figures;
mod kept;
mod money;
mod page;
mod runs;
mod summary;
#[cfg(test)]
mod tests;
mod timing;
mod units;

pub use comparator::{
    Comparator, ComparatorParts, CompareProgress, CompareProgressSender, HOURS_MAX, Surroundings,
    SurroundingsSource,
};
pub use differences::{Column, Differences, RowDifference};
pub use figures::{
    Authoritative, AuthoritativeHour, Comparison, Counted, Figure, Freshness, HourInputs, LinesOfCode,
    PathCost, Quantiles, Recovery, Sides, Storage, Stored, StoredHour, StreamRecovery, Versions,
};
pub use kept::{KeptComparison, comparison, comparisons};
pub use money::{Bill, Item, Money, PRICES_TOML, Prices};
pub use page::html;
pub use summary::summary;
