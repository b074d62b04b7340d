//! What holds for whom now: the version in force, and the one in its canary beside it.
//!
//! Guarantee: a version that goes on holding keeps its buckets and its place between floor and ceiling: a promotion gives no
//! key a new burst.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, counter, gauge};
use twice_log::Clock;
use twice_store::{LimitCounts, LimitFigures, LimitState, LimitVersion, Tier, TierLimits, built_in_limits};

use super::adapt::{Adaptive, Signal};
use super::buckets::Buckets;
use super::tokens::TokenClock;
use crate::metrics as names;

pub(super) const TIERS: [Tier; 2] = [Tier::Standard, Tier::Premium];

/// Returns the name of a tier in metrics and answers.
pub(crate) fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Standard => "standard",
        Tier::Premium => "premium",
    }
}

/// What became of a request, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Accepted,
    Limited,
    Spilled,
}

impl Fate {
    const ALL: [Fate; 3] = [Fate::Accepted, Fate::Limited, Fate::Spilled];

    fn name(self) -> &'static str {
        match self {
            Fate::Accepted => "accepted",
            Fate::Limited => "limited",
            Fate::Spilled => "spilled",
        }
    }
}

/// One tier under one version.
pub(super) struct TierInForce {
    pub limits: TierLimits,
    pub buckets: Buckets,
    clock: TokenClock,
    adaptive: Mutex<Adaptive>,
    /// By [`Fate`]: requests and clicks. Registered once: to look them up again costs more than the decision.
    counters: [(Counter, Counter); 3],
    gauge: Gauge,
}

impl TierInForce {
    fn new(tier: Tier, version: &LimitVersion, wall: &Arc<dyn Clock>) -> Self {
        let limits = version.tiers.get(&tier).copied().or_else(|| built_in_limits().get(&tier).copied());
        // Both have every tier.
        let limits = limits.unwrap_or(TierLimits { floor: 1, ceiling: 1, burst: 1 });
        let adaptive = Adaptive::new(tier, limits);
        let clock = TokenClock::new(wall.clone(), adaptive.clicks_per_second());
        let burst = NonZeroU32::new(limits.burst).unwrap_or(NonZeroU32::MIN);
        let (tier_label, version_label) = (tier_name(tier), version.version.to_string());
        let counters = Fate::ALL.map(|fate| {
            let labels = [
                ("tier", tier_label.to_owned()),
                ("version", version_label.clone()),
                ("outcome", fate.name().to_owned()),
            ];
            (counter!(names::LIMITS_REQUESTS_TOTAL, &labels), counter!(names::LIMITS_CLICKS_TOTAL, &labels))
        });
        let gauge = gauge!(names::LIMITS_IN_FORCE, "tier" => tier_label, "version" => version_label);
        gauge.set(f64::from(adaptive.clicks_per_second()));
        let buckets = Buckets::new(clock.clone(), burst);
        Self { limits, buckets, clock, adaptive: Mutex::new(adaptive), counters, gauge }
    }

    /// Lets the limit follow what was measured.
    fn step(&self, signal: Signal) {
        let mut adaptive = self.adaptive.lock().unwrap_or_else(PoisonError::into_inner);
        let before = adaptive.clicks_per_second();
        let limit = adaptive.step(signal);
        if limit != before {
            self.clock.set_limit(limit);
        }
        self.gauge.set(f64::from(limit));
    }

    /// Returns the limit in force, clicks a second.
    pub fn clicks_per_second(&self) -> u32 {
        self.clock.limit()
    }

    pub fn count(&self, fate: Fate, clicks: u32) {
        let (requests, of_clicks) = &self.counters[fate as usize];
        requests.increment(1);
        of_clicks.increment(u64::from(clicks));
    }
}

/// A version with the state of its limits.
pub(super) struct InForce {
    pub version: LimitVersion,
    tiers: [TierInForce; 2],
}

impl InForce {
    fn new(version: LimitVersion, wall: &Arc<dyn Clock>) -> Arc<Self> {
        let tiers = TIERS.map(|tier| TierInForce::new(tier, &version, wall));
        Arc::new(Self { version, tiers })
    }

