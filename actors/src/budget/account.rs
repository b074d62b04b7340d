//! One campaign's spend by day, and the decisions that follow. Pure: no clock, no I/O.
//!
//! Guarantee: the same counts, bills, terms and decisions give the same state in any order, so that whoever restarts
//! derives what it had. A decision is proposed until it is accepted, that is until it is stored; its number is the one
//! after the last accepted.
//! Words: *terms* = budget, strictness and rates, as the store of campaigns has them.
//!
//! A minute's clicks are priced at the highest rate in force within the minute. Windows are minutes, so where a rate
//! changes within one, how many of its clicks came before is not known: the error is at most that minute's clicks times
//! the difference of the rates, never too low a spend, and gone once the hour is billed.

use std::collections::BTreeMap;

use twice_log::event::MINUTE_MS;
use twice_log::{CampaignId, Currency, Day, Hour, UtcMillis};
use twice_store::{BudgetCause, BudgetDecision, BudgetReport, BudgetState, Campaign};

use super::feed::TouchedBy;

/// Minutes from which a rate of spending is taken.
const RECENT_MS: i64 = 5 * MINUTE_MS;
/// Spending of a shorter time says nothing about the next hour.
const RECENT_MS_MIN: i64 = 10_000;

/// Spend of one hour.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HourSpend {
    /// The stream's clicks by start of the minute.
    Counted(BTreeMap<UtcMillis, u64>),
    /// What the bill says.
    Billed(i64),
}

#[derive(Debug, Clone, Default)]
struct DayAccount {
    hours: BTreeMap<Hour, HourSpend>,
    billed: i128,
    preliminary: i128,
    last: Option<BudgetDecision>,
    /// What changed spend or terms last.
    cause: Option<BudgetCause>,
    clicks: Option<TouchedBy>,
}

impl DayAccount {
    fn spend(&self) -> i64 {
        clamped(self.billed + self.preliminary)
    }

    fn changed(&mut self, cause: BudgetCause) {
        self.cause = Some(cause);
        if cause != BudgetCause::Stream {
            self.clicks = None;
        }
    }
}

/// A decision that is not stored yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    pub decision: BudgetDecision,
    /// Arrival of the first click that may have decided; `None` where clicks did not.
    pub arrived_at: Option<UtcMillis>,
}

/// Days of one campaign.
#[derive(Debug, Clone)]
pub struct Account {
    terms: Campaign,
    days: BTreeMap<Day, DayAccount>,
    /// Clicks by minute, newest few, billed or not.
    recent: BTreeMap<UtcMillis, u64>,
}

impl Account {
    /// Opens an account that knows nothing yet.
    pub fn new(terms: Campaign) -> Self {
        Self { terms, days: BTreeMap::new(), recent: BTreeMap::new() }
    }

    /// Returns the campaign.
    pub fn campaign(&self) -> &CampaignId {
        &self.terms.campaign_id
    }

    /// Returns whether counts and bills are of any use: there is a budget.
    pub fn has_budget(&self) -> bool {
        self.terms.daily_budget_micros.is_some()
    }

    /// Opens a day: its spend is nothing until something says otherwise.
    pub fn begin_day(&mut self, day: Day) {
        self.days.entry(day).or_default();
    }

    /// Forgets the days before `first`.
    pub fn forget_before(&mut self, first: Day) {
        self.days = self.days.split_off(&first);
    }

    /// Takes over the last decision stored of a day, unless a later one is known.
    pub fn restore(&mut self, last: BudgetDecision) {
        let day = self.days.entry(last.day).or_default();
        if day.last.as_ref().is_none_or(|known| known.number <= last.number) {
            day.last = Some(last);
        }
    }

    /// Takes the campaign's terms as they are now; returns whether anything changed.
    pub fn set_terms(&mut self, terms: Campaign) -> bool {
        if self.terms == terms {
            return false;
        }
        self.terms = terms;
        for day in self.days.values_mut() {
            day.preliminary = 0;
            for hour in day.hours.values() {
                if let HourSpend::Counted(minutes) = hour {
                    day.preliminary += minutes
                        .iter()
                        .map(|(start, clicks)| cost(&self.terms, *start, *clicks))
                        .sum::<i128>();
                }
            }
            day.changed(BudgetCause::BudgetChanged);
        }
        true
    }

