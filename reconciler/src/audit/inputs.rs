//! What the audited run's inputs say, against the archive: file lists, seals and rules.

use std::collections::BTreeMap;

use twice_log::archive::{Archive, FileEntry, FileKind, RunInputs, layout};
use twice_log::event::Sha256Hex;
use twice_log::{Hour, Topic};

use super::certificate::Check;
use super::chains::{Chains, ReadHours};
use super::findings::Findings;
use crate::error::{Error, Result};
use crate::recompute::Rules;

/// Verdicts that arrived more hours before the hour than this are not asked (CR-10).
const VERDICT_HOURS_BEFORE: i64 = 24;

/// Returns the hours whose files a run of `hour` reads.
pub(super) fn read_hours(hour: Hour, horizon_hours: u32) -> ReadHours {
    let horizon = i64::from(horizon_hours);
    ReadHours {
        clicks: hour.plus(-horizon)..=hour.plus(horizon),
        verdicts: hour.plus(-VERDICT_HOURS_BEFORE)..=Hour::from_since_epoch(i64::MAX),
    }
}

/// Compares the lists of files with what manifests commit below the cutoffs: none is left out, none added.
pub(super) fn check_file_lists(object: &str, inputs: &RunInputs, chains: &Chains, findings: &mut Findings) {
    chains.check_partitions_named(object, &inputs.cutoffs, findings);
    let lists = [(FileKind::Clicks, &inputs.click_files), (FileKind::Verdicts, &inputs.verdict_files)];
    for (kind, listed) in lists {
        let (files, mut listed) = (listed, BTreeMap::<&str, &FileEntry>::new());
        for file in files {
            if listed.insert(&file.path, file).is_some() {
                findings.add(Check::FileLists, object, format!("name {} twice", file.path));
            }
        }
        for file in chains.files_below(kind, &inputs.cutoffs) {
            match listed.remove(file.path.as_str()) {
                None => {
                    let reason =
                        format!("leave out {}, which a manifest below their cutoffs commits", file.path);
                    findings.add(Check::FileLists, object, reason);
                }
                Some(named) if named != file => {
                    let reason = format!(
                        "name {} with {} rows and SHA-256 {}; its manifest says {} rows and {}",
                        file.path, named.rows, named.sha256, file.rows, file.sha256
                    );
                    findings.add(Check::FileLists, object, reason);
                }
                Some(_) => {}
            }
        }
        for path in listed.into_keys() {
            let reason =
                format!("name {path}, which no manifest below their cutoffs commits for these hours");
            findings.add(Check::FileLists, object, reason);
        }
    }
}

/// Compares the seals the inputs name with those in the archive.
///
/// # Errors
/// `Log` if the archive does not answer.
pub(super) async fn check_seals(
    archive: &Archive,
    inputs: &RunInputs,
    findings: &mut Findings,
) -> Result<()> {
    for input in &inputs.seals {
        let Some(reference) = &input.seal else { continue };
        let path = layout::seal_path(inputs.hour, input.generation, input.partition);
        let Some(bytes) = archive.get(&path).await? else {
            findings.add(Check::Seals, path, "is missing, and the run's inputs name it");
            continue;
        };
        let found = Sha256Hex::of(&bytes);
        if found != reference.sha256 {
            let reason = format!("was changed: it has SHA-256 {found}, the inputs name {}", reference.sha256);
            findings.add(Check::Seals, &path, reason);
        }
        let cutoff = inputs.cutoffs.iter().find(|cutoff| {
            (cutoff.topic, cutoff.generation, cutoff.partition)
                == (Topic::AdClicks, input.generation, input.partition)
        });
        if cutoff.is_none_or(|cutoff| reference.end > cutoff.end) {
            findings.add(Check::Seals, path, "lies above the run's cutoff of its partition (G-3)");
        }
    }
    Ok(())
}

/// Reads the rules the run was recorded under.
///
/// # Errors
/// `Log` if the archive does not answer.
pub(super) async fn check_rules(
    archive: &Archive,
    inputs: &RunInputs,
    findings: &mut Findings,
) -> Result<()> {
    let path = layout::rules_path(&inputs.rules_sha256);
    match Rules::of_run(archive, inputs).await {
        Ok(_) => {}
        Err(Error::ArchiveDamage { path, reason }) => findings.add(Check::Rules, path, reason),
        Err(error @ (Error::RulesMissing { .. } | Error::Json { .. })) => {
            findings.add(Check::Rules, &path, crate::error::describe(&error));
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    // This build may have the texts; a later one needs those in the archive.
    match archive.get(&path).await? {
        None => findings.notice(
            Check::Rules,
            path,
            "is missing: only builds with these very texts can count the run again",
        ),
        Some(bytes) => {
            if let Err(Error::ArchiveDamage { path, reason }) =
                Rules::decode(&path, &inputs.rules_sha256, &bytes)
            {
                findings.add(Check::Rules, path, reason);
            }
        }
    }
    Ok(())
}
