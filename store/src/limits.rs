//! Rate limits: how many clicks a second each tier may send, in versions that are tried on a few keys first.
//!
//! Guarantee: a version is stored before it takes effect, and so is its end; neither ever changes. At most one version is
//! in its canary.
//! Words: *canary* = the time in which a version holds for a share of the keys only; *in force* = for all others, and
//! after its promotion for all; *over* = a request that found its key's bucket too empty.
//! Flow: put -> canary -> promoted, or rolled back by its own figures, or reverted by somebody. A promoted version may
//! be reverted too: then the one promoted before it is in force again, at once and for all keys.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use twice_log::UtcMillis;
use xxhash_rust::xxh3::xxh3_64;

use crate::billing::Page;
use crate::error::Result;
use crate::keys::Tier;

/// Most clicks a second, and most clicks of a burst, that a limit may name.
pub const LIMIT_CLICKS_MAX: u32 = 10_000_000;

/// What one key of a tier may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierLimits {
    /// Clicks a second that a key may always send, however little room there is.
    pub floor: u32,
    /// Clicks a second that a key may send while there is room.
    pub ceiling: u32,
    /// Clicks that a key may send at once after a pause.
    pub burst: u32,
}

impl TierLimits {
    /// Checks the numbers.
    ///
    /// # Errors
    /// What is wrong, in words for who sent it.
    pub fn validate(&self) -> Result<(), String> {
        for (name, value) in [("floor", self.floor), ("ceiling", self.ceiling), ("burst", self.burst)] {
            if !(1..=LIMIT_CLICKS_MAX).contains(&value) {
                return Err(format!("{name} is {value}; it must lie between 1 and {LIMIT_CLICKS_MAX}"));
            }
        }
        if self.ceiling < self.floor {
            return Err(format!("ceiling {} lies below floor {}", self.ceiling, self.floor));
        }
        Ok(())
    }
}

/// Limits of every tier.
pub type Tiers = BTreeMap<Tier, TierLimits>;

/// Returns the limits in force where no version was ever put: one key may use what one machine takes while there is
/// room, and a tenth of it when there is not.
pub fn built_in_limits() -> Tiers {
    let standard = TierLimits { floor: 20_000, ceiling: 200_000, burst: 400_000 };
    let premium = TierLimits { floor: 50_000, ceiling: 500_000, burst: 1_000_000 };
    BTreeMap::from([(Tier::Standard, standard), (Tier::Premium, premium)])
}

/// A version as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitVersion {
    /// From 1; 0 are the limits built in, which are stored nowhere.
    pub version: u32,
    pub tiers: Tiers,
    /// Its canary began then.
    pub created_at: UtcMillis,
    /// Key that put it; empty on a node without keys.
    pub created_by: String,
    pub note: String,
    /// Share of the keys it holds for during its canary.
    pub share_percent: u8,
    pub canary_ms: u64,
}

impl LimitVersion {
    /// Returns the limits built in, as version 0.
    pub fn built_in() -> Self {
        Self {
            version: 0,
            tiers: built_in_limits(),
            created_at: UtcMillis::clamped(0),
            created_by: String::new(),
            note: "built in".to_owned(),
            share_percent: 100,
            canary_ms: 0,
        }
    }

    /// Returns whether the version's canary holds for the key: xxh3_64 of the key's id followed by the version (u32, LE),
    /// mod 100, lies below the share. Each version draws other keys, so that not always the same ones try.
    pub fn tries(&self, key_id: &str) -> bool {
        let mut bytes = Vec::with_capacity(key_id.len() + 4);
        bytes.extend_from_slice(key_id.as_bytes());
        bytes.extend_from_slice(&self.version.to_le_bytes());
        xxh3_64(&bytes) % 100 < u64::from(self.share_percent)
    }
}

/// A version to be put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLimits {
    /// Tiers left out keep what is in force.
    pub tiers: Tiers,
    pub created_at: UtcMillis,
    pub created_by: String,
    pub note: String,
    pub share_percent: u8,
    pub canary_ms: u64,
}

/// How a version's canary, or its being in force, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitOutcome {
    /// It holds for all keys.
    Promoted,
    /// Its figures were bad; it holds for nobody.
    RolledBack,
    /// Somebody took it back; it holds for nobody.
    Reverted,
}

