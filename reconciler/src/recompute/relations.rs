//! The relations the SQL reads, as a run's inputs record them: files below the cutoffs, rates, seals and the run itself.
//!
//! Guarantee: what is not in the inputs is not read; a position at or above its partition's cutoff does not exist; an
//! hour outside the horizon is not read.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringViewArray, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::logical_expr::{Expr, col, lit};
use twice_log::archive::{Cutoff, FileEntry, RunInputs, clicks_schema, verdicts_schema};
use twice_log::{Generation, Hour, LogOffset, PartitionId, Topic, UtcMillis};

use super::related::Columns;
use super::slices::Slice;
use crate::error::{Error, Result};

/// 2^48: a position is generation times this, plus the offset.
const GENERATION_STEP: i64 = 1 << 48;
/// Verdicts that arrived more hours before the billed hour than this are not asked (CR-10).
const VERDICT_HOURS_BEFORE: i64 = 24;

/// Files of one relation: those wholly below their cutoff, and those that need the comparison row by row.
#[derive(Debug, Clone, Default)]
pub struct Files {
    pub below: Vec<FileEntry>,
    pub cut: Vec<FileEntry>,
}

impl Files {
    /// Returns how many rows they have.
    pub fn rows(&self) -> u64 {
        self.iter().map(|file| file.rows).sum()
    }

    /// Iterates over all of them.
    pub fn iter(&self) -> impl Iterator<Item = &FileEntry> {
        self.below.iter().chain(&self.cut)
    }
}

/// Everything the SQL reads, ready to be registered.
#[derive(Debug, Clone)]
pub struct Relations {
    /// Clicks of the hour itself.
    pub clicks: Files,
    /// Clicks of the other hours of the horizon: only copies of the hour's own identities matter.
    pub elsewhere: Files,
    pub verdicts: Files,
    /// Condition that a row of a `cut` file exists for this run.
    pub clicks_exist: Expr,
    pub verdicts_exist: Expr,
    /// Which columns are read of other hours.
    pub columns: Columns,
    pub run: RecordBatch,
    /// All rates of the run; [`Relations::rates_of`] gives those of a slice.
    rates: RecordBatch,
    /// Whether they are in order of campaigns, as run inputs list them.
    rates_in_order: bool,
    pub seals: RecordBatch,
}

impl Relations {
    /// Lays out the relations of a run.
    ///
    /// # Errors
    /// `ArchiveDamage` if a file is of a partition without a cutoff.
    pub fn of(inputs: &RunInputs) -> Result<Self> {
        let horizon = i64::from(inputs.settings.horizon_hours);
        let clicks = [inputs.hour.plus(-horizon), inputs.hour.plus(horizon)];
        let (own, elsewhere): (Vec<&FileEntry>, Vec<&FileEntry>) = inputs
            .click_files
            .iter()
            .filter(|file| file.hour.is_some_and(|hour| clicks[0] <= hour && hour <= clicks[1]))
            .partition(|file| file.hour == Some(inputs.hour));
        let earliest_verdict = inputs.hour.plus(-VERDICT_HOURS_BEFORE);
        let verdicts_of =
            inputs.verdict_files.iter().filter(|file| file.hour.is_some_and(|hour| hour >= earliest_verdict));
        Ok(Self {
            clicks: split(own.into_iter(), Topic::AdClicks, &inputs.cutoffs)?,
            elsewhere: split(elsewhere.into_iter(), Topic::AdClicks, &inputs.cutoffs)?,
            verdicts: split(verdicts_of, Topic::FraudVerdicts, &inputs.cutoffs)?,
            clicks_exist: exists(Topic::AdClicks, &inputs.cutoffs),
            verdicts_exist: exists(Topic::FraudVerdicts, &inputs.cutoffs),
            columns: Columns::OfStatements,
            run: run_batch(inputs.hour, horizon)?,
            rates: rates_batch(inputs)?,
            rates_in_order: inputs.rates.is_sorted_by(|left, right| left.campaign_id <= right.campaign_id),
            seals: seals_batch(inputs)?,
        })
    }

