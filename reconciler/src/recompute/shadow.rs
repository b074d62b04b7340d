//! Shadow runs: a candidate billing statement beside the one in use, over the same slices of the same recorded inputs.
//!
//! Guarantee: nothing is written but what the engine spills; the candidate can only SELECT from the relations of the
//! billing statement, within the memory of any recompute. Words: *current* = the billing statement of this build;
//! *candidate* = the one tried. Flow: each slice is counted by both; a range's rows are compared when all its slices are
//! counted, and leave: only the first differences are kept, and sums.
//!
//! A candidate must be additive over identities, as the billing statement is: a campaign too big for one slice is counted
//! in several, by hash of `click_id`, and their counts add.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use serde::{Deserialize, Serialize};
use twice_log::archive::{Archive, RunInputs};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Currency, Hour};
use twice_store::BillingCounts;

use super::engine::{SHARED_SUBQUERY, add, counts, read_counts};
use super::memory::is_out_of_memory;
use super::{BILLING_SQL, CampaignRange, HourRecompute, MemoryBound, ResourceLimits};
use crate::error::{Error, Result, describe};

/// Differing campaigns listed; sums are over all.
const ROWS_MAX: usize = 1_000;
/// Largest number taken from a candidate: sums of many slices and campaigns stay far from overflow.
const NUMBER_MAX: u64 = 1 << 50;
/// The columns of the bill that are numbers, in their order.
const NUMBERS: [&str; 8] = [
    "gross",
    "duplicates",
    "conflicts",
    "invalid_givt",
    "invalid_sivt",
    "billable",
    "unpriced",
    "amount_micros",
];
/// Columns summed over campaigns: amounts are summed by currency instead.
const SUMMED: usize = NUMBERS.len() - 1;

/// A number by the statement in use and by the candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowChange {
    pub column: String,
    pub old: i64,
    pub new: i64,
}

/// The amount of one currency by both statements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowAmount {
    pub currency: Option<Currency>,
    pub old: i64,
    pub new: i64,
}

/// Which statement alone has a row of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShadowSide {
    Current,
    Candidate,
}

/// One campaign on which the statements differ; a missing row counts as zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowRow {
    pub campaign_id: CampaignId,
    pub only_in: Option<ShadowSide>,
    /// The columns that differ.
    pub changes: Vec<ShadowChange>,
    /// Old and new currency, where they differ.
    pub currencies: Option<(Option<Currency>, Option<Currency>)>,
}

/// How the answers of the two statements differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowReport {
    pub hour: Hour,
    /// The run whose recorded inputs both read.
    pub run_id: String,
    pub candidate_sha256: Sha256Hex,
    /// Campaigns that either statement has a row of, and those on which they differ.
    pub campaigns: u64,
    pub differing: u64,
    pub totals: Vec<ShadowChange>,
    pub amounts: Vec<ShadowAmount>,
    /// The first 1 000 differing campaigns, by id.
    pub rows: Vec<ShadowRow>,
}

/// Runs `sql` beside the billing statement on a run's recorded inputs.
///
/// # Errors
/// `Candidate` with one line where `sql` does not run here, has other columns or breaks CR-5; those of a recompute.
pub(super) async fn shadow_inputs(
    archive: &Archive,
    inputs: &RunInputs,
    limits: &ResourceLimits,
    memory: MemoryBound,
    sql: &str,
    campaign: Option<&CampaignId>,
) -> Result<ShadowReport> {
    let hour = HourRecompute::open(archive, inputs, limits, memory, Vec::new()).await?;
    let hour = hour.for_foreign_statements()?;
    let ranges = match campaign {
        Some(campaign) => vec![hour.range_of(campaign).await?],
        None => hour.ranges().await?,
    };
    let mut differences = Differences::default();
    for range in &ranges {
        let count = |range| -> futures::future::BoxFuture<'_, _> {
            Box::pin(async { count_both(&hour, range, sql).await })
        };
        let (_, (current, candidate)) = hour.within_memory(range, count).await?;
        differences.add(&current, &candidate);
    }
    Ok(differences.report(inputs, sql))
}

type Rows = BTreeMap<CampaignId, BillingCounts>;

async fn count_both(hour: &HourRecompute<'_>, range: CampaignRange, sql: &str) -> Result<(Rows, Rows)> {
    let (mut current, mut candidate) = (Rows::new(), Rows::new());
    for slice in range.slices() {
        let session = hour.session(&slice).await?;
        // First: a file that does not read is no fault of the candidate.
        for row in read_counts(&session, BILLING_SQL).await? {
            add(&mut current, row);
        }
        let answered = session.query_foreign(sql, SHARED_SUBQUERY).await;
        let (schema, batches) = match answered {
            Err(error @ Error::Engine { .. }) if !is_out_of_memory(&error) => {
                return Err(refused(describe(&error)));
            }
            answered => answered?,
        };
        check_columns(&schema)?;
        for row in candidate_counts(&batches, &range)? {
            add(&mut candidate, row);
        }
    }
    Ok((current, candidate))
}