    /// Takes the stream's clicks of a minute, if they are more than those known; returns whether they are.
    ///
    /// A minute of a billed hour, or of a day before `first`, changes nothing.
    pub fn count(&mut self, start: UtcMillis, clicks: u64, by: Option<TouchedBy>, first: Day) -> bool {
        let recent = self.recent.entry(start).or_insert(0);
        *recent = clicks.max(*recent);
        while self.recent.len() > (2 * RECENT_MS / MINUTE_MS) as usize {
            self.recent.pop_first();
        }
        let hour = start.hour();
        if Day::of(hour) < first {
            return false;
        }
        let day = self.days.entry(Day::of(hour)).or_default();
        let counted = day.hours.entry(hour).or_insert_with(|| HourSpend::Counted(BTreeMap::new()));
        let HourSpend::Counted(minutes) = counted else { return false };
        let known = minutes.entry(start).or_insert(0);
        let Some(more) = clicks.checked_sub(*known).filter(|more| *more > 0) else { return false };
        *known = clicks;
        day.preliminary += cost(&self.terms, start, more);
        day.cause = Some(BudgetCause::Stream);
        day.clicks = match (day.clicks, by) {
            (Some(earlier), Some(later)) => Some(earlier.then(later)),
            (earlier, later) => later.or(earlier),
        };
        true
    }

    /// Puts the billed amount of an hour in the place of the stream's; returns whether the spend changed.
    pub fn bill(&mut self, hour: Hour, amount_micros: i64, first: Day) -> bool {
        if Day::of(hour) < first {
            return false;
        }
        let day = self.days.entry(Day::of(hour)).or_default();
        let before = day.spend();
        match day.hours.insert(hour, HourSpend::Billed(amount_micros)) {
            Some(HourSpend::Billed(old)) => day.billed -= i128::from(old),
            Some(HourSpend::Counted(minutes)) => {
                day.preliminary -=
                    minutes.iter().map(|(start, clicks)| cost(&self.terms, *start, *clicks)).sum::<i128>();
            }
            None => {}
        }
        day.billed += i128::from(amount_micros);
        let is_changed = day.spend() != before;
        if is_changed {
            day.changed(BudgetCause::Reconciled);
        }
        is_changed
    }

    /// Returns the decisions that are due: where the state of a day is not the one decided last.
    ///
    /// Only `today` can be unknown: what the stream has yet to count is today's.
    pub fn proposals(&self, today: Day, is_known: bool, now: UtcMillis) -> Vec<Proposal> {
        let propose = |(day, account): (&Day, &DayAccount)| self.propose(*day, account, today, is_known, now);
        self.days.iter().filter_map(propose).collect()
    }

    fn propose(
        &self,
        day: Day,
        account: &DayAccount,
        today: Day,
        is_known: bool,
        now: UtcMillis,
    ) -> Option<Proposal> {
        let last = account.last.as_ref();
        if last.is_none() && day != today && account.spend() == 0 {
            return None;
        }
        let state = self.state(account, is_known || day != today);
        let state = match (state, last) {
            (Some(state), _) => state,
            // The budget was lifted: whoever stopped must hear of it; nobody else has anything to hear.
            (None, Some(last)) if last.state != BudgetState::Serving => BudgetState::Serving,
            (None, _) => return None,
        };
        if last.is_some_and(|last| last.state == state) {
            return None;
        }
        let cause = cause(account, state);
        let clicks = account.clicks.filter(|_| cause == BudgetCause::Stream);
        let decision = BudgetDecision {
            sequence: 0,
            campaign_id: self.terms.campaign_id.clone(),
            day,
            number: last.map_or(1, |last| last.number + 1),
            state,
            cause,
            spend_micros: account.spend(),
            budget_micros: self.terms.daily_budget_micros,
            decided_at: now,
            position: clicks.map(|clicks| clicks.position),
            event_time: clicks.map(|clicks| clicks.event_time),
        };
        Some(Proposal { decision, arrived_at: clicks.map(|clicks| clicks.first_arrival) })
    }

    /// Returns the state a day is in; `None` without a budget.
    fn state(&self, account: &DayAccount, is_known: bool) -> Option<BudgetState> {
        let budget = self.terms.daily_budget_micros?;
        Some(match account.spend() >= budget {
            _ if self.terms.strict && !is_known => BudgetState::Unknown,
            true => BudgetState::Exhausted,
            false => BudgetState::Serving,
        })
    }

    /// Notes that a decision is stored.
    pub fn accept(&mut self, decision: BudgetDecision) {
        let budget = self.terms.daily_budget_micros;
        let day = self.days.entry(decision.day).or_default();
        // What changed while it was being stored is yet to be decided of.
        if (day.spend(), budget) == (decision.spend_micros, decision.budget_micros) {
            day.cause = None;
            day.clicks = None;
        }
        day.last = Some(decision);
    }

    /// Forgets which clicks came last, once it is known that they decided nothing.
    pub fn settle(&mut self) {
        self.days.values_mut().for_each(|day| day.clicks = None);
    }

