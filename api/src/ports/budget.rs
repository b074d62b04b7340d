//! What the HTTP face needs of the budgets.

use async_trait::async_trait;
use tokio::sync::watch;
use twice_log::{CampaignId, Day};
use twice_store::BudgetReport;

use super::PortError;

/// Keeps spend against budgets.
#[async_trait]
pub trait BudgetControl: Send + Sync + 'static {
    /// Returns the sequence of the newest decision stored, as it grows. It closes when the node stops.
    fn stored(&self) -> watch::Receiver<u64>;

    /// Tells how a day of a campaign stands, `None` meaning today; nothing if the campaign was never set.
    async fn report(
        &self,
        campaign: &CampaignId,
        day: Option<Day>,
    ) -> Result<Option<BudgetReport>, PortError>;
}
