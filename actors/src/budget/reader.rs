//! The loop that reads what budgets are made of: what was set, what was billed, and what new accounts spent so far.
//!
//! Guarantee: an account counts only once it was derived whole; one that could not be is tried again with every look.
//! Decisions wait for no read: this loop is not theirs, and reads the long list of all campaigns page by page.
//! Flow: seed -> at each look: terms set lately, a page of all terms, bills, and some of the accounts to be opened.

use std::collections::VecDeque;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use hashbrown::HashSet;
use tokio::time::{Instant, MissedTickBehavior};
use twice_log::event::MINUTE_MS;
use twice_log::{CampaignId, Day, UtcMillis};
use twice_store::billing::UtcMicros;
use twice_store::{BudgetState, Campaign};

use super::actor::Shared;
use super::book::Book;
use crate::error::Result;

/// Campaigns set within this time are read again with every look: a put is recorded under the moment it came, and is
/// visible once it is stored.
const SET_LATELY_MS: i64 = MINUTE_MS / 2;
/// Every campaign is read again this often: a clock set back records puts in the past.
const READ_ALL_EVERY: Duration = Duration::from_secs(60);

/// An account that is to be derived.
struct ToOpen {
    campaign: CampaignId,
    /// Bills and decisions were taken over with those of all; windows are missing.
    has_bills: bool,
}

