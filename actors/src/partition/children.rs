//! The campaigns of one partition: an actor each while clicks come, at rest in the checkpoint store when idle.
//!
//! Guarantee: no message is left behind. Every send is awaited; a campaign that died is an error that ends the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message};
use futures::{StreamExt, TryStreamExt};
use hashbrown::HashMap;
use tokio::time::Instant;
use twice_log::{CampaignId, ClickCopy, Hour, LogOffset, PartitionId, UtcMillis};
use twice_store::windows::{Fence, WindowRow};

use super::resting::RestingCampaigns;
use crate::budget::SpendFeed;
use crate::campaign::{
    Applied, ApplyClickBatch, CampaignActor, CampaignState, CloseHours, DropOldestDedup, DroppedEntries,
    ExpireDedup, NONE_AT_HAND, PrepareRest, SealEnds, StreamRules, TakeChangedWindows, TakeSnapshot, Tallies,
};
use crate::checkpoint::{CampaignSnapshot, CheckpointNumber, LoadedCampaign, Resting};
use crate::error::{Error, Result};
use crate::metrics::{CAMPAIGNS_RESTED_TOTAL, CAMPAIGNS_WOKEN_TOTAL};

/// Messages to different campaigns in flight at once: enough that the arbiter never idles, few enough to stay in cache.
const SENDS_IN_FLIGHT: usize = 256;

struct Child {
    campaign: CampaignId,
    address: Addr<CampaignActor>,
    at_hand: Arc<AtomicI64>,
    dedup: DedupShare,
    /// When the campaign's oldest stored chunk expires.
    next_expiry: Option<UtcMillis>,
    unpublished: bool,
    unsaved: bool,
    /// When its last click was applied, or it was loaded.
    active: Instant,
}

#[derive(Clone, Copy, Default)]
struct DedupShare {
    bytes: u64,
    oldest_start: Option<UtcMillis>,
    oldest_latest: Option<UtcMillis>,
}

impl From<&Applied> for DedupShare {
    fn from(applied: &Applied) -> Self {
        Self {
            bytes: applied.dedup_bytes,
            oldest_start: applied.oldest_dedup.map(|oldest| oldest.start),
            oldest_latest: applied.oldest_dedup.map(|oldest| oldest.latest),
        }
    }
}

/// All campaigns of a partition. Dropping it stops their actors.
pub(super) struct Children {
    partition: PartitionId,
    rules: StreamRules,
    children: Vec<Child>,
    indices: HashMap<CampaignId, usize>,
    dedup_bytes: u64,
    resting: RestingCampaigns,
}

impl Children {
    pub(super) fn new(partition: PartitionId, rules: StreamRules, resting: RestingCampaigns) -> Self {
        let (children, indices) = (Vec::new(), HashMap::new());
        Self { partition, rules, children, indices, dedup_bytes: 0, resting }
    }

    /// Returns the campaigns that are at rest.
    pub(super) fn resting(&mut self) -> &mut RestingCampaigns {
        &mut self.resting
    }

    /// Starts the actor of a campaign a checkpoint held.
    ///
    /// Its windows count as unpublished: nobody knows whether a row in the store of windows is still there.
    fn restore(&mut self, loaded: LoadedCampaign, now: Instant) {
        let state = CampaignState::restore(loaded, self.rules);
        let has_windows = !state.windows().is_empty();
        let index = self.start(state, now);
        self.children[index].unpublished = has_windows;
    }

    fn start(&mut self, state: CampaignState, now: Instant) -> usize {
        let campaign = state.campaign().clone();
        let at_hand = Arc::new(AtomicI64::new(NONE_AT_HAND));
        let oldest = state.oldest_dedup();
        let dedup = DedupShare {
            bytes: state.dedup_bytes(),
            oldest_start: oldest.map(|oldest| oldest.start),
            oldest_latest: oldest.map(|oldest| oldest.latest),
        };
        self.dedup_bytes += dedup.bytes;
        let next_expiry = state.next_expiry();
        let address = CampaignActor::new(state, at_hand.clone()).start();
        let index = self.children.len();
        self.indices.insert(campaign.clone(), index);
        self.children.push(Child {
            campaign,
            address,
            at_hand,
            dedup,
            next_expiry,
            unpublished: false,
            unsaved: false,
            active: now,
        });
        index
    }

    /// Stops the actor of a campaign.
    fn stop(&mut self, index: usize) {
        let child = self.children.swap_remove(index);
        self.dedup_bytes -= child.dedup.bytes;
        self.indices.remove(&child.campaign);
        if let Some(moved) = self.children.get(index) {
            self.indices.insert(moved.campaign.clone(), index);
        }
    }

