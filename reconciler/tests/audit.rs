//! The audit over real files: an untouched hour is proved, and each change of archive or store is named.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use support::node::{HangAt, Node};
use support::{at, campaign, click, hour, limits, verdict};
use twice_log::archive::Archive;
use twice_log::{VerdictClass, WallClock};
use twice_reconciler::Error;
use twice_reconciler::audit::{AuditDeps, AuditQuestion, AuditVerdict, Certificate, Check, audit};
use twice_reconciler::recompute::{ArchiveLocation, InProcessRecompute};
use twice_store::{CampaignStore, PutCampaign, SqliteStore};

/// Bills the test's hour three times: clicks, late clicks, a verdict; so rows have up to three versions.
async fn billed() -> Node {
    let node = Node::start().await;
    for (number, cpc_micros) in [(1, 250_000), (2, 100)] {
        let put = PutCampaign {
            campaign_id: campaign(number),
            name: "a campaign".to_owned(),
            currency: "EUR".parse().expect("valid currency"),
            cpc_micros,
            daily_budget_micros: None,
            strict: false,
            effective_from: Some(at(-7200)),
        };
        node.store.put_campaign(put, at(-7200)).await.expect("campaign is put");
    }
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    // Campaigns enough that both partitions have clicks.
    let clicks: Vec<_> = (1..=6).map(|number| click(number, u32::from(number), 10, 1, 0)).collect();
    node.append(&clicks).await;
    node.append(&[click(1, 1, 10, 30, 0), click(1, 50, 3_700, 1, 0)]).await;
    reconciler.reconcile(hour(), None).await.expect("closed");
    let late: Vec<_> = (1..=6).map(|number| click(number, 100, 20, 4_000, 0)).collect();
    node.append(&late).await;
    reconciler.reconcile(hour(), None).await.expect("run again");
    node.append_verdicts(&[verdict(1, 1, VerdictClass::Sivt, at(7_200), at(7_200))]).await;
    reconciler.reconcile(hour(), None).await.expect("run again");
    reconciler.stop().await;
    node
}

/// A copy of a node's folder, to be changed and audited.
struct Copied {
    folder: tempfile::TempDir,
}

impl Copied {
    fn of(node: &Node) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let copied = Command::new("cp")
            .args(["-r", "--no-target-directory"])
            .args([node.folder(), folder.path()])
            .status();
        assert!(copied.expect("cp runs").success());
        Self { folder }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("archive").join(path)
    }

    /// Returns the paths of the objects below `folder` of the archive, sorted.
    fn objects(&self, folder: &str) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).expect("folder is listed") {
                let path = entry.expect("entry").path();
                if path.is_dir() { walk(&path, found) } else { found.push(path) }
            }
        }
        let root = self.folder.path().join("archive");
        let mut found = Vec::new();
        walk(&root.join(folder), &mut found);
        let below = |path: PathBuf| path.strip_prefix(&root).expect("below").display().to_string();
        let mut found: Vec<String> = found.into_iter().map(below).collect();
        found.sort();
        found
    }

    fn rewrite(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let bytes = std::fs::read(self.path(path)).expect("object is read");
        let mut value = serde_json::from_slice(&bytes).expect("object is JSON");
        change(&mut value);
        std::fs::write(self.path(path), serde_json::to_vec(&value).expect("JSON")).expect("written");
    }

    /// Runs SQL on the store as someone who holds the file would.
    fn edit_store(&self, sql: &str) {
        let script = "import sqlite3, sys\n\
             db = sqlite3.connect(sys.argv[1])\n\
             db.executescript(sys.argv[2])\n\
             db.commit()";
        let database = self.folder.path().join("twice.sqlite");
        let edited = Command::new("python3").args(["-c", script]).arg(database).arg(sql).status();
        assert!(edited.expect("python3 runs").success(), "{sql}");
    }

    async fn audit(&self, campaign_number: Option<u8>) -> Certificate {
        let question = AuditQuestion { hour: hour(), campaign: campaign_number.map(campaign) };
        audit(&self.deps().await, &question).await.expect("audited")
    }

    async fn deps(&self) -> AuditDeps {
        let root = self.folder.path().join("archive");
        let archive = Archive::read_local(&root).expect("archive opens");
        let store =
            SqliteStore::open_read_only(&self.folder.path().join("twice.sqlite"), Arc::new(WallClock)).await;
        let store = Arc::new(store.expect("store opens"));
        AuditDeps {
            clock: Arc::new(WallClock),
            recompute: Arc::new(InProcessRecompute::new(archive.clone())),
            archive,
            archive_location: ArchiveLocation::Local { root },
            billing: store.clone(),
            campaigns: store,
            replay: None,
            limits: limits(self.folder.path(), 1, None),
        }
    }
}

