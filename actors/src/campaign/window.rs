//! The counts of one minute of one campaign.

use hashbrown::HashMap;
use twice_log::{AdId, CampaignId, Click, UtcMillis};
use twice_store::sketch::UserSketch;
use twice_store::windows::{AdCounts, Fence, WindowRow};

use crate::checkpoint::StoredEntry;

/// Clicks and users of one ad within a window.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdTally {
    pub clicks: u64,
    pub users: UserSketch,
}

/// The counts of one minute, and which of them others know already.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Window {
    pub clicks: u64,
    pub users: UserSketch,
    pub ads: HashMap<AdId, AdTally>,
    pub(super) unpublished: bool,
    pub(super) unsaved: bool,
    /// The checkpoint entry that holds an earlier value of this window.
    pub(super) stored: Option<StoredEntry>,
}

impl Window {
    /// Starts from totals stored before; the ads follow.
    pub fn new(clicks: u64, users: UserSketch) -> Self {
        Self { clicks, users, ..Self::default() }
    }

    /// Counts one click.
    pub fn count(&mut self, click: Click) {
        self.clicks += 1;
        self.users.insert(&click.user_id);
        let ad = self.ads.entry(click.ad_id).or_default();
        ad.clicks += 1;
        ad.users.insert(&click.user_id);
    }

    /// Returns the ads in order of id.
    pub fn sorted_ads(&self) -> Vec<(&AdId, &AdTally)> {
        let mut ads: Vec<_> = self.ads.iter().collect();
        ads.sort_unstable_by_key(|(ad_id, _)| *ad_id);
        ads
    }

    /// Returns the window as the real-time store keeps it.
    pub fn row(&self, campaign_id: &CampaignId, window_start: UtcMillis, fence: Fence) -> WindowRow {
        let ads = self.sorted_ads().into_iter().map(|(ad_id, tally)| AdCounts {
            ad_id: ad_id.clone(),
            clicks: tally.clicks,
            users: tally.users.clone(),
        });
        WindowRow {
            campaign_id: campaign_id.clone(),
            window_start,
            fence,
            clicks: self.clicks,
            users: self.users.clone(),
            ads: ads.collect(),
        }
    }
}
