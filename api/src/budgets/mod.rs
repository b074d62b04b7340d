//! Budgets: how a campaign's day stands, decisions as they are made, and windows as they change.
//!
//! Guarantee: who follows decisions and resumes misses none, as each comes from the store by its sequence; who follows
//! windows and is too slow is told so and let go. Words: *event stream* = an answer that goes on (`text/event-stream`).

mod budget;
mod decisions;
mod events;
mod live;

pub(crate) use budget::get_budget;
pub(crate) use decisions::get_budget_decisions;
pub(crate) use events::Places;
pub(crate) use live::get_live;
