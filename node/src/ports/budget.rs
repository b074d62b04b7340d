//! Budgets, for the API.

use async_trait::async_trait;
use tokio::sync::watch;
use twice_actors::Budgets;
use twice_api::ports as api;
use twice_log::{CampaignId, Day};
use twice_store::BudgetReport;

/// Answers with the running budgets.
pub struct BudgetReports(pub Budgets);

#[async_trait]
impl api::BudgetControl for BudgetReports {
    fn stored(&self) -> watch::Receiver<u64> {
        self.0.stored()
    }

    async fn report(
        &self,
        campaign: &CampaignId,
        day: Option<Day>,
    ) -> Result<Option<BudgetReport>, api::PortError> {
        let report = self.0.report(campaign, day).await;
        report.map_err(|error| api::PortError::Unavailable { reason: error.with_causes() })
    }
}
