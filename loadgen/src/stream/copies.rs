//! Copy number n: its kind, the click it repeats, and what it says.

use std::time::Duration;

use twice_log::event::{HOUR_MS, MINUTE_MS};

use super::profile::{
    BAD_PERCENT, BOT_PERCENT, BOTS, BURST_COPIES, Fault, HOT_PERCENT, Pace, Profile, Ruling,
};
use super::random::{Draws, Zipf};
use super::rates::{CampaignPlan, price_change_at};
use super::settings::StreamSettings;

/// Disorder, window and grace of the stream path's defaults: a click farther back than this is late for it.
const LATE_BEHIND_MS: i64 = 5_000 + MINUTE_MS + 30_000;
/// How much farther back late clicks lie at most.
const LATE_SPREAD_MS: u64 = 240_000;
/// A click this near to an hour border or a price change may be put exactly on it.
const BORDER_REACH_MS: i64 = 2_000;
/// Most repeats follow their original within so many copies; the rest within `DISTANCE_FAR`.
const DISTANCE_NEAR: u64 = 4_096;
const DISTANCE_FAR: u64 = 262_144;
/// A moved copy lies at most this far before its original.
const MOVED_BACK_MS: u64 = 70 * 60_000;

const LANE_KIND: u64 = 1;
const LANE_CONTENT: u64 = 2;
const LANE_REPEAT: u64 = 3;
// 4 is that of rates.
const LANE_PROFILE: u64 = 5;
const LANE_RULING: u64 = 6;

/// What a copy is to the click it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The first copy of a click.
    Original,
    /// The first copy of a click, with an event time that the stream path finds late.
    Late,
    /// The same click again, unchanged.
    Duplicate,
    /// The same identity with another ad, publisher or user.
    Conflict,
    /// The same identity with another event time.
    Moved,
    /// A click that the node must refuse.
    Bad(Fault),
}

impl Kind {
    /// Every kind of good copy.
    pub const ALL: [Kind; 5] = [Kind::Original, Kind::Late, Kind::Duplicate, Kind::Conflict, Kind::Moved];

    /// Returns the name as it stands in ledgers.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Original => "original",
            Kind::Late => "late",
            Kind::Duplicate => "duplicate",
            Kind::Conflict => "conflict",
            Kind::Moved => "moved",
            Kind::Bad(fault) => fault.kind(),
        }
    }

    /// Returns whether this is the first copy of its click.
    pub fn is_base(self) -> bool {
        matches!(self, Kind::Original | Kind::Late)
    }

    /// Returns whether the payload differs from the original's, so that order decides which one counts.
    pub fn differs(self) -> bool {
        matches!(self, Kind::Conflict | Kind::Moved)
    }
}

/// What a click says, with identifiers as numbers; [`super::Texts`] turns them into text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    pub campaign: u32,
    pub click_id: [u8; 16],
    pub ad: u32,
    /// `None`: the click names no user.
    pub user: Option<u32>,
    pub publisher: u32,
    pub event_time_ms: i64,
}

/// Copy number `sequence` of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    pub sequence: u64,
    pub kind: Kind,
    /// Number of the base it repeats; its own number where it is one.
    pub original: u64,
    pub content: Content,
}

/// The stream: a pure function from a number to a copy.
#[derive(Debug)]
pub struct ClickStream {
    settings: StreamSettings,
    zipf: Zipf,
    plan: CampaignPlan,
    price_change_ms: i64,
    late_behind_ms: i64,
    /// Of a run whose event times are the wall clock's: they pass as the run does.
    pace: Pace,
}

impl ClickStream {
    /// Prepares the stream.
    pub fn new(settings: StreamSettings) -> Self {
        // Where clicks are sparse, the newest event time of one partition trails that of the stream.
        let spacing_ms = settings.event_span_ms / i64::try_from(settings.copies).unwrap_or(i64::MAX).max(1);
        Self {
            zipf: Zipf::new(settings.campaigns, settings.zipf),
            plan: CampaignPlan::new(&settings),
            price_change_ms: price_change_at(&settings).epoch_ms(),
            late_behind_ms: LATE_BEHIND_MS + settings.disorder_ms + (50 * spacing_ms).max(10_000),
            pace: Pace::of(
                if settings.live { settings.profile } else { Profile::Steady },
                Duration::from_millis(settings.event_span_ms.unsigned_abs()),
            ),
            settings,
        }
    }

    /// Returns the settings the stream was made from.
    pub fn settings(&self) -> &StreamSettings {
        &self.settings
    }

    /// Returns which campaigns have which rates.
    pub fn campaign_plan(&self) -> &CampaignPlan {
        &self.plan
    }

