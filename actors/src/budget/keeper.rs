//! The loop that keeps the accounts: takes what the stream counted, looks at what was set and billed, stores decisions.
//!
//! Guarantee: nobody hears of a decision that is not stored; one that cannot be stored is proposed again until it is.
//! Flow: seed -> wait for clicks or the next look -> count -> propose -> store -> tell.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashSet;
use tokio::time::{Instant, MissedTickBehavior};
use twice_log::event::MINUTE_MS;
use twice_log::fail::FailPoint;
use twice_log::{CampaignId, LogOffset, PartitionId, Topic, UtcMillis};
use twice_store::billing::UtcMicros;
use twice_store::{BudgetDecision, BudgetState};

use super::account::Proposal;
use super::actor::Shared;
use super::book::Book;
use crate::error::{Error, Result};
use crate::metrics::{
    BUDGET_DECISION_SECONDS, BUDGET_DECISIONS_TOTAL, BUDGET_EXHAUSTED_CAMPAIGNS, BUDGET_OVERSPEND_MICROS,
    BUDGET_STORE_FAILURES_TOTAL, BUDGET_UNKNOWN_CAMPAIGNS,
};

/// Clicks gather this long before they are looked at: it bounds how often the accounts are locked under load, and is
/// small against the second a decision may take.
const GATHER: Duration = Duration::from_millis(20);
/// Campaigns set within this time are read again with every look: a put is recorded under the moment it came, and is
/// visible once it is stored.
const SET_LATELY_MS: i64 = MINUTE_MS / 2;
/// Every campaign is read again this often: a clock set back records puts in the past.
const READ_ALL_EVERY: Duration = Duration::from_secs(60);
/// The log is asked for its ends this long.
const ENDS_LIMIT: Duration = Duration::from_millis(500);

