//! What the audited run's inputs say, against the archive: file lists, seals, rules and rates.

use std::collections::BTreeMap;

use twice_log::archive::{Archive, FileEntry, FileKind, Rate, RunInputs, layout};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Hour, Topic, UtcMillis};
use twice_store::CampaignStore;

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
        let mut listed: BTreeMap<&str, &FileEntry> =
            listed.iter().map(|file| (file.path.as_str(), file)).collect();
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

/// Checks that rates are in order and that the campaign store has recorded each of them.
///
/// # Errors
/// `Store` if the store does not answer.
pub(super) async fn check_rates(
    object: &str,
    inputs: &RunInputs,
    campaigns: &dyn CampaignStore,
    findings: &mut Findings,
) -> Result<()> {
    type Key<'a> = (&'a CampaignId, UtcMillis, UtcMillis);
    let key = |rate: &Rate| (rate.effective_from, rate.recorded_at);
    if !inputs
        .rates
        .is_sorted_by(|left, right| (&left.campaign_id, key(left)) < (&right.campaign_id, key(right)))
    {
        findings.add(Check::Rates, object, "list rates out of order, or one twice");
    }
    let recorded = campaigns.rates_effective_before(inputs.hour.end()).await?;
    let recorded: BTreeMap<Key<'_>, &Rate> = recorded
        .iter()
        .map(|rate| ((&rate.campaign_id, rate.effective_from, rate.recorded_at), rate))
        .collect();
    for rate in &inputs.rates {
        let text = |rate: &Rate| format!("{} {} micros", rate.currency, rate.cpc_micros);
        let name = format!("the rate of {} from {}", rate.campaign_id, rate.effective_from);
        match recorded.get(&(&rate.campaign_id, rate.effective_from, rate.recorded_at)) {
            Some(found) if *found == rate => {}
            Some(found) => {
                let reason = format!("have {name} as {}, the campaign store as {}", text(rate), text(found));
                findings.add(Check::Rates, object, reason);
            }
            None => {
                findings.add(Check::Rates, object, format!("have {name}, which the campaign store has not"));
            }
        }
    }
    Ok(())
}