/// Reads the rows of a candidate's answer over one slice, and refuses what is no bill.
fn candidate_counts(batches: &[RecordBatch], range: &CampaignRange) -> Result<Vec<BillingCounts>> {
    let (mut rows, mut campaigns) = (Vec::new(), BTreeSet::new());
    for batch in batches {
        for row in 0..batch.num_rows() {
            let counts = counts(batch, row).map_err(|error| match error {
                Error::Contradiction { reason } => refused(reason),
                error => refused(describe(&error)),
            })?;
            let campaign_id = counts.campaign_id.clone();
            if !range.holds(campaign_id.as_str()) {
                return Err(refused(format!(
                    "it answers campaign {campaign_id}, which no row it reads is of"
                )));
            }
            if numbers(Some(&counts)).iter().any(|number| number.unsigned_abs() > NUMBER_MAX) {
                return Err(refused(format!("a number of campaign {campaign_id} is larger than any bill's")));
            }
            if !campaigns.insert(campaign_id.clone()) {
                return Err(refused(format!("it answers campaign {campaign_id} twice")));
            }
            rows.push(counts);
        }
    }
    Ok(rows)
}

fn check_columns(schema: &Schema) -> Result<()> {
    let known = || ["campaign_id", "currency"].into_iter().chain(NUMBERS);
    if let Some(missing) = known().find(|name| schema.field_with_name(name).is_err()) {
        return Err(refused(format!("column {missing} is missing")));
    }
    let mut names = schema.fields().iter().map(|field| field.name().as_str());
    if let Some(other) = names.find(|name| !known().any(|known| known == *name)) {
        return Err(refused(format!("column {other:?} is none of the bill's")));
    }
    let wrong = NUMBERS
        .iter()
        .find(|name| schema.field_with_name(name).is_ok_and(|field| *field.data_type() != DataType::Int64));
    match wrong {
        Some(name) => Err(refused(format!("column {name} is no BIGINT"))),
        None => Ok(()),
    }
}

/// Puts a reason on one line.
fn refused(reason: String) -> Error {
    Error::Candidate { reason: reason.split_whitespace().collect::<Vec<_>>().join(" ") }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Differences {
    campaigns: u64,
    differing: u64,
    totals: [(i64, i64); SUMMED],
    amounts: BTreeMap<Option<String>, ShadowAmount>,
    rows: Vec<ShadowRow>,
}

impl Differences {
    /// Compares the rows of one range of campaigns.
    fn add(&mut self, current: &Rows, candidate: &Rows) {
        let campaigns: BTreeSet<&CampaignId> = current.keys().chain(candidate.keys()).collect();
        for campaign_id in campaigns {
            let (old, new) = (current.get(campaign_id), candidate.get(campaign_id));
            self.campaigns += 1;
            self.sum(old, new);
            if old == new {
                continue;
            }
            self.differing += 1;
            if self.rows.len() < ROWS_MAX {
                self.rows.push(row(campaign_id, old, new));
            }
        }
    }

    fn sum(&mut self, old: Option<&BillingCounts>, new: Option<&BillingCounts>) {
        let (old_numbers, new_numbers) = (numbers(old), numbers(new));
        for (index, (old_sum, new_sum)) in self.totals.iter_mut().enumerate() {
            *old_sum = old_sum.saturating_add(old_numbers[index]);
            *new_sum = new_sum.saturating_add(new_numbers[index]);
        }
        let mut amount = |row: &BillingCounts, old: i64, new: i64| {
            let currency = row.currency;
            let key = currency.map(|currency| currency.to_string());
            let sum = self.amounts.entry(key).or_insert(ShadowAmount { currency, old: 0, new: 0 });
            sum.old = sum.old.saturating_add(old);
            sum.new = sum.new.saturating_add(new);
        };
        if let Some(row) = old {
            amount(row, row.amount_micros, 0);
        }
        if let Some(row) = new {
            amount(row, 0, row.amount_micros);
        }
    }

    fn report(self, inputs: &RunInputs, sql: &str) -> ShadowReport {
        let totals = NUMBERS.iter().zip(self.totals);
        ShadowReport {
            hour: inputs.hour,
            run_id: format!("{}/{}/{:06}", inputs.path, inputs.hour, inputs.seq),
            candidate_sha256: Sha256Hex::of(sql.as_bytes()),
            campaigns: self.campaigns,
            differing: self.differing,
            totals: totals
                .map(|(column, (old, new))| ShadowChange { column: (*column).to_owned(), old, new })
                .collect(),
            amounts: self.amounts.into_values().collect(),
            rows: self.rows,
        }
    }
}

fn row(campaign_id: &CampaignId, old: Option<&BillingCounts>, new: Option<&BillingCounts>) -> ShadowRow {
    let pairs = numbers(old).into_iter().zip(numbers(new));
    let changes = NUMBERS.iter().zip(pairs).filter(|(_, (old, new))| old != new);
    let currency = |row: Option<&BillingCounts>| row.and_then(|row| row.currency);
    let currencies = (currency(old), currency(new));
    ShadowRow {
        campaign_id: campaign_id.clone(),
        only_in: match (old, new) {
            (Some(_), None) => Some(ShadowSide::Current),
            (None, Some(_)) => Some(ShadowSide::Candidate),
            _ => None,
        },
        changes: changes
            .map(|(column, (old, new))| ShadowChange { column: (*column).to_owned(), old, new })
            .collect(),
        currencies: (currencies.0 != currencies.1).then_some(currencies),
    }
}

/// Returns a row's numbers in the order of [`NUMBERS`]. They came out of BIGINT columns and fit.
fn numbers(row: Option<&BillingCounts>) -> [i64; NUMBERS.len()] {
    row.map_or([0; NUMBERS.len()], |row| {
        [
            row.gross as i64,
            row.duplicates as i64,
            row.conflicts as i64,
            row.invalid_givt as i64,
            row.invalid_sivt as i64,
            row.billable as i64,
            row.unpriced as i64,
            row.amount_micros,
        ]
    })
}
