//! Clicks for tests, and a naive model of the stream's rules to compare with.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use twice_log::archive::CountingSettings;
use twice_log::{
    AdId, CampaignId, Click, ClickCopy, ClickId, Generation, Hour, LogOffset, PartitionId, Position,
    PublisherId, UserId, UtcMillis, Watermark,
};
use twice_store::windows::WindowRow;

use crate::campaign::{CampaignState, SealEnds};

/// 2025-01-15T12:00:00Z.
pub(crate) const NOON_MS: i64 = 1_736_942_400_000;

/// A click in few numbers: small ranges make duplicates, chains and conflicts likely.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) campaign: u8,
    pub(crate) identity: u8,
    pub(crate) ad: u8,
    pub(crate) user: u8,
    /// Event time before the arrival; negative: ahead of it.
    pub(crate) age_ms: i64,
    /// Time since the arrival before.
    pub(crate) step_ms: i64,
}

/// Plans up to `count_max` clicks: most fresh, some minutes old, some at the horizon's very edge.
pub(crate) fn plans(count_max: usize) -> impl Strategy<Value = Vec<Planned>> {
    let age = prop_oneof![
        4 => -2_000..3_000_i64,
        2 => 0..120_000_i64,
        2 => 0..900_000_i64,
        1 => Just(600_000_i64),
        1 => Just(600_001_i64),
    ];
    let step = prop_oneof![6 => 0..2_000_i64, 2 => 0..60_000_i64, 1 => Just(0_i64), 1 => 0..400_000_i64];
    let plan = (0..4_u8, 0..12_u8, 0..3_u8, 0..6_u8, age, step).prop_map(
        |(campaign, identity, ad, user, age_ms, step_ms)| Planned {
            campaign,
            identity,
            ad,
            user,
            age_ms,
            step_ms,
        },
    );
    proptest::collection::vec(plan, 1..count_max)
}

pub(crate) fn campaign(number: u8) -> CampaignId {
    CampaignId::new(format!("camp_{number}")).expect("valid")
}

/// Returns the clicks planned, from `start_ms` on.
pub(crate) fn clicks(plans: &[Planned], start_ms: i64) -> Vec<Click> {
    let mut arrival_ms = start_ms;
    let click = |plan: &Planned| {
        arrival_ms += plan.step_ms;
        Click {
            campaign_id: campaign(plan.campaign),
            click_id: ClickId::derived(&plan.identity.to_string()),
            ad_id: AdId::new(format!("ad_{}", plan.ad)).expect("valid"),
            user_id: UserId::new(format!("user_{}", plan.user)).expect("valid"),
            publisher_id: PublisherId::default(),
            event_time: UtcMillis::clamped(arrival_ms - plan.age_ms),
            arrival_time: UtcMillis::clamped(arrival_ms),
            ip_hash: None,
            schema_version: 2,
        }
    };
    plans.iter().map(click).collect()
}

/// Returns clicks as the copies of one partition, from offset 0 on.
pub(crate) fn copies(clicks: &[Click], settings: &CountingSettings) -> Vec<ClickCopy> {
    let mut watermark = Watermark::new(None, settings.disorder_ms);
    let copy = |(offset, click): (usize, &Click)| {
        let at = watermark.at_next();
        watermark.advance(click);
        let position = Position { generation: Generation(0), offset: LogOffset(offset as i64) };
        ClickCopy { partition: PartitionId(0), position, watermark: at, click: click.clone() }
    };
    clicks.iter().enumerate().map(copy).collect()
}

/// Clicks and users of one minute, in total and by ad.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) clicks: u64,
    pub(crate) users: u64,
    pub(crate) ads: BTreeMap<AdId, (u64, u64)>,
}

pub(crate) type Counts = BTreeMap<(CampaignId, UtcMillis), Counted>;

/// Says for each copy whether the rules count it, by looking at every copy before it.
pub(crate) fn naive_is_counted(
    copies: &[ClickCopy],
    seals: &SealEnds,
    settings: &CountingSettings,
) -> Vec<bool> {
    let is_counted = |(index, copy): (usize, &ClickCopy)| {
        let click = &copy.click;
        let window_end_ms = click.event_time.epoch_ms().div_euclid(60_000) * 60_000 + 60_000;
        let late = copy.watermark.is_some_and(|at| at.epoch_ms() >= window_end_ms + settings.grace_ms)
            || seals.get(&click.event_time.hour()).is_some_and(|end| copy.position.offset >= *end);
        let duplicate = copies[..index].iter().any(|other| {
            let apart_ms = other.click.event_time.epoch_ms() - click.event_time.epoch_ms();
            (&other.click.campaign_id, other.click.click_id) == (&click.campaign_id, click.click_id)
                && apart_ms.abs() <= settings.stream_dedup_ms
        });
        !late && !duplicate
    };
    copies.iter().enumerate().map(is_counted).collect()
}

/// Counts copies by the rules, naively.
pub(crate) fn naive_counts(copies: &[ClickCopy], seals: &SealEnds, settings: &CountingSettings) -> Counts {
    let mut users: BTreeMap<_, BTreeSet<UserId>> = BTreeMap::new();
    let mut users_of_ads: BTreeMap<_, BTreeSet<UserId>> = BTreeMap::new();
    let mut counts = Counts::new();
    for (copy, is_counted) in copies.iter().zip(naive_is_counted(copies, seals, settings)) {
        if !is_counted {
            continue;
        }
        let click = &copy.click;
        let key = (click.campaign_id.clone(), click.event_time.minute_start());
        let all = users.entry(key.clone()).or_default();
        all.insert(click.user_id.clone());
        let of_ad = users_of_ads.entry((key.clone(), click.ad_id.clone())).or_default();
        of_ad.insert(click.user_id.clone());
        let counted = counts.entry(key).or_default();
        counted.clicks += 1;
        counted.users = all.len() as u64;
        let ad = counted.ads.entry(click.ad_id.clone()).or_default();
        *ad = (ad.0 + 1, of_ad.len() as u64);
    }
    counts
}

/// Returns the clicks counted of one hour, by campaign.
pub(crate) fn hour_counts(counts: &Counts, hour: Hour) -> BTreeMap<CampaignId, u64> {
    let mut by_campaign = BTreeMap::new();
    for ((campaign, _), counted) in counts.iter().filter(|((_, start), _)| start.hour() == hour) {
        *by_campaign.entry(campaign.clone()).or_default() += counted.clicks;
    }
    by_campaign
}

/// Returns what states hold, in the model's terms.
pub(crate) fn state_counts<'a>(states: impl IntoIterator<Item = &'a CampaignState>) -> Counts {
    let mut counts = Counts::new();
    for state in states {
        for (start, window) in state.windows() {
            let ads = window.ads.iter().map(|(ad, tally)| (ad.clone(), (tally.clicks, tally.users.count())));
            let counted = Counted { clicks: window.clicks, users: window.users.count(), ads: ads.collect() };
            counts.insert((state.campaign().clone(), *start), counted);
        }
    }
    counts
}

/// Returns what the real-time store holds, in the model's terms.
pub(crate) fn row_counts(rows: Vec<WindowRow>) -> Counts {
    let counted = |row: WindowRow| {
        let ads = row.ads.into_iter().map(|ad| (ad.ad_id, (ad.clicks, ad.users.count()))).collect();
        ((row.campaign_id, row.window_start), Counted { clicks: row.clicks, users: row.users.count(), ads })
    };
    rows.into_iter().map(counted).collect()
}

/// Returns every file below a folder, in order.
pub(crate) fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}