    pub fn tier(&self, tier: Tier) -> &TierInForce {
        match tier {
            Tier::Standard => &self.tiers[0],
            Tier::Premium => &self.tiers[1],
        }
    }

    fn end(&self) {
        self.tiers.iter().for_each(|tier| tier.gauge.set(0.0));
    }
}

/// Requests of one group of keys.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    over: AtomicU64,
}

impl Counts {
    fn count(&self, is_over: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.over.fetch_add(u64::from(is_over), Ordering::Relaxed);
    }

    fn read(&self) -> LimitCounts {
        // Over first: a request counted between the two reads must not look like one over.
        let over = self.over.load(Ordering::Relaxed);
        LimitCounts { requests: self.requests.load(Ordering::Relaxed).max(over), over }
    }
}

/// A version in its canary, and what both groups of keys did meanwhile.
pub(super) struct Canary {
    pub in_force: Arc<InForce>,
    tried: Counts,
    rest: Counts,
    /// Time this process watched it.
    pub watched_ms: AtomicU64,
}

impl Canary {
    /// Counts a decision by these limits in the figures the version is judged by.
    pub fn decided(&self, by: &Arc<InForce>, is_over: bool) {
        let counts = if Arc::ptr_eq(by, &self.in_force) { &self.tried } else { &self.rest };
        counts.count(is_over);
    }

    pub fn figures(&self) -> LimitFigures {
        LimitFigures { canary: self.tried.read(), rest: self.rest.read() }
    }
}

/// Everything that holds now.
#[derive(Clone)]
pub(super) struct Plan {
    pub in_force: Arc<InForce>,
    pub canary: Option<Arc<Canary>>,
}

impl Plan {
    /// Builds what the stored state says, as at a start.
    pub fn new(state: LimitState, wall: &Arc<dyn Clock>) -> Self {
        let in_force = InForce::new(state.in_force, wall);
        let canary = state.canary.map(|version| Arc::new(canary(version, wall)));
        Self { in_force, canary }
    }

    /// Builds what the stored state says now, and keeps what goes on.
    pub fn follow(&self, state: LimitState, wall: &Arc<dyn Clock>) -> Self {
        let held: Vec<&Arc<InForce>> =
            self.canary.iter().map(|canary| &canary.in_force).chain([&self.in_force]).collect();
        let number = state.in_force.version;
        let kept = held.iter().find(|held| held.version.version == number);
        let in_force = kept.map_or_else(|| InForce::new(state.in_force, wall), |kept| Arc::clone(kept));
        let canary = state.canary.map(|version| match &self.canary {
            Some(going_on) if going_on.in_force.version.version == version.version => going_on.clone(),
            _ => Arc::new(canary(version, wall)),
        });
        let next = Self { in_force, canary };
        for version in held {
            if !next.versions().any(|going_on| Arc::ptr_eq(going_on, version)) {
                version.end();
            }
        }
        next
    }

    /// Says whether the stored state is what holds.
    pub fn is(&self, state: &LimitState) -> bool {
        let canary = self.canary.as_ref().map(|canary| canary.in_force.version.version);
        self.in_force.version.version == state.in_force.version
            && canary == state.canary.as_ref().map(|version| version.version)
    }

    /// Returns the limits of a key.
    pub fn of(&self, key_id: &str) -> &Arc<InForce> {
        match &self.canary {
            Some(canary) if canary.in_force.version.tries(key_id) => &canary.in_force,
            _ => &self.in_force,
        }
    }

    /// Lets every limit follow what was measured.
    pub fn step(&self, signal: Signal) {
        self.versions().flat_map(|version| &version.tiers).for_each(|tier| tier.step(signal));
    }

    /// Forgets buckets that are as good as new.
    pub fn forget_full(&self) {
        self.versions().flat_map(|version| &version.tiers).for_each(|tier| tier.buckets.forget_full());
    }

    fn versions(&self) -> impl Iterator<Item = &Arc<InForce>> {
        [&self.in_force].into_iter().chain(self.canary.iter().map(|canary| &canary.in_force))
    }
}