    /// Returns the state decided last of a day that it goes on in, its currency, and its spend above the budget.
    pub fn standing(&self, day: Day) -> (Option<BudgetState>, Currency, i64) {
        let account = self.days.get(&day);
        let budget = self.terms.daily_budget_micros;
        let last = account.and_then(|account| account.last.as_ref()).map(|last| last.state);
        let spend = account.map_or(0, DayAccount::spend);
        let overspend = budget.map_or(0, |budget| spend.saturating_sub(budget).max(0));
        (budget.and(last), self.terms.currency, overspend)
    }

    /// Tells how a day stands at `now`.
    pub fn report(&self, day: Day, today: Day, is_known: bool, now: UtcMillis) -> BudgetReport {
        let nothing = DayAccount::default();
        let account = self.days.get(&day).unwrap_or(&nothing);
        let spend_micros = account.spend();
        let budget = self.terms.daily_budget_micros;
        let last = account.last.clone();
        let exhausted = last.as_ref().filter(|last| last.state == BudgetState::Exhausted);
        // Nobody hears of a state before it is stored; days that nothing was decided of are told as they would be.
        let decided = match &last {
            Some(last) => Some(last.state),
            None if day == today => None,
            None => self.state(account, is_known),
        };
        let per_minute = if day == today { self.recent_micros_per_minute(now) } else { 0 };
        let left = budget.map_or(0, |budget| budget.saturating_sub(spend_micros));
        BudgetReport {
            campaign_id: self.terms.campaign_id.clone(),
            day,
            currency: self.terms.currency,
            budget_micros: budget,
            strict: self.terms.strict,
            spend_micros,
            billed_micros: clamped(account.billed),
            preliminary_micros: clamped(account.preliminary),
            state: budget.and(decided),
            overspend_micros: budget.map_or(0, |budget| spend_micros.saturating_sub(budget).max(0)),
            spent_after_exhausted_micros: exhausted
                .map_or(0, |last| spend_micros.saturating_sub(last.spend_micros).max(0)),
            recent_micros_per_minute: per_minute,
            forecast_exhausted_at: forecast(left, per_minute, now).filter(|moment| *moment < day.end()),
            last_decision: last,
        }
    }

    /// Returns what the last minutes with clicks cost, a minute.
    fn recent_micros_per_minute(&self, now: UtcMillis) -> i64 {
        let from = now.plus_ms(-RECENT_MS).minute_start();
        let mut minutes = self.recent.range(from..=now).peekable();
        let Some((first, _)) = minutes.peek() else { return 0 };
        // A campaign that has just begun spends at the rate since then, not at a fifth of it.
        let elapsed_ms = (now.epoch_ms() - first.epoch_ms()).max(RECENT_MS_MIN);
        let spent: i128 = minutes.map(|(start, clicks)| cost(&self.terms, *start, *clicks)).sum();
        clamped(spent * i128::from(MINUTE_MS) / i128::from(elapsed_ms))
    }
}

/// Returns what a decision for `state` says of why.
fn cause(account: &DayAccount, state: BudgetState) -> BudgetCause {
    match &account.last {
        _ if state == BudgetState::Unknown => BudgetCause::Lag,
        Some(last) if last.state == BudgetState::Unknown => match account.cause {
            Some(BudgetCause::BudgetChanged) => BudgetCause::BudgetChanged,
            _ => BudgetCause::Lag,
        },
        Some(_) => account.cause.unwrap_or(BudgetCause::Stream),
        None if account.cause == Some(BudgetCause::BudgetChanged) => BudgetCause::BudgetChanged,
        None if state == BudgetState::Serving => BudgetCause::DayBegan,
        None => account.cause.unwrap_or(BudgetCause::DayBegan),
    }
}

fn forecast(left_micros: i64, per_minute: i64, now: UtcMillis) -> Option<UtcMillis> {
    if left_micros <= 0 || per_minute <= 0 {
        return None;
    }
    let in_ms = i128::from(left_micros) * i128::from(MINUTE_MS) / i128::from(per_minute);
    Some(now.plus_ms(i64::try_from(in_ms).ok()?))
}

/// Returns what clicks of the minute that begins at `start` cost.
fn cost(terms: &Campaign, start: UtcMillis, clicks: u64) -> i128 {
    let end = start.plus_ms(MINUTE_MS);
    let within = terms.rates.iter().filter(|rate| start < rate.effective_from && rate.effective_from < end);
    // Of rates that begin at one moment the one recorded last counts; the highest of them all is no less.
    let highest = within.chain(terms.rate_in_force(start)).map(|rate| rate.cpc_micros).max();
    i128::from(clicks) * i128::from(highest.unwrap_or(0))
}

fn clamped(micros: i128) -> i64 {
    i64::try_from(micros).unwrap_or(if micros > 0 { i64::MAX } else { i64::MIN })
}