impl LimitOutcome {
    /// Returns the name in the store and in answers.
    pub fn name(self) -> &'static str {
        match self {
            LimitOutcome::Promoted => "promoted",
            LimitOutcome::RolledBack => "rolled_back",
            LimitOutcome::Reverted => "reverted",
        }
    }

    /// Reads a [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Promoted, Self::RolledBack, Self::Reverted].into_iter().find(|outcome| outcome.name() == name)
    }
}

/// Requests of a group of keys, counted since the canary began or since this node's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitCounts {
    pub requests: u64,
    /// Those answered 429, and those spilled.
    pub over: u64,
}

/// What a canary is judged by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitFigures {
    /// Keys the new version holds for.
    pub canary: LimitCounts,
    /// All other keys.
    pub rest: LimitCounts,
}

/// The end of a version, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitEnd {
    pub version: u32,
    pub outcome: LimitOutcome,
    pub at: UtcMillis,
    /// Key that decided; empty where the node did by itself, or runs without keys.
    pub decided_by: String,
    /// Why, in words.
    pub detail: String,
    pub figures: LimitFigures,
}

/// A version with what became of it, oldest end first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitHistory {
    pub version: LimitVersion,
    pub ends: Vec<LimitEnd>,
}

/// What holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitState {
    /// For all keys, or all but the canary's; the built-in limits where nothing was ever promoted.
    pub in_force: LimitVersion,
    /// The version in its canary.
    pub canary: Option<LimitVersion>,
}

/// The store of limits.
#[async_trait]
pub trait LimitStore: Send + Sync + 'static {
    /// Returns what holds now.
    async fn limit_state(&self) -> Result<LimitState>;

    /// Stores the next version, whose canary begins with it.
    ///
    /// # Errors
    /// `Conflict` while another version is in its canary; `Invalid` for limits out of bounds.
    async fn put_limits(&self, new: NewLimits) -> Result<LimitState>;

    /// Stores the end of the version in its canary: promoted or rolled back.
    ///
    /// # Errors
    /// `Conflict` if it is not in its canary, or the outcome is a revert.
    async fn end_canary(&self, end: LimitEnd) -> Result<LimitState>;

    /// Takes back the version in its canary, else the one in force; `end.version` is what the caller saw there.
    ///
    /// # Errors
    /// `Conflict` if another version is there now, or only the built-in limits are in force.
    async fn revert_limits(&self, end: LimitEnd) -> Result<LimitState>;

    /// Returns every version with what became of it, newest first.
    async fn limit_versions(&self, limit: u32, cursor: Option<String>) -> Result<Page<LimitHistory>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_holds_for_about_its_share_of_the_keys_and_each_version_draws_others() {
        let first = LimitVersion { version: 1, share_percent: 5, ..LimitVersion::built_in() };
        let second = LimitVersion { version: 2, ..first.clone() };
        let keys: Vec<String> = (0..20_000).map(|number| format!("key{number}")).collect();
        let tries = |version: &LimitVersion| keys.iter().filter(|key| version.tries(key)).count();
        assert!((900..1_100).contains(&tries(&first)), "{}", tries(&first));
        let both = keys.iter().filter(|key| first.tries(key) && second.tries(key)).count();
        assert!(both < 100, "a key tries both by chance only, and {both} do");
        let all = LimitVersion { share_percent: 100, ..first.clone() };
        let none = LimitVersion { share_percent: 0, ..first };
        assert!(keys.iter().all(|key| all.tries(key) && !none.tries(key)));
    }

    #[test]
    fn limits_out_of_bounds_are_refused_in_words() {
        for limits in built_in_limits().values() {
            limits.validate().expect("the built-in limits are limits");
        }
        let refused =
            |floor, ceiling, burst| TierLimits { floor, ceiling, burst }.validate().expect_err("bad");
        assert!(refused(0, 1, 1).contains("floor is 0"));
        assert!(refused(2, 1, 1).contains("ceiling 1 lies below floor 2"));
        assert!(refused(1, 1, LIMIT_CLICKS_MAX + 1).contains("burst"));
    }
}
