use twice_log::archive::{ResultRow, RunOutcome, RunResult};

use super::restatements::of_noon;
use super::*;
use crate::error::Error;
use crate::modes::ModeStore;

/// What the archive holds of a run: its commit, as computed again, and its result.
fn archived(commit: RunCommit, committed: &CommittedRun) -> RestoredRun {
    let rows = committed.rows.iter().map(|row| ResultRow {
        campaign_id: row.counts.campaign_id.clone(),
        version: row.version,
        status: row.status,
        reason: row.reason.to_string(),
        digest: row.digest.clone(),
    });
    let result = RunResult {
        path: commit.path,
        hour: commit.hour,
        seq: commit.seq,
        outcome: committed.outcome,
        committed_at: committed.committed_at.map(|at| at.to_string()),
        mode: committed.mode,
        inputs_sha256: commit.inputs_sha256.clone(),
        rows: rows.collect(),
        aggregates: Vec::new(),
    };
    RestoredRun { commit, result }
}

/// Runs of both paths over two hours, with a vanished campaign, an identical run, a close and a change of mode.
fn history() -> Vec<RunCommit> {
    let kappa = |commit| moved(commit, BillingPath::Kappa, noon());
    let later = |commit| moved(commit, BillingPath::Lambda, noon().plus(1));
    let close = |commit| RunCommit { status: BillingStatus::Final, ..commit };
    vec![
        run(1, &[("a", 10), ("b", 20)]),
        kappa(run(1, &[("a", 10), ("b", 20)])),
        later(run(1, &[("a", 1)])),
        run(2, &[("a", 10), ("b", 20)]),
        run(3, &[("a", 11)]),
        later(close(run(2, &[("a", 1)]))),
        RunCommit { mode_change: true, ..kappa(run(2, &[("a", 11)])) },
        close(run(4, &[("a", 11)])),
        kappa(run(3, &[("a", 12), ("c", 1)])),
    ]
}

async fn billed() -> (Fixture, Vec<RestoredRun>) {
    let fixture = Fixture::new().await;
    let mut runs = Vec::new();
    for commit in history() {
        fixture.clock.advance(7);
        let committed = fixture.commit(commit.clone()).await;
        runs.push(archived(commit, &committed));
    }
    // Identical ones last: the archive does not tell when they were recorded.
    runs.sort_by_key(|run| run.result.outcome == RunOutcome::Identical);
    (fixture, runs)
}

/// Everything a reader can see, but the moments at which identical runs were recorded.
async fn seen(fixture: &Fixture) -> Vec<String> {
    let store = &fixture.store;
    let wide = BillingQuery { to: noon().plus(2), ..at_noon() };
    let mut seen = Vec::new();
    for path in [None, Some(BillingPath::Lambda), Some(BillingPath::Kappa)] {
        for version in [None, Some(1), Some(2), Some(3), Some(4)] {
            seen.push(format!("{:?}", fixture.rows(&BillingQuery { path, version, ..wide.clone() }).await));
        }
        seen.push(format!("{:?}", store.billed_hours(path, noon(), noon().plus(2)).await.expect("reads")));
    }
    for hour in [noon(), noon().plus(1)] {
        seen.push(format!("{:?}", store.divergence(hour, None, None, 100, None).await.expect("reads").rows));
    }
    let every = CorrectionsQuery { to: noon().plus(2), include_unchanged: true, ..of_noon() };
    seen.push(format!("{:?}", store.corrections(&every).await.expect("reads").rows));
    seen.push(format!("{:?}", store.hour_modes(noon(), noon().plus(2), 100, None).await.expect("reads")));
    seen.push(format!("{:?}", store.newest_cutoffs().await.expect("reads")));
    let mut runs = store.reconciliations(100, None).await.expect("reads").rows;
    runs.sort_by(|left, right| left.run_id.cmp(&right.run_id));
    for run in &mut runs {
        if run.outcome == RunOutcome::Identical {
            run.committed_at = UtcMicros(0);
        }
    }
    seen.push(format!("{runs:?}"));
    seen
}

