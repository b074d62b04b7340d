//! How much of a tier's limit is in force: pure decisions from what was measured.
//!
//! Words: *headroom* = what was measured of the parts behind the gateway; *signal* = the worst of it. Flow: about once a
//! second the headroom is judged; while there is room, each tier's limit rises by a fixed step, and when something is short
//! it is cut by a share, as senders of TCP do it: many gateways over one log come to fair shares without knowing each other.
//! Standard tiers are cut deeper and rise slower, so that they give way first.

use twice_store::{Tier, TierLimits};

/// What was measured of the parts behind the gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Headroom {
    /// Smoothed p99 of durable appends.
    pub acknowledge_ms: u32,
    /// Clicks in the log that the slowest partition has not yet applied; 0 where the stream path does not say.
    pub lag_records: u64,
    /// How full the fullest queue on local disk is.
    pub spool_percent: u32,
}

/// From where on a part is short of room; each is still within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub acknowledge_ms_max: u32,
    pub lag_records_max: u64,
    pub spool_percent_max: u32,
}

/// What decides about the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// There is room.
    Room,
    /// Appends take too long.
    AppendLatency,
    /// The stream path is behind.
    StreamLag,
    /// A queue on local disk fills.
    SpoolFill,
}

impl Signal {
    /// All that say that something is short.
    pub const SHORT: [Signal; 3] = [Signal::AppendLatency, Signal::StreamLag, Signal::SpoolFill];

    /// Returns the name in metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Room => "room",
            Signal::AppendLatency => "append_latency",
            Signal::StreamLag => "stream_lag",
            Signal::SpoolFill => "spool_fill",
        }
    }

    /// Judges the headroom. Of several the one nearest to a refusal counts: a full queue, then a slow log, then lag.
    pub fn of(headroom: &Headroom, bounds: &Bounds) -> Self {
        if headroom.spool_percent > bounds.spool_percent_max {
            Signal::SpoolFill
        } else if headroom.acknowledge_ms > bounds.acknowledge_ms_max {
            Signal::AppendLatency
        } else if headroom.lag_records > bounds.lag_records_max {
            Signal::StreamLag
        } else {
            Signal::Room
        }
    }
}

/// The limit of one tier between its floor and its ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Adaptive {
    limits: TierLimits,
    /// What a cut leaves, percent.
    kept_percent: u64,
    /// Steps from floor to ceiling.
    steps: u32,
    clicks_per_second: u32,
}

impl Adaptive {
    /// Begins at the ceiling: where nothing was measured yet, nothing is short.
    pub fn new(tier: Tier, limits: TierLimits) -> Self {
        let (kept_percent, steps) = match tier {
            Tier::Standard => (50, 20),
            Tier::Premium => (80, 10),
        };
        Self { limits, kept_percent, steps, clicks_per_second: limits.ceiling }
    }

    /// Returns the limit in force, clicks a second.
    pub fn clicks_per_second(&self) -> u32 {
        self.clicks_per_second
    }

    /// Takes one step and returns the limit in force.
    pub fn step(&mut self, signal: Signal) -> u32 {
        let TierLimits { floor, ceiling, .. } = self.limits;
        self.clicks_per_second = if signal == Signal::Room {
            let step = (ceiling - floor).div_ceil(self.steps);
            self.clicks_per_second.saturating_add(step).min(ceiling)
        } else {
            // Smaller than before, so it fits.
            let kept = (u64::from(self.clicks_per_second) * self.kept_percent / 100) as u32;
            kept.max(floor)
        };
        self.clicks_per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { acknowledge_ms_max: 100, lag_records_max: 500_000, spool_percent_max: 50 };
    const LIMITS: TierLimits = TierLimits { floor: 1_000, ceiling: 50_000, burst: 50_000 };

    #[test]
    fn what_is_nearest_to_a_refusal_decides() {
        let mut headroom = Headroom { acknowledge_ms: 100, lag_records: 500_000, spool_percent: 50 };
        assert_eq!(Signal::of(&headroom, &BOUNDS), Signal::Room, "the bounds themselves are within");
        headroom.lag_records += 1;
        assert_eq!(Signal::of(&headroom, &BOUNDS), Signal::StreamLag);
        headroom.acknowledge_ms += 1;
        assert_eq!(Signal::of(&headroom, &BOUNDS), Signal::AppendLatency);
        headroom.spool_percent += 1;
        assert_eq!(Signal::of(&headroom, &BOUNDS), Signal::SpoolFill);
    }

    #[test]
    fn the_limit_never_leaves_floor_and_ceiling() {
        for limits in [LIMITS, TierLimits { floor: 7, ceiling: 7, burst: 1 }] {
            for tier in [Tier::Standard, Tier::Premium] {
                let mut adaptive = Adaptive::new(tier, limits);
                let mut random = 0x9e37_79b9_7f4a_7c15_u64;
                for _ in 0..5_000 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let signal = if random.is_multiple_of(3) { Signal::StreamLag } else { Signal::Room };
                    let limit = adaptive.step(signal);
                    assert!((limits.floor..=limits.ceiling).contains(&limit), "{tier:?} {limit}");
                }
            }
        }
    }

