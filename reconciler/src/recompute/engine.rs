//! Runs both statements over the slices of one run and puts the slices together.
//!
//! Flow: campaigns are cut into ranges, in order; a range is counted slice by slice, its answer is complete when all
//! its slices are counted, and then it leaves: what was answered takes no memory. A range whose memory did not suffice
//! is counted again in twice as many slices; nothing of its first attempt was answered.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::RecordBatch;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use twice_log::archive::{Archive, FileEntry, RunInputs, Seal, layout};
use twice_log::{CampaignId, Currency};
use twice_store::{BillingCounts, CostMeter, Divergence};

use super::aggregates::{Aggregating, LocalAggregates};
use super::memory::{MemoryBound, SliceSize};
use super::related::Columns;
use super::relations::Relations;
use super::session::Engine;
use super::slices::{self, CampaignRange};
use super::values::{campaign, contradiction, count, integer, text};
use super::{Recomputed, ResourceLimits, Rules, SliceSession, Summary};
use crate::compare::{CauseCounts, divergence_rows, read_cause_counts};
use crate::error::{Error, Result};

/// The subquery of the bill that holds nearly all its work and is named twice.
pub(super) const SHARED_SUBQUERY: &str = "identities";
/// Answers that may wait for whoever takes them.
const ANSWERS_WAITING: usize = 2;

/// Bill and causes by campaign.
pub type SliceRows = (BTreeMap<CampaignId, BillingCounts>, CauseCounts);

/// The complete answer for a range of campaigns, in their order.
#[derive(Debug, Default)]
pub(crate) struct RangeAnswer {
    pub rows: Vec<BillingCounts>,
    pub divergence: Vec<Divergence>,
    /// The run's files of aggregates; they come last, without rows.
    pub aggregates: Option<Vec<LocalAggregates>>,
}

/// Recomputes the run with these inputs, without aggregates, beside other work in this process.
///
/// # Errors
/// `ArchiveDamage` if a file or seal is not the one recorded; `Contradiction` if counts break CR-5 or G-5;
/// `OutOfMemory` if the limit is too low for even small slices.
pub async fn recompute_inputs(
    archive: &Archive,
    inputs: &RunInputs,
    limits: &ResourceLimits,
) -> Result<Recomputed> {
    let (sender, mut receiver) = mpsc::channel(ANSWERS_WAITING);
    let memory = MemoryBound::of_share(limits);
    let mut recomputed = Recomputed::default();
    let gather = async {
        while let Some(RangeAnswer { rows, divergence, .. }) = receiver.recv().await {
            recomputed.rows.extend(rows);
            recomputed.divergence.extend(divergence);
        }
    };
    let (summary, ()) =
        futures::join!(recompute_ranges(archive, inputs, limits, memory, None, sender), gather);
    Ok(Recomputed { summary: summary?, ..recomputed })
}

/// Recomputes the run and sends the answer range by range, in order of campaigns.
///
/// # Errors
/// Those of [`recompute_inputs`], and `Process` if nobody takes the answers.
pub(crate) async fn recompute_ranges(
    archive: &Archive,
    inputs: &RunInputs,
    limits: &ResourceLimits,
    memory: MemoryBound,
    aggregates_dir: Option<&Path>,
    answers: mpsc::Sender<RangeAnswer>,
) -> Result<Summary> {
    let meter = CostMeter::start();
    let seals = read_seals(archive, inputs).await?;
    let hour = HourRecompute::open(archive, inputs, limits, memory, seals).await?;
    let mut aggregating = aggregates_dir.map(|folder| Aggregating::new(folder, inputs.hour));
    let mut slices = 0;
    for range in hour.ranges().await? {
        let (used, (rows, causes)) = hour.count(&range).await?;
        slices += used;
        let divergence = divergence_rows(inputs, &hour.seals, &range, &rows, &causes)?;
        if let Some(aggregating) = &mut aggregating {
            aggregating.add(&hour, &range, &rows).await?;
        }
        send(&answers, RangeAnswer { rows: rows.into_values().collect(), divergence, aggregates: None })
            .await?;
    }
    if let Some(aggregating) = aggregating {
        let aggregates = Some(aggregating.finish()?);
        send(&answers, RangeAnswer { aggregates, ..RangeAnswer::default() }).await?;
    }
    let copies = inputs.click_files.iter().map(|file| file.rows).sum();
    Ok(Summary { copies, slices, memory_retries: 0, cost: meter.read() })
}

async fn send(answers: &mpsc::Sender<RangeAnswer>, answer: RangeAnswer) -> Result<()> {
    let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    let sent = answers.send(answer).await.map_err(gone);
    sent.map_err(|source| Error::Process { action: "answer", source })
}

/// One run's relations and engine, ready to count ranges of campaigns within a memory limit.
pub(crate) struct HourRecompute<'a> {
    archive: &'a Archive,
    inputs: &'a RunInputs,
    relations: Relations,
    engine: Engine,
    size: SliceSize,
    memory: MemoryBound,
    pub rules: Rules,
    pub seals: Vec<Seal>,
}