pub(super) struct Keeper {
    shared: Arc<Shared>,
    /// The newest run whose bills were taken.
    billed_to: Option<UtcMicros>,
    read_all_at: Instant,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, billed_to: None, read_all_at: Instant::now() + READ_ALL_EVERY }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the accounts until its task is dropped.
    pub(super) async fn run(mut self) {
        let look_every = Duration::from_millis(self.shared.config.budget_look_ms);
        while let Err(error) = self.seed().await {
            self.note_failure("budgets cannot be read, trying again", &error);
            self.look_at_stream().await;
            tokio::time::sleep(look_every).await;
        }
        let mut looks = tokio::time::interval(look_every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut is_well = false;
            tokio::select! {
                () = self.shared.parts.feed.changed() => tokio::time::sleep(GATHER).await,
                _ = looks.tick() => match self.look().await {
                    Ok(()) => is_well = true,
                    Err(error) => {
                        self.note_failure("what was set or billed cannot be read, trying again", &error);
                    }
                }
            }
            match self.round().await {
                Ok(()) if is_well => self.book().failing_since = None,
                Ok(()) => {}
                Err(error) => {
                    self.note_failure("budget decisions cannot be stored, trying again", &error);
                    tokio::time::sleep(GATHER).await;
                }
            }
        }
    }

    /// Takes over what is stored. Counts are taken from the feed from before the windows are read, so none is missed.
    async fn seed(&mut self) -> Result<()> {
        let shared = self.shared.clone();
        let first = self.book().first_day();
        let decisions = shared.stores.last_decisions(first).await?;
        let stopped = decisions.iter().filter(|decision| decision.state != BudgetState::Serving);
        let stopped: HashSet<CampaignId> = stopped.map(|decision| decision.campaign_id.clone()).collect();
        let terms = shared.stores.terms(None).await?;
        let wanted = terms
            .into_iter()
            .filter(|terms| terms.daily_budget_micros.is_some() || stopped.contains(&terms.campaign_id));
        let campaigns: Vec<CampaignId> = {
            let mut book = self.book();
            for terms in wanted {
                book.set_terms(terms);
            }
            shared.parts.feed.watch(book.watched());
            book.campaigns().cloned().collect()
        };
        self.take_bills().await?;
        for campaign in &campaigns {
            self.count_windows(campaign).await?;
        }
        let mut book = self.book();
        for decision in decisions {
            if let Some(account) = book.account(&decision.campaign_id) {
                account.restore(decision);
            }
        }
        book.is_seeded = true;
        book.failing_since = None;
        drop(book);
        let newest = shared.stores.decisions.newest_sequence().await?;
        shared.stored.send_replace(newest);
        Ok(())
    }

    async fn count_windows(&self, campaign: &CampaignId) -> Result<()> {
        let (first, today) = {
            let book = self.book();
            (book.first_day(), book.today())
        };
        // A day ahead too: clicks may come minutes before their time.
        let (from, to) = (first.start(), today.plus(1).end());
        let rows = self.shared.stores.windows.read(campaign, from, to).await?;
        let mut book = self.book();
        let Some(account) = book.account(campaign) else { return Ok(()) };
        for row in rows {
            account.count(row.window_start, row.clicks, None, first);
        }
        Ok(())
    }

    /// Looks at the stream, at the day, and at what was set and billed.
    async fn look(&mut self) -> Result<()> {
        self.look_at_stream().await;
        let now = self.shared.parts.clock.now();
        self.book().turn_to(now);
        self.show(now);
        self.take_terms(now).await?;
        self.take_bills().await
    }

    /// Looks how far the stream lies behind the log.
    async fn look_at_stream(&self) {
        let shared = &self.shared;
        let now = shared.parts.clock.now(); // before the ends are read: what came until now lies below them
        let applied = (shared.parts.applied_ends)();
        let waiting_since = (shared.parts.waiting_since)();
        let ends = tokio::time::timeout(ENDS_LIMIT, self.log_ends(applied.len())).await;
        let ends = ends.unwrap_or_else(|_| vec![None; applied.len()]);
        let mut book = self.book();
        let mut is_turned = false;
        for ((sight, end), applied) in book.sights.iter_mut().zip(ends).zip(applied) {
            let was_known = sight.is_known();
            sight.look(now, end, applied, waiting_since);
            if sight.is_known() != was_known {
                is_turned = true;
                tracing::warn!(
                    lag_ms = sight.lag_ms(),
                    is_known = sight.is_known(),
                    "whether the spend of a partition's campaigns is known has changed"
                );
            }
        }
        if is_turned {
            book.touch_all();
        }
    }

    async fn log_ends(&self, partitions: usize) -> Vec<Option<LogOffset>> {
        let bounds = (0..partitions as u32)
            .map(|number| self.shared.parts.log.bounds(Topic::AdClicks, PartitionId(number)));
        let bounds = futures::future::join_all(bounds).await;
        bounds.into_iter().map(|bounds| bounds.ok().map(|bounds| bounds.end)).collect()
    }

    /// Takes the terms of campaigns that were set lately, now and then of all.
    async fn take_terms(&mut self, now: UtcMillis) -> Result<()> {
        let stores = self.shared.stores.clone();
        let is_all = Instant::now() >= self.read_all_at;
        let terms = if is_all {
            stores.terms(None).await?
        } else {
            let set = stores.decisions.campaigns_changed_since(now.plus_ms(-SET_LATELY_MS)).await?;
            if set.is_empty() {
                return Ok(());
            }
            stores.terms(Some(&set)).await?
        };
        let mut new = Vec::new();
        {
            let mut book = self.book();
            for terms in terms {
                let is_wanted = terms.daily_budget_micros.is_some() || book.knows(&terms.campaign_id);
                let id = terms.campaign_id.clone();
                if is_wanted && book.set_terms(terms) {
                    new.push(id);
                }
            }
            if !new.is_empty() || is_all {
                self.shared.parts.feed.watch(book.watched());
            }
        }
        for campaign in &new {
            self.open(campaign).await?;
        }
        if is_all {
            self.read_all_at = Instant::now() + READ_ALL_EVERY;
        }
        Ok(())
    }

    /// Derives what a campaign spent before it was given a budget.
    async fn open(&self, campaign: &CampaignId) -> Result<()> {
        let stores = &self.shared.stores;
        let (first, today) = {
            let book = self.book();
            (book.first_day(), book.today())
        };
        let bills = stores.bills(first.start().hour(), today.end().hour(), Some(campaign)).await?;
        let decisions = [
            stores.decisions.last_decision(campaign, first).await?,
            stores.decisions.last_decision(campaign, today).await?,
        ];
        {
            let mut book = self.book();
            let Some(account) = book.account(campaign) else { return Ok(()) };
            for (hour, amounts) in bills {
                account.bill(hour, amounts.get(campaign).copied().unwrap_or(0), first);
            }
            decisions.into_iter().flatten().for_each(|decision| account.restore(decision));
        }
        self.count_windows(campaign).await
    }

    /// Takes the bills of hours that runs were committed of since the last look.
    async fn take_bills(&mut self) -> Result<()> {
        let stores = self.shared.stores.clone();
        let (first, today) = {
            let book = self.book();
            (book.first_day(), book.today())
        };
        let (from, to) = (first.start().hour(), today.end().hour());
        let since = stores.decisions.billed_since(self.billed_to, from, to).await?;
        for hour in since.hours {
            for (hour, amounts) in stores.bills(hour, hour.plus(1), None).await? {
                let mut book = self.book();
                let campaigns: Vec<CampaignId> = book.campaigns().cloned().collect();
                for campaign in campaigns {
                    let amount = amounts.get(&campaign).copied().unwrap_or(0);
                    if let Some(account) = book.account(&campaign) {
                        account.bill(hour, amount, first);
                    }
                }
            }
        }
        self.billed_to = since.newest;
        Ok(())
    }

    /// Counts what waits, and stores the decisions that follow.
    async fn round(&mut self) -> Result<()> {
        let now = self.shared.parts.clock.now();
        let proposals = {
            let mut book = self.book();
            book.count(self.shared.parts.feed.take());
            book.proposals(now)
        };
        if proposals.is_empty() {
            return Ok(());
        }
        let decisions = proposals.iter().map(|proposal| proposal.decision.clone()).collect();
        let stored = match self.shared.stores.decisions.record_decisions(decisions).await {
            Ok(stored) => stored,
            Err(error) => {
                let error = Error::from(error);
                self.take_decisions_again().await;
                return Err(error);
            }
        };
        self.shared.parts.fail_points.pass(FailPoint::BudgetDecisionStored);
        self.tell(&proposals, &stored);
        let newest = stored.last().map_or(0, |decision| decision.sequence);
        self.book().accept(stored);
        self.shared.stored.send_replace(newest);
        Ok(())
    }

    /// Takes over the last decisions stored: the outcome of a store that failed may be either.
    async fn take_decisions_again(&self) {
        let first = self.book().first_day();
        let Ok(decisions) = self.shared.stores.last_decisions(first).await else { return };
        let newest = decisions.iter().map(|decision| decision.sequence).max().unwrap_or(0);
        let mut book = self.book();
        for decision in decisions {
            if let Some(account) = book.account(&decision.campaign_id) {
                account.restore(decision);
            }
        }
        drop(book);
        self.shared.stored.send_if_modified(|known| {
            let is_newer = newest > *known;
            *known = newest.max(*known);
            is_newer
        });
    }

    fn tell(&self, proposals: &[Proposal], stored: &[BudgetDecision]) {
        let now = self.shared.parts.clock.now();
        for (proposal, decision) in proposals.iter().zip(stored) {
            let labels = [("state", decision.state.name()), ("cause", decision.cause.name())];
            metrics::counter!(BUDGET_DECISIONS_TOTAL, &labels).increment(1);
            let arrived_at = proposal.arrived_at.filter(|_| decision.state == BudgetState::Exhausted);
            if let Some(arrived_at) = arrived_at {
                let took_ms = (now.epoch_ms() - arrived_at.epoch_ms()).max(0);
                metrics::histogram!(BUDGET_DECISION_SECONDS).record(took_ms as f64 / 1000.0);
            }
            // One line a decision: a node with many campaigns would write little else.
            tracing::debug!(campaign = %decision.campaign_id, day = %decision.day, number = decision.number,
                state = decision.state.name(), cause = decision.cause.name(), spend = decision.spend_micros,
                "budget decision");
        }
    }

    fn show(&self, now: UtcMillis) {
        let totals = self.book().totals(now);
        metrics::gauge!(BUDGET_EXHAUSTED_CAMPAIGNS).set(totals.exhausted as f64);
        metrics::gauge!(BUDGET_UNKNOWN_CAMPAIGNS).set(totals.unknown as f64);
        for (currency, micros) in totals.overspend {
            metrics::gauge!(BUDGET_OVERSPEND_MICROS, "currency" => currency).set(micros as f64);
        }
    }

    fn note_failure(&self, what: &'static str, error: &Error) {
        tracing::warn!(error = %error.with_causes(), "{what}");
        metrics::counter!(BUDGET_STORE_FAILURES_TOTAL).increment(1);
        let now = self.shared.parts.clock.now();
        self.book().failing_since.get_or_insert(now);
    }
}
