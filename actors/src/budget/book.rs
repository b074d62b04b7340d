//! Every account, and what all of them share: the day it is, and how far the stream is. Pure.

use hashbrown::{HashMap, HashSet};
use twice_log::event::{MINUTE_MS, partition_of};
use twice_log::{CampaignId, Currency, Day, Hour, UtcMillis};
use twice_store::{BudgetDecision, BudgetReport, BudgetState, Campaign};

use super::account::{Account, Proposal};
use super::feed::Touched;
use super::sight::Sight;

/// How far a clock may go back over midnight without that the day does.
const BACK_OVER_MIDNIGHT_MS: i64 = MINUTE_MS;

/// The accounts of all campaigns with a budget.
#[derive(Debug)]
pub(super) struct Book {
    accounts: HashMap<CampaignId, Account>,
    /// By partition.
    pub(super) sights: Vec<Sight>,
    today: Day,
    /// Accounts whose state may not be the one decided last.
    dirty: HashSet<CampaignId>,
    /// Accounts that were not derived whole yet: their spend may be too low, so nothing is decided of them.
    unopened: HashSet<CampaignId>,
    /// Terms, bills and decisions stored were taken over.
    pub(super) is_seeded: bool,
    /// How often everything was forgotten: what was read before that is of another day.
    seedings: u64,
}

/// Figures of all accounts, for gauges.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) exhausted: u64,
    pub(super) unknown: u64,
    /// Spend above budgets today, by currency.
    pub(super) overspend: HashMap<Currency, i64>,
}

impl Book {
    pub(super) fn new(sights: Vec<Sight>, today: Day) -> Self {
        Self {
            accounts: HashMap::new(),
            sights,
            today,
            dirty: HashSet::new(),
            unopened: HashSet::new(),
            is_seeded: false,
            seedings: 0,
        }
    }

    /// Returns the first day that decisions are made of: yesterday, as its last clicks and bills come today.
    pub(super) fn first_day(&self) -> Day {
        self.today.plus(-1)
    }

    pub(super) fn today(&self) -> Day {
        self.today
    }

    /// Opens the day `now` lies in. After the day before, those past are forgotten; after any other, as a clock that jumps
    /// makes it, everything is: what the day's account would need was forgotten already, or never read.
    pub(super) fn turn_to(&mut self, now: UtcMillis) {
        let today = Day::of(now.hour());
        let is_just_past = now.epoch_ms() < self.today.start().epoch_ms()
            && now.plus_ms(BACK_OVER_MIDNIGHT_MS) >= self.today.start();
        if today == self.today || is_just_past {
            return;
        }
        let is_next = today == self.today.plus(1);
        tracing::info!(day = %today, is_next, "budgets: another day");
        self.today = today;
        if !is_next {
            self.accounts.clear();
            self.dirty.clear();
            self.unopened.clear();
            self.is_seeded = false;
            self.seedings += 1;
            return;
        }
        let first = self.first_day();
        for account in self.accounts.values_mut() {
            account.begin_day(today);
            account.forget_before(first);
        }
        self.touch_all();
    }

    /// Returns how often everything was forgotten.
    pub(super) fn seedings(&self) -> u64 {
        self.seedings
    }

    /// Lets every account be looked at in the next round.
    pub(super) fn touch_all(&mut self) {
        self.dirty.extend(self.accounts.keys().cloned());
    }

    /// Lets the accounts of partitions be looked at in the next round.
    pub(super) fn touch_partitions(&mut self, partitions: &[bool]) {
        let of = |campaign: &CampaignId| partition_of(campaign, partitions.len().max(1) as u32).0 as usize;
        let touched = self.accounts.keys().filter(|campaign| partitions.get(of(campaign)) == Some(&true));
        self.dirty.extend(touched.cloned());
    }

    /// Takes a campaign's terms; returns whether its account is to be opened: it is new, or nothing was counted of it for
    /// some time, as it had no budget.
    pub(super) fn set_terms(&mut self, terms: Campaign) -> bool {
        let id = terms.campaign_id.clone();
        match self.accounts.get_mut(&id) {
            Some(account) => {
                let is_again = !account.has_budget() && terms.daily_budget_micros.is_some();
                if account.set_terms(terms) {
                    self.dirty.insert(id.clone());
                }
                if is_again {
                    self.unopened.insert(id);
                }
                is_again
            }
            None => {
                let mut account = Account::new(terms);
                account.begin_day(self.today);
                self.accounts.insert(id.clone(), account);
                self.dirty.insert(id.clone());
                self.unopened.insert(id);
                true
            }
        }
    }

