//! The certificate as text for people.

use std::fmt::{self, Display, Formatter};

use twice_log::Topic;
use twice_log::archive::{Cutoff, FileKind};

use super::certificate::{AuditVerdict, AuditedRun, Certificate, CertifiedRow};
use super::deleted::DeletedFiles;

impl Display for Certificate {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            AuditVerdict::Proved => "PROVED: the bill follows from the archive",
            AuditVerdict::Attested => {
                "ATTESTED: every record agrees; the raw records were deleted, so nothing was counted again"
            }
            AuditVerdict::NotProved => "NOT PROVED: see the findings",
        };
        writeln!(out, "Audit of {} (mode {}) by {}, {}", self.hour, self.mode, self.tool, self.audited_at)?;
        if let Some(campaign) = &self.campaign {
            writeln!(out, "Rows and findings about rows are those of campaign {campaign} alone")?;
        }
        writeln!(out, "{verdict}\nCertificate {}\n", self.certificate_sha256)?;
        for line in &self.checks {
            let mark = if line.passed { "ok    ".to_owned() } else { format!("{:>5} ", line.findings) };
            writeln!(out, "{mark} {}", line.statement)?;
        }
        for (title, findings) in [("Findings", &self.findings), ("Notices", &self.notices)] {
            if !findings.is_empty() {
                writeln!(out, "\n{title}")?;
            }
            for finding in findings {
                writeln!(out, "  {}\n      {}", finding.object, finding.reason)?;
            }
        }
        for run in &self.newest_runs {
            let outcome = format!("{:?}", run.outcome).to_lowercase();
            write!(out, "{}", if run == &self.newest_runs[0] { "\n" } else { "" })?;
            writeln!(out, "Newest run of path {}: {} ({outcome})", run.path, run.run_id)?;
        }
        if let Some(run) = &self.run {
            let title = if self.deleted.is_empty() { "Counted again" } else { "As recorded" };
            write_run(title, run, out)?;
        }
        for deleted in &self.deleted {
            let DeletedFiles { tombstone, tombstone_sha256, deleted_at, files, rows, .. } = deleted;
            writeln!(
                out,
                "  deleted {tombstone_sha256} {tombstone}: {files} files, {rows} rows, {deleted_at}"
            )?;
        }
        write_rows(&self.rows, out)?;
        let figures = &self.figures;
        writeln!(
            out,
            "\nExamined {} manifests, {} runs, {} files of {} bytes; counted {} copies again in {:.1} s, peak memory \
             {} MiB",
            figures.manifests,
            figures.runs,
            figures.files,
            figures.file_bytes,
            figures.copies,
            figures.recount_seconds,
            figures.recount_rss_peak_bytes >> 20
        )
    }
}

fn write_run(title: &str, run: &AuditedRun, out: &mut Formatter<'_>) -> fmt::Result {
    writeln!(out, "\n{title}: run {} ({})", run.run_id, run.status.name())?;
    writeln!(out, "  inputs  {} {}", run.inputs_sha256, run.inputs_path)?;
    match &run.result_sha256 {
        Some(result) => writeln!(out, "  result  {result}")?,
        None => writeln!(out, "  result  missing")?,
    }
    writeln!(out, "  rules   {}", run.rules_sha256)?;
    writeln!(out, "  horizon {} h", run.settings.horizon_hours)?;
    for (topic, title) in [(Topic::AdClicks, "cutoff"), (Topic::FraudVerdicts, "verdict cutoff")] {
        for cutoff in run.cutoffs.iter().filter(|cutoff| cutoff.topic == topic) {
            let Cutoff { generation, partition, end, head_manifest_sha256, .. } = cutoff;
            let head = head_manifest_sha256.as_ref().map_or("none", |sha256| sha256.0.as_str());
            writeln!(out, "  {title} {generation}-{partition} below {end}, head manifest {head}")?;
        }
    }
    for input in &run.seals {
        let seal = match &input.seal {
            Some(seal) if seal.complete => format!("{} at {}, complete", seal.sha256, seal.end),
            Some(seal) => format!("{} at {}, incomplete", seal.sha256, seal.end),
            None => "unsealed".to_owned(),
        };
        writeln!(out, "  seal {}-{} {seal}", input.generation, input.partition)?;
    }
    for rate in &run.rates {
        writeln!(
            out,
            "  rate {} {} {} micros from {}, recorded {}",
            rate.campaign_id, rate.currency, rate.cpc_micros, rate.effective_from, rate.recorded_at
        )?;
    }
    for file in run.files.iter().filter(|file| file.kind != FileKind::Quarantine) {
        writeln!(out, "  file {} {} rows {}", file.sha256, file.rows, file.path)?;
    }
    Ok(())
}

fn write_rows(rows: &[CertifiedRow], out: &mut Formatter<'_>) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n{:<24} {:>3} {:>10} {:>10} {:>9} {:>8} {:>8} {:>10} {:>8} {:>16} {:<4} digest",
        "campaign",
        "ver",
        "gross",
        "duplicates",
        "conflicts",
        "givt",
        "sivt",
        "billable",
        "unpriced",
        "amount_micros",
        "cur"
    )?;
    for CertifiedRow { counts, digest, version } in rows {
        let version = version.map_or("?".to_owned(), |version| version.to_string());
        let currency = counts.currency.map_or("-".to_owned(), |code| code.to_string());
        writeln!(
            out,
            "{:<24} {version:>3} {:>10} {:>10} {:>9} {:>8} {:>8} {:>10} {:>8} {:>16} {currency:<4} {digest}",
            counts.campaign_id.as_str(),
            counts.gross,
            counts.duplicates,
            counts.conflicts,
            counts.invalid_givt,
            counts.invalid_sivt,
            counts.billable,
            counts.unpriced,
            counts.amount_micros
        )?;
    }
    Ok(())
}
