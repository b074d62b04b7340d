use twice_log::archive::RunOutcome;

use super::*;
use crate::error::Error;

#[tokio::test]
async fn a_first_run_writes_version_one_of_each_row() {
    let fixture = Fixture::new().await;
    let committed = fixture.commit(run(1, &[("b", 20), ("a", 10)])).await;
    assert_eq!(committed.outcome, RunOutcome::Committed);
    assert_eq!(committed.mode, BillingPath::Lambda);
    assert_eq!(brief(&committed.rows), [("a", 1, 10), ("b", 1, 20)]);
    assert!(committed.rows.iter().all(|row| row.reason == Reason::First));
    assert_eq!(committed.rows, fixture.rows(&at_noon()).await);
    assert_eq!(committed.rows[0].counts, counts("a", 10));
    assert_eq!(
        fixture.store.committed_run("lambda/2025-01-15T12/000001").await.expect("reads"),
        Some(committed)
    );
}

#[tokio::test]
async fn a_rerun_with_equal_rows_is_identical_and_writes_no_version() {
    let fixture = Fixture::new().await;
    fixture.commit(run(1, &[("a", 10)])).await;
    let second = fixture.commit(run(2, &[("a", 10)])).await;
    assert_eq!((second.outcome, second.committed_at), (RunOutcome::Identical, None));
    assert!(second.rows.is_empty());
    assert_eq!(
        fixture.store.committed_run("lambda/2025-01-15T12/000002").await.expect("reads"),
        Some(second)
    );
    let runs = fixture.store.reconciliations(10, None).await.expect("lists").rows;
    let listed: Vec<_> = runs.iter().map(|run| (run.seq, run.outcome, run.rows_written)).collect();
    assert_eq!(listed, [(2, RunOutcome::Identical, 0), (1, RunOutcome::Committed, 1)]);
}

#[tokio::test]
async fn a_rerun_writes_versions_only_of_rows_that_differ() {
    let fixture = Fixture::new().await;
    fixture.commit(run(1, &[("a", 10), ("b", 20)])).await;
    let second = fixture.commit(run(2, &[("a", 10), ("b", 21), ("c", 5)])).await;
    assert_eq!(brief(&second.rows), [("b", 2, 21), ("c", 1, 5)]);
    assert!(second.rows.iter().all(|row| row.reason == Reason::LateClicks));
    assert_eq!(brief(&fixture.rows(&at_noon()).await), [("a", 1, 10), ("b", 2, 21), ("c", 1, 5)]);
    let first_versions = BillingQuery { version: Some(1), ..at_noon() };
    assert_eq!(brief(&fixture.rows(&first_versions).await), [("a", 1, 10), ("b", 1, 20), ("c", 1, 5)]);
}

#[tokio::test]
async fn a_vanished_campaign_gets_a_version_of_zeros_once() {
    let fixture = Fixture::new().await;
    fixture.commit(run(1, &[("a", 10), ("b", 20)])).await;
    let second = fixture.commit(run(2, &[("a", 10)])).await;
    assert_eq!(brief(&second.rows), [("b", 2, 0)]);
    let zero = &second.rows[0];
    assert_eq!(zero.counts, BillingCounts::zero(campaign("b"), counts("b", 1).currency));
    assert_eq!(zero.digest, row_digest(noon(), &zero.counts));
    assert_eq!(fixture.commit(run(3, &[("a", 10)])).await.outcome, RunOutcome::Identical);
    assert_eq!(brief(&fixture.commit(run(4, &[("a", 10), ("b", 20)])).await.rows), [("b", 3, 20)]);
}

#[tokio::test]
async fn a_final_row_stays_final_whatever_a_later_run_says() {
    let fixture = Fixture::new().await;
    fixture.commit(run(1, &[("a", 10), ("b", 20)])).await;
    let close = RunCommit { status: BillingStatus::Final, ..run(2, &[("a", 10), ("b", 20)]) };
    let closed = fixture.commit(close).await;
    assert_eq!(brief(&closed.rows), [("a", 2, 10), ("b", 2, 20)]);
    assert!(closed.rows.iter().all(|row| row.status == BillingStatus::Final && row.reason == Reason::Close));
    // A reconciled rerun, with a row that is new: nothing goes down, and the new row is final too.
    let third = fixture.commit(run(3, &[("a", 10), ("b", 19), ("c", 1)])).await;
    assert_eq!(brief(&third.rows), [("b", 3, 19), ("c", 1, 1)]);
    assert!(third.rows.iter().all(|row| row.status == BillingStatus::Final));
    assert_eq!(
        fixture.commit(run(4, &[("a", 10), ("b", 19), ("c", 1)])).await.outcome,
        RunOutcome::Identical
    );
}

#[tokio::test]
async fn a_run_without_rows_bills_the_hour() {
    let fixture = Fixture::new().await;
    let committed = fixture.commit(run(1, &[])).await;
    assert_eq!(committed.outcome, RunOutcome::Committed);
    let hours = fixture.store.billed_hours(None, noon().plus(-9), noon().plus(9)).await.expect("lists");
    assert_eq!(hours, [noon()]);
    assert_eq!(fixture.commit(run(2, &[])).await.outcome, RunOutcome::Identical);
}