    /// Returns how many campaigns are in memory.
    pub(super) fn len(&self) -> usize {
        self.children.len()
    }

    /// Returns how many campaigns are at rest.
    pub(super) fn len_resting(&self) -> usize {
        self.resting.len()
    }

    pub(super) fn dedup_bytes(&self) -> u64 {
        self.dedup_bytes
    }

    /// Returns whether a campaign of the batch is at rest and the checkpoint under way changes its entries.
    pub(super) fn awaits_checkpoint(&self, groups: &[(CampaignId, Vec<ClickCopy>)]) -> bool {
        groups.iter().any(|(campaign, _)| self.resting.is_shedding(campaign))
    }

    /// Brings back the campaigns of a batch that are at rest. The caller waits for the checkpoint first, if one of them
    /// does.
    async fn wake(&mut self, groups: &[(CampaignId, Vec<ClickCopy>)], now: Instant) -> Result<u64> {
        let unknown = groups.iter().map(|(campaign, _)| campaign);
        let unknown = unknown.filter(|campaign| !self.indices.contains_key(*campaign));
        let loaded = self.resting.take(unknown).await?;
        let woken = loaded.len() as u64;
        metrics::counter!(CAMPAIGNS_WOKEN_TOTAL).increment(woken);
        loaded.into_iter().for_each(|campaign| self.restore(campaign, now));
        Ok(woken)
    }