fn canary(version: LimitVersion, wall: &Arc<dyn Clock>) -> Canary {
    Canary {
        in_force: InForce::new(version, wall),
        tried: Counts::default(),
        rest: Counts::default(),
        watched_ms: AtomicU64::new(0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tests::HandClock;
    use super::*;

    fn version(number: u32, share_percent: u8) -> LimitVersion {
        let limits = TierLimits { floor: 10, ceiling: 100 * number, burst: 50 };
        let tiers = TIERS.map(|tier| (tier, limits)).into();
        LimitVersion { version: number, tiers, share_percent, ..LimitVersion::built_in() }
    }

    fn state(in_force: u32, canary: Option<u32>) -> LimitState {
        LimitState { in_force: version(in_force, 50), canary: canary.map(|number| version(number, 50)) }
    }

    fn number_of(plan: &Plan, key_id: &str) -> u32 {
        plan.of(key_id).version.version
    }

    #[test]
    fn a_canary_holds_for_its_keys_alone_and_both_groups_are_counted() {
        let wall: Arc<dyn Clock> = HandClock::new();
        let plan = Plan::new(state(1, Some(2)), &wall);
        let keys: Vec<String> = (0..100).map(|number| format!("key{number}")).collect();
        let canary = plan.canary.as_ref().expect("a canary");
        let mut tried = 0;
        for key in &keys {
            let in_force = plan.of(key);
            let is_tried = in_force.version.version == 2;
            assert_eq!(is_tried, canary.in_force.version.tries(key));
            tried += u64::from(is_tried);
            canary.decided(in_force, is_tried);
        }
        let figures = canary.figures();
        assert_eq!(figures.canary, LimitCounts { requests: tried, over: tried });
        assert_eq!(figures.rest, LimitCounts { requests: 100 - tried, over: 0 });
        assert!((30..70).contains(&tried));
    }

    #[test]
    fn a_promotion_gives_no_key_a_new_burst_and_a_roll_back_leaves_the_rest_alone() {
        let wall: Arc<dyn Clock> = HandClock::new();
        let plan = Plan::new(state(1, Some(2)), &wall);
        let key = (0..).map(|number| format!("key{number}")).find(|key| number_of(&plan, key) == 2);
        let key = key.expect("one of the canary");
        let rest = (0..).map(|number| format!("key{number}")).find(|key| number_of(&plan, key) == 1);
        let rest = rest.expect("one of the rest");
        let take = |plan: &Plan, key: &str| plan.of(key).tier(Tier::Standard).buckets.of(key).take(50);
        take(&plan, &key).expect("a full bucket");
        take(&plan, &rest).expect("a full bucket");

        let promoted = plan.follow(state(2, None), &wall);
        assert_eq!((number_of(&promoted, &key), number_of(&promoted, &rest)), (2, 2));
        assert!(take(&promoted, &key).is_err());

        let rolled_back = plan.follow(state(1, None), &wall);
        assert_eq!(number_of(&rolled_back, &key), 1);
        assert!(take(&rolled_back, &rest).is_err());
        assert!(rolled_back.is(&state(1, None)) && !rolled_back.is(&state(1, Some(2))));
    }

    #[test]
    fn a_version_put_beside_another_one_changes_nothing_for_the_rest() {
        let wall: Arc<dyn Clock> = HandClock::new();
        let plan = Plan::new(state(1, None), &wall);
        plan.step(Signal::SpoolFill);
        assert_eq!(plan.in_force.tier(Tier::Standard).clicks_per_second(), 50);
        let next = plan.follow(state(1, Some(2)), &wall);
        assert_eq!(next.in_force.tier(Tier::Standard).clicks_per_second(), 50);
        next.step(Signal::SpoolFill);
        let canary = &next.canary.as_ref().expect("a canary").in_force;
        assert_eq!(canary.tier(Tier::Standard).clicks_per_second(), 100, "it follows by itself");
        assert_eq!(next.in_force.tier(Tier::Standard).clicks_per_second(), 25);
    }
}
