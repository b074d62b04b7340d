//! Taking over what is stored: terms, decisions, bills and windows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use twice_log::{CampaignId, Day, Hour};
use twice_store::{
    BillingQuery, BillingStore, BudgetDecision, BudgetStore, Campaign, CampaignStore, WindowStore,
};

use super::account::Account;
use crate::error::Result;

/// Rows a page of a list.
const PAGE_ROWS: u32 = 10_000;

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
            let page = self.campaigns.campaigns(campaigns, PAGE_ROWS, cursor).await?;
            all.extend(page.rows);
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Returns the bills of the hours in `[from, to)`: of all campaigns, or of one.
    pub(super) async fn bills(&self, from: Hour, to: Hour, campaign: Option<&CampaignId>) -> Result<Bills> {
        let billed = self.billing.billed_hours(None, from, to).await?;
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
            let page = self.billing.billing(&query).await?;
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
        Ok(self.decisions.last_decisions(first).await?)
    }

    /// Counts the windows stored of a campaign's days from `first` to `last` into its account.
    pub(super) async fn windows_of(&self, account: &mut Account, first: Day, last: Day) -> Result<()> {
        let rows = self.windows.read(account.campaign(), first.start(), last.end()).await?;
        for row in rows {
            account.count(row.window_start, row.clicks, None, first);
        }
        Ok(())
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
        self.windows_of(&mut account, first, last).await?;
        for day in (first.since_epoch()..=last.since_epoch()).map(Day::from_since_epoch) {
            if let Some(decision) = self.decisions.last_decision(account.campaign(), day).await? {
                account.restore(decision);
            }
        }
        Ok(account)
    }
}
