//! Seals: what they count, what is late after them, and how they survive (G-3).

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use twice_log::archive::StoredSeal;
use twice_log::{Click, PartitionId, UtcMillis};

use super::restarts::drawn;
use super::site::{FlakyArchive, Running, Site, ends_of, hour, pause};
use crate::error::Error;
use crate::testing::{NOON_MS, clicks, hour_counts};

type Seals = BTreeMap<PartitionId, StoredSeal>;

/// Clicks of noon's hour that arrive in it, and a second lot that would still be counted but for the seal.
fn two_lots() -> (Vec<Click>, Vec<Click>) {
    let mut all = clicks(&drawn(500), NOON_MS);
    for (index, click) in all.iter_mut().enumerate() {
        // Within four minutes: nothing is late by the watermark, and the hour is the same for all.
        let at = UtcMillis::clamped(NOON_MS + 600_000 + index as i64 * 50);
        (click.event_time, click.arrival_time) = (at, at);
    }
    let later = all.split_off(300);
    (all, later)
}

fn check_counts(site: &Site, seals: &Seals) {
    let expected = site.expected(&ends_of([seals]));
    let mut sealed = BTreeMap::new();
    seals.values().for_each(|stored| sealed.extend(stored.seal.counts.clone()));
    assert_eq!(sealed, hour_counts(&expected, hour(0)));
    assert!(seals.values().all(|stored| stored.seal.complete));
}

async fn sealed_then_more(site: &mut Site, running: &Running) -> Seals {
    let (first, later) = two_lots();
    site.append(first).await;
    let seals = site.seal(running, hour(0)).await;
    site.append(later).await;
    seals
}

#[actix::test]
async fn a_seal_counts_what_is_below_its_end_and_the_rest_is_late() {
    let mut site = Site::new();
    let running = site.start().await;
    let seals = sealed_then_more(&mut site, &running).await;
    check_counts(&site, &seals);
    let status = site.applied(&running).await;
    assert_eq!(status.iter().map(|status| status.late).sum::<u64>(), 200);
    site.shows(&running, &site.expected(&ends_of([&seals]))).await;
    for (partition, stored) in &seals {
        let archived = site.archive.seals(hour(0)).await.expect("seals");
        assert!(archived.contains(stored), "partition {partition}");
    }
    running.stop().await;
}

#[actix::test]
async fn an_hour_sealed_before_returns_the_same_seal_for_ever() {
    let mut site = Site::new();
    let running = site.start().await;
    let seals = sealed_then_more(&mut site, &running).await;
    assert_eq!(site.seal(&running, hour(0)).await, seals);
    running.stop().await;
    let running = site.start().await;
    assert_eq!(site.seal(&running, hour(0)).await, seals);
    site.shows(&running, &site.expected(&ends_of([&seals]))).await;
    running.stop().await;
}

#[actix::test]
async fn lost_folders_take_seals_from_the_archive() {
    let mut site = Site::new();
    let running = site.start().await;
    let seals = sealed_then_more(&mut site, &running).await;
    site.applied(&running).await;
    running.stop().await;
    for folder in ["checkpoints", "windows"] {
        fs::remove_dir_all(site.folder(folder)).expect("remove");
    }
    let running = site.start().await;
    site.shows(&running, &site.expected(&ends_of([&seals]))).await;
    assert_eq!(site.seal(&running, hour(0)).await, seals);
    running.stop().await;
}

#[actix::test]
async fn a_folder_put_back_to_before_the_seal_counts_to_the_seal_and_no_further() {
    let mut site = Site::new();
    let running = site.start().await;
    let (first, later) = two_lots();
    let (early, rest) = first.split_at(150);
    site.append(early.to_vec()).await;
    site.applied(&running).await;
    // The checkpoint of the early part is committed by now or not; either must do.
    site.keep("checkpoints", "kept");
    site.append(rest.to_vec()).await;
    let seals = site.seal(&running, hour(0)).await;
    site.append(later).await;
    site.applied(&running).await;
    running.stop().await;
    site.put_back("kept", "checkpoints");
    let running = site.start().await;
    let status = site.applied(&running).await;
    assert!(status.iter().any(|status| status.late > 0));
    site.shows(&running, &site.expected(&ends_of([&seals]))).await;
    assert_eq!(site.seal(&running, hour(0)).await, seals);
    running.stop().await;
}

#[actix::test]
async fn a_seal_that_did_not_reach_the_archive_is_put_again_after_a_restart() {
    let mut site = Site::new();
    let flaky = Arc::new(FlakyArchive { archive: site.archive.clone(), refuses: AtomicBool::new(true) });
    site.seals = Some(flaky.clone());
    let running = site.start().await;
    let (first, later) = two_lots();
    site.append(first).await;
    let ends = site.ends();
    let stream = running.stream.clone();
    let sealing = actix::spawn(async move { stream.seal(hour(0), &ends).await });
    while running
        .stream
        .status()
        .await
        .iter()
        .any(|status| !status.hours_unsealed.is_empty() || status.applied == 0)
    {
        pause().await;
    }
    assert!(!sealing.is_finished(), "nobody is told before the archive has the seal");
    running.stop().await;
    let unanswered = sealing.await.expect("ends");
    assert!(unanswered.iter().all(|(_, answer)| matches!(answer, Err(Error::Stopped))));
    assert!(site.archive.seals(hour(0)).await.expect("seals").is_empty());

    flaky.refuses.store(false, Ordering::SeqCst);
    let running = site.start().await;
    while site.archive.seals(hour(0)).await.expect("seals").len() < 2 {
        pause().await;
    }
    let sealed_at = site.ends();
    site.append(later).await;
    let seals = site.seal(&running, hour(0)).await;
    assert!(seals.iter().all(|(partition, stored)| sealed_at.contains(&(*partition, stored.seal.end))));
    check_counts(&site, &seals);
    running.stop().await;
}

#[actix::test]
async fn a_seal_waits_for_the_offset_it_is_asked_at() {
    let mut site = Site::new();
    let running = site.start().await;
    let (first, later) = two_lots();
    site.append(first).await;
    let more = later.iter().fold(BTreeMap::new(), |mut more: BTreeMap<PartitionId, i64>, click| {
        *more
            .entry(twice_log::event::partition_of(&click.campaign_id, super::site::PARTITIONS))
            .or_default() += 1;
        more
    });
    let ends: Vec<_> = site
        .ends()
        .into_iter()
        .map(|(partition, end)| (partition, twice_log::LogOffset(end.0 + more.get(&partition).unwrap_or(&0))))
        .collect();
    let stream = running.stream.clone();
    let sealing = actix::spawn({
        let ends = ends.clone();
        async move { stream.seal(hour(0), &ends).await }
    });
    site.applied(&running).await;
    pause().await;
    assert!(!sealing.is_finished());
    site.append(later).await;
    for (partition, stored) in sealing.await.expect("ends") {
        let end = stored.expect("sealed").seal.end;
        assert!(ends.contains(&(partition, end)), "partition {partition} at {end}");
    }
    running.stop().await;
}

#[actix::test]
async fn an_unknown_partition_is_an_error_of_its_own() {
    let site = Site::new();
    let running = site.start().await;
    let answers = running.stream.seal(hour(0), &[(PartitionId(9), twice_log::LogOffset(0))]).await;
    assert!(matches!(answers[0].1, Err(Error::UnknownPartition { partition: PartitionId(9) })));
    running.stop().await;
}
