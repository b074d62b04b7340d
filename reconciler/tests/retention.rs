//! Retention over real files: what goes and when, what stays provable, what is refused, and deaths in between.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use support::node::{HangAt, Node};
use support::{at, campaign, click, hour, limits, verdict};
use twice_log::archive::{ArchiveLocation, BillingPath, Grave, Tombstone, TombstoneKey, layout};
use twice_log::{Click, Clock, Day, Hour, UtcMillis, VerdictClass, WallClock};
use twice_reconciler::audit::{AuditDeps, AuditQuestion, AuditVerdict, Certificate, audit};
use twice_reconciler::rebuild::{RebuildDeps, rebuild};
use twice_reconciler::recompute::InProcessRecompute;
use twice_reconciler::{
    Error, ErrorKind, ProgressEvent, ReconcilerHandle, ReplayEvent, ReplayOrder, RetentionReport,
    RetentionScope,
};
use twice_store::{BillingQuery, BillingRow, BillingStore, CampaignStore, PutCampaign, SqliteStore};

const HOUR_S: i64 = 3600;
const DAY_S: i64 = 24 * HOUR_S;
/// Default retention, and the horizon behind which an hour's clicks are read by nobody.
const EXPIRED_S: i64 = 365 * DAY_S + 25 * HOUR_S;

fn one(id: u32, event: i64) -> Click {
    click(1, id, event, 1, 0)
}

/// A node with two final hours, noon and two hours later, and a sweep, long after their retention.
async fn expired() -> (Node, ReconcilerHandle) {
    let node = Node::start().await;
    node.set_clock(at(18 * HOUR_S + 60));
    put_rate(&node, 1000, 0).await;
    let clicks = [one(1, 10), one(2, 20), one(1, 30), one(3, 2 * HOUR_S + 5), click(2, 4, 40, 1, 0)];
    node.append(&clicks).await;
    node.append_verdicts(&[verdict(1, 2, VerdictClass::Sivt, at(600), at(600))]).await;
    node.archive_all().await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.close_day(Day::of(hour()), None).await.expect("the day closes");
    reconciler.sweep(None).await.expect("swept");
    node.set_clock(at(EXPIRED_S + 3 * HOUR_S + 60));
    (node, reconciler)
}

async fn put_rate(node: &Node, cpc_micros: i64, recorded: i64) {
    let put = PutCampaign {
        campaign_id: campaign(1),
        name: "a campaign".to_owned(),
        currency: "EUR".parse().expect("valid currency"),
        cpc_micros,
        daily_budget_micros: None,
        strict: false,
        effective_from: Some(at(-HOUR_S)),
    };
    node.store.put_campaign(put, at(recorded)).await.expect("campaign is put");
}

async fn rows_of(store: &SqliteStore) -> Vec<BillingRow> {
    let mut rows = Vec::new();
    for version in 1..=3 {
        let query = BillingQuery {
            from: hour().plus(-48),
            to: hour().plus(48),
            campaigns: None,
            path: Some(BillingPath::Lambda),
            version: Some(version),
            as_of: None,
            limit: 1000,
            cursor: None,
        };
        rows.extend(store.billing(&query).await.expect("billing").rows);
    }
    rows
}

fn data_files(node: &Node) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["clicks", "verdicts", "quarantine"] {
        let mut waiting = vec![node.archive_root().join(folder)];
        while let Some(folder) = waiting.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.expect("entry").path();
                if path.is_dir() { waiting.push(path) } else { found.push(path) }
            }
        }
    }
    found
}

async fn retain(reconciler: &ReconcilerHandle) -> RetentionReport {
    reconciler.retain(RetentionScope::Due, false).await.expect("retained")
}

async fn audited(node: &Node, hour: Hour) -> Certificate {
    let deps = AuditDeps {
        clock: node.clock.clone(),
        archive: node.archive.clone(),
        archive_location: ArchiveLocation::Local { root: node.archive_root() },
        billing: node.store.clone(),
        campaigns: node.store.clone(),
        recompute: Arc::new(InProcessRecompute::new(node.archive.clone())),
        replay: Some(node.replay.clone()),
        limits: limits(&node.folder().join("spill"), 1, None),
    };
    audit(&deps, &AuditQuestion { hour, campaign: None }).await.expect("audited")
}

