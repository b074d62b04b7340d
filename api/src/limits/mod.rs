//! Rate limits: how many clicks a key may send, by tier, following the room behind the gateway, in versions.
//!
//! Guarantee: a batch is taken whole or refused whole, so that a 429 means that nothing was stored; a version takes effect
//! only after it is durable, and so does its end. Words: *tokens* are clicks, not requests; *over* = the bucket holds too
//! little: for tier standard an answer 429, for tier premium the spill queue and an acknowledgement; *headroom* and
//! *signal* stand in `adapt`, *canary* in `twice_store::limits`.
//! Flow of a request: [`RateLimits::of`] finds the key's bucket in the plan, [`Allowance::glance`] refuses before the body
//! is read where not one click would pass, [`Allowance::take`] decides about the batch, [`Allowance::settle`] gives back
//! what was not used. Flow of a second: [`RateLimits::run`] measures, moves every limit, judges the canary.
//! Files: `tokens` one bucket; `buckets` those of a tier; `adapt`, `canary` and `latency` the pure decisions; `plan` what
//! holds for whom; `watch` what happens every second.
//!
//! A node without keys has no limits: it listens on loopback only, and there is nobody to tell apart.

mod adapt;
mod allowance;
mod buckets;
mod canary;
mod config;
mod latency;
mod plan;
mod tokens;
mod watch;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex;
use twice_log::Clock;
use twice_store::limits::LimitStore;
use twice_store::{
    LimitEnd, LimitFigures, LimitHistory, LimitOutcome, LimitState, LimitVersion, NewLimits, Page, Tier,
    Tiers,
};

pub(crate) use allowance::{Allowance, Passage};
pub(crate) use config::CANARY_MS;
pub use config::LimitsConfig;
pub(crate) use plan::tier_name;

use self::adapt::Signal;
use self::latency::Latency;
use self::plan::Plan;
use crate::caller::Caller;

/// The limits of a node's gateway. All workers share one.
pub struct RateLimits {
    clock: Arc<dyn Clock>,
    store: Arc<dyn LimitStore>,
    config: LimitsConfig,
    plan: RwLock<Arc<Plan>>,
    /// Held from the read of what is stored until it holds, so that an older state never replaces a newer one.
    changes: Mutex<()>,
    latency: Latency,
    totals: Totals,
    /// What decided about the limits last, as its place in [`SIGNALS`].
    signal: AtomicU8,
}

const SIGNALS: [Signal; 4] = [Signal::Room, Signal::AppendLatency, Signal::StreamLag, Signal::SpoolFill];

/// Requests since the start.
#[derive(Debug, Default)]
struct Totals {
    requests: AtomicU64,
    /// Those answered 429.
    limited: AtomicU64,
}

/// What administrators see of a version that holds.
pub(crate) struct HeldView {
    pub version: LimitVersion,
    /// The limit in force of each tier, clicks a second.
    pub clicks_per_second: Vec<(Tier, u32)>,
}

/// What administrators see of everything.
pub(crate) struct View {
    pub in_force: HeldView,
    pub canary: Option<(HeldView, LimitFigures)>,
    pub signal: &'static str,
}

impl RateLimits {
    /// Reads which versions hold, and begins with them: a canary goes on, its figures begin anew.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn open(
        store: Arc<dyn LimitStore>,
        clock: Arc<dyn Clock>,
        config: LimitsConfig,
    ) -> twice_store::Result<Arc<Self>> {
        let state = store.limit_state().await?;
        let plan = RwLock::new(Arc::new(Plan::new(state, &clock)));
        Ok(Arc::new(Self {
            clock,
            store,
            config,
            plan,
            changes: Mutex::new(()),
            latency: Latency::default(),
            totals: Totals::default(),
            signal: AtomicU8::new(0),
        }))
    }

    /// Returns what the caller may send.
    pub(crate) fn of(self: &Arc<Self>, caller: &Caller) -> Allowance {
        match caller.key {
            None => Allowance::unlimited(self.clone()),
            Some(_) => Allowance::of_key(self.clone(), &self.plan(), &caller.key_id, caller.tier()),
        }
    }

    /// Stores the next version and begins its canary.
    ///
    /// # Errors
    /// `Conflict` while another one is in its canary.
    pub(crate) async fn put(
        &self,
        tiers: Tiers,
        note: String,
        canary_ms: Option<u64>,
        created_by: String,
    ) -> twice_store::Result<View> {
        let new = NewLimits {
            tiers,
            created_at: self.clock.now(),
            created_by,
            note,
            share_percent: self.config.limits_canary_percent,
            canary_ms: canary_ms.unwrap_or(self.config.limits_canary_ms),
        };
        let _turn = self.changes.lock().await;
        self.follow(self.store.put_limits(new).await?);
        Ok(self.view())
    }

    /// Takes back the version in its canary, else the one in force, and returns its number.
    ///
    /// # Errors
    /// `Conflict` if only the limits built in are in force.
    pub(crate) async fn revert(&self, decided_by: String) -> twice_store::Result<(u32, View)> {
        let _turn = self.changes.lock().await;
        // What another gateway changed is taken back too, not what this one last saw.
        self.follow(self.store.limit_state().await?);
        let plan = self.plan();
        let (version, figures) = match &plan.canary {
            Some(canary) => (canary.in_force.version.version, canary.figures()),
            None => (plan.in_force.version.version, LimitFigures::default()),
        };
        let end = LimitEnd {
            version,
            outcome: LimitOutcome::Reverted,
            at: self.clock.now(),
            decided_by,
            detail: "asked for".to_owned(),
            figures,
        };
        self.follow(self.store.revert_limits(end).await?);
        Ok((version, self.view()))
    }

    /// Returns every version with what became of it, newest first.
    pub(crate) async fn versions(
        &self,
        limit: u32,
        cursor: Option<String>,
    ) -> twice_store::Result<Page<LimitHistory>> {
        self.store.limit_versions(limit, cursor).await
    }

    /// Returns what holds now.
    pub(crate) fn view(&self) -> View {
        let plan = self.plan();
        let held = |in_force: &plan::InForce| HeldView {
            version: in_force.version.clone(),
            clicks_per_second: plan::TIERS
                .map(|tier| (tier, in_force.tier(tier).clicks_per_second()))
                .to_vec(),
        };
        let signal = SIGNALS[usize::from(self.signal.load(Ordering::Relaxed)) % SIGNALS.len()];
        View {
            in_force: held(&plan.in_force),
            canary: plan.canary.as_ref().map(|canary| (held(&canary.in_force), canary.figures())),
            signal: signal.name(),
        }
    }

    /// Lets what is stored hold.
    fn follow(&self, state: LimitState) {
        let plan = self.plan();
        if !plan.is(&state) {
            let next = Arc::new(plan.follow(state, &self.clock));
            *self.plan.write().unwrap_or_else(PoisonError::into_inner) = next;
        }
    }

    fn plan(&self) -> Arc<Plan> {
        self.plan.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