    /// Notes that an account was derived whole.
    pub(super) fn opened(&mut self, campaign: &CampaignId) {
        self.unopened.remove(campaign);
    }

    pub(super) fn is_opened(&self, campaign: &CampaignId) -> bool {
        !self.unopened.contains(campaign)
    }

    pub(super) fn knows(&self, campaign: &CampaignId) -> bool {
        self.accounts.contains_key(campaign)
    }

    /// Returns the account of a campaign, to be looked at in the next round.
    pub(super) fn account(&mut self, campaign: &CampaignId) -> Option<&mut Account> {
        let account = self.accounts.get_mut(campaign)?;
        self.dirty.insert(campaign.clone());
        Some(account)
    }

    pub(super) fn campaigns(&self) -> impl Iterator<Item = &CampaignId> {
        self.accounts.keys()
    }

    /// Returns the campaigns whose counts matter.
    pub(super) fn watched(&self) -> HashSet<CampaignId> {
        self.accounts
            .values()
            .filter(|account| account.has_budget())
            .map(|one| one.campaign().clone())
            .collect()
    }

    /// Takes the bills of an hour; a campaign without one was billed nothing.
    pub(super) fn bill(&mut self, hour: Hour, amounts: &HashMap<CampaignId, i64>) {
        let first = self.first_day();
        for (campaign, account) in &mut self.accounts {
            if account.bill(hour, amounts.get(campaign).copied().unwrap_or(0), first) {
                self.dirty.insert(campaign.clone());
            }
        }
    }

    /// Takes what the stream counted.
    pub(super) fn count(&mut self, touched: HashMap<CampaignId, Touched>) {
        let first = self.first_day();
        for (campaign, touched) in touched {
            let Some(account) = self.accounts.get_mut(&campaign) else { continue };
            let mut is_changed = false;
            for (start, clicks) in touched.minutes {
                is_changed |= account.count(start, clicks, touched.clicks, first);
            }
            if is_changed {
                self.dirty.insert(campaign);
            }
        }
    }

    fn is_known(&self, campaign: &CampaignId) -> bool {
        let partition = partition_of(campaign, self.sights.len().max(1) as u32);
        self.sights.get(partition.0 as usize).is_none_or(Sight::is_known)
    }

    /// Returns the decisions that are due. Accounts without one are done with until something touches them.
    pub(super) fn proposals(&mut self, now: UtcMillis) -> Vec<Proposal> {
        let dirty = std::mem::take(&mut self.dirty);
        let mut all = Vec::new();
        for campaign in dirty {
            let is_known = self.is_known(&campaign);
            if self.unopened.contains(&campaign) {
                self.dirty.insert(campaign);
                continue;
            }
            let Some(account) = self.accounts.get_mut(&campaign) else { continue };
            let proposals = account.proposals(self.today, is_known, now);
            if proposals.is_empty() {
                account.settle();
            } else {
                self.dirty.insert(campaign); // until they are stored
                all.extend(proposals);
            }
        }
        all.sort_by(|one, two| {
            let key = |proposal: &Proposal| (proposal.decision.day, proposal.decision.campaign_id.clone());
            key(one).cmp(&key(two))
        });
        all
    }

    /// Notes that decisions are stored.
    pub(super) fn accept(&mut self, decisions: Vec<BudgetDecision>) {
        for decision in decisions {
            if let Some(account) = self.accounts.get_mut(&decision.campaign_id) {
                account.accept(decision);
            }
        }
    }

    /// Tells how a day of a campaign stands; `None` if it has no account that was derived whole.
    pub(super) fn report(&self, campaign: &CampaignId, day: Day, now: UtcMillis) -> Option<BudgetReport> {
        let account = self.accounts.get(campaign).filter(|_| self.is_opened(campaign))?;
        Some(account.report(day, self.today, self.is_known(campaign), now))
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for account in self.accounts.values() {
            let (state, currency, overspend) = account.standing(self.today);
            match state {
                Some(BudgetState::Exhausted) => totals.exhausted += 1,
                Some(BudgetState::Unknown) => totals.unknown += 1,
                Some(BudgetState::Serving) | None => {}
            }
            let sum = totals.overspend.entry(currency).or_insert(0);
            *sum = sum.saturating_add(overspend);
        }
        totals
    }
}