/// Writes the billing store again from the archive.
async fn rebuilt(node: &Node) -> SqliteStore {
    let store =
        SqliteStore::open(&node.folder().join("new.sqlite"), node.clock.clone()).await.expect("opens");
    let deps = RebuildDeps {
        archive: node.archive.clone(),
        archive_location: ArchiveLocation::Local { root: node.archive_root() },
        recompute: Arc::new(InProcessRecompute::new(node.archive.clone())),
        replay: node.replay.clone(),
        limits: limits(&node.folder().join("spill"), 1, None),
    };
    rebuild(&deps, &store, None).await.expect("rebuilt");
    store
}

fn tombstone_file(node: &Node, grave: Grave, hour: Hour) -> PathBuf {
    node.archive_root().join(layout::tombstone_path(TombstoneKey { grave, hour, number: 1 }))
}

#[actix::test]
async fn a_final_hour_goes_after_its_retention_and_that_of_its_neighbours_and_no_bill_changes() {
    let (node, reconciler) = expired().await;
    let before = rows_of(&node.store).await;
    node.set_clock(at(EXPIRED_S - 60));
    assert!(retain(&reconciler).await.deleted.is_empty(), "an hour within the horizon is not expired");
    node.set_clock(at(EXPIRED_S + 3 * HOUR_S + 60));
    let files = data_files(&node).len() as u64;
    let dry = reconciler.retain(RetentionScope::Due, true).await.expect("looked");
    assert_eq!((dry.deleted.len(), dry.settled, data_files(&node).len() as u64), (2, 0, files), "{dry:?}");
    let report = retain(&reconciler).await;
    assert_eq!(report.settled, 2);
    assert_eq!(report.deleted.iter().map(|buried| buried.rows).sum::<u64>(), 6, "{report:?}");
    assert_eq!(data_files(&node), Vec::<PathBuf>::new());
    assert_eq!(rows_of(&node.store).await, before);
    let again = retain(&reconciler).await;
    assert!(again.deleted.is_empty() && again.kept.is_empty() && again.finished == 0, "{again:?}");
    reconciler.stop().await;
}

#[actix::test]
async fn an_audit_of_deleted_clicks_attests_the_records_and_says_what_it_did_not_count() {
    let (node, reconciler) = expired().await;
    assert_eq!(audited(&node, hour()).await.verdict, AuditVerdict::Proved);
    retain(&reconciler).await;
    let certificate = audited(&node, hour()).await;
    assert_eq!(certificate.verdict, AuditVerdict::Attested, "{certificate}");
    let text = certificate.to_string();
    assert!(text.contains("deleted under retention on 2026-01-") && text.contains("ATTESTED"), "{text}");
    assert!(!text.contains("counted again from the inputs, each row"), "no line for what was not done");
    assert_eq!(certificate.rows.len(), 2, "{text}");
    reconciler.stop().await;
}

#[actix::test]
async fn a_missing_file_without_tombstone_and_a_forged_tombstone_are_findings() {
    let (node, reconciler) = expired().await;
    let lost = data_files(&node).into_iter().next().expect("a file");
    let bytes = std::fs::read(&lost).expect("reads");
    std::fs::remove_file(&lost).expect("removed");
    assert_eq!(audited(&node, hour()).await.verdict, AuditVerdict::NotProved);
    let kept = retain(&reconciler).await;
    assert!(
        kept.kept.iter().any(|kept| kept.reason.contains("is missing")),
        "a loss is not explained away: {kept:?}"
    );
    std::fs::write(&lost, bytes).expect("restored");
    retain(&reconciler).await;
    assert_eq!(audited(&node, hour()).await.verdict, AuditVerdict::Attested);
    let path = tombstone_file(&node, Grave::AdClicks, hour());
    let mut forged: Tombstone =
        serde_json::from_slice(&std::fs::read(&path).expect("reads")).expect("a tombstone");
    forged.files[0].sha256 = twice_log::event::Sha256Hex::of(b"another");
    std::fs::write(&path, serde_json::to_vec(&forged).expect("json")).expect("forged");
    let certificate = audited(&node, hour()).await;
    assert_eq!(certificate.verdict, AuditVerdict::NotProved);
    assert!(certificate.to_string().contains("its manifest says"), "{certificate}");
    reconciler.stop().await;
}

