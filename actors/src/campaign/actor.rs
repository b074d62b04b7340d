//! The actor of one campaign: a mailbox around [`CampaignState`], no decision of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use actix::{Actor, Context, Handler, MessageResult};
use twice_log::ClickCopy;

use super::messages::{
    Applied, ApplyClickBatch, CloseHours, DropOldestDedup, ExpireDedup, PrepareRest, TakeChangedWindows,
    TakeSnapshot,
};
use super::state::{CampaignState, Tallies};
use crate::budget::Touched;

/// Messages a mailbox holds. Only the partition sends, and awaits each answer before the next: two is one to spare.
const MAILBOX_CAPACITY: usize = 2;

/// What `at_hand` holds while no copy is being applied.
pub(crate) const NONE_AT_HAND: i64 = -1;

/// Applies the clicks of one campaign. Runs on its partition's arbiter.
pub struct CampaignActor {
    state: CampaignState,
    /// Offset of the copy at hand: what the partition blames if the handler panics.
    at_hand: Arc<AtomicI64>,
}

impl CampaignActor {
    /// Wraps a state. `at_hand` is written before each copy is touched.
    pub fn new(state: CampaignState, at_hand: Arc<AtomicI64>) -> Self {
        Self { state, at_hand }
    }

    fn answer(&self, tallies: Tallies, touched: Option<Touched>) -> Applied {
        let (dedup_bytes, oldest_dedup) = (self.state.dedup_bytes(), self.state.oldest_dedup());
        Applied { tallies, touched, dedup_bytes, oldest_dedup }
    }
}

impl Actor for CampaignActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

impl Handler<ApplyClickBatch> for CampaignActor {
    type Result = MessageResult<ApplyClickBatch>;

    fn handle(&mut self, batch: ApplyClickBatch, _context: &mut Self::Context) -> Self::Result {
        let at_hand = &self.at_hand;
        let begin = |copy: &ClickCopy| {
            at_hand.store(copy.position.offset.0, Ordering::Relaxed);
            #[cfg(test)]
            super::tests::panic_on_poison(copy);
        };
        let (tallies, touched) = if batch.is_watched {
            self.state.apply_watched(batch.copies, &batch.seals, begin)
        } else {
            (self.state.apply(batch.copies, &batch.seals, begin), None)
        };
        at_hand.store(NONE_AT_HAND, Ordering::Relaxed);
        MessageResult(self.answer(tallies, touched))
    }
}

impl Handler<TakeChangedWindows> for CampaignActor {
    type Result = MessageResult<TakeChangedWindows>;

    fn handle(&mut self, message: TakeChangedWindows, _context: &mut Self::Context) -> Self::Result {
        MessageResult(self.state.take_windows(message.fence, message.all))
    }
}

impl Handler<CloseHours> for CampaignActor {
    type Result = MessageResult<CloseHours>;

    fn handle(&mut self, message: CloseHours, _context: &mut Self::Context) -> Self::Result {
        MessageResult(self.state.close_hours(&message.hours))
    }
}

impl Handler<TakeSnapshot> for CampaignActor {
    type Result = MessageResult<TakeSnapshot>;

    fn handle(&mut self, message: TakeSnapshot, _context: &mut Self::Context) -> Self::Result {
        MessageResult(self.state.snapshot(message.checkpoint, message.dedup_floor))
    }
}

impl Handler<PrepareRest> for CampaignActor {
    type Result = MessageResult<PrepareRest>;

    fn handle(&mut self, _message: PrepareRest, _context: &mut Self::Context) -> Self::Result {
        MessageResult(self.state.resting())
    }
}

impl Handler<ExpireDedup> for CampaignActor {
    type Result = MessageResult<ExpireDedup>;

    fn handle(&mut self, message: ExpireDedup, _context: &mut Self::Context) -> Self::Result {
        self.state.expire(message.watermark);
        MessageResult(self.answer(Tallies::default(), None))
    }
}

impl Handler<DropOldestDedup> for CampaignActor {
    type Result = MessageResult<DropOldestDedup>;

    fn handle(&mut self, message: DropOldestDedup, _context: &mut Self::Context) -> Self::Result {
        let dropped = self.state.drop_oldest_dedup(message.start);
        MessageResult((self.answer(Tallies::default(), None), dropped))
    }
}
