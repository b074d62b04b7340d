//! What the store keeps of the hour beside its runs and rows: its modes, and that it is billed.
//!
//! Every bill that is asked for without a path, and every list of billed hours, is read through these: without them rows
//! that are all right are not shown. Both follow from the committed runs, which the results in the archive tell.

use std::collections::BTreeMap;

use twice_log::Hour;
use twice_log::archive::BillingPath;
use twice_store::{HourMarks, UtcMicros};

use super::certificate::Check;
use super::findings::Findings;
use super::history::PathHistory;

/// A run that wrote versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    pub moment: UtcMicros,
    pub run_id: String,
    /// Path in force after it.
    pub mode: BillingPath,
}

/// Compares the marks of the store with those that the committed runs of both paths make.
pub(super) fn check_marks(
    hour: Hour,
    marks: &HourMarks,
    histories: &[(BillingPath, PathHistory)],
    findings: &mut Findings,
) {
    let mut commits: Vec<&Commit> = histories.iter().flat_map(|(_, history)| &history.commits).collect();
    commits.sort_by_key(|commit| commit.moment);
    let stored = marks.modes.iter().map(|mode| (mode.committed_at, mode.path)).collect();
    compare_modes(hour, stored, modes_of(&commits), findings);
    for (path, history) in histories {
        let first = history.commits.iter().min_by_key(|commit| commit.moment);
        let expected = first.map(|commit| (commit.run_id.clone(), commit.moment));
        let stored = marks.billed.iter().find(|mark| mark.path == *path);
        let stored = stored.map(|mark| (mark.run_id.clone(), mark.committed_at));
        if stored != expected {
            let text = |mark: Option<(String, UtcMicros)>| {
                mark.map_or("by no run".to_owned(), |(run_id, moment)| format!("by run {run_id} at {moment}"))
            };
            let (stored, expected) = (text(stored), text(expected));
            let reason = format!("was first billed {stored} in the billing store, {expected} in the results");
            findings.add(Check::Store, format!("hour {hour}, path {path}"), reason);
        }
    }
}

/// Returns the modes that commits fix: the first one, and each that changes it.
fn modes_of(commits: &[&Commit]) -> BTreeMap<UtcMicros, BillingPath> {
    let mut modes = BTreeMap::new();
    let mut in_force = None;
    for commit in commits {
        if in_force.replace(commit.mode) != Some(commit.mode) {
            modes.insert(commit.moment, commit.mode);
        }
    }
    modes
}

fn compare_modes(
    hour: Hour,
    mut stored: BTreeMap<UtcMicros, BillingPath>,
    expected: BTreeMap<UtcMicros, BillingPath>,
    findings: &mut Findings,
) {
    let object = || format!("mode of {hour}");
    for (moment, path) in expected {
        let reason = match stored.remove(&moment) {
            Some(found) if found == path => continue,
            Some(found) => {
                format!("is {found} from {moment} on in the billing store, {path} in the results")
            }
            None => {
                format!("is {path} from {moment} on in the results, and the billing store has no such mark")
            }
        };
        findings.add(Check::Store, object(), reason);
    }
    for (moment, path) in stored {
        let reason = format!("is {path} from {moment} on in the billing store, and no result says so");
        findings.add(Check::Store, object(), reason);
    }
}
