//! Every account, and what all of them share: the day it is, and how far the stream is. Pure.

use hashbrown::{HashMap, HashSet};
use twice_log::event::partition_of;
use twice_log::{CampaignId, Day, UtcMillis};
use twice_store::{BudgetDecision, BudgetReport, BudgetState, Campaign};

use super::account::{Account, Proposal};
use super::config::BudgetConfig;
use super::feed::Touched;
use super::sight::Sight;

/// The accounts of all campaigns with a budget.
#[derive(Debug)]
pub(super) struct Book {
    accounts: HashMap<CampaignId, Account>,
    /// By partition.
    pub(super) sights: Vec<Sight>,
    today: Day,
    /// Accounts whose state may not be the one decided last.
    dirty: HashSet<CampaignId>,
    /// Everything stored was taken over; before that, spend is too low.
    pub(super) is_seeded: bool,
    /// Since when stores fail.
    pub(super) failing_since: Option<UtcMillis>,
    /// For how long they may before strict campaigns stop.
    failing_ms_max: i64,
}

/// Figures of all accounts, for gauges.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) exhausted: u64,
    pub(super) unknown: u64,
    /// Spend above budgets today, by currency.
    pub(super) overspend: HashMap<String, i64>,
}

impl Book {
    pub(super) fn new(sights: Vec<Sight>, today: Day, config: &BudgetConfig) -> Self {
        let failing_ms_max = i64::try_from(config.budget_lag_ms_max).unwrap_or(i64::MAX);
        let (accounts, dirty) = (HashMap::new(), HashSet::new());
        Self { accounts, sights, today, dirty, is_seeded: false, failing_since: None, failing_ms_max }
    }

    /// Returns the first day that decisions are made of: yesterday, as its last clicks and bills come today.
    pub(super) fn first_day(&self) -> Day {
        self.today.plus(-1)
    }

    pub(super) fn today(&self) -> Day {
        self.today
    }

    /// Opens the day `now` lies in, and forgets those past; a clock set back opens nothing.
    pub(super) fn turn_to(&mut self, now: UtcMillis) {
        let today = Day::of(now.hour());
        if today <= self.today {
            return;
        }
        self.today = today;
        let first = self.first_day();
        for account in self.accounts.values_mut() {
            account.begin_day(today);
            account.forget_before(first);
        }
        self.touch_all();
    }

    /// Lets every account be looked at in the next round.
    pub(super) fn touch_all(&mut self) {
        self.dirty.extend(self.accounts.keys().cloned());
    }

    /// Takes a campaign's terms; returns whether its account is new and knows nothing yet.
    pub(super) fn set_terms(&mut self, terms: Campaign) -> bool {
        let id = terms.campaign_id.clone();
        match self.accounts.get_mut(&id) {
            Some(account) => {
                if account.set_terms(terms) {
                    self.dirty.insert(id);
                }
                false
            }
            None => {
                let mut account = Account::new(terms);
                account.begin_day(self.today);
                self.accounts.insert(id.clone(), account);
                self.dirty.insert(id);
                true
            }
        }
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

    /// Tells how a day of a campaign stands; `None` if it has no account.
    pub(super) fn report(&self, campaign: &CampaignId, day: Day, now: UtcMillis) -> Option<BudgetReport> {
        let account = self.accounts.get(campaign)?;
        let mut report = account.report(day, self.today, self.is_known(campaign), now);
        let is_down =
            self.failing_since.is_some_and(|since| now.epoch_ms() - since.epoch_ms() > self.failing_ms_max);
        if is_down && report.strict && report.state.is_some() {
            // No decision can be numbered while none can be stored; who asks is told all the same.
            report.state = Some(BudgetState::Unknown);
        }
        Some(report)
    }

    pub(super) fn totals(&self, now: UtcMillis) -> Totals {
        let mut totals = Totals::default();
        for account in self.accounts.values() {
            let report = account.report(self.today, self.today, self.is_known(account.campaign()), now);
            match report.state {
                Some(BudgetState::Exhausted) => totals.exhausted += 1,
                Some(BudgetState::Unknown) => totals.unknown += 1,
                Some(BudgetState::Serving) | None => {}
            }
            let overspend = totals.overspend.entry(report.currency.as_str().to_owned()).or_insert(0);
            *overspend = overspend.saturating_add(report.overspend_micros);
        }
        totals
    }
}