    /// Lets campaigns without a click for `idle` leave memory. Nothing is lost with them: the caller makes sure that the
    /// last checkpoint is committed and the windows taken last are published, and each says whether it has more.
    pub(super) async fn rest_idle(&mut self, idle: Duration) -> Result<()> {
        let now = Instant::now();
        let is_idle =
            |child: &Child| !child.unsaved && !child.unpublished && now.duration_since(child.active) >= idle;
        let messages = self.select(is_idle, || PrepareRest);
        let mut rested: Vec<(usize, Resting)> = Vec::new();
        for (index, answer) in self.ask(messages).await? {
            rested.extend(answer.map(|resting| (index, resting)));
        }
        metrics::counter!(CAMPAIGNS_RESTED_TOTAL).increment(rested.len() as u64);
        // From the last to the first: whoever takes a stopped one's place has been looked at already.
        rested.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, resting) in rested {
            self.resting.rest(self.children[index].campaign.clone(), resting);
            self.stop(index);
        }
        Ok(())
    }

    /// Applies one batch: one awaited message a campaign. Says what became of it, and how many campaigns it woke; what was
    /// counted of watched campaigns goes to `spend`.
    pub(super) async fn apply(
        &mut self,
        groups: Vec<(CampaignId, Vec<ClickCopy>)>,
        seals: &Arc<SealEnds>,
        spend: &SpendFeed,
    ) -> Result<(Tallies, u64)> {
        let now = Instant::now();
        let watched = spend.watched();
        let woken = self.wake(&groups, now).await?;
        let mut messages = Vec::with_capacity(groups.len());
        for (campaign, copies) in groups {
            let index = match self.indices.get(&campaign) {
                Some(index) => *index,
                None => self.start(CampaignState::new(campaign, self.rules), now),
            };
            self.children[index].active = now;
            let is_watched = !watched.is_empty() && watched.contains(&self.children[index].campaign);
            messages.push((index, ApplyClickBatch { copies, is_watched, seals: seals.clone() }));
        }
        let (mut tallies, mut touched) = (Tallies::default(), Vec::new());
        for (index, applied) in self.ask(messages).await? {
            let child = &mut self.children[index];
            child.unsaved = true;
            child.unpublished |= applied.tallies.counted > 0;
            tallies += applied.tallies;
            self.note_dedup(index, &applied);
            touched.extend(applied.touched.map(|of_one| (self.children[index].campaign.clone(), of_one)));
        }
        if !touched.is_empty() {
            spend.put(touched);
        }
        Ok((tallies, woken))
    }

    /// Takes the windows changed since the last call, or every window.
    pub(super) async fn take_windows(&mut self, fence: Fence, all: bool) -> Result<Vec<WindowRow>> {
        let messages = self.select(|child| all || child.unpublished, || TakeChangedWindows { fence, all });
        let mut rows = Vec::new();
        for (index, taken) in self.ask(messages).await? {
            self.children[index].unpublished = false;
            rows.extend(taken);
        }
        Ok(rows)
    }

    /// Forgets the windows of sealed hours; returns what each campaign had counted.
    pub(super) async fn close_hours(&mut self, hours: Vec<Hour>) -> Result<Vec<(Hour, CampaignId, u64)>> {
        let hours = Arc::new(hours);
        let messages = self.select(|_| true, || CloseHours { hours: hours.clone() });
        let mut counts = Vec::new();
        for (index, closed) in self.ask(messages).await? {
            let child = &mut self.children[index];
            child.unsaved |= !closed.is_empty();
            let campaign = &child.campaign;
            counts.extend(closed.iter().map(|closed| (closed.hour, campaign.clone(), closed.counted)));
        }
        counts.extend(self.resting.close_hours(&hours));
        Ok(counts)
    }

    /// Takes what changed since the last checkpoint, and what expired.
    pub(super) async fn snapshot(
        &mut self,
        checkpoint: CheckpointNumber,
        dedup_floor: Option<UtcMillis>,
    ) -> Result<Vec<CampaignSnapshot>> {
        let is_due = |child: &Child| {
            child.unsaved || child.next_expiry.is_some_and(|expiry| Some(expiry) <= dedup_floor)
        };
        let messages = self.select(is_due, || TakeSnapshot { checkpoint, dedup_floor });
        let mut snapshots = Vec::new();
        for (index, snapshot) in self.ask(messages).await? {
            let child = &mut self.children[index];
            child.unsaved = false;
            child.next_expiry = snapshot.next_expiry;
            if !snapshot.is_empty() {
                snapshots.push(snapshot);
            }
        }
        Ok(snapshots)
    }

    /// Lets quiet campaigns forget what decides nothing any more, in memory and at rest.
    pub(super) async fn expire(
        &mut self,
        watermark: Option<UtcMillis>,
        dedup_floor: Option<UtcMillis>,
    ) -> Result<()> {
        let is_due =
            |child: &Child| child.dedup.oldest_latest.is_some_and(|latest| Some(latest) <= dedup_floor);
        let messages = self.select(is_due, || ExpireDedup { watermark });
        for (index, applied) in self.ask(messages).await? {
            self.note_dedup(index, &applied);
        }
        self.resting.expire(dedup_floor);
        Ok(())
    }

    /// Drops the oldest group of dedup entries of all campaigns; `None` if there is nothing to drop.
    pub(super) async fn drop_oldest_dedup(&mut self) -> Result<Option<DroppedEntries>> {
        let Some(start) = self.children.iter().filter_map(|child| child.dedup.oldest_start).min() else {
            return Ok(None);
        };
        let is_oldest = |child: &Child| child.dedup.oldest_start == Some(start);
        let messages = self.select(is_oldest, || DropOldestDedup { start });
        let mut all: Option<DroppedEntries> = None;
        for (index, (applied, dropped)) in self.ask(messages).await? {
            self.note_dedup(index, &applied);
            all = match (all, dropped) {
                (Some(all), Some(one)) => Some(all.and(&one)),
                (all, one) => all.or(one),
            };
        }
        Ok(all)
    }

    fn note_dedup(&mut self, index: usize, applied: &Applied) {
        let share = DedupShare::from(applied);
        let before = std::mem::replace(&mut self.children[index].dedup, share);
        self.dedup_bytes = self.dedup_bytes - before.bytes + share.bytes;
    }

    fn select<M>(&self, wanted: impl Fn(&Child) -> bool, message: impl Fn() -> M) -> Vec<(usize, M)> {
        let wanted = self.children.iter().enumerate().filter(|(_, child)| wanted(child));
        wanted.map(|(index, _)| (index, message())).collect()
    }

    /// Sends each message, at most [`SENDS_IN_FLIGHT`] at once, and collects every answer.
    async fn ask<M>(&self, messages: Vec<(usize, M)>) -> Result<Vec<(usize, M::Result)>>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        CampaignActor: Handler<M>,
        <CampaignActor as Actor>::Context: ToEnvelope<CampaignActor, M>,
    {
        let sends = messages.into_iter().map(|(index, message)| async move {
            let child = &self.children[index];
            match child.address.send(message).await {
                Ok(answer) => Ok((index, answer)),
                Err(_) => Err(self.died(child)),
            }
        });
        futures::stream::iter(sends).buffer_unordered(SENDS_IN_FLIGHT).try_collect().await
    }

    fn died(&self, child: &Child) -> Error {
        let at_hand = child.at_hand.load(Ordering::Relaxed);
        let offset = (at_hand != NONE_AT_HAND).then_some(LogOffset(at_hand));
        Error::CampaignDied { partition: self.partition, campaign: child.campaign.clone(), offset }
    }
}
