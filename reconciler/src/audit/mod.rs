//! Derives the bill of one hour again from the archive alone and compares it with the billing store (issue 4, G-4, G-7).
//!
//! Guarantee: every check is carried out, whatever another one found; each finding names its object and what is wrong;
//! the archive and the store are only read. What is wrong with either is a finding; only what cannot be asked (no archive,
//! no store) keeps an audit from being made. Words: *certificate* = what an audit says, with a hash by which two audits
//! are compared; *finding* = breaks the verdict; *notice* = does not.
//! Flow: the records of both paths' runs (`history`), the manifest chains (`chains`), the audited run's inputs (`inputs`),
//! its data files (`files`), and the rows counted again (`recount`). `docs/audit.md` says what this proves.

mod certificate;
mod chains;
mod deleted;
mod divergence;
mod files;
mod findings;
mod history;
mod inputs;
mod marks;
mod rates;
mod recount;
mod strangers;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use twice_log::archive::{
    Archive, BillingPath, CountingSettings, Cutoff, RunInputs, RunKey, RunOutcome, layout,
};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Clock, Hour};
use twice_store::{BillingStore, CampaignStore, Reconciliation, Replay};

use self::deleted::Deleted;
use self::findings::Findings;
use self::history::{Historian, PathHistory, Recorded, stored_runs};
use crate::error::{Error, Result, describe};
use crate::recompute::{ArchiveLocation, Recompute, ResourceLimits};
use crate::stored::newest_rows;

pub use certificate::{
    AuditVerdict, AuditedRun, Certificate, CertifiedRow, Check, CheckLine, FORMAT, Figures, Finding,
    NewestRun,
};
pub use deleted::DeletedFiles;

/// Audits of an hour that goes on being run again.
const ATTEMPTS_MAX: u32 = 3;
/// The paths of billing rows.
const PATHS: [BillingPath; 2] = [BillingPath::Lambda, BillingPath::Kappa];

/// What an audit works with. Cheap to clone.
#[derive(Clone)]
pub struct AuditDeps {
    pub clock: Arc<dyn Clock>,
    pub archive: Archive,
    /// Where a counting process opens the same archive.
    pub archive_location: ArchiveLocation,
    pub billing: Arc<dyn BillingStore>,
    pub campaigns: Arc<dyn CampaignStore>,
    pub recompute: Arc<dyn Recompute>,
    /// Counts hours whose bill is the replay's; without it such hours cannot be counted again.
    pub replay: Option<Arc<dyn Replay>>,
    pub limits: ResourceLimits,
}

/// What is audited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditQuestion {
    pub hour: Hour,
    /// Limits rows and findings about rows; chains, records and files are examined whole.
    pub campaign: Option<CampaignId>,
}

/// Audits an hour; again, where a run of it was committed meanwhile.
///
/// # Errors
/// `NotReconciled` if neither archive nor store know a run of the hour; `Attempt` if the hour is run again and again;
/// whatever keeps archive or store from answering.
pub async fn audit(deps: &AuditDeps, question: &AuditQuestion) -> Result<Certificate> {
    let hour = question.hour;
    let mut stored = stored_runs(deps.billing.as_ref(), hour).await?;
    for _ in 0..ATTEMPTS_MAX {
        let certificate = audit_once(deps, question, &stored).await?;
        let now = stored_runs(deps.billing.as_ref(), hour).await?;
        if now == stored {
            return Ok(certificate);
        }
        stored = now;
    }
    Err(Error::Attempt { hour, detail: "a run of it ended during each audit; audit it later".to_owned() })
}

