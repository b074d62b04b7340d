//! State that is gone, and a log that was trimmed: the archive gives back the same counts, or says that it cannot.

use std::collections::BTreeMap;
use std::fs;

use twice_log::archive::CountingSettings;
use twice_log::archive::StoredSeal;
use twice_log::fail::FailPoints;
use twice_log::hot::ClickLog;
use twice_log::{Click, LogOffset, PartitionId, Topic, UtcMillis};

use super::restarts::drawn;
use super::site::{Running, Site, ends_of, hour, pause};
use crate::config::ArchiverConfig;
use crate::testing::{Counts, NOON_MS, clicks, hour_counts};
use crate::{Archiving, ArchivingParts};

/// Clicks of three hours, in order, many of them copies of each other.
fn three_hours(count: usize) -> Vec<Click> {
    let mut all = clicks(&drawn(count), NOON_MS);
    for (index, click) in all.iter_mut().enumerate() {
        let arrival_ms = NOON_MS + index as i64 * 3 * 3_600_000 / count as i64;
        let age_ms = click.arrival_time.epoch_ms() - click.event_time.epoch_ms();
        click.event_time = UtcMillis::clamped((arrival_ms - age_ms.clamp(-2_000, 700_000)).max(NOON_MS));
        click.arrival_time = UtcMillis::clamped(arrival_ms);
    }
    all
}

/// Archives everything appended so far, in manifests of few rows.
async fn archive(site: &Site) {
    let parts = ArchivingParts {
        log: site.log.clone(),
        archive: site.archive.clone(),
        settings: CountingSettings::default(),
        fail_points: FailPoints::default(),
    };
    let config = ArchiverConfig { rows_max: 60, ..ArchiverConfig::default() };
    let archiving = Archiving::start(parts, config).await.expect("archiver");
    archiving.flush_through(Topic::AdClicks, &site.ends()).await.expect("archived");
    archiving.stop().await.expect("stopped");
}

/// Trims each partition's log up to near its end.
async fn trim(site: &Site) {
    for (partition, end) in site.ends() {
        site.log.trim(Topic::AdClicks, partition, LogOffset(end.0 - 20)).await.expect("trim");
        let bounds = site.log.bounds(Topic::AdClicks, partition).await.expect("bounds");
        assert!(bounds.earliest > LogOffset(end.0 / 2), "segments are small enough to go");
    }
}

type Seals = BTreeMap<PartitionId, StoredSeal>;

/// Counts three hours, with noon's hour sealed after two; returns its seals. Everything is archived.
async fn counted(site: &mut Site) -> (Running, Seals) {
    let all = three_hours(1_500);
    let (first, rest) = all.split_at(1_000);
    let running = site.start().await;
    site.append(first.to_vec()).await;
    let seals = site.seal(&running, hour(0)).await;
    site.append(rest.to_vec()).await;
    site.shows(&running, &site.expected(&ends_of([&seals]))).await;
    archive(site).await;
    (running, seals)
}

fn from_one_o_clock(counts: &Counts) -> Counts {
    let open = counts.iter().filter(|((_, start), _)| start.hour() >= hour(1));
    open.map(|(key, value)| (key.clone(), value.clone())).collect()
}

async fn check_seal(site: &Site, running: &Running, seals: &Seals, after_noon: i64) {
    let sealed = site.seal(running, hour(after_noon)).await;
    let mut counts = BTreeMap::new();
    sealed.values().for_each(|stored| counts.extend(stored.seal.counts.clone()));
    let expected = site.expected(&ends_of([seals]));
    assert_eq!(counts, hour_counts(&expected, hour(after_noon)));
    assert!(sealed.values().all(|stored| stored.seal.complete));
}

#[actix::test]
async fn lost_state_is_rebuilt_from_the_archive_where_the_log_was_trimmed() {
    let mut site = Site::new();
    let (running, seals) = counted(&mut site).await;
    let whole = site.expected(&ends_of([&seals]));
    running.stop().await;
    trim(&site).await;
    for folder in ["checkpoints", "windows"] {
        fs::remove_dir_all(site.folder(folder)).expect("remove");
    }
    let running = site.start().await;
    let status = site.applied(&running).await;
    assert!(status.iter().all(|status| status.hours_incomplete.is_empty()));
    let open = from_one_o_clock(&whole);
    site.shows(&running, &open).await;
    assert_eq!(site.seal(&running, hour(0)).await, seals, "the seal stands as it was");
    // What follows counts on: identities of the archive's copies are known.
    let mut again = three_hours(1_500).split_off(1_400);
    for click in &mut again {
        click.arrival_time = click.arrival_time.plus_ms(400_000);
    }
    site.append(again).await;
    let whole = site.expected(&ends_of([&seals]));
    site.shows(&running, &from_one_o_clock(&whole)).await;
    check_seal(&site, &running, &seals, 1).await;
    check_seal(&site, &running, &seals, 2).await;
    running.stop().await;
    // The checkpoint written since stands on its own.
    let running = site.start().await;
    let status = site.applied(&running).await;
    assert!(status.iter().all(|status| status.applied == 0 && status.hours_incomplete.is_empty()));
    running.stop().await;
}

#[actix::test]
async fn an_older_checkpoint_goes_on_in_the_archive_where_it_ends() {
    let mut site = Site::new();
    let all = three_hours(1_500);
    let running = site.start().await;
    site.append(all[..300].to_vec()).await;
    site.applied(&running).await;
    running.stop().await;
    site.keep("checkpoints", "kept");
    let running = site.start().await;
    site.append(all[300..].to_vec()).await;
    let whole = site.expected(&BTreeMap::new());
    site.shows(&running, &whole).await;
    running.stop().await;
    archive(&site).await;
    trim(&site).await;
    site.put_back("kept", "checkpoints");
    fs::remove_dir_all(site.folder("windows")).expect("remove");
    let running = site.start().await;
    site.shows(&running, &whole).await;
    for after_noon in 0..3 {
        check_seal(&site, &running, &Seals::new(), after_noon).await;
    }
    running.stop().await;
}

#[actix::test]
async fn an_archive_that_lost_a_file_makes_hours_incomplete_and_stops_nothing() {
    let mut site = Site::new();
    let (running, _) = counted(&mut site).await;
    running.stop().await;
    trim(&site).await;
    for folder in ["checkpoints", "archive/clicks"] {
        fs::remove_dir_all(site.folder(folder)).expect("remove");
    }
    let running = site.start().await;
    while site.applied(&running).await.iter().any(|status| status.restarts == 0) {
        pause().await;
    }
    // The clock stands at noon: later hours lie ahead of what may have been appended by then.
    for stored in site.seal(&running, hour(1)).await.values() {
        assert!(!stored.seal.complete);
    }
    running.stop().await;
}
