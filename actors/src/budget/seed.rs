//! Reading what is stored: terms, decisions, bills and windows.
//!
//! Guarantee: no call waits longer than [`STORE_LIMIT`]: who keeps budgets must notice that a store hangs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use twice_log::{CampaignId, Day, Hour, UtcMillis};
use twice_store::billing::{Page, UtcMicros};
use twice_store::windows::WindowRow;
use twice_store::{
    BilledSince, BillingQuery, BillingStore, BudgetDecision, BudgetStore, Campaign, CampaignStore,
    Error as StoreError, WindowStore,
};

use super::account::Account;
use crate::error::Result;

/// Rows a page of a list.
const PAGE_ROWS: u32 = 10_000;

/// One call may take this long. Above what the store itself waits for a lock, so that its own word comes first.
const STORE_LIMIT: Duration = Duration::from_secs(15);

/// Waits for one call of a store.
async fn within<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T> {
    match tokio::time::timeout(STORE_LIMIT, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            let reason = format!("not within {} s", STORE_LIMIT.as_secs());
            Err(StoreError::Unanswered { store: "a store that budgets need", reason }.into())
        }
    }
}

/// The stores that spend is derived from.
#[derive(Clone)]
pub(super) struct Stores {
    pub(super) windows: Arc<dyn WindowStore>,
    pub(super) billing: Arc<dyn BillingStore>,
    pub(super) campaigns: Arc<dyn CampaignStore>,
    pub(super) decisions: Arc<dyn BudgetStore>,
}

/// Amounts of billed hours, by campaign; a campaign that is not in one was billed nothing.
pub(super) type Bills = BTreeMap<Hour, HashMap<CampaignId, i64>>;

impl Stores {
    /// Returns campaigns as they are set: those named, or all.
    pub(super) async fn terms(&self, campaigns: Option<&BTreeSet<CampaignId>>) -> Result<Vec<Campaign>> {
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.terms_page(campaigns, cursor).await?;
            all.extend(page.rows);
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Returns one page of [`Stores::terms`].
    pub(super) async fn terms_page(
        &self,
        campaigns: Option<&BTreeSet<CampaignId>>,
        cursor: Option<String>,
    ) -> Result<Page<Campaign>> {
        within(self.campaigns.campaigns(campaigns, PAGE_ROWS, cursor)).await
    }

    /// Returns one campaign as it is set.
    pub(super) async fn campaign(&self, campaign: &CampaignId) -> Result<Option<Campaign>> {
        within(self.campaigns.campaign(campaign)).await
    }

    /// Returns campaigns whose terms were recorded since a moment.
    pub(super) async fn changed_since(&self, since: UtcMillis) -> Result<BTreeSet<CampaignId>> {
        within(self.decisions.campaigns_changed_since(since)).await
    }

    /// Returns the hours in `[from, to)` that runs were committed of after `since`.
    pub(super) async fn billed_since(
        &self,
        since: Option<UtcMicros>,
        from: Hour,
        to: Hour,
    ) -> Result<BilledSince> {
        within(self.decisions.billed_since(since, from, to)).await
    }

    /// Returns the bills of the hours in `[from, to)`: of all campaigns, or of one.
    pub(super) async fn bills(&self, from: Hour, to: Hour, campaign: Option<&CampaignId>) -> Result<Bills> {
        let billed = within(self.billing.billed_hours(None, from, to)).await?;
        let mut bills: Bills = billed.into_iter().map(|hour| (hour, HashMap::new())).collect();
        let mut query = BillingQuery {
            from,
            to,
            campaigns: campaign.map(|campaign| BTreeSet::from([campaign.clone()])),
            path: None,
            version: None,
            as_of: None,
            limit: PAGE_ROWS,
            cursor: None,
        };
        loop {
            let page = within(self.billing.billing(&query)).await?;
            for row in page.rows {
                if let Some(of_hour) = bills.get_mut(&row.hour) {
                    of_hour.insert(row.counts.campaign_id, row.counts.amount_micros);
                }
            }
            match page.next_cursor {
                Some(next) => query.cursor = Some(next),
                None => return Ok(bills),
            }
        }
    }

    /// Returns the last decisions of days from `first` on.
    pub(super) async fn last_decisions(&self, first: Day) -> Result<Vec<BudgetDecision>> {
        within(self.decisions.last_decisions(first)).await
    }

    /// Returns the last decision of one campaign and day.
    pub(super) async fn last_decision(
        &self,
        campaign: &CampaignId,
        day: Day,
    ) -> Result<Option<BudgetDecision>> {
        within(self.decisions.last_decision(campaign, day)).await
    }

    /// Returns the sequence of the newest decision.
    pub(super) async fn newest_sequence(&self) -> Result<u64> {
        within(self.decisions.newest_sequence()).await
    }

    /// Stores decisions. Where the store does not answer, they may be stored or not.
    pub(super) async fn record(&self, decisions: Vec<BudgetDecision>) -> Result<Vec<BudgetDecision>> {
        within(self.decisions.record_decisions(decisions)).await
    }

    /// Returns the windows stored of a campaign's days from `first` to `last`.
    pub(super) async fn windows_of(
        &self,
        campaign: &CampaignId,
        first: Day,
        last: Day,
    ) -> Result<Vec<WindowRow>> {
        within(self.windows.read(campaign, first.start(), last.end())).await
    }

    /// Derives a campaign's account of the days from `first` to `last`, decisions included.
    pub(super) async fn account(&self, terms: Campaign, first: Day, last: Day) -> Result<Account> {
        let mut account = Account::new(terms);
        let (from, to) = (first.start().hour(), last.end().hour());
        let bills = self.bills(from, to, Some(&account.campaign().clone())).await?;
        for (hour, amounts) in bills {
            let amount = amounts.get(account.campaign()).copied().unwrap_or(0);
            account.bill(hour, amount, first);
        }
        for row in self.windows_of(account.campaign(), first, last).await? {
            account.count(row.window_start, row.clicks, None, first);
        }
        for day in (first.since_epoch()..=last.since_epoch()).map(Day::from_since_epoch) {
            if let Some(decision) = self.last_decision(account.campaign(), day).await? {
                account.restore(decision);
            }
        }
        Ok(account)
    }
}
