//! Counts the listed copies by cause and sets them against the seals.

use std::collections::{BTreeMap, BTreeSet};

use twice_log::archive::{RunInputs, Seal};
use twice_log::event::partition_of;
use twice_log::{CampaignId, Generation, PartitionId, Topic};
use twice_store::{BillingCounts, Divergence, StreamState};

use super::Cause;
use crate::error::Result;
use crate::recompute::values::{contradiction, integer, text};
use crate::recompute::{CampaignRange, SliceSession};

/// Listed copies by campaign and cause.
pub(crate) type CauseCounts = BTreeMap<(CampaignId, Cause), u64>;

/// Counts the copies of one slice by cause.
///
/// # Errors
/// `Contradiction` if a copy fits no cause (G-5).
pub(crate) async fn read_cause_counts(
    session: &SliceSession,
    sql: &str,
    counts: &mut CauseCounts,
) -> Result<()> {
    let counted = format!(
        "SELECT campaign_id, cause, count(*) AS copies FROM (\n{sql}\n) AS causes GROUP BY campaign_id, cause"
    );
    for batch in session.query("explain differences by cause", &counted).await? {
        for row in 0..batch.num_rows() {
            let campaign = text(&batch, "campaign_id", row)?.unwrap_or_default();
            let name = text(&batch, "cause", row)?.unwrap_or_default();
            let copies = u64::try_from(integer(&batch, "copies", row)?).unwrap_or(0);
            let cause = Cause::from_name(&name).ok_or_else(|| {
                contradiction(format!("{copies} copies of {campaign} differ without a cause"))
            })?;
            let campaign = CampaignId::new(&campaign)
                .map_err(|error| contradiction(format!("campaign {campaign:?} {error}")))?;
            *counts.entry((campaign, cause)).or_default() += copies;
        }
    }
    Ok(())
}

/// Sets bill and causes of a range against the seals: one row for every campaign of it that has either.
///
/// # Errors
/// `Contradiction` if a cause is greater than what it is a part of.
pub(crate) fn divergence_rows(
    inputs: &RunInputs,
    seals: &[Seal],
    range: &CampaignRange,
    rows: &BTreeMap<CampaignId, BillingCounts>,
    causes: &CauseCounts,
) -> Result<Vec<Divergence>> {
    let partitions = PartitionCounts::of(inputs);
    let sealed = seals.iter().flat_map(|seal| seal.counts.keys());
    let sealed = sealed.filter(|campaign| range.holds(campaign.as_str()));
    let campaigns: BTreeSet<&CampaignId> = rows.keys().chain(sealed).collect();
    campaigns
        .into_iter()
        .map(|campaign| divergence(inputs, &partitions, seals, campaign, rows, causes))
        .collect()
}

fn divergence(
    inputs: &RunInputs,
    partitions: &PartitionCounts,
    seals: &[Seal],
    campaign: &CampaignId,
    rows: &BTreeMap<CampaignId, BillingCounts>,
    causes: &CauseCounts,
) -> Result<Divergence> {
    let counts = rows.get(campaign);
    let billed = counts.map_or(0, |counts| counts.billable);
    let cause = |cause| causes.get(&(campaign.clone(), cause)).copied().unwrap_or(0);
    let (late, late_duplicate, fraud) =
        (cause(Cause::Late), cause(Cause::LateDuplicate), cause(Cause::Fraud));
    let invalid = counts.map_or(0, |counts| counts.invalid_givt + counts.invalid_sivt);
    // The two statements share no code: where they contradict each other, one of them is wrong.
    if late > billed || fraud > invalid || late_duplicate > counts.map_or(0, |counts| counts.duplicates) {
        return Err(contradiction(format!(
            "causes of {campaign} exceed its bill: late {late}, late_duplicate {late_duplicate}, fraud {fraud}"
        )));
    }
    let stream = partitions.stream_state(inputs, campaign);
    if stream == StreamState::Unsealed {
        return Ok(Divergence {
            campaign_id: campaign.clone(),
            stream,
            preliminary: None,
            billed,
            late: None,
            late_duplicate: None,
            fraud: None,
            unexplained: None,
        });
    }
    let preliminary: u64 = seals.iter().filter_map(|seal| seal.counts.get(campaign)).sum();
    // |S| = |B| - |B \ S| + |S \ B|
    let by_rules = billed - late + late_duplicate + fraud;
    let unexplained = i128::from(preliminary) - i128::from(by_rules);
    Ok(Divergence {
        campaign_id: campaign.clone(),
        stream,
        preliminary: Some(preliminary),
        billed,
        late: Some(late),
        late_duplicate: Some(late_duplicate),
        fraud: Some(fraud),
        unexplained: match stream {
            StreamState::Complete => Some(i64::try_from(unexplained).unwrap_or(i64::MAX)),
            StreamState::Incomplete | StreamState::Unsealed => None,
        },
    })
}

/// Partitions of clicks, by generation: what decides which seal a campaign's clicks are in.
struct PartitionCounts(BTreeMap<Generation, u32>);

impl PartitionCounts {
    fn of(inputs: &RunInputs) -> Self {
        let mut counts = BTreeMap::new();
        for cutoff in inputs.cutoffs.iter().filter(|cutoff| cutoff.topic == Topic::AdClicks) {
            *counts.entry(cutoff.generation).or_default() += 1;
        }
        Self(counts)
    }

    /// Returns the worst state among the campaign's partitions; a generation without any seal input is not asked.
    fn stream_state(&self, inputs: &RunInputs, campaign: &CampaignId) -> StreamState {
        let mut state = None;
        for (generation, count) in &self.0 {
            let partition: PartitionId = partition_of(campaign, *count);
            let found = inputs
                .seals
                .iter()
                .find(|input| input.generation == *generation && input.partition == partition);
            let found = match found.map(|input| &input.seal) {
                None => continue,
                Some(None) => StreamState::Unsealed,
                Some(Some(seal)) if seal.complete => StreamState::Complete,
                Some(Some(_)) => StreamState::Incomplete,
            };
            state = Some(match (state, found) {
                (Some(StreamState::Unsealed), _) | (_, StreamState::Unsealed) => StreamState::Unsealed,
                (Some(StreamState::Incomplete), _) | (_, StreamState::Incomplete) => StreamState::Incomplete,
                _ => StreamState::Complete,
            });
        }
        state.unwrap_or(StreamState::Unsealed)
    }
}