pub(super) struct Reader {
    shared: Arc<Shared>,
    /// The newest run whose bills were taken.
    billed_to: Option<UtcMicros>,
    to_open: VecDeque<ToOpen>,
    read_all_at: Instant,
    /// Where the list of all campaigns goes on, while it is being read.
    next_page: Option<String>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let read_all_at = Instant::now() + READ_ALL_EVERY;
        Self { shared, billed_to: None, to_open: VecDeque::new(), read_all_at, next_page: None }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book()
    }

    /// Reads until its task is dropped.
    pub(super) async fn run(mut self) {
        let mut looks = tokio::time::interval(self.look_every());
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let is_more = self.look().await;
            if is_more {
                looks.reset_immediately();
            }
        }
    }

    fn look_every(&self) -> Duration {
        Duration::from_millis(self.shared.config.budget_look_ms)
    }

    /// Looks once at everything; returns whether accounts are left to be opened, with nothing in their way. What fails is
    /// tried again at the next look.
    pub(super) async fn look(&mut self) -> bool {
        let is_seeded = self.book().is_seeded;
        let read = if is_seeded { self.read_news().await } else { self.seed().await };
        match read {
            Ok(()) => self.shared.health().read(Instant::now()),
            Err(error) => {
                self.shared.note_failure("what was set or billed cannot be read, trying again", &error);
            }
        }
        let is_more = self.open_some().await;
        self.shared.news.notify_one();
        is_more
    }

    /// Takes over what is stored, windows apart: accounts are opened one by one.
    async fn seed(&mut self) -> Result<()> {
        let shared = self.shared.clone();
        let (seedings, first) = {
            let book = self.book();
            (book.seedings(), book.first_day())
        };
        let decisions = shared.stores.last_decisions(first).await?;
        let stopped = decisions.iter().filter(|decision| decision.state != BudgetState::Serving);
        let stopped: HashSet<CampaignId> = stopped.map(|decision| decision.campaign_id.clone()).collect();
        let terms = shared.stores.terms(None).await?;
        let wanted = terms
            .into_iter()
            .filter(|terms| terms.daily_budget_micros.is_some() || stopped.contains(&terms.campaign_id));
        {
            let mut book = self.book();
            for terms in wanted {
                book.set_terms(terms);
            }
            // Before windows are read: what is counted from now on comes through the feed.
            shared.parts.feed.watch(book.watched());
        }
        self.billed_to = None;
        self.take_bills().await?;
        let newest = shared.stores.newest_sequence().await?;
        let mut book = self.book();
        if book.seedings() != seedings {
            return Ok(()); // the clock jumped meanwhile: the next look seeds for the day that it is
        }
        for decision in decisions {
            if let Some(account) = book.account(&decision.campaign_id) {
                account.restore(decision);
            }
        }
        book.is_seeded = true;
        let to_open = |campaign: &CampaignId| ToOpen { campaign: campaign.clone(), has_bills: true };
        let all = book.campaigns().map(to_open).collect();
        drop(book);
        self.to_open = all;
        shared.tell_newest(newest);
        Ok(())
    }

    async fn read_news(&mut self) -> Result<()> {
        self.take_terms(self.shared.parts.clock.now()).await?;
        self.take_bills().await
    }

    /// Takes the terms of campaigns that were set lately; now and then of all, a page a look.
    async fn take_terms(&mut self, now: UtcMillis) -> Result<()> {
        let stores = self.shared.stores.clone();
        let set = stores.changed_since(now.plus_ms(-SET_LATELY_MS)).await?;
        if !set.is_empty() {
            let terms = stores.terms(Some(&set)).await?;
            self.set_terms(terms);
        }
        if self.next_page.is_some() || Instant::now() >= self.read_all_at {
            let page = stores.terms_page(None, self.next_page.clone()).await?;
            self.set_terms(page.rows);
            self.next_page = page.next_cursor;
            if self.next_page.is_none() {
                self.read_all_at = Instant::now() + READ_ALL_EVERY;
                // Those whose budget was lifted are watched no more.
                self.shared.parts.feed.watch(self.book().watched());
            }
        }
        Ok(())
    }

    fn set_terms(&mut self, terms: Vec<Campaign>) {
        let mut new = Vec::new();
        {
            let mut book = self.shared.book();
            for terms in terms {
                let is_wanted = terms.daily_budget_micros.is_some() || book.knows(&terms.campaign_id);
                let campaign = terms.campaign_id.clone();
                if is_wanted && book.set_terms(terms) {
                    new.push(ToOpen { campaign, has_bills: false });
                }
            }
            if !new.is_empty() {
                // Before windows are read: what is counted from now on comes through the feed.
                self.shared.parts.feed.watch(book.watched());
            }
        }
        self.to_open.extend(new);
    }

    /// Takes the bills of hours that runs were committed of since the last look.
    async fn take_bills(&mut self) -> Result<()> {
        let stores = self.shared.stores.clone();
        let (first, today) = self.days();
        let since = stores.billed_since(self.billed_to, first.start().hour(), today.end().hour()).await?;
        for hour in since.hours {
            for (hour, amounts) in stores.bills(hour, hour.plus(1), None).await? {
                self.book().bill(hour, &amounts);
            }
        }
        self.billed_to = since.newest;
        Ok(())
    }

    fn days(&self) -> (Day, Day) {
        let book = self.book();
        (book.first_day(), book.today())
    }

    /// Opens accounts for as long as one look may take. One that fails is put behind the others: it must not hold them up.
    async fn open_some(&mut self) -> bool {
        let until = Instant::now() + self.look_every();
        while let Some(next) = self.to_open.pop_front() {
            if let Err(error) = self.open(&next).await {
                self.shared.note_failure("what a campaign has spent cannot be derived, trying again", &error);
                self.to_open.push_back(next);
                return false;
            }
            if Instant::now() >= until {
                return !self.to_open.is_empty();
            }
        }
        false
    }

    /// Derives what a campaign spent so far. Of counts the higher ones stay, so those that came by the feed are kept.
    async fn open(&self, next: &ToOpen) -> Result<()> {
        let ToOpen { campaign, has_bills } = next;
        let stores = &self.shared.stores;
        let (first, today) = self.days();
        if !has_bills {
            let bills = stores.bills(first.start().hour(), today.end().hour(), Some(campaign)).await?;
            let decisions =
                [stores.last_decision(campaign, first).await?, stores.last_decision(campaign, today).await?];
            let mut book = self.book();
            let Some(account) = book.account(campaign) else { return Ok(()) };
            for (hour, amounts) in bills {
                account.bill(hour, amounts.get(campaign).copied().unwrap_or(0), first);
            }
            decisions.into_iter().flatten().for_each(|decision| account.restore(decision));
        }
        // A day ahead too: clicks may come minutes before their time.
        let rows = stores.windows_of(campaign, first, today.plus(1)).await?;
        let mut book = self.book();
        let Some(account) = book.account(campaign) else { return Ok(()) };
        for row in rows {
            account.count(row.window_start, row.clicks, None, first);
        }
        book.opened(campaign);
        Ok(())
    }
}
