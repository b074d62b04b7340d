//! The clicks of the scenario: one day with a margin of an hour on either side, and every kind of copy in it.

use twice_log::{ClickId, Hour};
use twice_tests::Random;

use super::journal::Click;

/// Hours looked at, relative to the day's first: the day, the hour before midnight and the one after.
pub const HOURS: std::ops::RangeInclusive<i64> = -1..=24;
/// Campaigns with a price; one more has none.
pub const CAMPAIGNS: u64 = 6;
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;

/// The day's clicks, in the order in which they are sent.
#[derive(Debug)]
pub struct Day {
    pub first: Hour,
    pub clicks: Vec<Click>,
    made: u64,
}

impl Day {
    /// Generates the day that begins with hour `first`.
    pub fn generate(first: Hour, random: &mut Random) -> Self {
        let mut day = Self { first, clicks: Vec::new(), made: 0 };
        for hour in HOURS {
            let mut again = Vec::new();
            for campaign in 0..=CAMPAIGNS {
                for _ in 0..random.between(4, 12) {
                    let click = day.click(random, hour, campaign);
                    again.extend(day.copies(&click, random));
                    day.clicks.push(click);
                }
            }
            day.clicks.extend(again);
        }
        let across = day.across_midnight(random);
        day.clicks.extend(across);
        day
    }

    /// Makes a click nobody has sent yet, in hour `hour` of the day.
    pub fn click(&mut self, random: &mut Random, hour: i64, campaign: u64) -> Click {
        self.made += 1;
        let offset = random.between(0, HOUR_MS as u64) as i64;
        Click {
            campaign_id: format!("camp_{campaign}"),
            click_id: ClickId::derived(&format!("scenario {}", self.made)).to_string(),
            ad_id: format!("ad_{}", random.between(0, 4)),
            user_id: format!("u_{}", random.between(0, 50)),
            event_time: self.first.start().plus_ms(hour * HOUR_MS + offset).to_string(),
        }
    }

    /// Returns further copies of `click`: equal, conflicting, minutes away, and hours away.
    fn copies(&self, click: &Click, random: &mut Random) -> Vec<Click> {
        let mut copies = Vec::new();
        if random.between(0, 100) < 6 {
            copies.push(click.clone());
        }
        if random.between(0, 100) < 3 {
            copies.push(Click { ad_id: "ad_other".to_owned(), ..click.clone() });
        }
        let away = [(4, 20 * MINUTE_MS), (2, 5 * HOUR_MS), (2, -5 * HOUR_MS), (1, -MINUTE_MS)];
        for (percent, distance) in away {
            if random.between(0, 100) < percent {
                copies.extend(self.moved(click, distance));
            }
        }
        copies
    }

    /// Returns the click with another event time, if that still lies in the hours looked at.
    pub fn moved(&self, click: &Click, distance_ms: i64) -> Option<Click> {
        let time: twice_log::UtcMillis = click.event_time.parse().ok()?;
        let moved = time.plus_ms(distance_ms);
        let relative = moved.hour().since_epoch() - self.first.since_epoch();
        HOURS.contains(&relative).then(|| Click { event_time: moved.to_string(), ..click.clone() })
    }

    /// Returns pairs of copies on both sides of each midnight, the earlier position once before it and once after it.
    fn across_midnight(&mut self, random: &mut Random) -> Vec<Click> {
        let mut pairs = Vec::new();
        for midnight in [0, 24] {
            for direction in [-1, 1] {
                let hour = if direction < 0 { midnight } else { midnight - 1 };
                let first = self.click(random, hour, 1);
                // Half an hour to either side of midnight, whatever minute the click has.
                let near = self.first.plus(midnight).start().plus_ms(-direction * 10 * MINUTE_MS);
                let far = self.first.plus(midnight).start().plus_ms(direction * 10 * MINUTE_MS);
                let at = |time: twice_log::UtcMillis| Click { event_time: time.to_string(), ..first.clone() };
                pairs.extend([at(near), at(far)]);
            }
        }
        pairs
    }

    /// Returns every hour looked at.
    pub fn hours(&self) -> impl Iterator<Item = Hour> + use<> {
        let first = self.first;
        HOURS.map(move |hour| first.plus(hour))
    }

    /// Returns the hours of the day itself.
    pub fn own_hours(&self) -> impl Iterator<Item = Hour> + use<> {
        let first = self.first;
        (0..24).map(move |hour| first.plus(hour))
    }

    /// Returns the day's date.
    pub fn date(&self) -> String {
        self.first.to_string().chars().take(10).collect()
    }
}
