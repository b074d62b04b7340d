use std::collections::BTreeSet;

use super::*;
use crate::error::Error;
use crate::sqlite::billing::billing_query;

async fn filled() -> Fixture {
    let fixture = Fixture::new().await;
    let names: Vec<String> = (0..7).map(|number| format!("camp_{number}")).collect();
    let rows: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 5)).collect();
    for hours in 0..3 {
        for path in [BillingPath::Lambda, BillingPath::Kappa] {
            fixture.commit(moved(run(1, &rows), path, noon().plus(hours))).await;
        }
    }
    fixture.commit(run(2, &[("camp_3", 9)])).await;
    fixture
}

fn wide() -> BillingQuery {
    BillingQuery { from: noon().plus(-1), to: noon().plus(5), ..at_noon() }
}

async fn paged(fixture: &Fixture, query: &BillingQuery, limit: u32) -> Vec<BillingRow> {
    let mut query = BillingQuery { limit, ..query.clone() };
    let mut rows = Vec::new();
    loop {
        let page = fixture.store.billing(&query).await.expect("reads");
        assert!(page.rows.len() <= limit as usize && !page.rows.is_empty());
        rows.extend(page.rows);
        query.cursor = page.next_cursor;
        if query.cursor.is_none() {
            return rows;
        }
    }
}

#[tokio::test]
async fn pages_of_any_size_give_the_same_rows_in_order() {
    let fixture = filled().await;
    for query in [
        wide(),
        BillingQuery { path: Some(BillingPath::Kappa), ..wide() },
        BillingQuery { campaigns: Some([campaign("camp_3")].into()), ..wide() },
        BillingQuery { version: Some(1), ..wide() },
    ] {
        let all = fixture.rows(&query).await;
        assert!(all.is_sorted_by_key(|row| (
            row.hour,
            row.counts.campaign_id.clone(),
            row.path,
            row.version
        )));
        for limit in [1, 2, 3, 20, 21, 22] {
            assert_eq!(paged(&fixture, &query, limit).await, all);
        }
    }
    assert_eq!(fixture.rows(&wide()).await.len(), 21);
}

#[tokio::test]
async fn filters_choose_hours_campaign_path_and_version() {
    let fixture = filled().await;
    let one = BillingQuery { campaigns: Some([campaign("camp_3")].into()), ..wide() };
    let rows = fixture.rows(&one).await;
    assert_eq!(brief(&rows), [("camp_3", 2, 9), ("camp_3", 1, 5), ("camp_3", 1, 5)]);
    assert!(rows.iter().all(|row| row.path == BillingPath::Lambda));
    let last_hour = BillingQuery { from: noon().plus(2), ..one.clone() };
    assert_eq!(fixture.rows(&last_hour).await.len(), 1);
    let empty = BillingQuery { to: noon(), ..one };
    assert!(fixture.rows(&empty).await.is_empty());
}

#[tokio::test]
async fn cursors_of_other_lists_and_made_up_ones_are_refused() {
    let fixture = filled().await;
    let billing = fixture.store.billing(&BillingQuery { limit: 1, ..wide() }).await.expect("reads");
    let runs = fixture.store.reconciliations(1, None).await.expect("lists");
    let foreign = [
        billing.next_cursor.expect("has more"),
        "x".repeat(5_000),
        "%%%".into(),
        "e30".into(),
        String::new(),
    ];
    for cursor in foreign {
        let refused = fixture.store.reconciliations(1, Some(cursor.clone())).await.expect_err("is foreign");
        assert!(matches!(refused, Error::Cursor), "{cursor}");
        let refused =
            fixture.store.divergence(noon(), None, None, 1, Some(cursor)).await.expect_err("is foreign");
        assert!(matches!(refused, Error::Cursor));
    }
    let query = BillingQuery { cursor: runs.next_cursor, ..wide() };
    assert!(matches!(fixture.store.billing(&query).await, Err(Error::Cursor)));
}

