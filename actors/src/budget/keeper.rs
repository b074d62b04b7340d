//! The loops that keep the accounts: one looks how far the stream is and which day it is, one takes what the stream counted
//! and stores decisions.
//!
//! Guarantee: nobody hears of a decision that is not stored; one that cannot be stored is proposed again until it is. Neither
//! loop reads lists (`reader` does): a store that is slow for others makes no decision late and no stream look stalled.
//! Flow: wait for clicks or news -> count -> propose -> store -> tell.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use twice_log::fail::FailPoint;
use twice_log::{LogOffset, PartitionId, Topic, UtcMillis};
use twice_store::{BudgetDecision, BudgetState};

use super::account::Proposal;
use super::actor::Shared;
use super::book::Book;
use crate::error::Result;
use crate::metrics::{
    BUDGET_DECISION_SECONDS, BUDGET_DECISIONS_TOTAL, BUDGET_EXHAUSTED_CAMPAIGNS, BUDGET_OVERSPEND_MICROS,
    BUDGET_UNKNOWN_CAMPAIGNS,
};

/// Clicks gather this long before they are looked at: it bounds how often the accounts are locked under load, and is
/// small against the second a decision may take.
const GATHER: Duration = Duration::from_millis(20);
/// Wait after a store that failed: small against the second a decision may take, and no storm of attempts.
const RETRY: Duration = Duration::from_millis(200);
/// Decisions stored at once: the first ones of a day are of all campaigns, and a commit of all would be a long one.
const STORED_AT_ONCE: usize = 5_000;
/// The log is asked for its ends this long.
const ENDS_LIMIT: Duration = Duration::from_millis(500);

pub(super) struct Keeper {
    shared: Arc<Shared>,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book()
    }

    /// Looks at stream and day until its task is dropped.
    pub(super) async fn watch(self) {
        let mut looks = tokio::time::interval(Duration::from_millis(self.shared.config.budget_look_ms));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.look().await;
            self.shared.news.notify_one();
        }
    }

    /// Decides until its task is dropped.
    pub(super) async fn decide(self) {
        loop {
            tokio::select! {
                () = self.shared.parts.feed.changed() => tokio::time::sleep(GATHER).await,
                () = self.shared.news.notified() => {}
            }
            match self.round().await {
                Ok(()) => self.shared.health().stored(Instant::now()),
                Err(error) => {
                    self.shared.note_failure("budget decisions cannot be stored, trying again", &error);
                    tokio::time::sleep(RETRY).await;
                    self.shared.news.notify_one();
                }
            }
        }
    }

    /// Looks at the stream and at the day.
    pub(super) async fn look(&self) {
        self.look_at_stream().await;
        let now = self.shared.parts.clock.now();
        self.book().turn_to(now);
        self.show();
    }

    /// Looks how far the stream lies behind the log.
    async fn look_at_stream(&self) {
        let parts = &self.shared.parts;
        let now = parts.clock.now(); // before the ends are read: what came until now lies below them
        let applied = (parts.applied_ends)();
        let partitions = (0..applied.len() as u32).map(PartitionId);
        let waiting: Vec<Option<UtcMillis>> =
            partitions.map(|number| (parts.waiting_since)(number)).collect();
        let ends = tokio::time::timeout(ENDS_LIMIT, self.log_ends(applied.len())).await;
        let ends = ends.unwrap_or_else(|_| vec![None; applied.len()]);
        let mut book = self.book();
        let mut turned = vec![false; book.sights.len()];
        let looks = ends.into_iter().zip(applied).zip(waiting);
        for (number, ((end, applied), waiting_since)) in looks.enumerate() {
            let Some(sight) = book.sights.get_mut(number) else { break };
            let was_known = sight.is_known();
            sight.look(now, end, applied, waiting_since);
            turned[number] = sight.is_known() != was_known;
            if turned[number] {
                tracing::warn!(
                    partition = number,
                    lag_ms = sight.lag_ms(),
                    is_known = sight.is_known(),
                    "whether the spend of a partition's campaigns is known has changed"
                );
            }
        }
        if turned.contains(&true) {
            book.touch_partitions(&turned);
        }
    }

    async fn log_ends(&self, partitions: usize) -> Vec<Option<LogOffset>> {
        let bounds = (0..partitions as u32)
            .map(|number| self.shared.parts.log.bounds(Topic::AdClicks, PartitionId(number)));
        let bounds = futures::future::join_all(bounds).await;
        bounds.into_iter().map(|bounds| bounds.ok().map(|bounds| bounds.end)).collect()
    }

    /// Counts what waits, and stores the decisions that follow.
    pub(super) async fn round(&self) -> Result<()> {
        let now = self.shared.parts.clock.now();
        let proposals = {
            let mut book = self.book();
            if !book.is_seeded {
                return Ok(()); // what waits goes on waiting: values are absolute
            }
            book.count(self.shared.parts.feed.take());
            book.proposals(now)
        };
        for some in proposals.chunks(STORED_AT_ONCE) {
            self.store(some).await?;
        }
        Ok(())
    }

    async fn store(&self, proposals: &[Proposal]) -> Result<()> {
        let decisions = proposals.iter().map(|proposal| proposal.decision.clone()).collect();
        let stored = match self.shared.stores.record(decisions).await {
            Ok(stored) => stored,
            Err(error) => {
                self.take_decisions_again().await;
                return Err(error);
            }
        };
        self.shared.parts.fail_points.pass(FailPoint::BudgetDecisionStored);
        self.tell(proposals, &stored);
        let newest = stored.last().map_or(0, |decision| decision.sequence);
        self.book().accept(stored);
        self.shared.tell_newest(newest);
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
        self.shared.tell_newest(newest);
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

    fn show(&self) {
        let totals = self.book().totals();
        metrics::gauge!(BUDGET_EXHAUSTED_CAMPAIGNS).set(totals.exhausted as f64);
        metrics::gauge!(BUDGET_UNKNOWN_CAMPAIGNS).set(totals.unknown as f64);
        for (currency, micros) in totals.overspend {
            metrics::gauge!(BUDGET_OVERSPEND_MICROS, "currency" => currency.as_str().to_owned())
                .set(micros as f64);
        }
    }
}
