//! The bill the rules make of a ledger: one row a campaign and hour (CR-1 to CR-6). No I/O.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::Result;
use twice_log::Hour;
use twice_log::event::HOUR_MS;

use super::prices::Prices;
use crate::ledger::{LedgerRow, RowSink};
use crate::stream::refusal_due;

/// A count that is known only to lie between two numbers, both inclusive. `max` of `u64::MAX` is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    pub min: u64,
    pub max: u64,
}

impl Bounds {
    /// A count known exactly.
    pub fn exactly(count: u64) -> Self {
        Self { min: count, max: count }
    }

    /// Returns whether `count` lies between the bounds.
    pub fn allow(self, count: u64) -> bool {
        (self.min..=self.max).contains(&count)
    }

    fn add(&mut self, min: u64, max: u64) {
        self.min += min;
        self.max = self.max.saturating_add(max);
    }
}

/// What a billing row must say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExpectedRow {
    pub gross: Bounds,
    pub duplicates: Bounds,
    pub conflicts: Bounds,
    pub billable: Bounds,
    pub unpriced: Bounds,
    pub amount_micros: Bounds,
    pub invalid_givt: Bounds,
    pub invalid_sivt: Bounds,
    /// Billable clicks that were sent as late ones.
    pub late_sent: u64,
}

/// The expected rows of one hour, by campaign number.
pub type ExpectedRows = HashMap<u32, ExpectedRow>;

/// Numbers for campaign ids: a ledger row need not keep the text.
#[derive(Debug, Default)]
pub struct CampaignIndex {
    numbers: HashMap<String, u32>,
    names: Vec<String>,
}

impl CampaignIndex {
    /// Returns the campaign's number, giving it one if it has none.
    pub fn number(&mut self, campaign_id: &str) -> u32 {
        if let Some(number) = self.numbers.get(campaign_id) {
            return *number;
        }
        let number = self.names.len() as u32; // a ledger has far fewer than 2^32 campaigns
        self.numbers.insert(campaign_id.to_owned(), number);
        self.names.push(campaign_id.to_owned());
        number
    }
}

/// A ledger row without its texts: 48 bytes, so that ten million fit well into a gigabyte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stored {
    click_id: u128,
    payload: u64,
    event_time_ms: i64,
    /// Number of the ledger in the upper bits, then the sequence: the order that decides between differing copies.
    order: u64,
    campaign: u32,
    attempts_unknown: u16,
    acknowledged: bool,
    traits: u8,
}

/// Bits of [`Stored::traits`]: one byte, so that a row stays at 48.
const LATE: u8 = 1;
const GIVT: u8 = 2;
const SIVT: u8 = 4;
/// Its run died: the verdict may not have been sent.
const UNSURE: u8 = 8;

impl Stored {
    fn hour(&self) -> i64 {
        self.event_time_ms.div_euclid(HOUR_MS)
    }

    fn stored_min(&self) -> u64 {
        u64::from(self.acknowledged)
    }

    fn stored_max(&self) -> u64 {
        self.stored_min() + u64::from(self.attempts_unknown)
    }
}

/// Takes ledger rows and computes the bill.
#[derive(Debug, Default)]
pub struct Gathered {
    rows: Vec<Stored>,
    campaigns: CampaignIndex,
    ledgers: u64,
    /// The ledger being read has its end.
    whole: bool,
    wrong_refusals: Vec<WrongRefusal>,
}

/// A bad click that was not refused with the code of its fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongRefusal {
    pub sequence: u64,
    pub due: String,
    pub got: String,
}

impl RowSink for Gathered {
    fn expect(&mut self, rows: usize) {
        self.rows.reserve_exact(rows);
    }

    fn take(&mut self, row: &LedgerRow<'_>) -> Result<()> {
        if let Some(due) = refusal_due(row.kind) {
            self.take_bad(row, due);
            return Ok(()); // refused, so no copy; one that was accepted shows as a row too many as well
        }
        if !row.acknowledged && row.attempts_unknown == 0 {
            return Ok(()); // certainly not stored
        }
        let mut hasher = DefaultHasher::new();
        (row.ad_id, row.user_id, row.publisher_id, row.event_time_ms).hash(&mut hasher);
        self.rows.push(Stored {
            click_id: u128::from_be_bytes(row.click_id),
            payload: hasher.finish(),
            event_time_ms: row.event_time_ms,
            order: (self.ledgers << 48) | row.sequence,
            campaign: self.campaigns.number(row.campaign_id),
            attempts_unknown: u16::try_from(row.attempts_unknown).unwrap_or(u16::MAX),
            acknowledged: row.acknowledged,
            traits: self.traits(row),
        });
        Ok(())
    }
}