impl<'a> HourRecompute<'a> {
    /// Lays out the run's relations, checks its files if that is wanted, and sizes the slices.
    pub async fn open(
        archive: &'a Archive,
        inputs: &'a RunInputs,
        limits: &ResourceLimits,
        memory: MemoryBound,
        seals: Vec<Seal>,
    ) -> Result<Self> {
        let mut relations = Relations::of(inputs)?;
        let rules = Rules::of_run(archive, inputs).await?;
        if rules != Rules::of_build(&inputs.settings)? {
            // Statements of another build may read of other hours what this build's do not.
            relations.columns = Columns::Every;
        }
        if limits.verify_files {
            verify(archive, &relations.files(), limits.threads).await?;
        }
        if memory.is_used_up() {
            return Err(Error::OutOfMemory { limit_bytes: memory.limit() });
        }
        // What is in memory by now stays there: only the rest is for rows.
        let pool_bytes = memory.pool_bytes();
        let mut size = memory.slice_size(pool_bytes);
        if let Some(rows) = limits.rows_per_slice_max {
            size.rows = rows.max(1);
        }
        tracing::debug!(pool_bytes, ?size, "recomputing an hour");
        let engine = Engine::new(archive, &limits.spill_dir, pool_bytes, size.streams)?;
        Ok(Self { archive, inputs, relations, engine, size, memory, rules, seals })
    }

    /// Reads every column of other hours, for statements that this build does not know, and lets them spill less.
    ///
    /// # Errors
    /// `Engine` if the engine refuses.
    pub fn for_foreign_statements(mut self) -> Result<Self> {
        self.relations.columns = Columns::Every;
        self.engine.bound_spill()?;
        Ok(self)
    }

    /// Cuts all campaigns into ranges.
    pub async fn ranges(&self) -> Result<Vec<CampaignRange>> {
        slices::plan(self.archive, &self.relations.held_files(), &self.inputs.rates, self.size.rows).await
    }

    /// Returns the range of one campaign, cut into slices that fit.
    pub async fn range_of(&self, campaign: &CampaignId) -> Result<CampaignRange> {
        slices::plan_campaign(self.archive, &self.relations.held_files(), campaign, self.size.rows).await
    }

    /// Counts a range, in more slices where the memory does not suffice; returns how many it took.
    pub async fn count(&self, range: &CampaignRange) -> Result<(u32, SliceRows)> {
        let count = |range| async move { self.count_slices(&range).await }.boxed();
        self.within_memory(range, count).await
    }

    /// Does `work` over a range within the memory limit; over twice as many slices where it did not suffice.
    ///
    /// # Errors
    /// `OutOfMemory` where even small slices do not fit, and those of `work`.
    pub async fn within_memory<'w, T>(
        &self,
        range: &CampaignRange,
        work: impl Fn(CampaignRange) -> BoxFuture<'w, Result<T>> + Send,
    ) -> Result<(u32, T)> {
        self.memory.within(range, work).await
    }

    async fn count_slices(&self, range: &CampaignRange) -> Result<SliceRows> {
        let causes_sql = self.rules.causes(&self.inputs.settings);
        let mut rows = BTreeMap::new();
        let mut causes = CauseCounts::default();
        for slice in range.slices() {
            tracing::debug!(?slice, "recomputing a slice");
            let session = self.session(&slice).await?;
            for counts in read_counts(&session, &self.rules.billing_sql).await? {
                add(&mut rows, counts);
            }
            read_cause_counts(&session, &causes_sql, &mut causes).await?;
        }
        Ok((rows, causes))
    }

    /// Opens a session over one slice.
    pub async fn session(&self, slice: &slices::Slice) -> Result<SliceSession> {
        self.engine.slice(&self.relations, slice).await
    }
}

/// Reads the bill of one slice.
pub(super) async fn read_counts(session: &SliceSession, billing_sql: &str) -> Result<Vec<BillingCounts>> {
    let batches = session.query_sharing("run the billing statement", billing_sql, SHARED_SUBQUERY).await?;
    let mut rows = Vec::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            rows.push(counts(batch, row)?);
        }
    }
    Ok(rows)
}

pub(super) fn counts(batch: &RecordBatch, row: usize) -> Result<BillingCounts> {
    let count = |name: &str| count(batch, name, row);
    let currency: Option<Currency> = text(batch, "currency", row)?
        .map(|code| code.parse().map_err(|error| contradiction(format!("currency {code:?} {error}"))))
        .transpose()?;
    let counts = BillingCounts {
        campaign_id: campaign(batch, row)?,
        gross: count("gross")?,
        duplicates: count("duplicates")?,
        conflicts: count("conflicts")?,
        invalid_givt: count("invalid_givt")?,
        invalid_sivt: count("invalid_sivt")?,
        billable: count("billable")?,
        unpriced: count("unpriced")?,
        amount_micros: integer(batch, "amount_micros", row)?,
        currency,
    };
    if counts.is_balanced() && counts.conflicts <= counts.duplicates && counts.unpriced <= counts.billable {
        Ok(counts)
    } else {
        Err(contradiction(format!("counts do not add up: {counts:?}")))
    }
}

/// Adds the counts of one slice to those of a campaign: slices by id share a campaign and no identity.
pub(super) fn add(rows: &mut BTreeMap<CampaignId, BillingCounts>, counts: BillingCounts) {
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
    if inputs.seals.iter().all(|input| input.seal.is_none()) {
        return Ok(seals);
    }
    let mut stored = archive.seals(inputs.hour).await?;
    for input in &inputs.seals {
        let Some(reference) = &input.seal else { continue };
        let path = layout::seal_path(inputs.hour, input.generation, input.partition);
        let found = stored.iter().position(|found| {
            (found.seal.generation, found.seal.partition) == (input.generation, input.partition)
        });
        // Moved, not copied: seals hold a count for each campaign.
        match found.map(|index| stored.swap_remove(index)) {
            Some(found) if found.sha256 == reference.sha256 => seals.push(found.seal),
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
    match archive.verify_data(file).await {
        Ok(()) => Ok(()),
        Err(twice_log::Error::ArchiveDamage { path, reason }) => Err(Error::ArchiveDamage { path, reason }),
        Err(error) => Err(error.into()),
    }
}
