//! Decisions about daily budgets (CR-11), and what they are made of.
//!
//! Guarantee: a decision once stored never changes, and no number is issued twice for a campaign and day: whoever stores
//! a number that is taken is refused. Words: *number* = place among the decisions of one campaign and day, from 1;
//! *sequence* = place among all decisions of the store, the id under which followers resume; *published* = appended to
//! the hot log's topic, at least once, under the same number.

use std::collections::BTreeSet;
use std::str::FromStr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::{CampaignId, Currency, Day, Hour, Position, UtcMillis};

use crate::billing::UtcMicros;
use crate::error::Result;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Returns the name as it is stored and sent.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;
            fn from_str(text: &str) -> Result<Self, UnknownName> {
                match text { $($text => Ok($name::$variant),)* _ => Err(UnknownName) }
            }
        }
    };
}

/// The text is none of the names known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is none of the names known")]
pub struct UnknownName;

named! {
    /// What those who serve ads do about a campaign.
    BudgetState {
        /// The day's spend is below its budget.
        Serving = "serving",
        /// The day's spend has reached its budget.
        Exhausted = "exhausted",
        /// The spend of a strict campaign is not known: it does not serve until it is.
        Unknown = "unknown",
    }
}

named! {
    /// What changed the state.
    BudgetCause {
        /// The day began, or the campaign was first seen in it.
        DayBegan = "day_began",
        /// Clicks that the stream counted.
        Stream = "stream",
        /// A run billed an hour: its amount stands in the place of the stream's.
        Reconciled = "reconciled",
        /// Budget, price or strictness were set anew.
        BudgetChanged = "budget_changed",
        /// The stream fell behind, or caught up.
        Lag = "lag",
    }
}

/// A change of state of one campaign on one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetDecision {
    /// Place among all decisions; 0 before it is stored.
    pub sequence: u64,
    pub campaign_id: CampaignId,
    /// UTC day of event time.
    pub day: Day,
    /// 1 for the day's first.
    pub number: u32,
    pub state: BudgetState,
    pub cause: BudgetCause,
    pub spend_micros: i64,
    /// `None`: the budget was lifted.
    pub budget_micros: Option<i64>,
    pub decided_at: UtcMillis,
    /// Last position counted when clicks decided.
    pub position: Option<Position>,
    /// Event time of the last click counted when clicks decided.
    pub event_time: Option<UtcMillis>,
}

/// Which decisions to read, in order of sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecisionsQuery {
    /// Those above this sequence.
    pub after: u64,
    /// `None`: of every campaign.
    pub campaigns: Option<BTreeSet<CampaignId>>,
    pub limit: u32,
}

/// Hours that runs committed since a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BilledSince {
    pub hours: BTreeSet<Hour>,
    /// The newest commit of any run; ask again from here. `None` while there is none.
    pub newest: Option<UtcMicros>,
}

/// The store of decisions.
#[async_trait]
pub trait BudgetStore: Send + Sync + 'static {
    /// Stores decisions, all or none, and returns them with their sequence. Durable when it returns.
    ///
    /// # Errors
    /// `Conflict` if a number is taken, or is not the one after the last of its campaign and day.
    async fn record_decisions(&self, decisions: Vec<BudgetDecision>) -> Result<Vec<BudgetDecision>>;

    /// Returns the last decision of each campaign and day, of days from `from` on.
    async fn last_decisions(&self, from: Day) -> Result<Vec<BudgetDecision>>;

    /// Returns the last decision of one campaign and day.
    async fn last_decision(&self, campaign: &CampaignId, day: Day) -> Result<Option<BudgetDecision>>;

    /// Returns decisions in order of sequence, at most `limit`.
    async fn decisions(&self, query: &DecisionsQuery) -> Result<Vec<BudgetDecision>>;

    /// Returns the sequence of the newest decision; 0 while there is none.
    async fn newest_sequence(&self) -> Result<u64>;

    /// Returns the sequence up to which decisions are published.
    async fn published_sequence(&self) -> Result<u64>;

    /// Notes that decisions up to `sequence` are published; it never goes back.
    async fn note_published(&self, sequence: u64) -> Result<()>;

    /// Returns the campaigns whose rates, budgets or strictness were recorded at `since` or later.
    async fn campaigns_changed_since(&self, since: UtcMillis) -> Result<BTreeSet<CampaignId>>;

    /// Returns the hours in `[from, to)` that a run was committed of after `since`.
    async fn billed_since(&self, since: Option<UtcMicros>, from: Hour, to: Hour) -> Result<BilledSince>;
}

/// How one day of a campaign stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetReport {
    pub campaign_id: CampaignId,
    pub day: Day,
    pub currency: Currency,
    pub budget_micros: Option<i64>,
    pub strict: bool,
    /// Billed and preliminary together.
    pub spend_micros: i64,
    /// Of hours that are billed.
    pub billed_micros: i64,
    /// Of the other hours: the stream's clicks at the prices in force.
    pub preliminary_micros: i64,
    /// `None` without a budget.
    pub state: Option<BudgetState>,
    /// Spend above the budget.
    pub overspend_micros: i64,
    /// Spend counted since `exhausted` was decided; 0 while it is not.
    pub spent_after_exhausted_micros: i64,
    /// What the last five minutes cost, a minute.
    pub recent_micros_per_minute: i64,
    /// When the budget is used up at that rate; `None` where that is not today.
    pub forecast_exhausted_at: Option<UtcMillis>,
    pub last_decision: Option<BudgetDecision>,
}
