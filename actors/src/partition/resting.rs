//! The campaigns of a partition that are at rest: their state is in the checkpoint store, a summary of it here.
//!
//! Guarantee (G-2): only what the last commit holds in full comes to rest, and what a click brings back is what that
//! commit held. Seals, expiry and closing reach campaigns at rest as they reach those in memory.
//! Words: *shed* = let go, in a checkpoint, of windows of closed hours and of expired chunks; a campaign with nothing left
//! is forgotten.
//! Flow: rest -> (close, expire: named in the next checkpoint, which sheds) -> take, at the next click.

use std::collections::BTreeSet;

use hashbrown::{HashMap, HashSet};
use twice_log::{CampaignId, Hour, UtcMillis};

use crate::checkpoint::{CheckpointReader, LoadedCampaign, Resting};
use crate::error::{Error, Result};

/// The summaries, and the store they are of.
pub(super) struct RestingCampaigns {
    reader: CheckpointReader,
    index: HashMap<CampaignId, Resting>,
    /// Named in the checkpoint under way: their entries change, nobody reads them before it is done.
    shedding: HashSet<CampaignId>,
    /// No summary expires sooner.
    next_expiry: Option<UtcMillis>,
    /// A campaign came to rest with nothing left to decide or count.
    holds_over: bool,
}

impl RestingCampaigns {
    pub(super) fn new(reader: CheckpointReader, index: HashMap<CampaignId, Resting>) -> Self {
        let next_expiry = index.values().filter_map(Resting::next_expiry).min();
        Self { reader, index, shedding: HashSet::new(), next_expiry, holds_over: false }
    }

    pub(super) fn len(&self) -> usize {
        self.index.len() + self.shedding.len()
    }

    /// Returns the hours of which a campaign at rest has windows.
    pub(super) fn hours(&self) -> BTreeSet<Hour> {
        let mut hours = BTreeSet::new();
        for resting in self.index.values() {
            hours.extend(resting.hours().iter().map(|(hour, _)| *hour));
        }
        hours
    }

    /// Returns the campaigns that have windows.
    pub(super) fn with_windows(&self) -> Vec<CampaignId> {
        let with_windows = self.index.iter().filter(|(_, resting)| !resting.hours().is_empty());
        with_windows.map(|(campaign, _)| campaign.clone()).collect()
    }

    pub(super) fn reader(&self) -> CheckpointReader {
        self.reader.clone()
    }

    /// Returns whether the checkpoint under way changes entries of this campaign.
    pub(super) fn is_shedding(&self, campaign: &CampaignId) -> bool {
        !self.shedding.is_empty() && self.shedding.contains(campaign)
    }

    /// Takes in a campaign whose actor stops.
    pub(super) fn rest(&mut self, campaign: CampaignId, resting: Resting) {
        self.holds_over |= resting.is_over();
        self.note_expiry(&resting);
        self.index.insert(campaign, resting);
    }

    fn note_expiry(&mut self, resting: &Resting) {
        if let Some(expiry) = resting.next_expiry() {
            self.next_expiry = Some(self.next_expiry.map_or(expiry, |earliest| earliest.min(expiry)));
        }
    }

    /// Loads those of the campaigns that are at rest, off the arbiter, all at once.
    pub(super) async fn take<'a>(
        &mut self,
        campaigns: impl Iterator<Item = &'a CampaignId>,
    ) -> Result<Vec<LoadedCampaign>> {
        if self.index.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: Vec<_> = campaigns.filter_map(|campaign| self.index.remove_entry(campaign)).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let reader = self.reader.clone();
        let load = move || reader.campaigns(&wanted);
        tokio::task::spawn_blocking(load)
            .await
            .map_err(|_| Error::TaskDied { what: "loading campaigns at rest" })?
    }

    /// Names the campaigns with windows of these hours for shedding; returns what each had counted.
    pub(super) fn close_hours(&mut self, hours: &[Hour]) -> Vec<(Hour, CampaignId, u64)> {
        let mut counts = Vec::new();
        self.shed_those(|campaign, resting| {
            let before = counts.len();
            let closed = resting.hours().iter().filter(|(hour, _)| hours.contains(hour));
            counts.extend(closed.map(|(hour, counted)| (*hour, campaign.clone(), *counted)));
            counts.len() > before
        });
        counts
    }

    /// Names the campaigns with expired chunks, and those of which nothing is left.
    pub(super) fn expire(&mut self, floor: Option<UtcMillis>) {
        let has_expired = self.next_expiry.is_some_and(|expiry| Some(expiry) <= floor);
        if !has_expired && !std::mem::take(&mut self.holds_over) {
            return;
        }
        self.holds_over = false;
        self.shed_those(|_, resting| {
            resting.is_over() || resting.next_expiry().is_some_and(|expiry| Some(expiry) <= floor)
        });
        self.next_expiry = self.index.values().filter_map(Resting::next_expiry).min();
    }

    fn shed_those(&mut self, mut is_due: impl FnMut(&CampaignId, &Resting) -> bool) {
        let due = self.index.extract_if(|campaign, resting| is_due(campaign, resting));
        self.shedding.extend(due.map(|(campaign, _)| campaign));
    }

    /// Returns the campaigns that the checkpoint about to be written sheds of.
    pub(super) fn named(&self) -> Vec<CampaignId> {
        self.shedding.iter().cloned().collect()
    }

    /// Takes in what the checkpoint left of them.
    pub(super) fn shed(&mut self, left: Vec<(CampaignId, Option<Resting>)>) {
        for (campaign, resting) in left {
            self.shedding.remove(&campaign);
            if let Some(resting) = resting {
                self.rest(campaign, resting);
            }
        }
        debug_assert!(self.shedding.is_empty(), "the checkpoint named every campaign");
        self.shedding = HashSet::new();
    }
}
