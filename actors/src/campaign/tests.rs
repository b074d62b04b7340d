//! CampaignState against a naive model that looks at every copy before each.

use std::collections::BTreeMap;

use proptest::prelude::*;
use twice_log::archive::CountingSettings;
use twice_log::{CampaignId, ClickCopy, Generation, Hour, LogOffset};
use twice_store::windows::Fence;

use super::{CampaignState, SealEnds, StreamRules, Tallies};
use crate::testing::{
    Counts, NOON_MS, Planned, clicks, copies, naive_counts, plans, row_counts, state_counts,
};

/// Panics on a copy made to kill its actor: `ad_id` "poison".
pub(super) fn panic_on_poison(copy: &ClickCopy) {
    assert_ne!(copy.click.ad_id.as_str(), "poison", "poisoned copy");
}

/// Applies copies in batches of the sizes given, grouped by campaign as a partition does.
fn apply(
    copies: &[ClickCopy],
    seals: &SealEnds,
    sizes: &[usize],
) -> (BTreeMap<CampaignId, CampaignState>, Tallies) {
    let rules = StreamRules::new(&CountingSettings::default());
    let mut states: BTreeMap<CampaignId, CampaignState> = BTreeMap::new();
    let mut tallies = Tallies::default();
    let mut rest = copies;
    for size in sizes.iter().cycle() {
        let (batch, next) = rest.split_at((*size).min(rest.len()));
        let mut groups: BTreeMap<CampaignId, Vec<ClickCopy>> = BTreeMap::new();
        batch
            .iter()
            .for_each(|copy| groups.entry(copy.click.campaign_id.clone()).or_default().push(copy.clone()));
        for (campaign, copies) in groups {
            let state = states.entry(campaign.clone()).or_insert_with(|| CampaignState::new(campaign, rules));
            tallies += state.apply(copies, seals, |_| {});
        }
        rest = next;
        if rest.is_empty() {
            return (states, tallies);
        }
    }
    (states, tallies)
}

fn planned_copies(plans: &[Planned]) -> Vec<ClickCopy> {
    copies(&clicks(plans, NOON_MS - 400_000), &CountingSettings::default())
}

fn fence(applied: i64) -> Fence {
    Fence { lease_epoch: 0, generation: Generation(0), applied: LogOffset(applied) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn windows_equal_the_naive_model(
        plans in plans(300),
        sizes in proptest::collection::vec(1..80_usize, 1..4),
        seal_at in proptest::option::of(0..300_i64),
    ) {
        let copies = planned_copies(&plans);
        let hour = Hour::from_since_epoch(NOON_MS / 3_600_000);
        let seals: SealEnds = seal_at.map(|end| (hour, LogOffset(end))).into_iter().collect();
        let (states, tallies) = apply(&copies, &seals, &sizes);
        let expected = naive_counts(&copies, &seals, &CountingSettings::default());
        let counted: u64 = expected.values().map(|counted| counted.clicks).sum();
        prop_assert_eq!(state_counts(states.values()), expected);
        prop_assert_eq!(tallies.counted, counted);
        prop_assert_eq!(tallies.counted + tallies.duplicates + tallies.late, copies.len() as u64);
    }

    #[test]
    fn replaying_applied_copies_counts_nothing(plans in plans(150), from in 0..150_usize) {
        let copies = planned_copies(&plans);
        let (mut states, _) = apply(&copies, &SealEnds::new(), &[50]);
        let before = state_counts(states.values());
        for copy in copies.iter().skip(from) {
            let state = states.get_mut(&copy.click.campaign_id).expect("applied before");
            let tallies = state.apply(vec![copy.clone()], &SealEnds::new(), |_| {});
            prop_assert_eq!(tallies, Tallies::default());
        }
        prop_assert_eq!(state_counts(states.values()), before);
    }

    #[test]
    fn the_rows_taken_last_are_the_windows(plans in plans(200), size in 1..60_usize) {
        let copies = planned_copies(&plans);
        let rules = StreamRules::new(&CountingSettings::default());
        let mut states: BTreeMap<CampaignId, CampaignState> = BTreeMap::new();
        let mut published = Counts::new();
        for batch in copies.chunks(size) {
            for copy in batch {
                let campaign = copy.click.campaign_id.clone();
                let state = states.entry(campaign.clone()).or_insert_with(|| CampaignState::new(campaign, rules));
                state.apply(vec![copy.clone()], &SealEnds::new(), |_| {});
            }
            for state in states.values_mut() {
                published.extend(row_counts(state.take_windows(fence(0), false)));
            }
        }
        prop_assert_eq!(published, state_counts(states.values()));
    }
}

#[test]
fn a_chain_of_copies_counts_once_however_long_it_grows() {
    // Nine minutes apart each: every copy is a duplicate of the one before it, though not of the first.
    let copy = |_| Planned { campaign: 0, identity: 1, ad: 0, user: 0, age_ms: 0, step_ms: 540_000 };
    let plans: Vec<Planned> = (0..10).map(copy).collect();
    let (_, tallies) = apply(&planned_copies(&plans), &SealEnds::new(), &[1]);
    assert_eq!(tallies, Tallies { counted: 1, duplicates: 9, late: 0 });
}

#[test]
fn a_late_copy_makes_a_duplicate_of_the_next_one() {
    let plan = |identity, age_ms, step_ms| Planned { campaign: 0, identity, ad: 0, user: 0, age_ms, step_ms };
    let plans = [plan(9, 0, 0), plan(1, 300_000, 0), plan(1, 0, 0)];
    let (_, tallies) = apply(&planned_copies(&plans), &SealEnds::new(), &[1]);
    assert_eq!(tallies, Tallies { counted: 1, duplicates: 1, late: 1 });
}

#[test]
fn closing_an_hour_returns_its_count_and_forgets_its_windows() {
    let plan = |identity, step_ms| Planned { campaign: 0, identity, ad: 0, user: 0, age_ms: 0, step_ms };
    let copies = planned_copies(&[plan(1, 0), plan(2, 0), plan(3, 1_000_000)]);
    let (mut states, _) = apply(&copies, &SealEnds::new(), &[10]);
    let state = states.values_mut().next().expect("one campaign");
    state.take_windows(fence(2), false);
    let eleven = Hour::from_since_epoch(NOON_MS / 3_600_000 - 1);
    let closed = state.close_hours(&[eleven]);
    assert_eq!(
        closed.iter().map(|closed| (closed.hour, closed.counted)).collect::<Vec<_>>(),
        vec![(eleven, 2)]
    );
    assert_eq!(state.hours(), vec![eleven.plus(1)]);
}

#[test]
fn dedup_memory_is_given_back_once_it_decides_nothing() {
    let plan = |identity| Planned { campaign: 0, identity, ad: 0, user: 0, age_ms: 0, step_ms: 60_000 };
    let plans: Vec<Planned> = (0..240).map(|number| plan(number as u8)).collect();
    let (states, _) = apply(&planned_copies(&plans), &SealEnds::new(), &[7]);
    let state = states.values().next().expect("one campaign");
    let oldest = state.oldest_dedup().expect("recent ones").latest.epoch_ms();
    let newest = plans.len() as i64 * 60_000 + NOON_MS - 400_000;
    assert!(newest - oldest < 20 * 60_000, "{} ms are remembered", newest - oldest);
}
