//! Restarts, folders put back and folders lost: the windows equal a naive recount (G-2).

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::site::{Running, Site, pause};
use crate::testing::{NOON_MS, Planned, clicks, plans};

/// Draws plans from a fixed seed.
pub(super) fn drawn(count: usize) -> Vec<Planned> {
    let mut runner = TestRunner::deterministic();
    let mut drawn: Vec<Planned> = Vec::new();
    while drawn.len() < count {
        drawn.extend(plans(200).new_tree(&mut runner).expect("a plan").current());
    }
    drawn.truncate(count);
    drawn
}

#[actix::test]
async fn windows_equal_a_naive_recount_across_restarts() {
    let mut site = Site::new();
    let clicks = clicks(&drawn(900), NOON_MS);
    for part in clicks.chunks(300) {
        let running = site.start().await;
        site.append(part.to_vec()).await;
        site.applied(&running).await;
        site.shows(&running, &site.expected(&BTreeMap::new())).await;
        running.stop().await;
    }
    let running = site.start().await;
    let status = site.applied(&running).await;
    assert!(status.iter().all(|status| status.applied == 0), "nothing is read twice after a clean stop");
    site.shows(&running, &site.expected(&BTreeMap::new())).await;
    running.stop().await;
}

#[actix::test]
async fn folders_put_back_to_any_moment_give_the_same_windows() {
    let mut site = Site::new();
    let clicks = clicks(&drawn(600), NOON_MS);
    let running = site.start().await;
    let mut kept = Vec::new();
    for (index, part) in clicks.chunks(60).enumerate() {
        site.append(part.to_vec()).await;
        if index % 2 == 0 {
            site.applied(&running).await;
        }
        site.keep("checkpoints", &format!("kept-checkpoints-{index}"));
        site.keep("windows", &format!("kept-windows-{index}"));
        kept.push(index);
        pause().await;
    }
    let expected = site.expected(&BTreeMap::new());
    site.shows(&running, &expected).await;
    running.stop().await;
    for index in kept {
        site.put_back(&format!("kept-checkpoints-{index}"), "checkpoints");
        site.put_back(&format!("kept-windows-{}", 9 - index), "windows");
        let running = site.start().await;
        site.shows(&running, &expected).await;
        running.stop().await;
    }
}

#[actix::test]
async fn a_lost_folder_is_rebuilt_from_the_log() {
    let mut site = Site::new();
    let running = site.start().await;
    site.append(clicks(&drawn(400), NOON_MS)).await;
    let expected = site.expected(&BTreeMap::new());
    site.shows(&running, &expected).await;
    running.stop().await;
    for folder in ["checkpoints", "windows"] {
        std::fs::remove_dir_all(site.folder(folder)).expect("remove");
    }
    let running = site.start().await;
    site.shows(&running, &expected).await;
    running.stop().await;
}

#[actix::test]
async fn a_click_after_quiet_is_shown_at_the_next_look_of_the_line() {
    let mut site = Site::new();
    let running: Running = site.start().await;
    for plan in drawn(5) {
        site.append(clicks(&[plan], NOON_MS)).await;
        site.shows(&running, &site.expected(&BTreeMap::new())).await;
    }
    running.stop().await;
}

#[test]
fn drawn_plans_repeat() {
    let steps = |plans: Vec<Planned>| plans.iter().map(|plan| plan.step_ms).collect::<Vec<_>>();
    assert_eq!(steps(drawn(50)), steps(drawn(50)));
}