    /// Returns copy number `sequence`.
    pub fn copy(&self, sequence: u64) -> Copy {
        match self.drawn_kind(sequence) {
            Drawn::Base { .. } => self.base(sequence),
            Drawn::Duplicate => {
                let mut draws = Draws::new(self.settings.seed, LANE_REPEAT, sequence);
                let original = self.earlier_base(sequence, &mut draws);
                Copy { sequence, kind: Kind::Duplicate, original, content: self.base(original).content }
            }
            Drawn::Differing => self.differing(sequence),
            Drawn::Bad(fault) => Copy { kind: Kind::Bad(fault), ..self.base(sequence) },
        }
    }

    /// Returns what fraud detection says of the click that begins with copy `original`.
    pub fn ruling(&self, original: u64) -> Option<Ruling> {
        self.bot(original)?;
        match Draws::new(self.settings.seed, LANE_RULING, original).below(10) {
            0 => None, // not found out
            1..=4 => Some(Ruling::Givt),
            _ => Some(Ruling::Sivt),
        }
    }

    /// Returns the draws of the burst that copy `sequence` is part of, if a bot sends it.
    fn bot(&self, sequence: u64) -> Option<Draws> {
        let mut draws = Draws::new(self.settings.seed, LANE_PROFILE, sequence / BURST_COPIES);
        (self.settings.profile == Profile::Bots && draws.below(100) < BOT_PERCENT).then_some(draws)
    }

    fn fault(&self, sequence: u64) -> Option<Fault> {
        if self.settings.profile != Profile::Malformed {
            return None;
        }
        let mut draws = Draws::new(self.settings.seed, LANE_PROFILE, sequence);
        let bad = draws.below(100) < BAD_PERCENT;
        bad.then(|| Fault::ALL[draws.below(Fault::ALL.len() as u64) as usize])
    }

    /// Bends what was drawn for copy `sequence` to the profile.
    fn bend(&self, sequence: u64, content: Content) -> Content {
        if let Some(mut draws) = self.bot(sequence) {
            // Numbers from the far end, which no person and no conflict has.
            let user = Some(u32::MAX - draws.below(BOTS) as u32);
            let campaign = self.zipf.pick(&mut draws);
            let publisher = draws.below(u64::from(self.settings.publishers)) as u32;
            return Content { user, campaign, publisher, ..content };
        }
        if self.settings.profile == Profile::HotCampaign {
            let hot = Draws::new(self.settings.seed, LANE_PROFILE, sequence).below(100) < HOT_PERCENT;
            let others = content.campaign.max(1).min(self.settings.campaigns - 1);
            return Content { campaign: if hot { 0 } else { others }, ..content };
        }
        content
    }

