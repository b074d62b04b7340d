use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// One run of a random sequence: path, whether it closes, and what it counted of campaigns a to d.
#[derive(Debug, Clone)]
struct Step {
    kappa: bool,
    closes: bool,
    clock_ms: i64,
    billable: [Option<u64>; 4],
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (
        any::<bool>(),
        proptest::bool::weighted(0.2),
        -3i64..5,
        proptest::array::uniform4(proptest::option::of(0u64..3)),
    )
        .prop_map(|(kappa, closes, clock_ms, billable)| Step { kappa, closes, clock_ms, billable });
    proptest::collection::vec(step, 1..12)
}

fn commit_of(step: &Step, seq: u32) -> RunCommit {
    let names = ["a", "b", "c", "d"];
    let counted = names.into_iter().zip(step.billable);
    let rows: Vec<(&str, u64)> =
        counted.filter_map(|(name, billable)| billable.map(|count| (name, count))).collect();
    let path = if step.kappa { BillingPath::Kappa } else { BillingPath::Lambda };
    let status = if step.closes { BillingStatus::Final } else { BillingStatus::Reconciled };
    moved(RunCommit { status, ..run(seq, &rows) }, path, noon())
}

type Published = BTreeMap<(String, BillingPath, u32), BillingRow>;

async fn published(fixture: &Fixture) -> Published {
    let mut rows = Published::new();
    for path in [BillingPath::Lambda, BillingPath::Kappa] {
        for version in 1..=20 {
            let query = BillingQuery { path: Some(path), version: Some(version), ..at_noon() };
            for row in fixture.rows(&query).await {
                rows.insert((row.counts.campaign_id.as_str().to_owned(), path, version), row);
            }
        }
    }
    rows
}

/// Commits the steps and checks G-6 and CR-9 after each.
async fn check(steps: Vec<Step>) {
    let fixture = Fixture::new().await;
    let mut before = Published::new();
    let mut answers: Vec<(UtcMicros, Vec<BillingRow>)> = Vec::new();
    let mut sequences = [0u32; 2];
    for step in steps {
        fixture.clock.advance(step.clock_ms);
        let seq = &mut sequences[usize::from(step.kappa)];
        *seq += 1;
        let commit = commit_of(&step, *seq);
        let first = fixture.commit(commit.clone()).await;
        assert_eq!(fixture.commit(commit.clone()).await, first);

        let after = published(&fixture).await;
        for (key, row) in &before {
            assert_eq!(after.get(key), Some(row), "a published version changed");
        }
        for ((name, path, version), row) in &after {
            if let Some(previous) = after.get(&(name.clone(), *path, version - 1)) {
                assert!(previous.committed_at < row.committed_at && previous.status <= row.status);
                assert!(
                    previous.digest != row.digest || previous.status != row.status,
                    "a version without a change"
                );
            } else {
                assert_eq!(*version, 1, "a version is missing");
            }
        }
        assert_eq!(after.len() - before.len(), first.rows.len());
        let newest = fixture.rows(&BillingQuery { path: Some(commit.path), ..at_noon() }).await;
        for row in &newest {
            let counted = commit.rows.iter().find(|new| new.counts.campaign_id == row.counts.campaign_id);
            assert_eq!(row.counts.billable, counted.map_or(0, |new| new.counts.billable));
        }
        let moment = UtcMicros::from_millis(fixture.clock.now());
        answers.push((moment, fixture.rows(&as_of(moment)).await));
        for (moment, answer) in &answers {
            assert_eq!(&fixture.rows(&as_of(*moment)).await, answer, "an answer as of {moment} changed");
        }
        before = after;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn versions_rise_and_nothing_published_changes_in_any_sequence_of_runs(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(check(steps));
    }
}
