//! The campaign actors of one partition: created on first sight, asked together, answered one by one.
//!
//! Guarantee: no message is left behind. Every send is awaited; a campaign that died is an error that ends the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message};
use futures::{StreamExt, TryStreamExt};
use hashbrown::HashMap;
use twice_log::{CampaignId, ClickCopy, Hour, LogOffset, PartitionId, UtcMillis};
use twice_store::windows::{Fence, WindowRow};

use crate::campaign::{
    Applied, ApplyClickBatch, CampaignActor, CampaignState, CloseHours, DropOldestDedup, DroppedEntries,
    ExpireDedup, NONE_AT_HAND, SealEnds, StreamRules, TakeChangedWindows, TakeSnapshot, Tallies,
};
use crate::checkpoint::{CampaignSnapshot, CheckpointNumber, LoadedCampaign};
use crate::error::{Error, Result};

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

/// All campaign actors of a partition. Dropping it stops them.
pub(super) struct Children {
    partition: PartitionId,
    rules: StreamRules,
    children: Vec<Child>,
    indices: HashMap<CampaignId, usize>,
    dedup_bytes: u64,
}

impl Children {
    pub(super) fn new(partition: PartitionId, rules: StreamRules) -> Self {
        Self { partition, rules, children: Vec::new(), indices: HashMap::new(), dedup_bytes: 0 }
    }

    /// Starts the actor of a campaign a checkpoint held.
    pub(super) fn restore(&mut self, loaded: LoadedCampaign) {
        let state = CampaignState::restore(loaded, self.rules);
        let has_windows = !state.windows().is_empty();
        let index = self.start(state);
        self.children[index].unpublished = has_windows;
    }

    fn start(&mut self, state: CampaignState) -> usize {
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
        });
        index
    }

    pub(super) fn len(&self) -> usize {
        self.children.len()
    }

    pub(super) fn dedup_bytes(&self) -> u64 {
        self.dedup_bytes
    }

    pub(super) fn has_unpublished(&self) -> bool {
        self.children.iter().any(|child| child.unpublished)
    }

    /// Applies one batch: one awaited message a campaign.
    pub(super) async fn apply(
        &mut self,
        groups: Vec<(CampaignId, Vec<ClickCopy>)>,
        seals: &Arc<SealEnds>,
    ) -> Result<Tallies> {
        let mut messages = Vec::with_capacity(groups.len());
        for (campaign, copies) in groups {
            let index = match self.indices.get(&campaign) {
                Some(index) => *index,
                None => self.start(CampaignState::new(campaign, self.rules)),
            };
            messages.push((index, ApplyClickBatch { copies, seals: seals.clone() }));
        }
        let mut tallies = Tallies::default();
        for (index, applied) in self.ask(messages).await? {
            let child = &mut self.children[index];
            child.unsaved = true;
            child.unpublished |= applied.tallies.counted > 0;
            tallies += applied.tallies;
            self.note_dedup(index, &applied);
        }
        Ok(tallies)
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

    /// Lets idle campaigns forget what decides nothing any more.
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