#[tokio::test]
async fn runs_are_listed_newest_first_over_pages() {
    let fixture = filled().await;
    let all = fixture.store.reconciliations(100, None).await.expect("lists").rows;
    assert_eq!(all.len(), 7);
    assert_eq!(all[0].run_id, "lambda/2025-01-15T12/000002");
    assert!(all.is_sorted_by(|left, right| left.committed_at > right.committed_at));
    let (mut rows, mut cursor) = (Vec::new(), None);
    loop {
        let page = fixture.store.reconciliations(2, cursor).await.expect("lists");
        rows.extend(page.rows);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(rows, all);
}

#[tokio::test]
async fn divergence_is_that_of_the_newest_run_which_wrote_versions() {
    let fixture = Fixture::new().await;
    assert!(fixture.store.divergence(noon(), None, None, 9, None).await.expect("reads").rows.is_empty());
    let first = fixture.commit(run(1, &[("a", 10), ("b", 20)])).await.committed_at.expect("wrote");
    let mut second = run(2, &[("a", 10), ("b", 21)]);
    second.divergence[0] = Divergence {
        stream: StreamState::Unsealed,
        preliminary: None,
        late: None,
        late_duplicate: None,
        fraud: None,
        unexplained: None,
        ..divergence("a", 10)
    };
    second.divergence.push(Divergence { unexplained: Some(1), late: Some(3), ..divergence("ghost", 0) });
    fixture.commit(second.clone()).await;
    fixture.commit(run(3, &[("a", 10), ("b", 21)])).await;
    let newest = fixture.store.divergence(noon(), None, None, 9, None).await.expect("reads").rows;
    assert_eq!(
        newest.iter().map(|row| &row.divergence).collect::<Vec<_>>(),
        second.divergence.iter().collect::<Vec<_>>()
    );
    // The version of the row each explains; none where there is no row.
    assert_eq!(newest.iter().map(|row| row.version).collect::<Vec<_>>(), [1, 2, 0]);
    let then = fixture.store.divergence(noon(), Some(first), None, 9, None).await.expect("reads").rows;
    assert_eq!(then.iter().map(|row| row.divergence.billed).collect::<Vec<_>>(), [10, 20]);
}

#[tokio::test]
async fn a_run_between_two_pages_of_divergence_does_not_mix_into_them() {
    let fixture = Fixture::new().await;
    fixture.commit(run(1, &[("a", 10), ("b", 20), ("c", 30)])).await;
    let page = fixture.store.divergence(noon(), None, None, 1, None).await.expect("reads");
    fixture.commit(run(2, &[("a", 11), ("b", 21), ("c", 31)])).await;
    let rest = fixture.store.divergence(noon(), None, None, 9, page.next_cursor).await.expect("reads").rows;
    assert_eq!(rest.iter().map(|row| row.divergence.billed).collect::<Vec<_>>(), [20, 30]);
}

#[tokio::test]
async fn cutoffs_are_the_highest_of_any_run() {
    let fixture = Fixture::new().await;
    fixture.commit(RunCommit { cutoffs: vec![cutoff(0, 50), cutoff(1, 70)], ..run(1, &[]) }).await;
    let replay = RunCommit { cutoffs: vec![cutoff(0, 60), cutoff(1, 10)], ..run(1, &[]) };
    fixture.commit(moved(replay, BillingPath::Kappa, noon())).await;
    assert_eq!(fixture.store.newest_cutoffs().await.expect("reads"), [cutoff(0, 60), cutoff(1, 70)]);
}

#[tokio::test]
async fn page_queries_start_at_their_key_and_sort_nothing() {
    let fixture = filled().await;
    let mut writer = fixture.store.writer().await.expect("the writer");
    let one: Option<BTreeSet<_>> = Some([campaign("camp_3")].into());
    let after = || Some((1, campaign("camp_3"), "lambda".to_owned(), 1));
    for (query, after, start) in [
        (wide(), None, "SEARCH r USING PRIMARY KEY (hour>? AND hour<?)"),
        (
            wide(),
            after(),
            "SEARCH r USING PRIMARY KEY ((hour,campaign_id,path,version)>(?,?,?,?) AND hour<?)",
        ),
        (
            BillingQuery { campaigns: one.clone(), ..wide() },
            None,
            "billing_rows_by_campaign (campaign_id=? AND hour>? AND hour<?)",
        ),
        (
            BillingQuery { campaigns: one, ..wide() },
            after(),
            "billing_rows_by_campaign (campaign_id=? AND (hour,path,version)>(?,?,?) AND hour<?)",
        ),
    ] {
        let sql = billing_query(&query, i64::MAX, after, 10).into_string();
        let plan = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let steps = sqlx::query(plan).fetch_all(&mut *writer).await.expect("explains");
        let steps: Vec<String> = steps.iter().map(|row| sqlx::Row::get(row, "detail")).collect();
        assert!(steps[0].contains(start), "{steps:?}");
        assert!(!steps.iter().any(|step| step.contains("SCAN") || step.contains("B-TREE")), "{steps:?}");
    }
}