#[actix::test]
async fn a_rebuild_after_deletion_writes_the_same_rows() {
    let (node, reconciler) = expired().await;
    retain(&reconciler).await;
    reconciler.stop().await;
    let before = rows_of(&node.store).await;
    let store = rebuilt(&node).await;
    assert_eq!(rows_of(&store).await, before);
    let divergence = |store: &SqliteStore| {
        let store = store.clone();
        async move { store.divergence(hour(), None, None, 100, None).await.expect("divergence").rows }
    };
    assert_eq!(divergence(&store).await, divergence(&node.store).await);
    assert!(!divergence(&store).await.is_empty());
}

#[actix::test]
async fn a_rebuild_after_deletion_knows_what_a_restatement_left_as_it_was() {
    let (node, reconciler) = expired().await;
    // Behind the close: of one of the hour's two campaigns, which alone is restated.
    node.set_clock(at(3 * DAY_S));
    let mut late = one(9, 50);
    late.arrival_time = at(3 * DAY_S);
    node.append(&[late]).await;
    let swept = reconciler.sweep(None).await.expect("swept");
    assert!(!swept.hours.is_empty(), "{swept:?}");
    let versions = async |id: u8| {
        let rows = rows_of(&node.store).await.into_iter();
        rows.filter(|row| row.hour == hour() && row.counts.campaign_id == campaign(id)).count()
    };
    assert!(versions(1).await > versions(2).await, "the other's row stands");
    node.set_clock(at(EXPIRED_S + 3 * HOUR_S + 60));
    retain(&reconciler).await;
    assert_eq!(data_files(&node), Vec::<PathBuf>::new());
    reconciler.stop().await;
    let store = rebuilt(&node).await;
    assert_eq!(rows_of(&store).await, rows_of(&node.store).await);
}

#[actix::test]
async fn a_clock_that_is_doubted_deletes_nothing() {
    let (node, reconciler) = expired().await;
    let files = data_files(&node);
    node.clock_witness.0.store(true, Ordering::SeqCst);
    let refused = reconciler.retain(RetentionScope::Due, false).await.expect_err("refused");
    assert!(refused.to_string().contains("may be ahead"), "{refused}");
    let dry = reconciler.retain(RetentionScope::Due, true).await.expect("looked");
    assert!(!dry.deleted.is_empty(), "what would go is shown: {dry:?}");
    assert_eq!(data_files(&node), files);
    node.clock_witness.0.store(false, Ordering::SeqCst);
    assert!(!retain(&reconciler).await.deleted.is_empty());
    reconciler.stop().await;
}

#[actix::test]
async fn verdicts_go_although_an_hour_before_them_was_billed_without_a_click() {
    let (node, reconciler) = expired().await;
    node.set_clock(at(3 * DAY_S));
    reconciler.reconcile(hour().plus(-48), None).await.expect("an empty hour has a bill");
    reconciler.close_day(Day::of(hour().plus(-48)), None).await.expect("closed");
    node.set_clock(at(EXPIRED_S + 3 * HOUR_S + 60));
    let report = retain(&reconciler).await;
    assert!(report.deleted.iter().any(|buried| buried.grave == Grave::FraudVerdicts), "{report:?}");
    assert_eq!(data_files(&node), Vec::<PathBuf>::new());
    reconciler.stop().await;
}