    /// Returns the files of both topics.
    pub fn files(&self) -> Vec<FileEntry> {
        self.clicks.iter().chain(self.elsewhere.iter()).chain(self.verdicts.iter()).cloned().collect()
    }

    /// Returns the files whose rows are held in memory as they are counted: their number sizes the slices.
    pub fn held_files(&self) -> Vec<FileEntry> {
        let verdicts = self.verdicts.iter().filter(|_| !self.verdicts_are_many());
        self.clicks.iter().chain(verdicts).cloned().collect()
    }

    /// Returns whether there are more verdicts than clicks, as in an hour counted again months later: then only those of
    /// the hour's identities are kept.
    pub fn verdicts_are_many(&self) -> bool {
        self.verdicts.rows() > self.clicks.rows()
    }

    /// Returns the rates that a slice's campaigns can need: with a million campaigns, all of them would cost each slice
    /// more memory than its clicks.
    pub fn rates_of(&self, slice: &Slice) -> RecordBatch {
        let campaigns = self.rates.column(0).as_string_view_opt().filter(|_| self.rates_in_order);
        let Some(campaigns) = campaigns else { return self.rates.clone() };
        let place = |bound: &str| first_at_least(campaigns, bound);
        let from = slice.from.as_deref().map_or(0, place);
        let to = slice.to.as_deref().map_or(campaigns.len(), place);
        self.rates.slice(from, to.saturating_sub(from))
    }
}

/// Returns the first place in ordered texts whose text is not below `bound`.
fn first_at_least(texts: &StringViewArray, bound: &str) -> usize {
    let (mut low, mut high) = (0, texts.len());
    while low < high {
        let middle = low + (high - low) / 2;
        if texts.value(middle) < bound { low = middle + 1 } else { high = middle }
    }
    low
}

/// Returns the schema of a data file as the engine reads it: text as views, which group and join faster.
pub fn engine_schema(topic: Topic) -> SchemaRef {
    let stored = match topic {
        Topic::AdClicks => clicks_schema(),
        // Decisions are not archived, so nobody asks for their schema.
        Topic::FraudVerdicts | Topic::BudgetDecisions => verdicts_schema(),
    };
    let fields = stored.fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Where a data file's positions lie, read from its name: `{generation}-{partition}-{first}-{last}-{hash}.parquet`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSpan {
    pub generation: Generation,
    pub partition: PartitionId,
    pub first: LogOffset,
    /// Inclusive.
    pub last: LogOffset,
}

/// Reads a data file's span from its path.
pub fn file_span(path: &str) -> Option<FileSpan> {
    let name = path.rsplit('/').next()?.strip_suffix(".parquet")?;
    let mut parts = name.split('-');
    Some(FileSpan {
        generation: Generation(parts.next()?.parse().ok()?),
        partition: PartitionId(parts.next()?.parse().ok()?),
        first: LogOffset(parts.next()?.parse().ok()?),
        last: LogOffset(parts.next()?.parse().ok()?),
    })
}

fn split<'a>(files: impl Iterator<Item = &'a FileEntry>, topic: Topic, cutoffs: &[Cutoff]) -> Result<Files> {
    let ends: BTreeMap<(Generation, PartitionId), LogOffset> = cutoffs
        .iter()
        .filter(|cutoff| cutoff.topic == topic)
        .map(|cutoff| ((cutoff.generation, cutoff.partition), cutoff.end))
        .collect();
    let mut split = Files::default();
    for file in files {
        let damage =
            |reason: &str| Error::ArchiveDamage { path: file.path.clone(), reason: reason.to_owned() };
        let span = file_span(&file.path).ok_or_else(|| damage("has not the name of a data file"))?;
        let end = ends.get(&(span.generation, span.partition));
        let end = end.ok_or_else(|| damage("is of a partition for which the run has no cutoff"))?;
        match (span.first < *end, span.last < *end) {
            (_, true) => split.below.push(file.clone()),
            (true, false) => split.cut.push(file.clone()),
            (false, false) => {} // wholly above: it does not exist for this run
        }
    }
    Ok(split)
}