/// Returns the reasons of the findings of a check about an object.
fn reasons(certificate: &Certificate, check: Check, object: &str) -> String {
    let found =
        certificate.findings.iter().filter(|finding| finding.check == check && finding.object == object);
    let reasons: Vec<&str> = found.map(|finding| finding.reason.as_str()).collect();
    assert_eq!(certificate.verdict, AuditVerdict::NotProved);
    assert!(!reasons.is_empty(), "nothing found about {object} by {check:?}: {certificate}");
    reasons.join("\n")
}

fn name(number: u8, version: u32) -> String {
    format!("row {} {} lambda version {version}", campaign(number), hour())
}

#[actix::test]
async fn an_untouched_hour_is_proved_and_twice_with_the_same_hash() {
    let node = billed().await;
    let copied = Copied::of(&node);
    let certificate = copied.audit(None).await;
    assert_eq!(certificate.verdict, AuditVerdict::Proved, "{certificate}");
    assert!(
        certificate.checks.len() == Check::ALL.len() - 1 && certificate.notices.is_empty(),
        "{certificate}"
    );
    assert_eq!(certificate.rows.len(), 6);
    let first = &certificate.rows[0];
    assert_eq!((first.version, first.counts.billable, first.counts.amount_micros), (Some(3), 1, 250_000));
    assert_eq!(certificate.run.as_ref().expect("a run").run_id, format!("lambda/{}/000003", hour()));
    let again = copied.audit(None).await;
    assert_eq!(again.certificate_sha256, certificate.certificate_sha256);
    // What anybody can recompute from the JSON alone.
    let text = serde_json::to_string(&certificate).expect("JSON");
    let read: Certificate = serde_json::from_str(&text).expect("reads");
    assert_eq!(read.hash().expect("hash"), certificate.certificate_sha256);
    let one = copied.audit(Some(2)).await;
    assert_eq!((one.verdict, one.rows.len()), (AuditVerdict::Proved, 1));
    let never = AuditQuestion { hour: hour().plus(5), campaign: None };
    let refused = audit(&copied.deps().await, &never).await;
    assert!(matches!(refused, Err(Error::NotReconciled { .. })));
}

#[actix::test]
async fn changed_removed_and_added_files_are_named() {
    let node = billed().await;
    let copied = Copied::of(&node);
    let file = copied.objects("clicks").into_iter().find(|path| path.contains("hour=12")).expect("a file");
    let bytes = std::fs::read(copied.path(&file)).expect("read");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    std::fs::write(copied.path(&file), &flipped).expect("written");
    assert!(reasons(&copied.audit(None).await, Check::Files, &file).contains("SHA-256"));

    std::fs::remove_file(copied.path(&file)).expect("removed");
    let removed = copied.audit(None).await;
    assert!(reasons(&removed, Check::Files, &file).contains("is missing"));
    assert!(removed.checks.iter().any(|line| line.check == Check::Recount && !line.passed), "{removed}");

    std::fs::write(copied.path(&file), &bytes).expect("restored");
    let added = file.replace(".parquet", "-added.parquet");
    std::fs::write(copied.path(&added), &bytes).expect("written");
    let certificate = copied.audit(None).await;
    assert_eq!(certificate.verdict, AuditVerdict::Proved, "no manifest names it: it does not exist");
    assert_eq!(certificate.notices.len(), 1);
    assert_eq!(certificate.notices[0].object, added);
}