#[actix::test]
async fn a_stray_object_among_the_tombstones_stops_no_bill_and_a_misnamed_one_does() {
    let (node, reconciler) = expired().await;
    for (folder, name, bytes) in [
        ("tombstones/ad-clicks", ".DS_Store", "finder"),
        ("tombstones/ad-clicks", "marker", ""),
        ("settled", "marker", ""),
    ] {
        std::fs::create_dir_all(node.archive_root().join(folder)).expect("a folder");
        std::fs::write(node.archive_root().join(folder).join(name), bytes).expect("written");
    }
    reconciler.reconcile(hour(), None).await.expect("counted");
    assert!(!retain(&reconciler).await.deleted.is_empty());
    let copy = node.archive_root().join("tombstones/ad-clicks/2999-01-15T12 (1).json");
    std::fs::write(copy, "{}").expect("written");
    let refused =
        reconciler.reconcile(hour().plus(-48), None).await.expect_err("it may stand for a deletion");
    assert!(matches!(refused, Error::ArchiveDamage { .. }), "{refused}");
    reconciler.stop().await;
}

#[actix::test]
async fn what_comes_for_a_deleted_hour_is_told_and_changes_no_bill() {
    let (node, reconciler) = expired().await;
    retain(&reconciler).await;
    let before = rows_of(&node.store).await;
    let now = EXPIRED_S + 3 * HOUR_S;
    let mut late = one(9, 50);
    late.arrival_time = at(now);
    node.append(&[late]).await;
    let mut ruling = verdict(1, 1, VerdictClass::Givt, at(now), at(now));
    ruling.click_event_time = Some(at(10));
    node.append_verdicts(&[ruling]).await;
    put_rate(&node, 2000, now).await;
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let swept = reconciler.sweep(Some(sender)).await.expect("swept");
    assert!(swept.hours.is_empty() && swept.refused.contains(&hour()), "{swept:?}");
    let mut notes = String::new();
    while let Ok(event) = events.try_recv() {
        if let ProgressEvent::Note { detail } = event {
            notes.push_str(&detail);
        }
    }
    assert!(notes.contains("can no longer be counted") && notes.contains("its bill stands"), "{notes}");
    let record = node.archive.newest_sweep().await.expect("read").expect("a record");
    assert_eq!(record.refused, [hour(), hour().plus(2)]);
    let refused = reconciler.reconcile(hour(), None).await.expect_err("a hole is no smaller bill");
    assert!(matches!(refused, Error::Frozen { .. }) && refused.kind() == ErrorKind::Refuse, "{refused}");
    let order = ReplayOrder { from: hour(), to: hour().plus(1), mode_change: None };
    let (sender, mut replayed) = tokio::sync::mpsc::unbounded_channel();
    reconciler.replay(order, sender).await;
    let event = replayed.recv().await.expect("an end");
    assert!(
        matches!(&event, ReplayEvent::Failed { detail, .. } if detail.contains("no longer")),
        "{event:?}"
    );
    let explained = reconciler.explain(hour(), campaign(1), 10).await.expect_err("its clicks are gone");
    assert!(explained.to_string().contains("deleted under retention"), "{explained}");
    assert_eq!(rows_of(&node.store).await, before);
    let kept = retain(&reconciler).await;
    assert!(kept.kept.iter().any(|kept| kept.reason.contains("no bill has them")), "{kept:?}");
    // It counts from when the file was put, which the file system says.
    node.set_clock(WallClock.now().plus_ms(366 * DAY_S * 1000));
    let gone = retain(&reconciler).await;
    assert!(gone.deleted.iter().any(|buried| buried.never_billed && buried.hour == hour()), "{gone:?}");
    assert_eq!(audited(&node, hour()).await.verdict, AuditVerdict::Attested);
    reconciler.stop().await;
}