async fn audit_once(
    deps: &AuditDeps,
    question: &AuditQuestion,
    stored: &BTreeMap<String, Reconciliation>,
) -> Result<Certificate> {
    let hour = question.hour;
    let mut findings = Findings::of(question.campaign.clone());
    let marks = deps.billing.hour_marks(hour).await?;
    let historian = Historian { archive: &deps.archive, billing: deps.billing.as_ref(), marks: &marks, hour };
    let mut histories = Vec::new();
    for path in PATHS {
        histories.push((path, historian.examine(path, stored, &mut findings).await?));
    }
    if stored.is_empty() && histories.iter().all(|(_, history)| history.runs == 0) {
        return Err(Error::NotReconciled { hour });
    }
    let mode = deps.billing.mode(hour).await?;
    check_mode(mode, &histories, hour, &mut findings);
    marks::check_marks(hour, &marks, &histories, &mut findings);
    let newest_runs = histories.iter().filter_map(|(_, history)| history.newest_run.clone()).collect();
    let runs = histories.iter().map(|(_, history)| history.runs).sum();
    let history = histories.into_iter().find(|(path, _)| *path == mode);
    let history = history.map(|(_, history)| history).unwrap_or_default();
    let examined = examine_bill(deps, hour, mode, history, &mut findings).await?;
    let (checks, listed, notices) = findings.finish();
    let verdict = match checks.iter().all(|line| line.passed) {
        true if examined.deleted.is_empty() => AuditVerdict::Proved,
        true => AuditVerdict::Attested,
        false => AuditVerdict::NotProved,
    };
    let mut certificate = Certificate {
        format: FORMAT.to_owned(),
        tool: format!("twice {}", env!("CARGO_PKG_VERSION")),
        hour,
        campaign: question.campaign.clone(),
        verdict,
        mode,
        newest_runs,
        run: examined.run,
        rows: examined.rows,
        deleted: examined.deleted,
        checks,
        findings: listed,
        notices,
        figures: Figures { runs, ..examined.figures },
        audited_at: deps.clock.now(),
        certificate_sha256: Sha256Hex(String::new()),
    };
    certificate.certificate_sha256 = certificate.hash()?;
    Ok(certificate)
}

/// Compares the mode of the store with the one the newest result names.
fn check_mode(
    mode: BillingPath,
    histories: &[(BillingPath, PathHistory)],
    hour: Hour,
    findings: &mut Findings,
) {
    let newest = histories.iter().filter_map(|(_, history)| history.mode).max_by_key(|(moment, _)| *moment);
    if let Some((_, recorded)) = newest.filter(|(_, recorded)| *recorded != mode) {
        let reason = format!("is {mode} in the billing store, and the newest result says {recorded}");
        findings.add(Check::Store, format!("mode of {hour}"), reason);
    }
}

/// What was found out about the bill in force.
#[derive(Default)]
struct Examined {
    run: Option<AuditedRun>,
    rows: Vec<CertifiedRow>,
    deleted: Vec<DeletedFiles>,
    figures: Figures,
}

