//! Shadow runs: what a candidate statement would have billed, and that trying one leaves nothing behind.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use support::node::{HangAt, Node};
use support::{Records, Run, archive_records, at, campaign, click, hour, limits, rate, run_inputs, verdict};
use twice_log::archive::CountingSettings;
use twice_log::event::VerdictClass;
use twice_log::{CampaignId, Click};
use twice_reconciler::recompute::{
    ArchiveLocation, BILLING_SQL, InProcessRecompute, Recompute, RecomputeRequest, ShadowReport, ShadowSide,
    Task,
};
use twice_reconciler::{Error, Result};

/// The billing statement with each of `changes` made in it.
fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(BILLING_SQL.to_owned(), |sql, (from, to)| {
        assert!(sql.contains(from), "the billing statement has no more: {from}");
        sql.replace(from, to)
    })
}

/// A candidate that bills every copy.
fn ignoring_duplicates() -> String {
    changed(&[
        ("sum(copies_in_hour - winners_in_hour) AS duplicates", "0 AS duplicates"),
        ("sum(conflicts) AS conflicts", "0 AS conflicts"),
        (
            "count(*) FILTER (WHERE winners_in_hour = 1 AND verdict IS NULL) AS billable",
            "coalesce(sum(copies_in_hour) FILTER (WHERE verdict IS NULL), 0) AS billable",
        ),
        (
            "sum(cpc_micros) FILTER (WHERE winners_in_hour = 1 AND verdict IS NULL)",
            "sum(cpc_micros * copies_in_hour) FILTER (WHERE verdict IS NULL)",
        ),
    ])
}

/// Campaign 1 has two copies too many, 2 one that says something else, 3 a fraud, 4 nothing special.
fn clicks() -> Vec<Click> {
    vec![
        click(1, 1, 10, 1, 0),
        click(1, 1, 10, 2, 0),
        click(1, 1, 10, 3, 0),
        click(1, 2, 20, 1, 0),
        click(2, 3, 30, 1, 0),
        click(2, 3, 30, 9, 1),
        click(3, 4, 40, 1, 0),
        click(4, 5, 50, 1, 0),
        click(4, 6, 60, 1, 0),
    ]
}

struct Recorded {
    _folder: tempfile::TempDir,
    root: PathBuf,
    request: RecomputeRequest,
}

impl Recorded {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path().join("archive");
        let archive = support::open_archive(&root);
        let fraud = verdict(3, 4, VerdictClass::Sivt, at(100), at(100));
        let records = Records::of(&clicks(), &[fraud], 2);
        archive_records(&archive, &records, 9, 4).await;
        let run = Run {
            click_ends: BTreeMap::new(),
            rates: (1..=3).map(|number| rate(number, 500, at(-7200), at(-7200))).collect(),
            settings: CountingSettings::default(),
            seals: Vec::new(),
        };
        let stored = archive.put_run_inputs(&run_inputs(&archive, &records, &run).await).await;
        let request = RecomputeRequest {
            archive: ArchiveLocation::Local { root: root.clone() },
            inputs_path: "runs/lambda/2025-01-15T12/000001.json".to_owned(),
            inputs_sha256: stored.expect("inputs are put").sha256,
            limits: limits(&folder.path().join("spill"), 2, None),
            task: Task::Bill,
            aggregates_dir: None,
        };
        Self { _folder: folder, root, request }
    }

    async fn try_on(
        &self,
        sql: &str,
        campaign: Option<CampaignId>,
        rows_per_slice_max: Option<u64>,
    ) -> Result<ShadowReport> {
        let mut request = self.request.clone();
        request.task = Task::Shadow { sql: sql.to_owned(), campaign };
        request.limits.rows_per_slice_max = rows_per_slice_max;
        InProcessRecompute::new(support::open_archive(&self.root)).shadow(request).await
    }
}