#[actix::test]
async fn an_hour_that_is_not_final_or_has_unseen_clicks_keeps_its_neighbours() {
    let (node, reconciler) = expired().await;
    let fresh = one(9, 20 * HOUR_S);
    node.append(&[fresh]).await;
    node.archive_all().await;
    node.set_clock(at(EXPIRED_S + 30 * HOUR_S));
    let kept = retain(&reconciler).await;
    assert!(kept.deleted.is_empty(), "{kept:?}");
    assert!(
        kept.kept.iter().any(|kept| kept.hour == hour() && kept.reason.contains("not billed")),
        "{kept:?}"
    );
    reconciler.close_day(Day::of(hour().plus(20)), None).await.expect("closed");
    node.append(&[one(10, 15)]).await;
    node.archive_all().await;
    let kept = retain(&reconciler).await;
    assert!(kept.deleted.is_empty(), "{kept:?}");
    assert!(kept.kept.iter().any(|kept| kept.reason.contains("not seen yet")), "{kept:?}");
    reconciler.sweep(None).await.expect("swept");
    assert!(!retain(&reconciler).await.deleted.is_empty());
    reconciler.stop().await;
}

#[actix::test]
async fn deaths_between_tombstone_and_removal_are_gone_on_from_and_a_file_that_reappears_is_told() {
    let (node, reconciler) = expired().await;
    let files: Vec<(PathBuf, Vec<u8>)> = data_files(&node)
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(&path).expect("reads")))
        .collect();
    retain(&reconciler).await;
    // As after a death behind the tombstones' puts, with one file removed: markers absent, files there.
    for (path, bytes) in files.iter().skip(1) {
        std::fs::write(path, bytes).expect("there again");
    }
    for grave in [Grave::AdClicks, Grave::FraudVerdicts] {
        for hours in [0, 2] {
            let key = TombstoneKey { grave, hour: hour().plus(hours), number: 1 };
            let _ = std::fs::remove_file(node.archive_root().join(layout::tombstone_removed_path(key)));
        }
    }
    let report = retain(&reconciler).await;
    assert!(report.finished >= 2 && report.deleted.is_empty(), "{report:?}");
    assert_eq!(data_files(&node), Vec::<PathBuf>::new());
    let (path, bytes) = &files[0];
    std::fs::write(path, bytes).expect("a backup put it back");
    let certificate = audited(&node, hour()).await;
    let told = certificate.notices.iter().any(|notice| notice.reason.contains("a tombstone says"));
    assert!(told && certificate.verdict == AuditVerdict::Attested, "{certificate}");
    for hours in [0, 2] {
        let scope = RetentionScope::Hour(hour().plus(hours));
        reconciler.retain(scope, false).await.expect("retained");
    }
    let scope = RetentionScope::Hour(hour());
    reconciler.retain(scope, false).await.expect("retained");
    assert_eq!(data_files(&node), Vec::<PathBuf>::new());
    reconciler.stop().await;
}

#[actix::test]
async fn a_billing_store_that_was_changed_settles_nothing() {
    let (node, reconciler) = expired().await;
    let file = node.folder().join("twice.sqlite");
    let changed = std::process::Command::new("python3")
        .arg("-c")
        .arg(
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
             c.executescript('DROP TRIGGER billing_rows_are_not_updated'); \
             c.execute('UPDATE billing_rows SET amount_micros = amount_micros + 1'); c.commit()",
        )
        .arg(&file)
        .status()
        .expect("python runs");
    assert!(changed.success());
    let kept = retain(&reconciler).await;
    assert!(kept.deleted.is_empty() && kept.settled == 0, "{kept:?}");
    assert!(kept.kept.iter().any(|kept| kept.reason.contains("twice audit")), "{kept:?}");
    reconciler.stop().await;
}

#[actix::test]
async fn the_schedule_retains_by_itself() {
    let (node, reconciler) = expired().await;
    reconciler.stop().await;
    let scheduled = node.reconciler(true, HangAt::Nowhere);
    node.wait_until("everything expired is gone", async || data_files(&node).is_empty()).await;
    scheduled.stop().await;
    let now: UtcMillis = at(EXPIRED_S + 3 * HOUR_S + 60);
    let key = TombstoneKey { grave: Grave::AdClicks, hour: hour(), number: 1 };
    let stored = node.archive.tombstone(key).await.expect("read").expect("a tombstone");
    assert_eq!(stored.tombstone.deleted_at, now);
}
