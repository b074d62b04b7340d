//! Runs both statements over the slices of one run and puts the slices together.

use std::collections::BTreeMap;
use std::time::Instant;

use arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use twice_log::archive::{Archive, FileEntry, RunInputs, Seal, layout};
use twice_log::{CampaignId, Currency};
use twice_store::BillingCounts;

use super::relations::Relations;
use super::session::Engine;
use super::slices::{self, Slice};
use super::values::{contradiction, integer, text};
use super::{BILLING_SQL, Recomputed, ResourceLimits, SliceSession, Summary};
use crate::compare::{CauseCounts, causes_sql, divergence_rows, read_cause_counts};
use crate::error::{Error, Result};

/// Memory one row may need: its id, position, payload and time in a hash table, twice, as the bill's statement groups
/// the identities for the common case and for contested ones at the same time. Measured, then rounded up.
const BYTES_PER_ROW: u64 = 280;

/// The subquery of the bill that holds nearly all its work and is named twice.
const SHARED_SUBQUERY: &str = "identities";
/// Times the slices are cut in half after the memory did not suffice: estimates may be wrong, counts may not.
const HALVINGS_MAX: u32 = 4;

/// Bill and causes by campaign.
pub type SliceRows = (BTreeMap<CampaignId, BillingCounts>, CauseCounts);

/// Recomputes the run with these inputs.
///
/// # Errors
/// `ArchiveDamage` if a file or seal is not the one recorded; `Contradiction` if counts break CR-5 or G-5.
pub async fn recompute_inputs(
    archive: &Archive,
    inputs: &RunInputs,
    limits: &ResourceLimits,
) -> Result<Recomputed> {
    let started = Instant::now();
    let seals = read_seals(archive, inputs).await?;
    let (slices, (rows, causes)) = run_slices(archive, inputs, limits).await?;
    let divergence = divergence_rows(inputs, &seals, &rows, &causes)?;
    Ok(Recomputed {
        rows: rows.into_values().collect(),
        divergence,
        summary: Summary {
            copies: inputs.click_files.iter().map(|file| file.rows).sum(),
            slices,
            seconds: started.elapsed().as_secs_f64(),
            rss_peak_bytes: rss_peak_bytes(),
        },
    })
}

/// Counts every slice and adds them up; returns how many there were.
pub(crate) async fn run_slices(
    archive: &Archive,
    inputs: &RunInputs,
    limits: &ResourceLimits,
) -> Result<(u32, SliceRows)> {
    let relations = Relations::of(inputs)?;
    let files: Vec<FileEntry> = relations.clicks.iter().chain(relations.verdicts.iter()).cloned().collect();
    if limits.verify_files {
        verify(archive, &files, limits.threads).await?;
    }
    let rows_max = limits.rows_per_slice_max.unwrap_or(limits.memory_bytes_max / BYTES_PER_ROW);
    let mut halvings = 0;
    loop {
        let slices = slices::plan(archive, &files, (rows_max >> halvings).max(1)).await?;
        match count_slices(archive, inputs, limits, &relations, &slices).await {
            Err(error) if halvings < HALVINGS_MAX && is_out_of_memory(&error) => {
                halvings += 1;
                tracing::warn!(%error, halvings, "memory did not suffice, cutting smaller slices");
            }
            counted => return Ok((u32::try_from(slices.len()).unwrap_or(u32::MAX), counted?)),
        }
    }
}

async fn count_slices(
    archive: &Archive,
    inputs: &RunInputs,
    limits: &ResourceLimits,
    relations: &Relations,
    slices: &[Slice],
) -> Result<SliceRows> {
    let engine = Engine::new(archive, limits)?;
    let causes_sql = causes_sql(&inputs.settings);
    let mut rows = BTreeMap::new();
    let mut causes = CauseCounts::default();
    for slice in slices {
        tracing::debug!(?slice, "recomputing a slice");
        let session = engine.slice(relations, slice)?;
        for counts in read_counts(&session).await? {
            add(&mut rows, counts);
        }
        read_cause_counts(&session, &causes_sql, &mut causes).await?;
    }
    Ok((rows, causes))
}

fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::Engine { source, .. } => {
            matches!(source.find_root(), datafusion::error::DataFusionError::ResourcesExhausted(_))
        }
        _ => false,
    }
}

/// Opens a session over one campaign alone.
pub(crate) fn campaign_session(
    archive: &Archive,
    inputs: &RunInputs,
    limits: &ResourceLimits,
    campaign: &CampaignId,
) -> Result<SliceSession> {
    let slice = Slice { from: Some(campaign.to_string()), to: Some(format!("{campaign}\0")), part: None };
    Engine::new(archive, limits)?.slice(&Relations::of(inputs)?, &slice)
}

/// Reads the bill of one slice.
pub(crate) async fn read_counts(session: &SliceSession) -> Result<Vec<BillingCounts>> {
    let batches = session.query_sharing("run the billing statement", BILLING_SQL, SHARED_SUBQUERY).await?;
    let mut rows = Vec::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            rows.push(counts(batch, row)?);
        }
    }
    Ok(rows)
}

