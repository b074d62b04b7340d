//! Operations: campaigns, reconciliations, divergence, the stream's state and health.

mod audits;
mod campaigns;
mod comparisons;
mod divergence;
mod health;
mod keys;
mod limits;
mod mode;
mod reconciliations;
mod replays;
mod retention;
mod shadow;

use crate::error::{Error, Result};

pub(crate) use audits::post_audits;
pub(crate) use campaigns::{get_campaign, get_campaigns, post_campaigns, put_campaign};
pub(crate) use comparisons::{get_comparison, get_comparisons, post_comparisons};
pub(crate) use divergence::{get_divergence, get_explain};
pub(crate) use health::{LastReadiness, get_livez, get_metrics, get_readyz, get_stream};
pub(crate) use keys::{delete_key, get_admin_actions, get_keys, post_keys};
pub(crate) use limits::{get_rate_limits, post_rate_limits_revert, put_rate_limits};
pub(crate) use mode::{get_mode, put_mode};
pub(crate) use reconciliations::{get_reconciliations, post_reconciliations};
pub(crate) use replays::post_replays;
pub(crate) use retention::post_retention;
pub(crate) use shadow::post_shadow_runs;

const LIMIT_DEFAULT: u32 = 1_000;
const LIMIT_MAX: u32 = 10_000;

/// Reads the number of rows a page is to have.
pub(crate) fn read_limit(limit: Option<u32>) -> Result<u32> {
    match limit.unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        _ => Err(Error::unprocessable(format!("limit must lie between 1 and {LIMIT_MAX}"))),
    }
}

/// Which page of a list.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageParams {
    /// Rows a page, 1 to 10 000; default 1 000.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}
