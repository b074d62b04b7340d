//! Settings of budgets.

use clap::Args;

use crate::config::check;
use crate::error::Result;

/// Looks that the longest lag allowed holds at least.
const LOOKS_A_LAG: u64 = 3;

/// Settings of budgets. None of them changes a count or a bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct BudgetConfig {
    /// How far the stream may lie behind the log before the spend of strict campaigns counts as unknown and they stop.
    /// Shorter stops them for less; longer lets them overspend unseen. 1_000 to 600_000, at least three times
    /// `budget_look_ms`, default 10_000.
    #[arg(long, default_value_t = BudgetConfig::default().budget_lag_ms_max)]
    pub budget_lag_ms_max: u64,
    /// How long the stream must have kept up before the spend of strict campaigns counts as known again. Longer means fewer
    /// changes of state where the lag comes and goes. 0 to 600_000, default 5_000.
    #[arg(long, default_value_t = BudgetConfig::default().budget_settle_ms)]
    pub budget_settle_ms: u64,
    /// Wait between two looks at budgets set, hours billed and the stream's lag. Shorter means more reads of the store. 100
    /// to 10_000, default 1_000. Clicks are looked at as they are counted, whatever this says.
    #[arg(long, default_value_t = BudgetConfig::default().budget_look_ms)]
    pub budget_look_ms: u64,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { budget_lag_ms_max: 10_000, budget_settle_ms: 5_000, budget_look_ms: 1_000 }
    }
}

impl BudgetConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the first setting out of bounds.
    pub fn validate(&self) -> Result<()> {
        check("budget_lag_ms_max", self.budget_lag_ms_max, 1_000, 600_000)?;
        check("budget_settle_ms", self.budget_settle_ms, 0, 600_000)?;
        check("budget_look_ms", self.budget_look_ms, 100, 10_000)?;
        // While clicks come, what was counted is as old as the look before: the limit must lie well above that.
        let lag_min = LOOKS_A_LAG * self.budget_look_ms;
        check("budget_lag_ms_max, which must hold three looks", self.budget_lag_ms_max, lag_min, 600_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_that_every_look_would_reach_is_refused() {
        let config = |lag, look| BudgetConfig {
            budget_lag_ms_max: lag,
            budget_look_ms: look,
            ..BudgetConfig::default()
        };
        assert!(config(1_000, 1_000).validate().is_err());
        assert!(config(10_000, 10_000).validate().is_err());
        assert!(config(3_000, 1_000).validate().is_ok());
        assert!(BudgetConfig::default().validate().is_ok());
    }
}