#[tokio::test]
async fn a_store_restored_from_results_answers_as_the_one_that_was_lost() {
    let (lost, runs) = billed().await;
    let restored = Fixture::new().await;
    restored.clock.set(lost.clock.now().epoch_ms());
    for run in &runs {
        restored.store.restore_run(run.clone()).await.expect("restores");
    }
    assert_eq!(seen(&restored).await, seen(&lost).await);
    for run in &runs {
        let of = |fixture: &Fixture| {
            let store = fixture.store.clone();
            let run_id = run.commit.run_id.clone();
            async move { store.committed_run(&run_id).await.expect("reads") }
        };
        assert_eq!(of(&restored).await, of(&lost).await);
    }
    // Again: nothing changes; and what comes next is the same version of the same row in both.
    for run in &runs {
        restored.store.restore_run(run.clone()).await.expect("is equal");
    }
    assert_eq!(seen(&restored).await, seen(&lost).await);
    let next = run(5, &[("a", 13)]);
    let (in_lost, in_restored) = (lost.commit(next.clone()).await, restored.commit(next).await);
    assert!(
        in_restored.committed_at > runs.iter().filter_map(|run| run.committed_at().expect("reads")).max()
    );
    assert_eq!(brief(&in_restored.rows), brief(&in_lost.rows));
}

/// Makes an archived run say something else.
type Change = fn(&mut RestoredRun);

#[tokio::test]
async fn a_run_that_is_not_what_its_result_says_is_refused_and_leaves_nothing() {
    let (_lost, runs) = billed().await;
    let first = || runs[0].clone();
    let changes: [(&str, Change); 9] = [
        ("counts to digest", |run| run.result.rows[0].digest = Sha256Hex::of(b"other")),
        ("counts to digest", |run| {
            run.commit.rows.truncate(1);
            run.commit.divergence.truncate(1);
        }),
        ("does not follow", |run| run.result.rows[1].version = 2),
        ("is no reason", |run| run.result.rows[1].reason = "because".to_owned()),
        ("another run's", |run| run.result.seq = 2),
        ("other inputs", |run| run.result.inputs_sha256 = Sha256Hex::of(b"other")),
        ("at no moment", |run| run.result.committed_at = None),
        ("committed_at", |run| run.result.committed_at = Some("yesterday".to_owned())),
        ("abandoned", |run| run.result.outcome = RunOutcome::Abandoned),
    ];
    let restored = Fixture::new().await;
    for (reason, change) in changes {
        let mut run = first();
        change(&mut run);
        let refused = restored.store.restore_run(run).await.expect_err("is refused");
        assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
        assert!(refused.to_string().contains(reason), "{refused}");
    }
    let mut unbalanced = first();
    unbalanced.commit.rows[0].counts.gross += 1;
    let refused = restored.store.restore_run(unbalanced).await.expect_err("is refused");
    assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
    assert!(restored.store.reconciliations(10, None).await.expect("lists").rows.is_empty());
    restored.store.restore_run(first()).await.expect("restores the true one");
}

#[tokio::test]
async fn a_run_that_is_there_with_something_else_or_comes_too_late_is_refused() {
    let (lost, runs) = billed().await;
    let changes: [(&str, Change); 4] = [
        ("another outcome or moment", |run| {
            run.result.committed_at = Some("2025-01-15T13:00:00Z".to_owned())
        }),
        ("another mode", |run| run.result.mode = BillingPath::Kappa),
        ("other rows", |run| run.result.rows[0].reason = "verdicts".to_owned()),
        ("another divergence", |run| {
            run.commit.divergence.pop();
        }),
    ];
    for (reason, change) in changes {
        let mut run = runs[0].clone();
        change(&mut run);
        let refused = lost.store.restore_run(run).await.expect_err("is refused");
        assert!(refused.to_string().contains(reason), "{refused}");
    }
    let restored = Fixture::new().await;
    restored.store.restore_run(runs[1].clone()).await.expect("restores");
    let refused = restored.store.restore_run(runs[0].clone()).await.expect_err("is too late");
    assert!(
        matches!(refused, Error::Conflict { .. }) && refused.to_string().contains("reaches to"),
        "{refused}"
    );
}
