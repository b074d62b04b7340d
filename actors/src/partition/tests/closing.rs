//! Windows of sealed hours leave memory and checkpoints, whichever way the partition learns of the seal.

use std::fs;
use std::sync::atomic::Ordering;

use twice_log::Click;
use twice_log::event::HOUR_MS;

use super::resting::within_an_hour;
use super::site::{Running, Site, hour, pause};

/// Clicks three hours after noon's: at their watermark noon's hour is closed.
fn hours_later(count: usize) -> Vec<Click> {
    let mut all = within_an_hour(count);
    for click in &mut all {
        click.event_time = click.event_time.plus_ms(3 * HOUR_MS);
        click.arrival_time = click.arrival_time.plus_ms(3 * HOUR_MS);
    }
    all
}

/// Stops, and fails if the last checkpoint still has windows of noon's hour: a start shows all it has.
async fn stops_without_noon(site: &mut Site, running: Running) {
    site.all_shown(&running).await;
    let status = running.stream.status().await;
    assert!(status.iter().all(|status| !status.hours_unsealed.contains(&hour(0))), "{status:?}");
    running.stop().await;
    site.windows = None;
    fs::remove_dir_all(site.folder("windows")).expect("remove");
    let running = site.start().await;
    site.all_shown(&running).await;
    let shown = site.shown(&running).await;
    assert!(shown.keys().any(|(_, start)| start.hour() == hour(3)));
    let of_noon: Vec<_> = shown.keys().filter(|(_, start)| start.hour() == hour(0)).collect();
    assert!(of_noon.is_empty(), "never closed: {of_noon:?}");
    running.stop().await;
}

/// Waits until a checkpoint has everything appended.
async fn all_saved(running: &Running) {
    while running.stream.status().await.iter().any(|status| status.checkpoint_end < status.log_end) {
        pause().await;
    }
}

#[actix::test]
async fn a_sealed_hour_closes_though_a_checkpoint_fell_while_windows_were_being_shown() {
    let mut site = Site::new();
    let running = site.start().await;
    let noon = within_an_hour(200);
    let refused = noon.iter().map(|click| click.campaign_id.clone()).collect();
    site.append(noon).await;
    site.applied(&running).await;
    running.stop().await;
    site.keep("checkpoints", "kept");
    let running = site.start().await;
    site.seal(&running, hour(0)).await;
    site.append(hours_later(200)).await;
    site.applied(&running).await;
    running.stop().await;
    site.put_back("kept", "checkpoints");
    let picky = site.refuse_windows(refused).await;
    let running = site.start().await;
    site.applied(&running).await;
    all_saved(&running).await;
    picky.refuses.store(false, Ordering::SeqCst);
    drop(picky); // the folder is removed below
    stops_without_noon(&mut site, running).await;
}

#[actix::test]
async fn a_sealed_hour_that_lies_within_one_batch_closes() {
    let mut site = Site::new();
    site.config.read_bytes_max = 1 << 20;
    let running = site.start().await;
    site.append(within_an_hour(20)).await;
    site.seal(&running, hour(0)).await;
    site.append(hours_later(200)).await;
    site.applied(&running).await;
    running.stop().await;
    fs::remove_dir_all(site.folder("checkpoints")).expect("remove");
    let running = site.start().await;
    site.applied(&running).await;
    all_saved(&running).await;
    stops_without_noon(&mut site, running).await;
}

#[actix::test]
async fn an_older_checkpoint_learns_of_the_seals_of_all_hours_it_has_windows_of() {
    let mut site = Site::new();
    let running = site.start().await;
    site.append(within_an_hour(200)).await;
    site.append(hours_later(200)).await;
    site.applied(&running).await;
    running.stop().await;
    site.keep("checkpoints", "kept");
    let running = site.start().await;
    site.seal(&running, hour(0)).await;
    running.stop().await;
    site.put_back("kept", "checkpoints");
    let running = site.start().await;
    stops_without_noon(&mut site, running).await;
}