fn counts(batch: &RecordBatch, row: usize) -> Result<BillingCounts> {
    let number = |name: &str| integer(batch, name, row);
    let count =
        |name: &str| u64::try_from(number(name)?).map_err(|_| contradiction(format!("{name} is below zero")));
    let campaign_id = text(batch, "campaign_id", row)?.unwrap_or_default();
    let campaign_id = CampaignId::new(&campaign_id)
        .map_err(|error| contradiction(format!("campaign {campaign_id:?} {error}")))?;
    let currency: Option<Currency> = text(batch, "currency", row)?
        .map(|code| code.parse().map_err(|error| contradiction(format!("currency {code:?} {error}"))))
        .transpose()?;
    let counts = BillingCounts {
        campaign_id,
        gross: count("gross")?,
        duplicates: count("duplicates")?,
        conflicts: count("conflicts")?,
        invalid_givt: count("invalid_givt")?,
        invalid_sivt: count("invalid_sivt")?,
        billable: count("billable")?,
        unpriced: count("unpriced")?,
        amount_micros: number("amount_micros")?,
        currency,
    };
    if counts.is_balanced() && counts.conflicts <= counts.duplicates && counts.unpriced <= counts.billable {
        Ok(counts)
    } else {
        Err(contradiction(format!("counts do not add up: {counts:?}")))
    }
}

/// Adds the counts of one slice to those of a campaign: slices by id share a campaign and no identity.
fn add(rows: &mut BTreeMap<CampaignId, BillingCounts>, counts: BillingCounts) {
    match rows.get_mut(&counts.campaign_id) {
        None => {
            rows.insert(counts.campaign_id.clone(), counts);
        }
        Some(sum) => {
            sum.gross += counts.gross;
            sum.duplicates += counts.duplicates;
            sum.conflicts += counts.conflicts;
            sum.invalid_givt += counts.invalid_givt;
            sum.invalid_sivt += counts.invalid_sivt;
            sum.billable += counts.billable;
            sum.unpriced += counts.unpriced;
            sum.amount_micros += counts.amount_micros;
            // Each slice sees the same rates.
            sum.currency = sum.currency.or(counts.currency);
        }
    }
}

/// Reads the seals the inputs record and compares their hashes.
pub(crate) async fn read_seals(archive: &Archive, inputs: &RunInputs) -> Result<Vec<Seal>> {
    let mut seals = Vec::new();
    let mut stored: Option<Vec<_>> = None;
    for input in &inputs.seals {
        let Some(reference) = &input.seal else { continue };
        if stored.is_none() {
            stored = Some(archive.seals(inputs.hour).await?);
        }
        let path = layout::seal_path(inputs.hour, input.generation, input.partition);
        let found = stored.iter().flatten().find(|found| {
            (found.seal.generation, found.seal.partition) == (input.generation, input.partition)
        });
        match found {
            Some(found) if found.sha256 == reference.sha256 => seals.push(found.seal.clone()),
            Some(_) => {
                return Err(Error::ArchiveDamage { path, reason: "is not the seal recorded".to_owned() });
            }
            None => return Err(Error::ArchiveDamage { path, reason: "is missing".to_owned() }),
        }
    }
    Ok(seals)
}

/// Compares each file's SHA-256 with the one its manifest recorded.
async fn verify(archive: &Archive, files: &[FileEntry], threads: usize) -> Result<()> {
    futures::stream::iter(files.to_vec())
        .map(|file| {
            let archive = archive.clone();
            // A task each, so that threads hash side by side.
            async move {
                let task = tokio::spawn(async move { verify_file(&archive, &file).await });
                task.await.map_err(|error| Error::Process {
                    action: "hash a file",
                    source: std::io::Error::other(error),
                })?
            }
        })
        .buffer_unordered(threads.max(1))
        .try_collect::<()>()
        .await
}

async fn verify_file(archive: &Archive, file: &FileEntry) -> Result<()> {
    let failed = |source| Error::Archive { action: "get", path: file.path.clone(), source };
    let damage = |reason: String| Error::ArchiveDamage { path: file.path.clone(), reason };
    let path = object_store::path::Path::parse(&file.path).map_err(|error| damage(error.to_string()))?;
    let found = object_store::ObjectStoreExt::get(archive.store().as_ref(), &path).await.map_err(failed)?;
    let mut stream = found.into_stream();
    let mut hasher = Sha256::new();
    while let Some(bytes) = stream.next().await {
        hasher.update(&bytes.map_err(failed)?);
    }
    let sha256: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if sha256 == file.sha256.0 {
        Ok(())
    } else {
        Err(damage(format!("has the SHA-256 {sha256}, its manifest says {}", file.sha256)))
    }
}

/// Returns the peak resident memory of this process, or 0 where the system does not tell.
pub(crate) fn rss_peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}
