//! CampaignState against a naive model.

use twice_log::ClickCopy;

/// Panics on a copy made to kill its actor: `ad_id` "poison".
pub(super) fn panic_on_poison(copy: &ClickCopy) {
    assert_ne!(copy.click.ad_id.as_str(), "poison", "poisoned copy");
}