/// Returns the condition that a row lies below its partition's cutoff.
fn exists(topic: Topic, cutoffs: &[Cutoff]) -> Expr {
    let below = |cutoff: &Cutoff| {
        col("generation")
            .eq(lit(cutoff.generation.0 as i32))
            .and(col("partition").eq(lit(cutoff.partition.0 as i32)))
            .and(col("log_offset").lt(lit(cutoff.end.0)))
    };
    let conditions = cutoffs.iter().filter(|cutoff| cutoff.topic == topic).map(below);
    conditions.reduce(Expr::or).unwrap_or_else(|| lit(false))
}

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

fn times(values: impl IntoIterator<Item = UtcMillis>) -> ArrayRef {
    let values = values.into_iter().map(UtcMillis::epoch_ms);
    Arc::new(TimestampMillisecondArray::from_iter_values(values).with_timezone("UTC"))
}

fn batch(columns: Vec<(&str, DataType, ArrayRef)>) -> Result<RecordBatch> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, data_type, _)| Field::new(*name, data_type.clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, _, array)| array).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(twice_log::Error::from)?)
}

fn run_batch(hour: Hour, horizon: i64) -> Result<RecordBatch> {
    batch(vec![
        ("hour_start", timestamp(), times([hour.start()])),
        ("hour_end", timestamp(), times([hour.end()])),
        ("read_from", timestamp(), times([hour.plus(-horizon).start()])),
        ("read_to", timestamp(), times([hour.plus(horizon).end()])),
        ("horizon_hours", DataType::Int64, Arc::new(Int64Array::from(vec![horizon]))),
    ])
}

fn rates_batch(inputs: &RunInputs) -> Result<RecordBatch> {
    let rates = &inputs.rates;
    let texts = |values: Vec<&str>| Arc::new(StringViewArray::from(values)) as ArrayRef;
    batch(vec![
        (
            "campaign_id",
            DataType::Utf8View,
            texts(rates.iter().map(|rate| rate.campaign_id.as_str()).collect()),
        ),
        ("currency", DataType::Utf8View, texts(rates.iter().map(|rate| rate.currency.as_str()).collect())),
        (
            "cpc_micros",
            DataType::Int64,
            Arc::new(Int64Array::from_iter_values(rates.iter().map(|rate| rate.cpc_micros))),
        ),
        ("effective_from", timestamp(), times(rates.iter().map(|rate| rate.effective_from))),
        ("recorded_at", timestamp(), times(rates.iter().map(|rate| rate.recorded_at))),
    ])
}

/// Lists the seals, and for partitions of a generation begun after the newest sealed one a seal below everything:
/// their positions are above every seal of an earlier generation.
fn seals_batch(inputs: &RunInputs) -> Result<RecordBatch> {
    let sealed: BTreeMap<(Generation, PartitionId), LogOffset> = inputs
        .seals
        .iter()
        .filter_map(|input| Some(((input.generation, input.partition), input.seal.as_ref()?.end)))
        .collect();
    let newest = sealed.keys().map(|(generation, _)| *generation).max();
    let later = inputs
        .cutoffs
        .iter()
        .filter(|cutoff| {
            cutoff.topic == Topic::AdClicks && newest.is_some_and(|newest| cutoff.generation > newest)
        })
        .map(|cutoff| ((cutoff.generation, cutoff.partition), LogOffset(0)));
    let rows: Vec<_> = sealed.clone().into_iter().chain(later).collect();
    let numbers = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let small = |values: Vec<i32>| Arc::new(arrow::array::Int32Array::from(values)) as ArrayRef;
    batch(vec![
        (
            "generation",
            DataType::Int32,
            small(rows.iter().map(|((generation, _), _)| generation.0 as i32).collect()),
        ),
        (
            "partition",
            DataType::Int32,
            small(rows.iter().map(|((_, partition), _)| partition.0 as i32).collect()),
        ),
        (
            "seal_position",
            DataType::Int64,
            numbers(
                rows.iter()
                    .map(|((generation, _), end)| i64::from(generation.0) * GENERATION_STEP + end.0)
                    .collect(),
            ),
        ),
    ])
}