/// Examines the newest run of the path in force: what it read, and what it counts to.
async fn examine_bill(
    deps: &AuditDeps,
    hour: Hour,
    mode: BillingPath,
    history: PathHistory,
    findings: &mut Findings,
) -> Result<Examined> {
    let horizon = history
        .newest
        .as_ref()
        .map_or(CountingSettings::default().horizon_hours, |(run, _)| run.value.settings.horizon_hours);
    // Before the walk: what is recorded by now is archived by now, and a chain only grows.
    let recorded = recorded_cutoffs(deps, findings).await?;
    let chains = chains::walk(&deps.archive, &inputs::read_hours(hour, horizon), findings).await?;
    for (who, cutoffs) in &recorded {
        chains.check_cutoffs(who, cutoffs, findings);
    }
    let figures = Figures { manifests: chains.manifests, ..Figures::default() };
    let Some((run, result_sha256)) = history.newest else {
        let reason = "has no run in the archive that could be counted again";
        findings.add(Check::Recount, format!("hour {hour}, path {mode}"), reason);
        return Ok(Examined { figures, ..Examined::default() });
    };
    let object = layout::run_inputs_path(mode, hour, run.value.seq);
    chains.check_cutoffs(&object, &run.value.cutoffs, findings);
    inputs::check_file_lists(&object, &run.value, &chains, findings);
    inputs::check_seals(&deps.archive, &run.value, findings).await?;
    inputs::check_rules(&deps.archive, &run.value, findings).await?;
    let rates_from = (&deps.archive, deps.campaigns.as_ref());
    rates::check_rates(&object, &run.value, rates_from, findings).await?;
    let deleted = Deleted::read(&deps.archive, &run.value, &chains, findings).await?;
    let files =
        files::check_files(&deps.archive, &run.value, &deleted, deps.limits.threads, findings).await?;
    files::find_orphans(&deps.archive, &run.value, &chains, findings).await?;
    drop(chains); // counting needs the memory
    let stored = newest_rows(deps.billing.as_ref(), hour, mode).await?;
    let stored = stored.into_iter().map(|row| (row.counts.campaign_id.clone(), row)).collect();
    let mut figures = Figures { files: files.count, file_bytes: files.bytes, ..figures };
    let mut counted = None;
    let deleted = deleted.listed(&files.gone);
    if !deleted.is_empty() {
        let rows =
            deleted::attest(deps, (hour, mode), &deleted, (&history.versions, &stored), findings).await?;
        return Ok(Examined {
            run: Some(audited_run(mode, hour, run, result_sha256)),
            rows,
            deleted,
            figures,
        });
    }
    let rows = match recount::recount(deps, &run).await {
        Ok(recounted) => {
            figures.copies = recounted.copies;
            figures.recount_seconds = recounted.cost.wall_seconds;
            figures.recount_rss_peak_bytes = recounted.cost.rss_peak_bytes;
            // An identical run stored no differences: those of the run before it stand.
            let is_stored = history.newest_run.is_some_and(|run| run.outcome == RunOutcome::Committed);
            counted = recounted.divergence.filter(|_| is_stored);
            recount::compare(hour, mode, recounted.rows, &history.versions, &stored, findings)
        }
        // Not a reason to say nothing: all other checks stand.
        Err(error) => {
            findings.add(Check::Recount, object, format!("could not be counted again: {}", describe(&error)));
            Vec::new()
        }
    };
    let billing = deps.billing.as_ref();
    divergence::check_divergence(billing, (hour, mode), counted, &stored, findings).await?;
    Ok(Examined { run: Some(audited_run(mode, hour, run, result_sha256)), rows, deleted, figures })
}

/// Returns the highest cutoffs that any run recorded, by the store and by the newest runs in the archive, each with who
/// recorded them: whoever drops the newest manifests of a chain leaves a chain that links, and ends too early.
async fn recorded_cutoffs(deps: &AuditDeps, findings: &mut Findings) -> Result<Vec<(String, Vec<Cutoff>)>> {
    let mut recorded = vec![("the billing store".to_owned(), deps.billing.newest_cutoffs().await?)];
    for path in PATHS {
        let Some(newest) = deps.archive.run_hours(path).await?.into_iter().next_back() else { continue };
        match deps.archive.latest_run(path, newest).await {
            Ok(Some(run)) => {
                let inputs = run.inputs.inputs;
                recorded.push((layout::run_inputs_path(path, newest, inputs.seq), inputs.cutoffs));
            }
            Ok(None) => {}
            // The records of another hour: its own audit says what is wrong with them.
            Err(error) if error.kind() == twice_log::ErrorKind::Damage => {
                findings.notice(Check::Records, layout::run_folder(path, newest), chains::reason_of(&error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(recorded)
}

fn audited_run(
    path: BillingPath,
    hour: Hour,
    run: Recorded<RunInputs>,
    result_sha256: Option<Sha256Hex>,
) -> AuditedRun {
    let Recorded { value, sha256 } = run;
    let mut files = value.click_files;
    files.extend(value.verdict_files);
    AuditedRun {
        run_id: RunKey { path, hour, seq: value.seq }.to_string(),
        status: value.status,
        inputs_path: layout::run_inputs_path(path, hour, value.seq),
        inputs_sha256: sha256,
        result_sha256,
        rules_sha256: value.rules_sha256,
        settings: value.settings,
        cutoffs: value.cutoffs,
        seals: value.seals,
        files,
        rates: value.rates,
    }
}