#[actix::test]
async fn a_chain_that_was_touched_is_named() {
    let node = billed().await;
    let whole = Copied::of(&node);
    let manifests = whole.objects("manifests/ad-clicks/0/0");
    assert!(manifests.len() >= 2, "{manifests:?}");
    let (first, last) = (&manifests[0], &manifests[manifests.len() - 1]);

    let copied = Copied::of(&node);
    std::fs::remove_file(copied.path(last)).expect("removed");
    let dropped = copied.audit(None).await;
    assert!(reasons(&dropped, Check::Chains, last).contains("the billing store recorded the cutoff"));

    let copied = Copied::of(&node);
    copied.rewrite(first, |manifest| {
        manifest["files"][0]["sha256"] = Value::String("0".repeat(64));
    });
    let swapped = copied.audit(None).await;
    assert!(reasons(&swapped, Check::Chains, first).contains("was changed"));
    let inputs = format!("runs/lambda/{}/000003.json", hour());
    assert!(reasons(&swapped, Check::FileLists, &inputs).contains(&"0".repeat(64)));

    let copied = Copied::of(&node);
    copied.rewrite(last, |manifest| manifest["files"][0]["bytes"] = 7.into());
    assert!(reasons(&copied.audit(None).await, Check::Chains, last).contains("is another manifest"));

    let copied = Copied::of(&node);
    std::fs::remove_file(copied.path(first)).expect("removed");
    assert!(reasons(&copied.audit(None).await, Check::Chains, first).contains("is missing"));

    let copied = Copied::of(&node);
    let stray = "manifests/ad-clicks/0/0/new.json";
    std::fs::copy(copied.path(first), copied.path(stray)).expect("copied");
    assert!(reasons(&copied.audit(None).await, Check::Chains, stray).contains("is none"));
}

#[actix::test]
async fn edited_records_of_a_run_are_named() {
    let node = billed().await;
    let inputs = format!("runs/lambda/{}/000003.json", hour());
    let result = format!("runs/lambda/{}/000003.result.json", hour());

    let copied = Copied::of(&node);
    copied.rewrite(&inputs, |inputs| inputs["rates"][0]["cpc_micros"] = 1.into());
    let edited = copied.audit(None).await;
    assert!(reasons(&edited, Check::Records, &inputs).contains("were changed"));
    assert!(reasons(&edited, Check::Rates, &inputs).contains("250000"));
    assert!(reasons(&edited, Check::Recount, &name(1, 3)).contains("amount_micros"));

    let copied = Copied::of(&node);
    copied.rewrite(&inputs, |inputs| {
        inputs["click_files"].as_array_mut().expect("files").remove(0);
    });
    assert!(reasons(&copied.audit(None).await, Check::FileLists, &inputs).contains("leave out clicks/"));

    let copied = Copied::of(&node);
    copied.rewrite(&result, |result| result["rows"][0]["digest"] = Value::String("0".repeat(64)));
    let edited = copied.audit(None).await;
    assert!(reasons(&edited, Check::Store, &name(1, 3)).contains("differs"));
    assert!(reasons(&edited, Check::Recount, &name(1, 3)).contains("counts to the digest"));

    let copied = Copied::of(&node);
    std::fs::remove_file(copied.path(&result)).expect("removed");
    assert!(reasons(&copied.audit(None).await, Check::Records, &result).contains("is missing"));
    std::fs::remove_file(copied.path(&inputs)).expect("removed");
    assert!(reasons(&copied.audit(None).await, Check::Records, &inputs).contains("is missing"));

    let copied = Copied::of(&node);
    let seal = copied.objects("seals").remove(0);
    copied.rewrite(&seal, |seal| seal["complete"] = Value::Bool(false));
    assert!(reasons(&copied.audit(None).await, Check::Seals, &seal).contains("was changed"));

    let copied = Copied::of(&node);
    let rules = copied.objects("rules").remove(0);
    copied.rewrite(&rules, |rules| rules["billing_sql"] = Value::String("SELECT 1".to_owned()));
    assert!(reasons(&copied.audit(None).await, Check::Rules, &rules).contains("holds the rules"));
}

