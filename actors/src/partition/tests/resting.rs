//! Idle campaigns leave memory and come back: no count, seal or restart tells that they were away (G-2, G-3).

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::Ordering;

use twice_log::event::{HOUR_MS, partition_of};
use twice_log::{CampaignId, Click, LogOffset, UtcMillis};

use super::restarts::drawn;
use super::site::{PARTITIONS, Running, Site, ends_of, hour, pause};
use crate::testing::{Counts, NOON_MS, campaign, clicks, hour_counts};

fn quick_to_rest() -> Site {
    let mut site = Site::new();
    site.config.campaign_idle_ms = 10;
    site
}

/// Waits until no campaign is in memory; returns how many are at rest.
async fn all_rest(site: &Site, running: &Running) -> u64 {
    loop {
        let status = site.applied(running).await;
        if status.iter().all(|status| status.campaigns == 0) {
            return status.iter().map(|status| status.campaigns_resting).sum();
        }
        pause().await;
    }
}

/// Clicks of noon's hour, a few seconds apart from one to the next.
pub(super) fn within_an_hour(count: usize) -> Vec<Click> {
    let mut all = clicks(&drawn(count), NOON_MS);
    for (index, click) in all.iter_mut().enumerate() {
        let at = UtcMillis::clamped(NOON_MS + 600_000 + index as i64 * 50);
        (click.event_time, click.arrival_time) = (at, at);
    }
    all
}

#[actix::test]
async fn campaigns_that_rest_between_clicks_count_as_those_that_never_did() {
    let mut site = quick_to_rest();
    let running = site.start().await;
    for part in clicks(&drawn(400), NOON_MS).chunks(40) {
        site.append(part.to_vec()).await;
        all_rest(&site, &running).await;
    }
    site.shows(&running, &site.expected(&BTreeMap::new())).await;
    running.stop().await;
}

#[actix::test]
async fn a_seal_counts_campaigns_at_rest() {
    let mut site = quick_to_rest();
    let running = site.start().await;
    let mut first = within_an_hour(300);
    let later = first.split_off(200);
    site.append(first).await;
    assert!(all_rest(&site, &running).await > 0);
    let seals = site.seal(&running, hour(0)).await;
    let expected = site.expected(&ends_of([&seals]));
    let mut sealed = BTreeMap::new();
    seals.values().for_each(|stored| sealed.extend(stored.seal.counts.clone()));
    assert_eq!(sealed, hour_counts(&expected, hour(0)));
    assert!(seals.values().all(|stored| stored.seal.complete));
    site.append(later).await;
    all_rest(&site, &running).await;
    site.shows(&running, &site.expected(&ends_of([&seals]))).await;
    running.stop().await;
    let running = site.start().await;
    assert_eq!(site.seal(&running, hour(0)).await, seals);
    running.stop().await;
}

#[actix::test]
async fn a_start_loads_no_campaign_before_its_click_and_shows_every_window_again() {
    let mut site = quick_to_rest();
    let running = site.start().await;
    let mut first = within_an_hour(300);
    let later = first.split_off(200);
    site.append(first).await;
    site.applied(&running).await;
    running.stop().await;
    fs::remove_dir_all(site.folder("windows")).expect("remove");
    site.config.campaign_idle_ms = 600_000;
    let running = site.start().await;
    site.shows(&running, &site.expected(&BTreeMap::new())).await;
    let status = site.applied(&running).await;
    assert!(status.iter().all(|status| status.campaigns == 0 && status.applied == 0));
    site.append(later).await;
    site.shows(&running, &site.expected(&BTreeMap::new())).await;
    running.stop().await;
}

#[actix::test]
async fn what_is_over_of_a_campaign_at_rest_is_forgotten() {
    let mut site = quick_to_rest();
    let running = site.start().await;
    site.append(within_an_hour(200)).await;
    assert!(all_rest(&site, &running).await > 1);
    let seals = site.seal(&running, hour(0)).await;
    // One click a minute of two campaigns, hours later: the others' identities expire.
    let partitions = site.ends().len() as u64;
    for minute in 0..5 {
        let mut more = within_an_hour(20);
        for click in &mut more {
            let at = click.event_time.plus_ms(3 * HOUR_MS + minute * 60_000);
            (click.event_time, click.arrival_time) = (at, at);
        }
        more.dedup_by_key(|click| click.campaign_id.clone());
        more.retain(|click| click.campaign_id == campaign(0));
        site.append(more).await;
        site.applied(&running).await;
        pause().await;
    }
    loop {
        let status = site.applied(&running).await;
        // A partition without a click since has no watermark that expires anything.
        let with_clicks = status.iter().filter(|status| status.highest_time > Some(hour(2).start()));
        if with_clicks.map(|status| status.campaigns + status.campaigns_resting).max() == Some(1) {
            break;
        }
        let mut more = within_an_hour(20);
        more.retain(|click| click.campaign_id == campaign(0));
        more.truncate(1);
        for click in &mut more {
            let at = UtcMillis::clamped(NOON_MS + 3 * HOUR_MS + 900_000);
            (click.event_time, click.arrival_time) = (at, at);
        }
        site.append(more).await;
        pause().await;
    }
    assert_eq!(site.ends().len() as u64, partitions);
    site.shows(&running, &site.expected(&ends_of([&seals]))).await;
    running.stop().await;
    let running = site.start().await;
    site.shows(&running, &site.expected(&ends_of([&seals]))).await;
    running.stop().await;
}

#[actix::test]
async fn nothing_counts_as_shown_before_the_windows_of_campaigns_at_rest_are() {
    let mut site = Site::new();
    let (mut before, mut after) = (within_an_hour(300), Vec::new());
    let newcomer = campaign(3);
    before.retain(|click| {
        let is_new = click.campaign_id == newcomer;
        after.extend(is_new.then(|| click.clone()));
        !is_new
    });
    let refused: Vec<CampaignId> = before.iter().map(|click| click.campaign_id.clone()).collect();
    let running = site.start().await;
    site.append(before).await;
    let at_rest = site.expected(&BTreeMap::new());
    site.shows(&running, &at_rest).await;
    running.stop().await;
    fs::remove_dir_all(site.folder("windows")).expect("remove");
    let picky = site.refuse_windows(refused).await;
    let running = site.start().await;
    site.append(after).await;
    let whole = site.expected(&BTreeMap::new());
    let of_newcomer = whole.iter().filter(|((campaign, _), _)| *campaign == newcomer);
    let of_newcomer: Counts = of_newcomer.map(|(key, counted)| (key.clone(), counted.clone())).collect();
    assert!(!of_newcomer.is_empty());
    site.shows(&running, &of_newcomer).await;
    let hit = partition_of(&newcomer, PARTITIONS);
    assert!(at_rest.keys().any(|(campaign, _)| partition_of(campaign, PARTITIONS) == hit));
    for _ in 0..20 {
        let status = running.stream.status().await;
        let status = status.iter().find(|status| status.partition == hit).expect("the newcomer's partition");
        assert_eq!(status.shown_end, LogOffset(0));
        pause().await;
    }
    picky.refuses.store(false, Ordering::SeqCst);
    site.shows(&running, &whole).await;
    site.all_shown(&running).await;
    running.stop().await;
}
