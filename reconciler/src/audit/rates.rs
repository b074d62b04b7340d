//! The rates of the audited run's inputs, against the campaign store: none is made up, changed, or left out.

use std::collections::{BTreeMap, BTreeSet};

use twice_log::archive::{Archive, BillingPath, Rate, RunInputs};
use twice_log::{CampaignId, UtcMillis};
use twice_store::CampaignStore;

use super::certificate::Check;
use super::findings::Findings;
use crate::error::Result;

/// How much later than its `recorded_at` a rate is sure to be read: that is when it was asked for, not when it was stored.
/// The sweep allows for as much.
const SLACK_MS: i64 = 60_000;

/// What tells rates apart.
type Key<'a> = (&'a CampaignId, UtcMillis, UtcMillis);

/// Checks that rates are in order, that the campaign store has recorded each of them, and that they are all it had.
///
/// # Errors
/// `Log` or `Store` if archive or store do not answer.
pub(super) async fn check_rates(
    object: &str,
    inputs: &RunInputs,
    (archive, campaigns): (&Archive, &dyn CampaignStore),
    findings: &mut Findings,
) -> Result<()> {
    let is_sorted = inputs.rates.is_sorted_by(|left, right| key(left) < key(right));
    if !is_sorted {
        findings.add(Check::Rates, object, "list rates out of order, or one twice");
    }
    let read_at = read_at(archive, inputs).await?;
    let recorded = campaigns.rates_effective_before(inputs.hour.end()).await?;
    let named: BTreeSet<Key<'_>> = inputs.rates.iter().map(key).collect();
    let by_key: BTreeMap<Key<'_>, &Rate> = recorded.iter().map(|rate| (key(rate), rate)).collect();
    for rate in &inputs.rates {
        let name = name_of(rate);
        match by_key.get(&key(rate)) {
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
    let left_out = recorded
        .iter()
        .filter(|rate| rate.recorded_at.plus_ms(SLACK_MS) < read_at && !named.contains(&key(rate)));
    for rate in left_out {
        let reason = format!(
            "leave out {} ({}), recorded at {}, and rates were read at {read_at}",
            name_of(rate),
            text(rate),
            rate.recorded_at
        );
        findings.add(Check::Rates, object, reason);
    }
    Ok(())
}

/// Returns when the rates were read: a kappa run has those of the lambda run whose inputs it took, which may be older.
async fn read_at(archive: &Archive, inputs: &RunInputs) -> Result<UtcMillis> {
    if inputs.path == BillingPath::Lambda {
        return Ok(inputs.created_at);
    }
    let mut read_at = None;
    for seq in 1.. {
        let lambda = match archive.run_inputs(BillingPath::Lambda, inputs.hour, seq).await {
            Ok(Some(lambda)) => lambda.inputs,
            Ok(None) => break,
            // The records say so already.
            Err(error) if error.kind() == twice_log::ErrorKind::Damage => continue,
            Err(error) => return Err(error.into()),
        };
        if lambda.rates == inputs.rates && lambda.created_at <= inputs.created_at {
            read_at = read_at.max(Some(lambda.created_at));
        }
    }
    Ok(read_at.unwrap_or(inputs.created_at))
}

fn key(rate: &Rate) -> Key<'_> {
    (&rate.campaign_id, rate.effective_from, rate.recorded_at)
}

fn name_of(rate: &Rate) -> String {
    format!("the rate of {} from {}", rate.campaign_id, rate.effective_from)
}

fn text(rate: &Rate) -> String {
    format!("{} {} micros", rate.currency, rate.cpc_micros)
}
