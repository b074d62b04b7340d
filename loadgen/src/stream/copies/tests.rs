use std::collections::{HashMap, HashSet};

use super::*;
use crate::stream::settings::tests::settings;

fn stream(flags: &str, copies: u64) -> ClickStream {
    ClickStream::new(settings(flags, copies).expect("valid flags"))
}

#[test]
fn a_copy_depends_on_its_number_alone() {
    let one = stream("--seed 7 --duplicates 5% --conflicts 5% --late 5%", 5_000);
    let other = stream("--seed 7 --duplicates 5% --conflicts 5% --late 5%", 5_000);
    let forward: Vec<Copy> = one.iter().collect();
    let backward: Vec<Copy> = (0..5_000).rev().map(|sequence| other.copy(sequence)).collect();
    assert!(forward.iter().eq(backward.iter().rev()));
    assert_ne!(
        forward,
        stream("--seed 8 --duplicates 5% --conflicts 5% --late 5%", 5_000).iter().collect::<Vec<_>>()
    );
}

#[test]
fn shares_are_kept_and_identities_are_distinct() {
    let stream = stream("--duplicates 2% --conflicts 1% --late 3%", 100_000);
    let mut counts: HashMap<Kind, u32> = HashMap::new();
    let mut identities = HashSet::new();
    for copy in stream.iter() {
        *counts.entry(copy.kind).or_default() += 1;
        if copy.kind.is_base() {
            assert!(identities.insert(copy.content.click_id));
        }
    }
    assert!((1_800..2_200).contains(&counts[&Kind::Duplicate]), "{counts:?}");
    assert!((850..1_150).contains(&(counts[&Kind::Conflict] + counts[&Kind::Moved])), "{counts:?}");
    assert!((2_700..3_300).contains(&counts[&Kind::Late]), "{counts:?}");
    assert!(counts[&Kind::Moved] > 100, "{counts:?}");
}

#[test]
fn repeats_follow_their_original_and_only_differing_ones_differ() {
    let stream = stream("--duplicates 10% --conflicts 10%", 20_000);
    for copy in stream.iter().filter(|copy| !copy.kind.is_base()) {
        let original = stream.copy(copy.original);
        assert!(original.kind.is_base() && original.sequence < copy.sequence);
        assert_eq!(original.content.click_id, copy.content.click_id);
        assert_eq!(original.content.campaign, copy.content.campaign);
        assert_eq!(original.content != copy.content, copy.kind.differs());
        let time_differs = original.content.event_time_ms != copy.content.event_time_ms;
        assert_eq!(time_differs, copy.kind == Kind::Moved);
    }
}

#[test]
fn some_moved_copies_lie_in_the_hour_before_or_after() {
    let stream = stream("--conflicts 10%", 100_000);
    let hour = |content: Content| content.event_time_ms.div_euclid(HOUR_MS);
    let mut crossings = HashSet::new();
    for copy in stream.iter().filter(|copy| copy.kind == Kind::Moved) {
        crossings.insert(hour(copy.content) - hour(stream.copy(copy.original).content));
    }
    assert_eq!(crossings, HashSet::from([-1, 0, 1]));
}

#[test]
fn late_clicks_lie_behind_everything_the_stream_waits_for() {
    let stream = stream("--late 5%", 50_000);
    let mut newest = i64::MIN;
    for copy in stream.iter() {
        match copy.kind {
            Kind::Late => {
                let window_end = copy.content.event_time_ms.div_euclid(MINUTE_MS) * MINUTE_MS + MINUTE_MS;
                assert!(newest - 5_000 >= window_end + 30_000);
            }
            Kind::Original => newest = newest.max(copy.content.event_time_ms),
            _ => {}
        }
    }
}

#[test]
fn event_times_stay_in_the_span_and_hit_hour_borders_exactly() {
    let stream = stream("", 2_000_000);
    let settings = stream.settings();
    let border = settings.event_start.epoch_ms() + HOUR_MS;
    let (mut on, mut before) = (0, 0);
    for sequence in 998_000..1_002_000 {
        let time = stream.copy(sequence).content.event_time_ms;
        on += u32::from(time == border);
        before += u32::from(time == border - 1);
    }
    assert!(on > 10 && before > 10, "{on} {before}");
    for copy in stream.iter().step_by(97) {
        let time = copy.content.event_time_ms;
        assert!(time >= settings.event_start.epoch_ms() && time < settings.event_end().epoch_ms());
    }
}

#[test]
fn live_streams_may_be_late_from_the_start() {
    let stream = stream("--event-start live --late 10%", 1_000);
    assert!(stream.iter().any(|copy| copy.kind == Kind::Late));
}
