use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::error::Error;

/// One run of a random sequence: path, whether it closes, and what it counted of campaigns a to d.
#[derive(Debug, Clone)]
struct Step {
    kappa: bool,
    closes: bool,
    changes_mode: bool,
    clock_ms: i64,
    billable: [Option<u64>; 4],
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (
        any::<bool>(),
        proptest::bool::weighted(0.2),
        proptest::bool::weighted(0.2),
        -3i64..5,
        proptest::array::uniform4(proptest::option::of(0u64..3)),
    )
        .prop_map(|(kappa, closes, changes_mode, clock_ms, billable)| Step {
            kappa,
            closes,
            changes_mode,
            clock_ms,
            billable,
        });
    proptest::collection::vec(step, 1..12)
}

fn commit_of(step: &Step, seq: u32) -> RunCommit {
    let names = ["a", "b", "c", "d"];
    let counted = names.into_iter().zip(step.billable);
    let rows: Vec<(&str, u64)> =
        counted.filter_map(|(name, billable)| billable.map(|count| (name, count))).collect();
    let path = if step.kappa { BillingPath::Kappa } else { BillingPath::Lambda };
    let status = if step.closes { BillingStatus::Final } else { BillingStatus::Reconciled };
    moved(RunCommit { status, mode_change: step.changes_mode, ..run(seq, &rows) }, path, noon())
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
    let mut first_bill = None;
    for step in steps {
        fixture.clock.advance(step.clock_ms);
        let seq = &mut sequences[usize::from(step.kappa)];
        *seq += 1;
        let commit = commit_of(&step, *seq);
        let first = match fixture.store.commit_run(commit.clone()).await {
            Ok(first) => first,
            // A final bill is not replaced by one with less than its horizon; nothing of it is stored.
            Err(Error::Conflict { .. }) if commit.mode_change && !step.closes => {
                *seq -= 1;
                assert_eq!(published(&fixture).await, before);
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(fixture.commit(commit.clone()).await, first);

        let after = published(&fixture).await;
        for (key, row) in &before {
            assert_eq!(after.get(key), Some(row), "a published version changed");
        }
        for ((name, path, version), row) in &after {
            if let Some(previous) = after.get(&(name.clone(), *path, version - 1)) {
                assert!(previous.committed_at < row.committed_at && previous.status <= row.status);
                assert!(
                    previous.digest != row.digest
                        || previous.status != row.status
                        || row.reason == Reason::ModeChange,
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
        check_corrections(&fixture, &after, &mut first_bill).await;
        before = after;
    }
}

/// Every count of a row, in one order.
fn all_counts(counts: &BillingCounts) -> [i64; 8] {
    all_deltas(&CountsDelta::between(&BillingCounts::zero(counts.campaign_id.clone(), None), counts))
}

fn all_deltas(delta: &CountsDelta) -> [i64; 8] {
    let CountsDelta {
        gross,
        duplicates,
        conflicts,
        invalid_givt,
        invalid_sivt,
        billable,
        unpriced,
        amount_micros,
    } = *delta;
    [gross, duplicates, conflicts, invalid_givt, invalid_sivt, billable, unpriced, amount_micros]
}

fn add(sums: &mut BTreeMap<String, [i64; 8]>, name: &str, counts: [i64; 8]) {
    let sum = sums.entry(name.to_owned()).or_default();
    for (sum, count) in sum.iter_mut().zip(counts) {
        *sum += count;
    }
}

/// Checks that a version is the one before plus its delta, and that the first bill and all corrections sum to the bill
/// in force, whichever path's it is.
async fn check_corrections(
    fixture: &Fixture,
    published: &Published,
    first_bill: &mut Option<Vec<BillingRow>>,
) {
    let in_force = fixture.rows(&at_noon()).await;
    let billed = fixture.store.billed_hours(None, noon(), noon().plus(1)).await.expect("lists");
    if first_bill.is_none() && !billed.is_empty() {
        *first_bill = Some(in_force.clone());
    }
    let mut sums = BTreeMap::new();
    for row in first_bill.iter().flatten() {
        add(&mut sums, row.counts.campaign_id.as_str(), all_counts(&row.counts));
    }
    for row in fixture.store.corrections(&super::restatements::of_noon()).await.expect("reads").rows {
        let name = row.campaign_id.as_str().to_owned();
        let after = all_counts(&published[&(name.clone(), row.path, row.version)].counts);
        let before = row.before.map_or([0; 8], |before| {
            all_counts(&published[&(name.clone(), before.path, before.version)].counts)
        });
        let delta = all_deltas(&row.delta);
        assert_eq!(std::array::from_fn(|index| before[index] + delta[index]), after, "{row:?}");
        assert_ne!(delta, [0; 8], "nothing was corrected");
        add(&mut sums, &name, delta);
    }
    let mut bill = BTreeMap::new();
    for row in &in_force {
        add(&mut bill, row.counts.campaign_id.as_str(), all_counts(&row.counts));
    }
    // A campaign of zeros bills nothing, whether there is a row of it or not.
    sums.retain(|_, counts| *counts != [0; 8]);
    bill.retain(|_, counts| *counts != [0; 8]);
    assert_eq!(sums, bill, "the bill is not its first version and its corrections");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn versions_rise_and_nothing_published_changes_in_any_sequence_of_runs(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(check(steps));
    }
}
