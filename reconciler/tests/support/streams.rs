//! Small random streams: clicks in disorder, verdicts and rates that fit them.

use proptest::prelude::*;
use twice_log::archive::Rate;
use twice_log::{Click, UserId, Verdict, VerdictClass};

use super::{at, click, rate, verdict};

/// A stream in some disorder: most clicks in the hour, some beside its borders, ids that come back with other payloads.
pub fn clicks() -> impl Strategy<Value = Vec<Click>> {
    let event = prop_oneof![6 => 0_i64..3600, 1 => -700_i64..0, 1 => 3600_i64..4300, 1 => -3600_i64..7200, 1 => -9000_i64..-3600];
    let one = (1_u8..5, 0_u32..14, event, prop_oneof![4 => Just(1_i64), 1 => 0_i64..1500], 0_u8..2);
    let clicks = prop::collection::vec((one, any::<bool>()), 0..70);
    clicks.prop_map(|drawn| {
        let mut clicks: Vec<Click> = Vec::new();
        for ((campaign, id, event, delay, ad), is_retry) in drawn {
            let again = clicks.iter().rev().find(|click| click.campaign_id == super::campaign(campaign));
            match again.filter(|_| is_retry) {
                Some(again) => clicks.push(again.clone()),
                None => clicks.push(with_user(click(campaign, id, event, delay, ad), id, event)),
            }
        }
        // Roughly in order of arrival, as a log is; retries and late ones stay out of it.
        let middle = clicks.len() / 2;
        clicks[..middle].sort_by_key(|click| click.arrival_time);
        clicks
    })
}

pub fn verdicts() -> impl Strategy<Value = Vec<Verdict>> {
    let class = prop_oneof![Just(VerdictClass::Valid), Just(VerdictClass::Givt), Just(VerdictClass::Sivt)];
    let arrival = prop_oneof![3 => 0_i64..20_000, 1 => -90_000_i64..-80_000, 1 => Just(-86_400_i64), 1 => Just(-86_401_i64)];
    let one = (1_u8..5, 0_u32..14, class, 0_i64..4, arrival);
    let verdicts = prop::collection::vec(one, 0..20);
    verdicts.prop_map(|drawn| {
        drawn
            .into_iter()
            .map(|(campaign, id, class, decided, arrival)| {
                verdict(campaign, id, class, at(decided), at(arrival))
            })
            .collect()
    })
}

pub fn rates() -> impl Strategy<Value = Vec<Rate>> {
    let effective = prop_oneof![Just(-100_000_i64), Just(0), 0_i64..3599];
    let one = (1_u8..4, 1_i64..1000, effective, 0_i64..3);
    let rates = prop::collection::vec(one, 0..10);
    rates.prop_map(|drawn| {
        let mut rates: Vec<Rate> = drawn
            .into_iter()
            .map(|(campaign, cpc, effective, recorded)| rate(campaign, cpc, at(effective), at(recorded)))
            .collect();
        rates.sort_by(|left, right| {
            (&left.campaign_id, left.effective_from, left.recorded_at).cmp(&(
                &right.campaign_id,
                right.effective_from,
                right.recorded_at,
            ))
        });
        rates
    })
}

/// Gives a click one of a few users, or none.
fn with_user(click: Click, id: u32, event: i64) -> Click {
    let user = (i64::from(id) + event).rem_euclid(6);
    let user_id =
        if user == 0 { UserId::default() } else { UserId::new(format!("u_{user}")).expect("valid id") };
    Click { user_id, ..click }
}
