//! The counting rules once more, as plainly as they can be said: quadratic, over all copies in memory.

use std::collections::{BTreeMap, BTreeSet};

use twice_log::archive::{CountingSettings, Rate, Seal};
use twice_log::event::payload_hash;
use twice_log::{
    AdId, CampaignId, Click, Hour, LogOffset, PartitionId, UserId, UtcMillis, Verdict, VerdictClass,
};
use twice_store::{AggregateCounts, BillingCounts};

use super::{GENERATION, Records, Run};

/// A copy at its place.
#[derive(Debug, Clone)]
pub struct Placed {
    pub partition: PartitionId,
    pub offset: i64,
    pub watermark: Option<i64>,
    pub click: Click,
}

/// Returns the copies below the cutoffs, in order of position within each partition.
pub fn copies(records: &Records, run: &Run) -> Vec<Placed> {
    let mut placed = Vec::new();
    for (partition, clicks) in &records.clicks {
        let end = run.click_ends.get(partition).copied().unwrap_or(i64::MAX);
        let mut highest: Option<i64> = None;
        for (offset, click) in clicks.iter().enumerate().map(|(offset, click)| (offset as i64, click)) {
            if offset < end {
                let watermark = highest.map(|highest| highest - run.settings.disorder_ms);
                placed.push(Placed { partition: *partition, offset, watermark, click: click.clone() });
            }
            let time = click.event_time.min(click.arrival_time).epoch_ms();
            highest = Some(highest.map_or(time, |highest| highest.max(time)));
        }
    }
    placed
}

fn same_identity(left: &Placed, right: &Placed) -> bool {
    left.click.campaign_id == right.click.campaign_id && left.click.click_id == right.click.click_id
}

/// Copies whose hour lies within the horizon: what the relation `clicks` holds.
fn relation(copies: &[Placed], hour: Hour, settings: &CountingSettings) -> Vec<Placed> {
    let horizon = i64::from(settings.horizon_hours);
    let near = |placed: &&Placed| {
        (placed.click.event_time.hour().since_epoch() - hour.since_epoch()).abs() <= horizon
    };
    copies.iter().filter(near).cloned().collect()
}

fn winner<'a>(copy: &Placed, all: &'a [Placed]) -> &'a Placed {
    let same = all.iter().filter(|other| same_identity(copy, other));
    same.min_by_key(|other| other.offset).expect("the copy itself")
}

/// CR-10.
fn ruling(copy: &Placed, records: &Records, hour: Hour) -> Option<VerdictClass> {
    let verdicts = records.verdicts.values().flat_map(|verdicts| verdicts.iter().enumerate());
    verdicts
        .filter(|(_, verdict): &(usize, &Verdict)| {
            verdict.campaign_id == copy.click.campaign_id
                && verdict.click_id == copy.click.click_id
                && verdict.arrival_time >= hour.start().plus_ms(-24 * 3_600_000)
        })
        .max_by_key(|(offset, verdict)| (verdict.decided_at, *offset))
        .map(|(_, verdict)| verdict.verdict)
        .filter(|class| *class != VerdictClass::Valid)
}

/// CR-6.
fn price(campaign: &CampaignId, time: UtcMillis, rates: &[Rate]) -> Option<i64> {
    let in_force = rates.iter().filter(|rate| rate.campaign_id == *campaign && rate.effective_from <= time);
    let newest = in_force.max_by_key(|rate| (rate.effective_from, rate.recorded_at, rate.cpc_micros));
    newest.map(|rate| rate.cpc_micros)
}

/// CR-5, for every campaign with a copy in the hour.
pub fn bill(records: &Records, run: &Run, hour: Hour) -> BTreeMap<CampaignId, BillingCounts> {
    let all = relation(&copies(records, run), hour, &run.settings);
    let mut rows: BTreeMap<CampaignId, BillingCounts> = BTreeMap::new();
    for copy in all.iter().filter(|copy| copy.click.event_time.hour() == hour) {
        let campaign = &copy.click.campaign_id;
        let currency = run.rates.iter().find(|rate| rate.campaign_id == *campaign).map(|rate| rate.currency);
        let row =
            rows.entry(campaign.clone()).or_insert_with(|| BillingCounts::zero(campaign.clone(), currency));
        row.gross += 1;
        let winner = winner(copy, &all);
        if winner.offset != copy.offset {
            row.duplicates += 1;
            row.conflicts += u64::from(payload_hash(&winner.click) != payload_hash(&copy.click));
            continue;
        }
        match ruling(copy, records, hour) {
            Some(VerdictClass::Givt) => row.invalid_givt += 1,
            Some(VerdictClass::Sivt) => row.invalid_sivt += 1,
            Some(VerdictClass::Valid) | None => {
                row.billable += 1;
                match price(campaign, copy.click.event_time, &run.rates) {
                    Some(cpc) => row.amount_micros += cpc,
                    None => row.unpriced += 1,
                }
            }
        }
    }
    rows
}