const WITHOUT_TRIGGERS: &str =
    "DROP TRIGGER billing_rows_are_not_updated; DROP TRIGGER billing_rows_are_not_deleted;";

#[actix::test]
async fn moved_moments_and_marks_of_the_hour_are_named() {
    let node = billed().await;
    let copied = Copied::of(&node);
    copied.edit_store(&format!(
        "{WITHOUT_TRIGGERS} UPDATE billing_rows SET committed_at_us = committed_at_us + 1
            WHERE campaign_id = '{}' AND version = 2",
        campaign(1)
    ));
    assert!(reasons(&copied.audit(None).await, Check::Store, &name(1, 2)).contains("and its run at"));

    let mode = format!("mode of {}", hour());
    for (sql, object, reason) in [
        ("DELETE FROM hour_modes", mode.as_str(), "has no such mark"),
        ("UPDATE hour_modes SET committed_at_us = committed_at_us + 1", &mode, "and no result says so"),
        (
            "INSERT INTO hour_modes SELECT hour, committed_at_us + 1, 'kappa' FROM hour_modes",
            &mode,
            "and the newest result says lambda",
        ),
        ("DELETE FROM billed_hours", &format!("hour {}, path lambda", hour()), "billed by no run in"),
    ] {
        let copied = Copied::of(&node);
        copied.edit_store(sql);
        let found = reasons(&copied.audit(None).await, Check::Store, object);
        assert!(found.contains(reason), "{sql}: {found}");
    }
}

#[actix::test]
async fn rates_left_out_and_files_named_twice_are_named() {
    let node = billed().await;
    let inputs = format!("runs/lambda/{}/000003.json", hour());
    let copied = Copied::of(&node);
    copied.rewrite(&inputs, |inputs| {
        inputs["rates"].as_array_mut().expect("rates").remove(1);
        let files = inputs["click_files"].as_array_mut().expect("files");
        files.push(files[0].clone());
    });
    let certificate = copied.audit(None).await;
    let left_out = format!("leave out the rate of {}", campaign(2));
    assert!(reasons(&certificate, Check::Rates, &inputs).contains(&left_out));
    assert!(reasons(&certificate, Check::FileLists, &inputs).contains("twice"));
}

#[actix::test]
async fn edited_and_missing_differences_are_named() {
    let node = billed().await;
    let object = |number| format!("difference {} {} lambda", campaign(number), hour());
    let copied = Copied::of(&node);
    copied.edit_store(&format!(
        "UPDATE divergence SET late = late + 1, fraud = fraud + 1 WHERE campaign_id = '{}';
         UPDATE divergence SET unexplained = unexplained + 1 WHERE campaign_id = '{}';
         DELETE FROM divergence WHERE campaign_id = '{}'",
        campaign(1),
        campaign(2),
        campaign(3)
    ));
    let certificate = copied.audit(None).await;
    assert!(reasons(&certificate, Check::Recount, &object(1)).contains("and counts to"));
    assert!(reasons(&certificate, Check::Store, &object(2)).contains("do not add up"));
    assert!(reasons(&certificate, Check::Recount, &object(3)).contains("is not in the billing store"));
    assert_eq!(copied.audit(Some(4)).await.verdict, AuditVerdict::Proved, "another campaign's difference");
}

