//! Counting of one campaign: pure state, and the thin actor around it.
//!
//! Guarantee: the stream counts a copy unless it is late or another copy of its identity stands before it within ten
//! minutes (CR-3); what a checkpoint holds and what follows it in the log give the same state as the whole log (G-2).
//! A replay makes bills with the same state: `counting` says what the two ways have in common, `bill` what differs.
//! Flow: `rules` say late, `dedup` says duplicate, `window` counts, `state` joins them, `actor` gives it a mailbox.

mod actor;
mod bill;
mod counting;
mod dedup;
mod identities;
mod messages;
mod rules;
mod state;
#[cfg(test)]
mod tests;
mod window;

pub use actor::CampaignActor;
pub(crate) use actor::NONE_AT_HAND;
pub use bill::{BillCounts, BillRules, BilledCopy, BilledRun, BilledRuns, CutoffEnds, Ruling};
pub use counting::{Counting, Outcome};
pub use dedup::{DedupEntry, DedupSet, DroppedEntries, OldestGroup};
pub use messages::{
    Applied, ApplyClickBatch, CloseHours, DropOldestDedup, ExpireDedup, PrepareRest, TakeChangedWindows,
    TakeSnapshot,
};
pub use rules::StreamRules;
pub use state::{CampaignState, ClosedHour, SealEnds, StreamCounts, StreamSaved, Tallies};
pub use window::{AdTally, Window};