impl Gathered {
    /// Says that the rows that follow are of the next ledger, sent after those before.
    pub fn begin_ledger(&mut self, whole: bool) {
        self.ledgers += 1;
        self.whole = whole;
    }

    /// A bad click that is accepted has no other fault; one whose refusal was never heard of proves nothing.
    fn take_bad(&mut self, row: &LedgerRow<'_>, due: &str) {
        let got = match row.rejected {
            Some(code) => code,
            None if row.acknowledged => "accepted",
            None => return,
        };
        if got != due {
            let (due, got) = (due.to_owned(), got.to_owned());
            self.wrong_refusals.push(WrongRefusal { sequence: row.sequence, due, got });
        }
    }

    fn traits(&self, row: &LedgerRow<'_>) -> u8 {
        let late = if row.kind == "late" { LATE } else { 0 };
        let ruling = match row.verdict {
            Some("givt") => GIVT,
            Some("sivt") => SIVT,
            _ => return late,
        };
        late | ruling | if self.whole { 0 } else { UNSURE }
    }

    /// Returns the numbers of campaigns.
    pub fn campaigns_mut(&mut self) -> &mut CampaignIndex {
        &mut self.campaigns
    }

    /// Computes every row under a dedup horizon of `horizon_hours`.
    pub fn expect_bill(mut self, horizon_hours: i64, prices: &Prices) -> Expected {
        self.rows.sort_unstable_by_key(|row| (row.campaign, row.click_id, row.order));
        let mut hours: BTreeMap<i64, ExpectedRows> = BTreeMap::new();
        let mut currencies = HashMap::new();
        for identity in self
            .rows
            .chunk_by(|left, right| (left.campaign, left.click_id) == (right.campaign, right.click_id))
        {
            let mut seen = Vec::with_capacity(1);
            for copy in identity {
                let hour = copy.hour();
                if !seen.contains(&hour) {
                    seen.push(hour);
                    let row = hours.entry(hour).or_default().entry(copy.campaign).or_default();
                    add_identity(row, identity, hour, horizon_hours, prices);
                }
            }
        }
        for (hour, rows) in &hours {
            let end_ms = (hour + 1) * HOUR_MS;
            for campaign in rows.keys() {
                if let Some((currency, begun)) = prices.currency(*campaign, end_ms) {
                    currencies.insert((*hour, *campaign), (currency.to_owned(), begun));
                }
            }
        }
        let wrong_refusals = self.wrong_refusals;
        Expected { hours, campaigns: self.campaigns, currencies, wrong_refusals, partial: false }
    }
}

/// Adds what the copies of one identity, in order, do to the row of `hour`.
fn add_identity(row: &mut ExpectedRow, identity: &[Stored], hour: i64, horizon_hours: i64, prices: &Prices) {
    let related = || identity.iter().filter(|copy| (copy.hour() - hour).abs() <= horizon_hours);
    let here = || identity.iter().filter(|copy| copy.hour() == hour);
    let stored_min: u64 = here().map(Stored::stored_min).sum();
    let stored_max: u64 = here().map(Stored::stored_max).sum();
    row.gross.add(stored_min, stored_max);
    let winner = related().find(|copy| copy.acknowledged);
    // A copy with another payload that may have been stored before the winner leaves open which of them counts. It
    // takes a run that was stopped to get there.
    let disputed = |winner: &Stored| {
        related().take_while(|copy| copy.order < winner.order).any(|copy| copy.payload != winner.payload)
    };
    let Some(winner) = winner.filter(|winner| !disputed(winner)) else {
        row.duplicates.add(stored_min.saturating_sub(1), stored_max);
        row.conflicts.add(0, stored_max);
        row.billable.add(0, 1);
        row.unpriced.add(0, 1);
        row.add_invalid(identity, 0, 1);
        let dearest = here().filter_map(|copy| prices.at(copy.campaign, copy.event_time_ms)).max();
        row.amount_micros.add(0, dearest.unwrap_or(0));
        return;
    };
    for copy in here().filter(|copy| copy.payload != winner.payload) {
        row.conflicts.add(copy.stored_min(), copy.stored_max());
    }
    if winner.hour() != hour {
        row.duplicates.add(stored_min, stored_max);
        return;
    }
    row.duplicates.add(stored_min - 1, stored_max - 1); // the winner is one of them, and acknowledged
    let ruled = winner.traits & (GIVT | SIVT) != 0;
    if ruled && winner.traits & UNSURE == 0 {
        row.add_invalid(identity, 1, 1);
        return;
    }
    let min = u64::from(!ruled);
    row.add_invalid(identity, 0, 1);
    row.billable.add(min, 1);
    row.late_sent += u64::from(winner.traits & LATE != 0);
    match prices.at(winner.campaign, winner.event_time_ms) {
        Some(price) => row.amount_micros.add(price * min, price),
        None => row.unpriced.add(min, 1),
    }
}