    /// Returns the copies in order of number.
    pub fn iter(&self) -> impl Iterator<Item = Copy> + '_ {
        (0..self.settings.copies).map(|sequence| self.copy(sequence))
    }

    fn drawn_kind(&self, sequence: u64) -> Drawn {
        if sequence == 0 {
            return Drawn::Base { late: false }; // nothing to repeat, nothing to be late behind
        }
        let settings = &self.settings;
        let point = Draws::new(settings.seed, LANE_KIND, sequence).below(1_000_000) as u32;
        let duplicates = settings.duplicates.parts_per_million + settings.profile.more_duplicates();
        let differing = duplicates + settings.conflicts.parts_per_million;
        if point < duplicates {
            Drawn::Duplicate
        } else if point < differing {
            Drawn::Differing
        } else if let Some(fault) = self.fault(sequence) {
            Drawn::Bad(fault)
        } else {
            Drawn::Base { late: point < differing + settings.late.parts_per_million }
        }
    }

    fn base(&self, sequence: u64) -> Copy {
        let settings = &self.settings;
        let mut draws = Draws::new(settings.seed, LANE_CONTENT, sequence);
        let campaign = self.zipf.pick(&mut draws);
        let ad = draws.below(u64::from(settings.ads)) as u32;
        let user = draws.below(u64::from(settings.users)) as u32;
        let user = if draws.below(50) == 0 { None } else { Some(user) };
        let publisher = draws.below(u64::from(settings.publishers)) as u32;
        let click_id = random_uuid(&mut draws);
        let late_time = match self.drawn_kind(sequence) {
            Drawn::Base { late: true } => self.late_time(sequence, &mut draws),
            _ => None,
        };
        let kind = if late_time.is_some() { Kind::Late } else { Kind::Original };
        let event_time_ms = late_time.unwrap_or_else(|| self.ordinary_time(sequence, &mut draws));
        let content = Content { campaign, click_id, ad, user, publisher, event_time_ms };
        let content = self.bend(sequence, content);
        Copy { sequence, kind, original: sequence, content }
    }

    /// Returns the newest event time of the stream when copy `sequence` is sent.
    fn time_at(&self, sequence: u64) -> i64 {
        let settings = &self.settings;
        if settings.live && settings.profile == Profile::Spike {
            let moment = self.pace.moment(sequence as f64 / settings.copies.max(1) as f64);
            return settings.event_start.epoch_ms() + moment.as_millis() as i64;
        }
        let passed =
            i128::from(settings.event_span_ms) * i128::from(sequence) / i128::from(settings.copies.max(1));
        settings.event_start.epoch_ms() + i64::try_from(passed).unwrap_or(settings.event_span_ms)
    }

    fn late_time(&self, sequence: u64, draws: &mut Draws) -> Option<i64> {
        let behind = self.late_behind_ms + draws.below(LATE_SPREAD_MS) as i64;
        let time = self.time_at(sequence) - behind;
        // Before the span began nothing was sent that such a click could be late behind.
        (self.settings.live || time >= self.settings.event_start.epoch_ms()).then_some(time)
    }

    fn ordinary_time(&self, sequence: u64, draws: &mut Draws) -> i64 {
        let start = self.settings.event_start.epoch_ms();
        let last = self.settings.event_end().epoch_ms() - 1;
        let back = draws.below(self.settings.disorder_ms.unsigned_abs() + 1) as i64;
        let time = (self.time_at(sequence) - back).clamp(start, last);
        // Borders are where counting goes wrong: a quarter of the clicks near one are put on it or just before it.
        let hour_border = (time + HOUR_MS / 2).div_euclid(HOUR_MS) * HOUR_MS;
        let border =
            [hour_border, self.price_change_ms].into_iter().find(|at| (at - time).abs() <= BORDER_REACH_MS);
        match (border, draws.below(8)) {
            (Some(border), 0) => border.clamp(start, last),
            (Some(border), 1) => (border - 1).clamp(start, last),
            _ => time,
        }
    }

    /// Picks the base that copy `sequence`, which is not the first, repeats.
    fn earlier_base(&self, sequence: u64, draws: &mut Draws) -> u64 {
        let reach = if draws.below(8) == 0 { DISTANCE_FAR } else { DISTANCE_NEAR };
        let mut candidate = sequence - 1 - draws.below(reach.min(sequence));
        while !matches!(self.drawn_kind(candidate), Drawn::Base { .. }) {
            candidate -= 1; // number 0 is a base
        }
        candidate
    }

    fn differing(&self, sequence: u64) -> Copy {
        let mut draws = Draws::new(self.settings.seed, LANE_REPEAT, sequence);
        let original = self.earlier_base(sequence, &mut draws);
        let content = self.base(original).content;
        let moved_to = match draws.below(4) {
            0 => Some(self.time_at(sequence)),
            1 => Some(content.event_time_ms - 1_000 - draws.below(MOVED_BACK_MS) as i64),
            _ => None,
        };
        if let Some(event_time_ms) = moved_to.filter(|time| self.may_move(content.event_time_ms, *time)) {
            let content = Content { event_time_ms, ..content };
            return Copy { sequence, kind: Kind::Moved, original, content };
        }
        let settings = &self.settings;
        let content = match draws.below(3) {
            // Numbers beyond those that originals use: surely another payload.
            0 => Content { ad: content.ad + settings.ads, ..content },
            1 => Content { publisher: content.publisher + settings.publishers, ..content },
            _ => Content { user: Some(content.user.unwrap_or(0).wrapping_add(settings.users)), ..content },
        };
        Copy { sequence, kind: Kind::Conflict, original, content }
    }

    /// Returns whether a copy may carry `to` instead of `from`: within the hourly horizon, so that the bill is the
    /// same by the hourly and by the nightly rule, and inside the span.
    fn may_move(&self, from: i64, to: i64) -> bool {
        let settings = &self.settings;
        let hours_apart = (to.div_euclid(HOUR_MS) - from.div_euclid(HOUR_MS)).abs();
        let inside = settings.live || to >= settings.event_start.epoch_ms();
        to != from && hours_apart <= 1 && inside && to < settings.event_end().epoch_ms()
    }
}

enum Drawn {
    Base { late: bool },
    Duplicate,
    Differing,
    Bad(Fault),
}

fn random_uuid(draws: &mut Draws) -> [u8; 16] {
    let random = (u128::from(draws.bits()) << 64) | u128::from(draws.bits());
    *uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid().as_bytes()
}

#[cfg(test)]
mod tests;