#[actix::test]
async fn edited_missing_and_surplus_billing_rows_are_named_with_both_values() {
    let node = billed().await;
    let newest = format!("campaign_id = '{}' AND version = 2", campaign(2));

    let copied = Copied::of(&node);
    copied.edit_store(&format!(
        "{WITHOUT_TRIGGERS} UPDATE billing_rows SET billable = 9, gross = 9, amount_micros = 900 WHERE {newest}"
    ));
    let edited = copied.audit(None).await;
    assert!(reasons(&edited, Check::Store, &name(2, 2)).contains("was edited"));
    let reason = reasons(&edited, Check::Recount, &name(2, 2));
    assert!(reason.contains("billable is 9 in the billing store and counts to 2"), "{reason}");
    assert!(reason.contains("900 EUR in the billing store and counts to 200 EUR"), "{reason}");
    assert_eq!(copied.audit(Some(3)).await.verdict, AuditVerdict::Proved, "another campaign's row");

    // With the digest adapted, and an older version, which no recount touches.
    let mut counts = edited.rows[1].counts.clone();
    counts.gross = 9;
    counts.billable = 9;
    let digest = twice_store::row_digest(hour(), &counts);
    let copied = Copied::of(&node);
    copied.edit_store(&format!(
        "{WITHOUT_TRIGGERS} UPDATE billing_rows SET billable = 9, gross = 9, digest = '{digest}' WHERE {newest};
         UPDATE billing_rows SET amount_micros = 0 WHERE campaign_id = '{}' AND version = 1",
        campaign(1)
    ));
    let edited = copied.audit(None).await;
    assert!(reasons(&edited, Check::Store, &name(2, 2)).contains("differs"));
    assert!(reasons(&edited, Check::Recount, &name(2, 2)).contains("billable is 9"));
    assert!(reasons(&edited, Check::Store, &name(1, 1)).contains("was edited"));

    // Far beyond the newest version, of a run that never was.
    let copied = Copied::of(&node);
    copied.edit_store(&format!(
        "PRAGMA foreign_keys = OFF;
         INSERT INTO billing_rows SELECT hour, campaign_id, 'kappa', 4000000000, status, gross, duplicates, conflicts,
            invalid_givt, invalid_sivt, billable, unpriced, amount_micros, currency, digest, 'kappa/{}/000001', reason,
            committed_at_us FROM billing_rows WHERE {newest}",
        hour()
    ));
    let stray = format!("row {} {} kappa version 4000000000", campaign(2), hour());
    let found = reasons(&copied.audit(None).await, Check::Store, &stray);
    assert!(found.contains("has committed nothing of the hour"), "{found}");

    // A later version, of a run that is known and with counts that are right.
    let copied = Copied::of(&node);
    copied.edit_store(&format!(
        "INSERT INTO billing_rows SELECT hour, campaign_id, path, 99, status, gross, duplicates, conflicts,
            invalid_givt, invalid_sivt, billable, unpriced, amount_micros, currency, digest, run_id, reason,
            committed_at_us FROM billing_rows WHERE {newest}"
    ));
    let edited = copied.audit(None).await;
    assert!(
        reasons(&edited, Check::Store, &name(2, 99)).contains("is the newest version in the billing store")
    );

    let copied = Copied::of(&node);
    copied.edit_store(&format!(
        "{WITHOUT_TRIGGERS} DELETE FROM billing_rows WHERE {newest};
         INSERT INTO billing_rows SELECT hour, 'camp_99', path, version, status, gross, duplicates, conflicts,
            invalid_givt, invalid_sivt, billable, unpriced, amount_micros, currency, digest, run_id, reason,
            committed_at_us FROM billing_rows WHERE campaign_id = '{}' AND version = 1",
        campaign(3)
    ));
    let edited = copied.audit(None).await;
    assert!(reasons(&edited, Check::Store, &name(2, 2)).contains("is not in the billing store"));
    let surplus = format!("row camp_99 {} lambda version 1", hour());
    assert!(reasons(&edited, Check::Store, &surplus).contains("is in the billing store, and not in"));
    assert!(reasons(&edited, Check::Recount, &surplus).contains("is in no result"));
}