impl ExpectedRow {
    /// Adds a click to the column its verdict puts it in, if it has one; every copy of a click has the same.
    fn add_invalid(&mut self, identity: &[Stored], min: u64, max: u64) {
        let traits = identity.first().map_or(0, |copy| copy.traits);
        if traits & GIVT != 0 {
            self.invalid_givt.add(min, max);
        } else if traits & SIVT != 0 {
            self.invalid_sivt.add(min, max);
        }
    }
}

/// The bill as it must be.
#[derive(Debug)]
pub struct Expected {
    hours: BTreeMap<i64, ExpectedRows>,
    campaigns: CampaignIndex,
    currencies: HashMap<(i64, u32), (String, bool)>,
    wrong_refusals: Vec<WrongRefusal>,
    /// The ledgers do not know everything that was sent.
    partial: bool,
}

impl Expected {
    /// Returns the bad clicks that were not refused with the code of their fault.
    pub fn wrong_refusals(&self) -> &[WrongRefusal] {
        &self.wrong_refusals
    }

    /// Returns the hours that have rows, in order.
    pub fn hours(&self) -> impl Iterator<Item = Hour> + '_ {
        self.hours.keys().map(|hour| Hour::from_since_epoch(*hour))
    }

    /// Returns the rows of `hour` with their campaigns' ids.
    pub fn rows(&self, hour: Hour) -> impl Iterator<Item = (&str, &ExpectedRow)> + '_ {
        let rows = self.hours.get(&hour.since_epoch()).into_iter().flatten();
        rows.map(|(campaign, row)| (self.campaigns.names[*campaign as usize].as_str(), row))
    }

    /// Returns the row of one campaign and hour.
    pub fn row(&self, hour: Hour, campaign_id: &str) -> Option<&ExpectedRow> {
        let campaign = self.campaigns.numbers.get(campaign_id)?;
        self.hours.get(&hour.since_epoch())?.get(campaign)
    }

    /// Returns whether the ledgers or their rates name the campaign.
    pub fn knows(&self, campaign_id: &str) -> bool {
        self.campaigns.numbers.contains_key(campaign_id)
    }

    /// Returns the currency a row must have, and whether it must have one: a campaign whose first rate begins after
    /// the hour may or may not show it.
    pub fn currency(&self, hour: Hour, campaign_id: &str) -> Option<(&str, bool)> {
        let campaign = self.campaigns.numbers.get(campaign_id)?;
        let (currency, begun) = self.currencies.get(&(hour.since_epoch(), *campaign))?;
        Some((currency, *begun))
    }

    /// Returns whether a row of the ledgers' campaigns may be absent here and yet be right.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// Lets copies be stored more often than the ledgers say.
    pub fn allow_extra_copies(&mut self) {
        for row in self.hours.values_mut().flat_map(HashMap::values_mut) {
            for bounds in [&mut row.gross, &mut row.duplicates] {
                bounds.max = u64::MAX;
            }
            if row.conflicts.max > 0 {
                row.conflicts.max = u64::MAX;
            }
        }
    }

    /// Leaves lower bounds only: the ledgers do not know everything that was sent.
    pub fn drop_upper_bounds(&mut self) {
        self.partial = true;
        for row in self.hours.values_mut().flat_map(HashMap::values_mut) {
            for bounds in [
                &mut row.gross,
                &mut row.duplicates,
                &mut row.conflicts,
                &mut row.billable,
                &mut row.unpriced,
                &mut row.amount_micros,
                &mut row.invalid_givt,
                &mut row.invalid_sivt,
            ] {
                bounds.max = u64::MAX;
            }
        }
    }
}

#[cfg(test)]
mod tests;