#[tokio::test]
async fn committing_a_run_again_returns_the_first_outcome() {
    let mut fixture = Fixture::new().await;
    let first = fixture.commit(run(1, &[("a", 10)])).await;
    fixture.commit(run(2, &[("a", 11)])).await;
    for _ in 0..2 {
        fixture.clock.advance(1_000);
        // Rows of a repeated commit are not looked at: the run id and its inputs decide.
        assert_eq!(fixture.commit(run(1, &[("a", 10)])).await, first);
        fixture = fixture.reopen().await;
    }
    assert_eq!(brief(&fixture.rows(&at_noon()).await), [("a", 2, 11)]);
    let other_inputs = RunCommit { inputs_sha256: Sha256Hex::of(b"other"), ..run(1, &[("a", 10)]) };
    let refused = fixture.store.commit_run(other_inputs).await.expect_err("has other inputs");
    assert!(matches!(refused, Error::Conflict { .. }));
}

/// Makes a whole commit break one rule.
type Break = fn(&mut RunCommit);

#[tokio::test]
async fn broken_commits_are_refused_and_leave_nothing() {
    let fixture = Fixture::new().await;
    let whole = || run(1, &[("a", 10), ("b", 20)]);
    let breaks: [(&str, Break); 9] = [
        ("balanced", |commit| {
            let mut unbalanced = commit.rows[1].counts.clone();
            unbalanced.gross += 1;
            commit.rows[1] = NewBillingRow::new(commit.hour, unbalanced);
        }),
        ("balanced", |commit| {
            let mut overflowing = commit.rows[1].counts.clone();
            (overflowing.billable, overflowing.duplicates) = (u64::MAX, 5);
            commit.rows[1] = NewBillingRow::new(commit.hour, overflowing);
        }),
        ("conflicts", |commit| {
            let mut counts = commit.rows[1].counts.clone();
            counts.conflicts = counts.duplicates + 1;
            commit.rows[1] = NewBillingRow::new(commit.hour, counts);
        }),
        ("digest", |commit| commit.rows[0].digest = commit.rows[1].digest.clone()),
        ("comes twice", |commit| commit.rows.push(commit.rows[0].clone())),
        ("explained twice", |commit| commit.divergence.push(commit.divergence[0].clone())),
        ("add up", |commit| commit.divergence[0].late = Some(9)),
        ("another billed number", |commit| {
            commit.divergence[0] = divergence("a", 11);
        }),
        ("sequence", |commit| commit.seq = 2),
    ];
    for (reason, break_it) in breaks {
        let mut commit = whole();
        break_it(&mut commit);
        let refused = fixture.store.commit_run(commit).await.expect_err("is broken");
        assert!(matches!(refused, Error::Invalid { .. }));
        assert!(refused.to_string().contains(reason), "{refused}");
    }
    assert!(fixture.rows(&at_noon()).await.is_empty());
    assert!(fixture.store.reconciliations(10, None).await.expect("lists").rows.is_empty());
    assert_eq!(fixture.commit(whole()).await.rows.len(), 2);
}

#[tokio::test]
async fn commits_at_once_are_one_after_another() {
    let fixture = Fixture::new().await;
    let commits = (1..=20).map(|seq| {
        let store = fixture.store.clone();
        tokio::spawn(
            async move { store.commit_run(run(seq, &[("a", u64::from(seq))])).await.expect("commits") },
        )
    });
    let mut moments = Vec::new();
    for commit in commits.collect::<Vec<_>>() {
        let committed = commit.await.expect("ends");
        moments.push((committed.committed_at.expect("wrote a version"), committed.rows[0].version));
    }
    moments.sort();
    assert!(moments.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 + 1 == pair[1].1));
}

#[tokio::test]
async fn a_commit_dropped_halfway_leaves_nothing_and_the_store_works_on() {
    let fixture = Fixture::new().await;
    let names: Vec<String> = (0..2_000).map(|number| format!("camp_{number}")).collect();
    let rows: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 5)).collect();
    // Polled a growing number of times, then dropped: the cut falls into every step of the commit.
    let mut ended = false;
    for polls in 0..200 {
        let mut commit = std::pin::pin!(fixture.store.commit_run(run(1, &rows)));
        for _ in 0..polls {
            ended = futures::poll!(commit.as_mut()).is_ready();
            if ended {
                break;
            }
            tokio::task::yield_now().await;
            std::thread::yield_now();
        }
        let written = fixture.rows(&BillingQuery { limit: 10_000, ..at_noon() }).await.len();
        assert!(written == 0 || written == 2_000, "{written} rows of half a bill");
        if ended {
            break;
        }
    }
    assert_eq!(fixture.commit(run(1, &rows)).await.rows.len(), 2_000);
}

#[tokio::test]
async fn a_run_of_many_rows_is_committed_and_read_back_whole() {
    let fixture = Fixture::new().await;
    let names: Vec<String> = (0..12_345).map(|number| format!("camp_{number:05}")).collect();
    let rows: Vec<(&str, u64)> =
        names.iter().zip(1..).map(|(name, billable)| (name.as_str(), billable)).collect();
    let committed = fixture.commit(run(1, &rows)).await;
    assert_eq!(brief(&committed.rows), rows.iter().map(|(name, n)| (*name, 1, *n)).collect::<Vec<_>>());
    let read = fixture.store.committed_run(&run(1, &[]).run_id).await.expect("reads").expect("is there");
    assert_eq!(read, committed);
    assert_eq!(fixture.commit(run(2, &rows)).await.outcome, RunOutcome::Identical);
}

#[tokio::test]
async fn a_published_version_cannot_be_changed_even_by_sql() {
    let fixture = Fixture::new().await;
    fixture.commit(run(1, &[("a", 10)])).await;
    let mut writer = fixture.store.writer().await.expect("the writer");
    for sql in ["UPDATE billing_rows SET billable = 9, gross = 12", "DELETE FROM billing_rows"] {
        let refused = sqlx::query(sql).execute(&mut *writer).await.expect_err("is refused");
        assert!(refused.to_string().contains("never changes"), "{refused}");
    }
}