    #[test]
    fn shortness_leads_to_the_floor_and_room_back_to_the_ceiling() {
        let mut adaptive = Adaptive::new(Tier::Standard, LIMITS);
        let down = (1..).find(|_| adaptive.step(Signal::SpoolFill) == LIMITS.floor).expect("the floor");
        let up = (1..).find(|_| adaptive.step(Signal::Room) == LIMITS.ceiling).expect("the ceiling");
        assert!((down, up) == (6, 20), "down in {down} steps, up in {up}");
    }

    /// A log that takes so many clicks a second; what comes above waits, and waiting is latency.
    struct Plant {
        capacity: u64,
        waiting: u64,
    }

    impl Plant {
        /// One second with so many clicks; returns what a gateway would measure then.
        fn second(&mut self, clicks: u64) -> Headroom {
            self.waiting = (self.waiting + clicks).saturating_sub(self.capacity);
            let acknowledge_ms = (self.waiting * 1_000 / self.capacity).min(60_000) as u32;
            Headroom { acknowledge_ms, ..Headroom::default() }
        }
    }

    /// Runs `seconds` with keys that always send what they may, and returns the mean sent in the later half.
    fn run(plant: &mut Plant, tiers: &mut [(Adaptive, u64)], seconds: u64) -> Vec<u64> {
        let mut sent = vec![0; tiers.len()];
        for second in 0..seconds {
            let of_tier = |(adaptive, keys): &(Adaptive, u64)| u64::from(adaptive.clicks_per_second()) * keys;
            let clicks: Vec<u64> = tiers.iter().map(of_tier).collect();
            let signal = Signal::of(&plant.second(clicks.iter().sum()), &BOUNDS);
            tiers.iter_mut().for_each(|(adaptive, _)| {
                adaptive.step(signal);
            });
            if second >= seconds / 2 {
                sent.iter_mut().zip(clicks).for_each(|(sum, clicks)| *sum += clicks);
            }
        }
        sent.into_iter().map(|sum| sum / (seconds - seconds / 2)).collect()
    }

    #[test]
    fn keys_that_send_all_they_may_are_held_to_what_the_log_takes_and_let_go_when_it_takes_more() {
        let mut plant = Plant { capacity: 100_000, waiting: 0 };
        let mut tiers = [(Adaptive::new(Tier::Standard, LIMITS), 10)];
        let held = run(&mut plant, &mut tiers, 1_000)[0];
        assert!((60_000..=101_000).contains(&held), "{held} of 100 000 clicks a second");
        plant.capacity = 1_000_000;
        let free = run(&mut plant, &mut tiers, 200)[0];
        assert_eq!(free, 500_000, "all ten at their ceiling");
        plant.capacity = 20_000;
        let held = run(&mut plant, &mut tiers, 2_000)[0];
        assert!((10_000..=20_400).contains(&held), "{held} of 20 000 clicks a second");
    }

    #[test]
    fn standard_keys_give_way_before_premium_ones() {
        let mut plant = Plant { capacity: 100_000, waiting: 0 };
        let standard = (Adaptive::new(Tier::Standard, LIMITS), 5);
        let premium = (Adaptive::new(Tier::Premium, LIMITS), 5);
        let sent = run(&mut plant, &mut [standard, premium], 2_000);
        assert!(sent[1] > 2 * sent[0], "standard {} and premium {}", sent[0], sent[1]);
    }
}