/// What the bill counts by (campaign, ad, minute), each copy under its own, with the users of billable clicks.
pub fn aggregates(
    records: &Records,
    run: &Run,
    hour: Hour,
) -> BTreeMap<(CampaignId, AdId, UtcMillis), (AggregateCounts, BTreeSet<UserId>)> {
    let all = relation(&copies(records, run), hour, &run.settings);
    let mut rows: BTreeMap<_, (AggregateCounts, BTreeSet<UserId>)> = BTreeMap::new();
    for copy in all.iter().filter(|copy| copy.click.event_time.hour() == hour) {
        let Click { campaign_id, ad_id, user_id, event_time, .. } = &copy.click;
        let key = (campaign_id.clone(), ad_id.clone(), event_time.minute_start());
        let (row, users) = rows.entry(key).or_default();
        row.gross += 1;
        let winner = winner(copy, &all);
        if winner.offset != copy.offset {
            row.duplicates += 1;
            row.conflicts += u64::from(payload_hash(&winner.click) != payload_hash(&copy.click));
            continue;
        }
        match ruling(copy, records, hour) {
            Some(VerdictClass::Givt) => row.invalid_givt += 1,
            Some(VerdictClass::Sivt) => row.invalid_sivt += 1,
            Some(VerdictClass::Valid) | None => {
                row.billable += 1;
                if !user_id.is_empty() {
                    users.insert(user_id.clone());
                }
                match price(campaign_id, *event_time, &run.rates) {
                    Some(cpc) => row.amount_micros += cpc,
                    None => row.unpriced += 1,
                }
            }
        }
    }
    rows
}

/// Whether the stream counted a copy of the hour, by its rules.
fn counted(copy: &Placed, all: &[Placed], settings: &CountingSettings, seal: Option<i64>) -> bool {
    let time = copy.click.event_time.epoch_ms();
    let window_end = copy.click.event_time.minute_start().epoch_ms() + 60_000;
    let late = copy.watermark.is_some_and(|watermark| watermark >= window_end + settings.grace_ms)
        || seal.is_some_and(|seal| copy.offset >= seal);
    let duplicate = all.iter().any(|other| {
        same_identity(copy, other)
            && other.offset < copy.offset
            && (other.click.event_time.epoch_ms() - time).abs() <= settings.stream_dedup_ms
    });
    !late && !duplicate
}

/// Seals each partition at the offset given, with what the stream had counted by then.
pub fn seals(records: &Records, run: &Run, hour: Hour, ends: &BTreeMap<PartitionId, i64>) -> Vec<Seal> {
    let all = copies(records, run);
    let seal = |(partition, end): (&PartitionId, &i64)| {
        let mut counts: BTreeMap<CampaignId, u64> = BTreeMap::new();
        let own =
            all.iter().filter(|copy| copy.partition == *partition && copy.click.event_time.hour() == hour);
        for copy in own.filter(|copy| counted(copy, &all, &run.settings, Some(*end))) {
            *counts.entry(copy.click.campaign_id.clone()).or_default() += 1;
        }
        Seal {
            hour,
            generation: GENERATION,
            partition: *partition,
            end: LogOffset(*end),
            complete: true,
            counts,
        }
    };
    ends.iter().map(seal).collect()
}

/// The copies of S \ B and B \ S: (campaign, cause, partition, offset).
pub fn causes(
    records: &Records,
    run: &Run,
    hour: Hour,
) -> BTreeSet<(CampaignId, &'static str, PartitionId, i64)> {
    let copies = copies(records, run);
    let all = relation(&copies, hour, &run.settings);
    let mut found = BTreeSet::new();
    for copy in all.iter().filter(|copy| copy.click.event_time.hour() == hour) {
        let seal = run.seals.iter().find(|seal| seal.partition == copy.partition).map(|seal| seal.end.0);
        let counted = counted(copy, &copies, &run.settings, seal);
        let is_winner = winner(copy, &all).offset == copy.offset;
        let billed = is_winner && ruling(copy, records, hour).is_none();
        let cause = match (counted, billed) {
            (true, false) if !is_winner => "late_duplicate",
            (true, false) => "fraud",
            (false, true) => "late",
            _ => continue,
        };
        found.insert((copy.click.campaign_id.clone(), cause, copy.partition, copy.offset));
    }
    found
}