/// (campaign, column, old, new) of every difference listed.
fn differences(report: &ShadowReport) -> Vec<(CampaignId, &str, i64, i64)> {
    let rows = report.rows.iter();
    rows.flat_map(|row| {
        let changes = row.changes.iter();
        changes.map(|change| (row.campaign_id.clone(), change.column.as_str(), change.old, change.new))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statement_in_use_does_not_differ_from_itself_however_the_work_is_cut() {
    let recorded = Recorded::new().await;
    for rows in [None, Some(4), Some(1)] {
        let report = recorded.try_on(BILLING_SQL, None, rows).await.expect("compares");
        assert_eq!((report.campaigns, report.differing), (4, 0), "{report:?}");
        assert!(report.rows.is_empty() && report.totals.iter().all(|total| total.old == total.new));
        let gross = &report.totals[0];
        assert_eq!((gross.column.as_str(), gross.old), ("gross", 9));
        assert_eq!(report.run_id, "lambda/2025-01-15T12/000001");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_ignores_duplicates_is_reported_campaign_by_campaign() {
    let recorded = Recorded::new().await;
    let expected = vec![
        (campaign(1), "duplicates", 2, 0),
        (campaign(1), "billable", 2, 4),
        (campaign(1), "amount_micros", 1_000, 2_000),
        (campaign(2), "duplicates", 1, 0),
        (campaign(2), "conflicts", 1, 0),
        (campaign(2), "billable", 1, 2),
        (campaign(2), "amount_micros", 500, 1_000),
    ];
    for rows in [None, Some(2)] {
        let report = recorded.try_on(&ignoring_duplicates(), None, rows).await.expect("compares");
        assert_eq!((report.campaigns, report.differing), (4, 2));
        assert_eq!(differences(&report), expected, "{rows:?}");
        let total = |name: &str| report.totals.iter().find(|total| total.column == name).expect("is summed");
        assert_eq!((total("duplicates").old, total("duplicates").new), (3, 0));
        let money: Vec<_> =
            report.amounts.iter().map(|sum| (sum.currency.is_some(), sum.old, sum.new)).collect();
        assert_eq!(money, [(false, 0, 0), (true, 1_500, 3_000)]);
    }
    let one = recorded.try_on(&ignoring_duplicates(), Some(campaign(2)), None).await.expect("compares");
    assert_eq!((one.campaigns, differences(&one)), (1, expected[3..].to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_one_statement_alone_and_other_currencies_are_named() {
    let recorded = Recorded::new().await;
    let last = "RIGHT JOIN counts ON currencies.campaign_id = counts.campaign_id";
    let fewer = changed(&[(last, &format!("{last} WHERE counts.campaign_id <> 'camp_04'"))]);
    let report = recorded.try_on(&fewer, None, None).await.expect("compares");
    assert_eq!(report.rows.len(), 1);
    assert_eq!(
        (&report.rows[0].campaign_id, report.rows[0].only_in),
        (&campaign(4), Some(ShadowSide::Current))
    );
    assert_eq!(differences(&report)[0], (campaign(4), "gross", 2, 0));

    let coined =
        changed(&[("    currencies.currency\n", "    coalesce(currencies.currency, 'EUR') AS currency\n")]);
    let report = recorded.try_on(&coined, None, None).await.expect("compares");
    let row = &report.rows[0];
    assert!(row.campaign_id == campaign(4) && row.changes.is_empty(), "{report:?}");
    assert_eq!(row.currencies, Some((None, Some("EUR".parse().expect("valid currency")))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_is_no_bill_is_refused_in_one_line_that_says_why() {
    let recorded = Recorded::new().await;
    let written = recorded.root.join("stolen.csv");
    let zeros = "0 AS duplicates, 0 AS conflicts, 0 AS invalid_givt, 0 AS invalid_sivt";
    let tail = format!("{zeros}, 1 AS billable, 0 AS unpriced, 0 AS amount_micros, 'USD' AS currency");
    let candidates = [
        ("SELEC 1".to_owned(), "run the candidate"),
        ("SELECT 1 AS one; SELECT 2 AS two".to_owned(), "single SQL statement"),
        ("SELECT * FROM customers".to_owned(), "customers"),
        ("SELECT * FROM '/etc/passwd'".to_owned(), "passwd"),
        ("CREATE TABLE mine AS SELECT 1 AS one".to_owned(), "DDL not supported"),
        ("DROP TABLE clicks".to_owned(), "DDL not supported"),
        ("INSERT INTO rates SELECT * FROM rates".to_owned(), "DML not supported"),
        (format!("COPY (SELECT 1 AS one) TO '{}'", written.display()), "DML not supported"),
        ("SET datafusion.execution.batch_size = 1".to_owned(), "Statement not supported"),
        ("SELECT 1 AS campaign_id".to_owned(), "column currency is missing"),
        (changed(&[("    currencies.currency\n", "    currencies.currency, 1 AS margin\n")]), "\"margin\""),
        (changed(&[("CAST(counts.gross AS BIGINT)", "CAST(counts.gross + 1 AS BIGINT)")]), "do not add up"),
        (changed(&[("CAST(counts.gross AS BIGINT)", "CAST(counts.gross AS DOUBLE)")]), "gross is no BIGINT"),
        (format!("SELECT campaign_id, 1 AS gross, {tail} FROM clicks"), "camp_01 twice"),
        (
            format!("SELECT DISTINCT 'other' AS campaign_id, 1 AS gross, {tail}"),
            "which no row it reads is of",
        ),
        (changed(&[("CAST(counts.gross AS BIGINT)", "CAST(counts.gross / 0 AS BIGINT)")]), "zero"),
        (changed(&[("coalesce(counts.amount_micros, 0)", "9000000000000000000")]), "larger than any bill's"),
    ];
    for (sql, mentions) in candidates {
        // Cut by campaign, so that a foreign campaign lies outside.
        let refused = recorded.try_on(&sql, Some(campaign(1)), None).await.expect_err(&sql);
        assert!(matches!(refused, Error::Candidate { .. }), "{sql}: {refused:?}");
        let text = refused.to_string();
        assert!(text.contains(mentions) && text.lines().count() == 1, "{sql}: {text}");
    }
    assert!(!written.exists());
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("lists").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                found.insert(entry.clone(), std::fs::read(&entry).expect("reads"));
            }
        }
    }
    found
}

#[actix::test]
async fn a_shadow_run_reads_the_hours_newest_run_and_writes_nothing() {
    let node = Node::start().await;
    node.append(&clicks()).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let before = reconciler.shadow(hour(), BILLING_SQL.to_owned(), None).await;
    assert!(matches!(before, Err(Error::NotReconciled { .. })), "{before:?}");
    reconciler.reconcile(hour(), None).await.expect("closed");
    node.append(&[click(4, 7, 70, 4_000, 0)]).await;
    reconciler.reconcile(hour(), None).await.expect("closed again");

    let (archive, rows) = (files(&node.archive_root()), node.rows().await);
    let runs = twice_store::BillingStore::reconciliations(&*node.store, 10, None).await.expect("lists");
    let report = reconciler.shadow(hour(), ignoring_duplicates(), None).await.expect("compares");
    assert_eq!((report.run_id.as_str(), report.differing), ("lambda/2025-01-15T12/000002", 2));
    assert_eq!(report.totals[0].old, 10, "the late click is in the newest run");
    reconciler.shadow(hour(), "DROP TABLE clicks".to_owned(), None).await.expect_err("is refused");

    assert_eq!(files(&node.archive_root()), archive);
    assert_eq!(node.rows().await, rows);
    let after = twice_store::BillingStore::reconciliations(&*node.store, 10, None).await.expect("lists");
    assert_eq!(after, runs);
    assert!(files(&node.folder().join("spill")).is_empty(), "what was spilled is gone");
    let again = reconciler.reconcile(hour(), None).await.expect("closed a third time");
    assert_eq!(again.rows_written, 0);
    reconciler.stop().await;
}
